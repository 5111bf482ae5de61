"""The baselines end to end in RLlib, on Pendulum: training, evaluation, checkpoints, the policy as a function."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.tune.registry import get_trainable_cls

from rllib_damo import ALGORITHMS, BehaviorCloningConfig, MOPOConfig, TD3BCConfig
from rllib_damo.core.config import OfflineConfig
from rllib_damo.data.generate import datasets
from rllib_damo.data.schema import Transitions
from rllib_damo.evaluation.play import play
from rllib_damo.evaluation.policy import load_policy

OBSERVATION = np.array([-1.0, 0.1, 0.3], np.float32)


pytestmark = pytest.mark.usefixtures("ray_cluster")


@pytest.fixture(scope="module")
def dataset() -> Transitions:
    return datasets.generate("pendulum-mixed", 2000, seed=0)


def set_up(config: OfflineConfig, dataset: Transitions, **options: Any) -> Any:
    return (
        config.environment("Pendulum-v1")
        .offline_data(input_=dataset)
        # an odd number of steps: TD3+BC's delay has to go on after a restore where it stood
        .training(hidden_dims=(32, 32), train_batch_size_per_learner=32, rollout_freq=15, **options)
        .evaluation(evaluation_interval=2, evaluation_duration=1)
        .debugging(seed=3)
    )


def train(algo: Algorithm, iterations: int) -> dict[str, Any]:
    result: dict[str, Any] = {}
    while iterations:
        result = algo.train()
        iterations -= result["phase"] == "policy"
    return result


def weights(algo: Algorithm) -> dict[str, Any]:
    return algo.learner_group.get_state(components="learner/rl_module")["learner"]["rl_module"][DEFAULT_MODULE_ID]


def test_are_registered_beside_rllibs_own() -> None:
    for name, algorithm in ALGORITHMS.items():
        assert get_trainable_cls(name) is algorithm
    assert get_trainable_cls("BC").__module__.startswith("ray.")


@pytest.mark.parametrize("config_class", [TD3BCConfig, BehaviorCloningConfig])
def test_model_free_baselines_train_and_continue_exactly(
    config_class: type[OfflineConfig], dataset: Transitions, tmp_path: Any
) -> None:
    algo = set_up(config_class(), dataset).build_algo()
    first = train(algo, 1)
    assert first["phase"] == "policy"  # no model comes first
    assert "dynamics" not in first
    assert "env_runners" not in first
    path = algo.save_to_path(str(tmp_path / "checkpoint"))
    result = train(algo, 1)
    uninterrupted = weights(algo)
    learner = result["learners"][DEFAULT_MODULE_ID]
    assert np.isfinite(learner["bc_loss"])
    assert ("initial_value_mean" in learner) == (config_class is TD3BCConfig)
    evaluation = result["evaluation"]["env_runners"]
    assert -2000 < evaluation["episode_return_mean"] < 0
    assert "normalized_score" in evaluation
    algo.stop()

    restored = config_class().algo_class.from_checkpoint(path)
    assert train(restored, 1)["num_gradient_steps_lifetime"] == 30
    continued = weights(restored)
    path = restored.save_to_path(str(tmp_path / "second"))
    restored.stop()
    assert uninterrupted.keys() == continued.keys()
    for name, value in uninterrupted.items():
        np.testing.assert_array_equal(value, continued[name], err_msg=name)

    action = load_policy(path)(OBSERVATION)
    assert action.shape == (1,)
    (episode,) = play(path, episodes=1, seed=0)
    again = load_policy(path)(np.asarray(episode.get_observations(0)))
    np.testing.assert_allclose(2 * np.asarray(episode.get_actions(0)), again, rtol=1e-4)


def test_mopo_trains_on_penalised_rollouts(dataset: Transitions, tmp_path: Any, caplog: Any) -> None:
    config = set_up(MOPOConfig(), dataset, penalty_coef=1000.0, rollout_batch_size=100, rollout_length=2).dynamics(
        num_ensemble=3, num_elites=2, dynamics_hidden_dims=(32, 32), dynamics_weight_decay=(0.0, 0.0, 0.0),
        dynamics_max_epochs=1, holdout_size=100, dynamics_cache_dir=str(tmp_path),
    )  # fmt: skip
    algo = config.build_algo()
    assert algo.train()["phase"] == "dynamics"
    result = train(algo, 1)
    rollout = result["env_runners"]["rollout"]
    assert rollout["num_transitions"] == 200
    # Pendulum's rewards lie above -17; what is below comes from the penalty
    assert rollout["reward_mean"] < -17 - 1000 * rollout["uncertainty_mean"] + 34
    fitting = np.abs(dataset.rewards).mean() / rollout["uncertainty_mean"]
    path = algo.save_to_path(str(tmp_path / "checkpoint"))
    result = train(algo, 1)
    (warned,) = [message for message in caplog.messages if message.startswith("penalty_coef=1000 makes penalties of ")]
    assert f"Set penalty_coef to {fitting:.2g}" in warned
    learner = result["learners"][DEFAULT_MODULE_ID]
    assert np.isfinite([learner[k] for k in ("policy_loss", "qf_loss", "alpha_value", "initial_value_mean")]).all()
    uninterrupted = weights(algo)
    algo.restore_from_path(path)
    train(algo, 1)
    for name, value in weights(algo).items():
        np.testing.assert_array_equal(value, uninterrupted[name], err_msg=name)
    algo.stop()
