"""The value of a policy in training, in RLlib's place of offline evaluations."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rllib_damo import DAMO, BehaviorCloningConfig
from rllib_damo.core import offline_evaluation
from rllib_damo.core.offline_evaluation import ValueWatch
from rllib_damo.data.generate import datasets
from rllib_damo.data.generate.controllers import PendulumMixed
from rllib_damo.errors import UserError
from tests.small_runs import make_small, train_policy


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offline_evaluation, "default_steps", lambda rows: 20)
    monkeypatch.setattr(offline_evaluation, "_STEPS", 5)


@pytest.mark.parametrize("wrong", [{"offline_evaluation_type": "is"}, {"num_offline_eval_runners": 1}])
def test_rllibs_own_estimators_are_refused(wrong):
    config = BehaviorCloningConfig().environment("Pendulum-v1").offline_data(input_="pendulum-mixed")
    with pytest.raises(ValueError, match="fitted Q evaluation"):
        config.evaluation(offline_evaluation_interval=1, **wrong).validate()


@pytest.mark.usefixtures("ray_cluster")
def test_data_in_windows_are_refused(dataset):
    config = make_small(BehaviorCloningConfig(), dataset, "").offline_data(max_dataset_rows=800)
    config.evaluation(evaluation_interval=None, offline_evaluation_interval=1)
    with pytest.raises(UserError, match=r"offline_evaluation_interval=1 needs .* larger than max_dataset_rows=800"):
        config.build_algo()


def test_a_value_beyond_the_data_is_implausible(monkeypatch):
    import gymnasium as gym

    space = gym.spaces.Box(-2.0, 2.0, (1,))
    watch = ValueWatch(datasets.generate("pendulum-mixed", 2000, seed=0), space, 0.9, seed=0)
    swing_up = PendulumMixed().swing_up

    def policy(obs: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(swing_up(obs.numpy())[:, None].astype(np.float32)) / 2

    found = watch.measure(policy)
    assert found["implausible"] == 0
    assert abs(found["fqe_against_clone"]) < abs(found["fqe_value"])
    values = watch._fqe.values
    monkeypatch.setattr(watch._fqe, "values", lambda: values() + torch.tensor([1000.0, 0])[:, None, None])
    assert watch.measure(policy)["implausible"] == 1


@pytest.mark.usefixtures("ray_cluster")
def test_a_run_reports_it_and_a_restored_one_goes_on(config, tmp_path):
    """Where there is no environment to play in."""
    config.evaluation(evaluation_interval=None, offline_evaluation_interval=1)
    algo = config.build_algo()
    assert "fqe_value" not in algo.train().get("evaluation", {}).get("offline_eval_runners", {})  # the model's epochs
    result = train_policy(algo, 1)["evaluation"]["offline_eval_runners"]
    assert set(result) == {"fqe_value", "fqe_against_clone", "implausible", "seconds"}
    assert np.isfinite(list(result.values())).all()
    path = algo.save_to_path(str(tmp_path / "checkpoint"))
    expected = train_policy(algo, 1)["evaluation"]["offline_eval_runners"]
    algo.stop()
    restored = DAMO.from_checkpoint(path)
    found = train_policy(restored, 1)["evaluation"]["offline_eval_runners"]
    assert found["fqe_value"] == expected["fqe_value"]
    restored.stop()


@pytest.mark.usefixtures("ray_cluster")
def test_it_stands_beside_an_evaluation(dataset, cache_dir):
    config = make_small(BehaviorCloningConfig(), dataset, cache_dir)
    algo = config.evaluation(offline_evaluation_interval=1).build_algo()
    found = algo.train()["evaluation"]
    assert set(found) >= {"env_runners", "offline_eval_runners"}
    algo.stop()
