"""What the tests of whole runs have in common, beside the fixtures of `conftest.py`."""

from __future__ import annotations

from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.core import DEFAULT_MODULE_ID


def train_policy(algo: Algorithm, iterations: int) -> dict:
    """Trains until ``iterations`` rounds of gradient steps are done; returns the last result."""
    result: dict = {}
    while iterations:
        result = algo.train()
        iterations -= result["phase"] == "policy"
    return result


def module_state(algo: Algorithm) -> dict:
    return algo.learner_group.get_state(components="learner/rl_module")["learner"]["rl_module"][DEFAULT_MODULE_ID]
