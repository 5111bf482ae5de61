"""A small run on Pendulum, for the tests of whole runs."""

from __future__ import annotations

import pytest
import ray

from rllib_damo import DAMOConfig
from rllib_damo.data.formats.parquet import write_parquet
from rllib_damo.data.generate import datasets


@pytest.fixture(scope="module")
def ray_cluster():
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def dataset(tmp_path_factory) -> str:
    """A small Pendulum dataset in a Parquet file."""
    path = tmp_path_factory.mktemp("data") / "pendulum.parquet"
    write_parquet(datasets.generate("pendulum-mixed", 2000, seed=0), path)
    return str(path)


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory) -> str:
    return str(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def config(dataset, cache_dir) -> DAMOConfig:
    return (
        DAMOConfig()
        .environment("Pendulum-v1")
        .offline_data(input_=dataset)
        .training(
            eta=1.0, hidden_dims=(32, 32), train_batch_size_per_learner=32, rollout_freq=20, rollout_batch_size=100,
            rollout_length=2,
        )
        .dynamics(
            num_ensemble=3, num_elites=2, dynamics_hidden_dims=(32, 32), dynamics_weight_decay=(0.0, 0.0, 0.0),
            dynamics_max_epochs=2, holdout_size=100, dynamics_cache_dir=cache_dir,
        )
        .evaluation(evaluation_interval=1, evaluation_duration=1)
        .debugging(seed=3)
    )  # fmt: skip
