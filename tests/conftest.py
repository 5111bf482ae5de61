"""A small run on Pendulum, for the tests of whole runs."""

from __future__ import annotations

import os

# before torch and Ray are imported, and for the commands that tests start: a cluster of each test's own, whatever
# cluster runs on the machine, and one thread for each of several test processes
os.environ.setdefault("RAY_ADDRESS", "local")
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import ray

from rllib_damo import DAMOConfig
from tests.small_runs import make_small, write_dataset


@pytest.fixture(scope="module")
def ray_cluster():
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def dataset(tmp_path_factory) -> str:
    """A small Pendulum dataset in a Parquet file."""
    return write_dataset(tmp_path_factory.mktemp("data") / "pendulum.parquet", 2000, seed=0)


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory) -> str:
    return str(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def config(dataset, cache_dir) -> DAMOConfig:
    return make_small(DAMOConfig(), dataset, cache_dir).training(eta=1.0)
