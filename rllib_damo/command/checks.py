"""Finds mistakes in a config, in this process and before Ray starts, that would otherwise appear in a worker."""

from __future__ import annotations

import itertools
import math
import numbers
from collections.abc import Iterator
from typing import Any

import ray
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.tune.search.variant_generator import generate_variants, parse_spec_vars

from rllib_damo.core.config import OfflineConfig
from rllib_damo.core.resources import lacking
from rllib_damo.errors import UsageError
from rllib_damo.utils.ray_internals import without_advice

_MAX_VARIANTS = 100
#: Least and greatest value.
_WHOLE_NUMBERS = {
    "seed": (0, 2**32 - 1),
    "evaluation_interval": (0, 2**31 - 1),
    **dict.fromkeys(
        ("num_env_runners", "num_envs_per_env_runner", "evaluation_num_env_runners", "num_learners"), (0, 100000)
    ),
}
_MAY_BE_NONE = ("seed", "evaluation_interval")
_CHOICES = {
    "evaluation_duration_unit": ("episodes", "timesteps"),
    "placement_strategy": ("PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"),
    "log_level": ("DEBUG", "INFO", "WARN", "ERROR"),
}


def check_config(config: AlgorithmConfig) -> list[AlgorithmConfig]:
    """Validates the config, and the first 100 points of a search.

    Returns:
        The configs that were validated: one for each point.

    Raises:
        UsageError: for an option that is not valid.
    """
    configs = list(variants(config))
    try:
        for variant in configs:
            _check_whole_numbers(variant)
            _check_kinds(variant)
            variant.validate()
    except (ValueError, TypeError, KeyError, ImportError) as error:
        # without RLlib's last line, which advises to switch the checks off
        raise UsageError(f"the config is not valid: {without_advice(error)}") from error
    return configs


def _check_whole_numbers(config: AlgorithmConfig) -> None:
    """Checks settings whose wrong values RLlib finds late or not at all."""
    for name, (least, most) in _WHOLE_NUMBERS.items():
        value = getattr(config, name)
        is_whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
        if not (is_whole and least <= value <= most) and not (value is None and name in _MAY_BE_NONE):
            none = "None or " if name in _MAY_BE_NONE else ""
            raise UsageError(f"`{name}` must be {none}a whole number from {least} to {most}; found {value!r}.")


def _check_kinds(config: AlgorithmConfig) -> None:
    """Checks what RLlib does not: text or NaN in the place of a number, and text that is none of a few words."""
    for name, words in _CHOICES.items():
        if getattr(config, name) not in words:
            raise UsageError(f"`{name}` must be one of {', '.join(words)}; found {getattr(config, name)!r}.")
    # This package's own options are checked by their tables, and some are a number or a word.
    is_own = isinstance(config, OfflineConfig) or config.algo_class is None
    defaults = vars(AlgorithmConfig() if is_own else config.algo_class.get_default_config())
    for name, default in defaults.items():
        value = getattr(config, name, None)
        is_number = isinstance(default, (bool, int, float)) or name.startswith(("num_", "min_", "max_"))
        if isinstance(value, str) and value != "auto" and is_number:
            kind = "True or False" if isinstance(default, bool) else "a number"
            raise UsageError(f"`{name}` must be {kind}; found {value!r}.")
        if isinstance(value, float) and math.isnan(value):
            raise UsageError(f"`{name}` must be a number; found nan.")
        if name.startswith(("num_cpus", "num_gpus")) and isinstance(value, (int, float)) and value < 0:
            raise UsageError(f"`{name}` must not be negative; found {value!r}.")


def variants(config: AlgorithmConfig) -> Iterator[AlgorithmConfig]:
    """A config for each point of a search's grids, with random values drawn; a copy of a config without a search."""
    if not has_search_space(config):
        yield config.copy(copy_frozen=False)
        return
    for _, values in itertools.islice(generate_variants(config.to_dict()), _MAX_VARIANTS):
        yield config.copy(copy_frozen=False).update_from_dict(values)


def has_search_space(config: AlgorithmConfig) -> bool:
    """Whether a setting is a Tune search space (grid_search, uniform, ...)."""
    return bool(search_space(config))


def search_space(config: AlgorithmConfig) -> list[tuple[str, ...]]:
    """Paths of the settings that are search spaces."""
    _, domains, grids = parse_spec_vars(config.to_dict())
    return [path for path, _ in [*grids, *domains]]


def check_resources(config: AlgorithmConfig) -> None:
    """Checks that one trial fits into the running Ray; Tune would wait for the resources forever.

    Raises:
        UsageError: if Ray has too few of a resource.
    """
    if has_search_space(config) or config.algo_class is None:
        return
    algorithm: Any = config.algo_class
    needed = algorithm.default_resource_request(config).required_resources
    for resource, amount, there in lacking(needed, ray.cluster_resources()):
        fix = {"CPU": "Raise --ray-num-cpus", "GPU": "Raise --ray-num-gpus"}.get(resource, "Add nodes")
        raise UsageError(
            f"the config asks for {amount:g} {resource}, but Ray has {there:g}. {fix}, or lower num_env_runners, "
            "evaluation_num_env_runners, num_learners or their shares."
        )
