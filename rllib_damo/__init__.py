"""DAMO, Dual Alignment Maximin Optimization for offline model-based RL (arXiv 2502.00850), as an RLlib plugin.

Importing the package registers "DAMO" and the baselines "MOPO", "TD3BC" and "BehaviorCloning" with Ray Tune.
"""

from __future__ import annotations

from functools import partial

from ray.rllib.algorithms import registry
from ray.tune.registry import register_trainable

from rllib_damo.baselines import MOPO, TD3BC, BehaviorCloning
from rllib_damo.core.algorithm import DAMO
from rllib_damo.core.config import DAMOConfig

__version__ = "0.1.0"
__all__ = ["ALGORITHMS", "DAMO", "DAMOConfig"]

#: The package's algorithms, by the names that `rllib train --algo` and Tune know them by.
ALGORITHMS = {algorithm.__name__: algorithm for algorithm in (DAMO, MOPO, TD3BC, BehaviorCloning)}


def _register() -> None:
    """Makes the names known to Tune and in RLlib's table, to which Tune turns after ``ray.shutdown()`` forgot them."""
    for name, algorithm in ALGORITHMS.items():
        register_trainable(name, algorithm)
        registry.ALGORITHMS[name] = partial(_class_and_config, algorithm)


def _class_and_config(algorithm: type[DAMO]) -> tuple[type[DAMO], DAMOConfig]:
    return algorithm, algorithm.get_default_config()


_register()
