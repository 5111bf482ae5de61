"""The algorithms' names, for Ray Tune and `rllib train --algo`."""

from __future__ import annotations

from functools import partial
from typing import TypeVar

from ray.rllib.algorithms import registry
from ray.tune.registry import register_trainable

from rllib_damo.core.algorithm import OfflineAlgorithm
from rllib_damo.core.config import OfflineConfig

#: The registered algorithms by name.
ALGORITHMS: dict[str, type[OfflineAlgorithm]] = {}

_Class = TypeVar("_Class", bound=type[OfflineAlgorithm])


def register_algorithm(algorithm: _Class) -> _Class:
    """Makes an algorithm known by its class's name, to Tune and in RLlib's table; may be used as a decorator.

    Tune turns to RLlib's table after ``ray.shutdown()``, which forgets Tune's own.
    """
    name = algorithm.__name__
    ALGORITHMS[name] = algorithm
    register_trainable(name, algorithm)
    registry.ALGORITHMS[name] = partial(_class_and_config, algorithm)
    return algorithm


def _class_and_config(algorithm: type[OfflineAlgorithm]) -> tuple[type[OfflineAlgorithm], OfflineConfig]:
    return algorithm, algorithm.get_default_config()
