"""RLlib's own offline algorithms on the package's datasets."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import ray
from ray.rllib.algorithms.bc import BCConfig
from ray.rllib.algorithms.cql import CQLConfig
from ray.rllib.algorithms.iql import IQLConfig
from ray.rllib.algorithms.marwil import MARWILConfig
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.offline.offline_data import OfflineData

from rllib_damo import DAMOConfig, write_parquet
from rllib_damo.command.offline import read_datasets
from rllib_damo.data.generate import datasets
from rllib_damo.data.rllib_input import RLlibOfflineData, read_transitions, rows_for_rllib, with_package_readers
from rllib_damo.data.schema import Transitions
from rllib_damo.errors import DataError
from rllib_damo.utils.arrow import from_arrow
from tests.data_helpers import ACTION_SPACE, make_transitions


class Holder:
    def ready(self) -> bool:
        return True


@pytest.fixture(scope="module")
def no_free_cpu() -> Any:
    """The only CPU is taken, as by the trial that a run of the command is."""
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
    holder = ray.remote(Holder).options(num_cpus=1).remote()
    ray.get(holder.ready.remote())
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def dataset() -> Transitions:
    return datasets.generate("pendulum-mixed", 1000, seed=0)


@pytest.fixture(scope="module")
def file(dataset: Transitions, tmp_path_factory: Any) -> str:
    return str(write_parquet(dataset, tmp_path_factory.mktemp("data") / "pendulum.parquet"))


def offline(config: Any, file: str, **options: Any) -> Any:
    return config.environment("Pendulum-v1").offline_data(input_=file, **options)


@pytest.mark.parametrize("config_class", [BCConfig, MARWILConfig, CQLConfig, IQLConfig])
@pytest.mark.usefixtures("no_free_cpu")
def test_rllibs_algorithms_train(config_class: type, file: str) -> None:
    config = offline(config_class(), file, dataset_num_iters_per_learner=3)
    config = config.training(train_batch_size_per_learner=64)
    if config_class is MARWILConfig:
        config = config.training(beta=1.0)
    algo = with_package_readers(config).build_algo()
    assert isinstance(algo.offline_data, RLlibOfflineData)
    for _ in range(2):
        learner = algo.train()["learners"][DEFAULT_MODULE_ID]
        assert np.isfinite(learner["total_loss"])
    if config_class is CQLConfig:  # RLlib adds CQL's count to itself again, in some runs
        assert learner["num_module_steps_trained_lifetime"] >= 2 * 3 * 64
    else:
        assert learner["num_module_steps_trained_lifetime"] == 2 * 3 * 64
    algo.stop()


def test_rows_are_the_datasets_in_another_order() -> None:
    transitions = make_transitions(lengths=(4, 1, 7))
    columns = from_arrow(rows_for_rllib(transitions, ACTION_SPACE))
    order = [int(np.flatnonzero((transitions.observations == row).all(1))[0]) for row in columns["obs"]]
    assert sorted(order) == list(range(12))
    assert order != sorted(order)
    for key, name in (("new_obs", "next_observations"), ("rewards", "rewards"), ("terminateds", "terminations"),
                      ("truncateds", "truncations")):  # fmt: skip
        np.testing.assert_array_equal(columns[key], getattr(transitions, name)[order])
    bounds = ACTION_SPACE.low, ACTION_SPACE.high
    unit = 2 * (transitions.actions[order] - bounds[0]) / (bounds[1] - bounds[0]) - 1
    np.testing.assert_allclose(columns["actions"], unit, atol=1e-6)


def test_names_are_those_of_the_package(dataset: Transitions, file: str) -> None:
    config = with_package_readers(offline(CQLConfig(), file))
    assert read_transitions(config).fingerprint() == dataset.fingerprint()
    assert config.dataset_num_iters_per_learner == 1000
    config.validate()
    with pytest.raises(DataError, match="Did you mean pendulum-mixed"):
        read_transitions(offline(CQLConfig(), "pendulum-mixd"))


def test_the_command_reads_it_first(file: str, capsys: Any) -> None:
    read_datasets([with_package_readers(offline(CQLConfig(), file)), PPOConfig()])
    assert re.search(r"1,000 transitions, 5 episodes of mean return -\d+", " ".join(capsys.readouterr().out.split()))


def test_data_of_another_environment_is_refused(file: str) -> None:
    with pytest.raises(DataError, match="observations have width 3, but the environment's space has 11"):
        read_transitions(CQLConfig().environment("Hopper-v5").offline_data(input_=file))


@pytest.mark.parametrize(
    "config",
    [
        PPOConfig().environment("Pendulum-v1"),
        DAMOConfig().environment("Pendulum-v1").offline_data(input_="pendulum-mixed"),
        BCConfig().environment("CartPole-v1").offline_data(input_="recordings"),
        BCConfig().environment("Pendulum-v1").offline_data(input_="recordings", input_read_episodes=True),
        BCConfig().environment("Pendulum-v1").offline_data(input_="recordings", offline_data_class=OfflineData),
    ],
    ids=["online", "of the package", "discrete actions", "episodes", "own class"],
)
def test_other_configs_are_left_alone(config: Any) -> None:
    assert with_package_readers(config) is config
