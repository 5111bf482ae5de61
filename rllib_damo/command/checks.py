"""Finds mistakes in a config, in this process and before Ray starts, that would otherwise appear in a worker."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import ray
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.tune.search.variant_generator import generate_variants, parse_spec_vars

from rllib_damo.core.config import OfflineConfig
from rllib_damo.core.resources import lacking
from rllib_damo.core.rllib_values import check_rllib_values
from rllib_damo.errors import UsageError
from rllib_damo.utils.ray_internals import without_advice

_MAX_VARIANTS = 100


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
            if not isinstance(variant, OfflineConfig):  # which checks this itself
                algorithm = variant.algo_class
                check_rllib_values(variant, algorithm.get_default_config() if algorithm else AlgorithmConfig())
            variant.validate()
    except (ValueError, TypeError, KeyError, ImportError) as error:
        # without RLlib's last line, which advises to switch the checks off
        raise UsageError(f"the config is not valid: {without_advice(error)}") from error
    return configs


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
