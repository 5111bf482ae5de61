"""Checks RLlib's own options, whose wrong values RLlib finds late or not at all."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping
from typing import Any

from ray.rllib.algorithms.algorithm_config import AlgorithmConfig

#: Least and greatest value.
_WHOLE_NUMBERS = {
    "seed": (0, 2**32 - 1),
    **dict.fromkeys(("evaluation_interval", "offline_evaluation_interval"), (0, 2**31 - 1)),
    **dict.fromkeys(
        ("num_env_runners", "num_envs_per_env_runner", "evaluation_num_env_runners", "num_learners"), (0, 100000)
    ),
}
_MAY_BE_NONE = ("seed", "evaluation_interval", "offline_evaluation_interval")
_CHOICES = {
    "evaluation_duration_unit": ("episodes", "timesteps"),
    "placement_strategy": ("PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"),
    "log_level": ("DEBUG", "INFO", "WARN", "ERROR"),
}


def check_rllib_values(config: AlgorithmConfig, default: AlgorithmConfig) -> None:
    """Checks numbers and words among the options of ``default``, a config of RLlib's in which nothing is set.

    Raises:
        ValueError: at the first wrong one, which it names.
    """
    _check_whole_numbers(config)
    _check_kinds(config, vars(default))


def _check_whole_numbers(config: AlgorithmConfig) -> None:
    """Checks settings whose wrong values RLlib finds late or not at all."""
    for name, (least, most) in _WHOLE_NUMBERS.items():
        value = getattr(config, name)
        is_whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
        if not (is_whole and least <= value <= most) and not (value is None and name in _MAY_BE_NONE):
            none = "None or " if name in _MAY_BE_NONE else ""
            raise ValueError(f"`{name}` must be {none}a whole number from {least} to {most}; found {value!r}.")


def _check_kinds(config: AlgorithmConfig, defaults: Mapping[str, Any]) -> None:
    """Checks what RLlib does not: text or NaN in the place of a number, and text that is none of a few words."""
    for name, words in _CHOICES.items():
        if getattr(config, name) not in words:
            raise ValueError(f"`{name}` must be one of {', '.join(words)}; found {getattr(config, name)!r}.")
    for name, default in defaults.items():
        value = getattr(config, name, None)
        is_number = isinstance(default, (bool, int, float)) or name.startswith(("num_", "min_", "max_"))
        if isinstance(value, str) and value != "auto" and is_number:
            kind = "True or False" if isinstance(default, bool) else "a number"
            raise ValueError(f"`{name}` must be {kind}; found {value!r}.")
        if isinstance(value, float) and math.isnan(value):
            raise ValueError(f"`{name}` must be a number; found nan.")
        if name.startswith(("num_cpus", "num_gpus")) and isinstance(value, (int, float)) and value < 0:
            raise ValueError(f"`{name}` must not be negative; found {value!r}.")
