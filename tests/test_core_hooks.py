"""Hooks of the shared algorithms in whole runs: extra columns, scaled rewards, and the model in the update."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.utils.test_utils import check

from rllib_damo import ALGORITHMS, MOPO, TD3BC, MOPOConfig, TD3BCConfig
from rllib_damo.baselines.mopo import MOPOTorchLearner
from rllib_damo.baselines.td3bc import TD3BCTorchLearner, TD3BCUpdate
from rllib_damo.core.sac import SACUpdate
from rllib_damo.core.update import Draw, Metrics, RowGroup, StepBatch
from rllib_damo.data import sources
from rllib_damo.data.schema import Transitions
from rllib_damo.dynamics.ensemble import DynamicsEnsemble
from rllib_damo.utils import ray_internals
from tests.small_runs import make_small, module_state, train_policy

pytestmark = pytest.mark.usefixtures("ray_cluster")
SCALE = 8.0


def learner_of(algo: Any) -> Any:
    return ray_internals.local_learner(algo.learner_group)


# -- extra columns and scaled rewards --------------------------------------------------------------------------------


class Copies(TD3BC):
    """Gives its update a copy of what each row holds; rewards are scaled."""

    def extra_columns(self, transitions: Transitions, unit_actions: np.ndarray) -> dict[str, np.ndarray]:
        return {"copy": np.concatenate((transitions.observations, unit_actions, transitions.rewards[:, None]), axis=1)}

    def reward_scale(self, transitions: Transitions) -> float:
        return SCALE


class CopiesUpdate(TD3BCUpdate):
    def step(self, batch: StepBatch, step: int, measure: bool) -> Metrics:
        rows = batch["update"]
        expected = torch.cat((rows.obs, rows.actions, rows.rewards[:, None] / SCALE), dim=1)
        return super().step(batch, step, measure) | {"mismatch": (batch.extra["copy"] - expected).abs().max()}


class CopiesLearner(TD3BCTorchLearner):
    update_class = CopiesUpdate


def test_extra_columns_go_with_their_rows_through_windows_and_a_restore(dataset: str, tmp_path: Path) -> None:
    config = make_small(TD3BCConfig(algo_class=Copies), dataset, "").offline_data(max_dataset_rows=800)
    config.training(learner_class=CopiesLearner, data_fraction=0.6).evaluation(evaluation_interval=None)
    algo: Any = config.build_algo()
    windows = []
    for number in range(4):
        learner = train_policy(algo, 1)["learners"][DEFAULT_MODULE_ID]
        assert learner["mismatch"] == 0
        windows.append(algo.offline_data.window)
        if number == 1:
            path = algo.save_to_path(str(tmp_path / "checkpoint"))
    assert len(set(windows)) > 1
    uninterrupted = copy.deepcopy(module_state(algo))
    algo.stop()
    restored: Any = Copies.from_checkpoint(path)
    for _ in range(2):
        assert train_policy(restored, 1)["learners"][DEFAULT_MODULE_ID]["mismatch"] == 0
    check(module_state(restored), uninterrupted)
    restored.stop()


def test_the_learner_sees_scaled_rewards_and_metrics_have_the_datas_unit(dataset: str) -> None:
    results, algos = [], []
    for kind in (TD3BC, Copies):
        config = make_small(TD3BCConfig(algo_class=kind), dataset, "").evaluation(evaluation_interval=None)
        algos.append(config.build_algo())
        results.append(train_policy(algos[-1], 1))
    plain, scaled = map(learner_of, algos)
    data = algos[0].offline_data.transitions
    rewards = scaled._layout.unpack(scaled._offline).rewards
    np.testing.assert_array_equal(rewards, data.rewards * np.float32(SCALE))
    assert scaled._facts.reward_size == pytest.approx(SCALE * plain._facts.reward_size, rel=1e-5)
    assert results[1]["dataset"].pop("reward_scale") == SCALE
    assert results[0]["dataset"] == results[1]["dataset"]
    module = scaled.module[DEFAULT_MODULE_ID]
    obs = torch.from_numpy(data.observations[data.episode_bounds()[:, 0]])
    value = module.critics(obs, module.mean_actions(obs)).min(0).values.mean().item()
    reported = results[1]["learners"][DEFAULT_MODULE_ID]["initial_value_mean"]
    assert reported == pytest.approx(value / SCALE, rel=1e-4)
    for algo in algos:
        algo.stop()


@pytest.mark.parametrize("name", ["OfflineIQL", "ODICE", "OptiDICE"])
def test_the_learners_rows_have_the_rewards_that_the_option_scales(name: str, dataset: str) -> None:
    data = sources.load(dataset)
    data = dataclasses.replace(data, rewards=data.rewards / 4)  # the range of returns is near 1000 without
    returns = [data.rewards[start:end].sum(dtype=float) for start, end in data.episode_bounds()]
    scale = 0.1 / data.rewards.std(dtype=float) if name == "OptiDICE" else 1000 / (max(returns) - min(returns))
    config = make_small(ALGORITHMS[name].get_default_config(), data, "").evaluation(evaluation_interval=None)
    algo: Any = config.build_algo()
    learner = learner_of(algo)
    np.testing.assert_allclose(learner._layout.unpack(learner._offline).rewards, data.rewards * scale, rtol=1e-5)
    assert learner._facts.reward_scale == pytest.approx(scale, rel=1e-5)
    algo.stop()


class ScaledMOPO(MOPO):
    def reward_scale(self, transitions: Transitions) -> float:
        return SCALE


def test_the_model_learns_the_datas_own_rewards(dataset: str, tmp_path: Path) -> None:
    """All algorithms share it by the cache; its rollouts' rewards are scaled on their way into the model buffer."""
    config = make_small(MOPOConfig(algo_class=ScaledMOPO), dataset, str(tmp_path)).training(penalty_coef=0.0)
    algo: Any = config.evaluation(evaluation_interval=None).build_algo()
    np.testing.assert_array_equal(algo.dynamics.columns.rewards, algo.offline_data.transitions.rewards)
    rollout = train_policy(algo, 1)["env_runners"]["rollout"]
    learner = learner_of(algo)
    buffered = learner._layout.unpack(learner._model_rows()).rewards.mean().item()
    assert -17 < rollout["reward_mean"] < -1
    assert buffered == pytest.approx(SCALE * rollout["reward_mean"], rel=1e-4)
    algo.stop()


# -- the model in the update -----------------------------------------------------------------------------------------


class FrozenUpdate(SACUpdate):
    """Reads the model and leaves it as it is."""

    uses_dynamics = True
    num_handed_out = 0

    def set_dynamics(self, dynamics: DynamicsEnsemble) -> None:
        self.num_handed_out += 1
        self.dynamics = dynamics

    def step(self, batch: StepBatch, step: int, measure: bool) -> Metrics:
        rows = batch["update"]
        with torch.no_grad():
            mean, _ = self.dynamics(rows.obs, rows.actions)
        return super().step(batch, step, measure) | {"change": mean.abs().mean()}


class DriftingUpdate(FrozenUpdate):
    """Changes the model after each iteration, by rows of the dataset that it draws."""

    def dynamics_state(self) -> Any:
        return self.dynamics.state_dict()

    def after_iteration(self, draw: Draw) -> Metrics:
        rows = draw(RowGroup(8))
        with torch.no_grad():
            self.dynamics.biases[-1][..., :-1].add_(0.01 * rows.obs.mean())
        return {"drift": self.dynamics.biases[-1].mean()}

    def get_state(self) -> dict[str, Any]:
        return {"dynamics": copy.deepcopy(self.dynamics.state_dict())}

    def set_state(self, state: dict[str, Any]) -> None:
        self.dynamics.load_state_dict(state["dynamics"])


class FrozenLearner(MOPOTorchLearner):
    update_class = FrozenUpdate


class DriftingLearner(MOPOTorchLearner):
    update_class = DriftingUpdate


def build(dataset: str, cache_dir: str, learner_class: type, **options: Any) -> Any:
    config = make_small(MOPOConfig(), dataset, cache_dir).training(learner_class=learner_class, **options)
    return config.env_runners(num_env_runners=int("overlap_rollouts" in options)).evaluation(
        evaluation_interval=None
    ).build_algo()  # fmt: skip


def model_of(algo: Any) -> dict[str, torch.Tensor]:
    return copy.deepcopy(learner_of(algo)._update.dynamics.state_dict())


def test_a_frozen_model_is_handed_out_once_and_rolled_out_from_its_file(dataset: str, cache_dir: str) -> None:
    algo = build(dataset, cache_dir, FrozenLearner)
    assert np.isfinite(train_policy(algo, 2)["learners"][DEFAULT_MODULE_ID]["change"])
    assert learner_of(algo)._update.num_handed_out == 1
    from_file = DynamicsEnsemble.load(algo.dynamics.file(), "cpu").state_dict()
    check(model_of(algo), from_file)
    check(algo.env_runner._dynamics.state_dict(), from_file)
    algo.stop()


def test_rollouts_follow_a_model_that_is_trained_on_and_the_cache_keeps_the_first(dataset: str, cache_dir: str) -> None:
    algo = build(dataset, cache_dir, DriftingLearner)
    train_policy(algo, 1)
    file, content = algo.dynamics.file(), algo.dynamics.file().read_bytes()
    first = model_of(algo)
    assert (first["biases.2"] != algo.env_runner._dynamics.biases[-1]).any()
    train_policy(algo, 1)
    check(algo.env_runner._dynamics.state_dict(), first)
    assert (model_of(algo)["biases.2"] != first["biases.2"]).any()
    assert algo.dynamics.file() == file
    assert file.read_bytes() == content
    algo.stop()


@pytest.mark.parametrize("overlap", [False, True], ids=["in turn", "overlapped"])
def test_a_model_that_is_trained_on_goes_on_exactly_from_a_checkpoint(
    overlap: bool, dataset: str, cache_dir: str, tmp_path: Path
) -> None:
    """Both in a new algorithm and in place; a round that is asked for keeps the model of its time."""
    algo = build(dataset, cache_dir, DriftingLearner, **({"overlap_rollouts": True} if overlap else {}))
    train_policy(algo, 2)
    path = algo.save_to_path(str(tmp_path / "checkpoint"))
    train_policy(algo, 2)
    networks, model = copy.deepcopy(module_state(algo)), model_of(algo)
    algo.restore_from_path(path)
    train_policy(algo, 2)
    check(module_state(algo), networks)
    check(model_of(algo), model)
    algo.stop()
    restored: Any = MOPO.from_checkpoint(path)
    train_policy(restored, 2)
    check(module_state(restored), networks)
    check(model_of(restored), model)
    restored.stop()
