"""What the tests of whole runs have in common, beside the fixtures of `conftest.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.core import DEFAULT_MODULE_ID

from rllib_damo.core.config import ModelBasedConfig, OfflineConfig
from rllib_damo.data.formats.parquet import write_parquet
from rllib_damo.data.generate import datasets

Config = TypeVar("Config", bound=OfflineConfig)


def make_small(config: Config, dataset: Any, cache_dir: str) -> Config:
    """A run on Pendulum with networks and rounds that take no time; the dynamics model is the same for all."""
    config.environment("Pendulum-v1").offline_data(input_=dataset).debugging(seed=3)
    config.training(hidden_dims=(32, 32), train_batch_size_per_learner=32, rollout_freq=20)
    config.evaluation(evaluation_interval=1, evaluation_duration=1)
    if isinstance(config, ModelBasedConfig):
        config.training(rollout_batch_size=100, rollout_length=2)
        config.dynamics(
            num_ensemble=3, num_elites=2, dynamics_hidden_dims=(32, 32), dynamics_weight_decay=(0.0, 0.0, 0.0),
            dynamics_max_epochs=2, holdout_size=100, dynamics_cache_dir=cache_dir,
        )  # fmt: skip
    return config


def write_dataset(path: Path, rows: int, seed: int) -> str:
    """Writes a recording of Pendulum to a Parquet file; returns its path."""
    return str(write_parquet(datasets.generate("pendulum-mixed", rows, seed=seed), path))


def train_policy(algo: Algorithm, iterations: int) -> dict:
    """Trains until ``iterations`` rounds of gradient steps are done; returns the last result."""
    result: dict = {}
    while iterations:
        result = algo.train()
        iterations -= result["phase"] == "policy"
    return result


def module_state(algo: Algorithm) -> dict:
    return algo.learner_group.get_state(components="learner/rl_module")["learner"]["rl_module"][DEFAULT_MODULE_ID]
