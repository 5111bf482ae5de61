"""Checkpoints: a run that was interrupted goes on as if it had not been."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from ray import cloudpickle
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.rl_module import RLModule
from ray.rllib.utils.test_utils import check

from rllib_damo import DAMO, TD3BC, BehaviorCloningConfig, DAMOConfig, TD3BCConfig
from rllib_damo.data.generate import datasets
from rllib_damo.evaluation.checkpoints import seal
from tests.small_runs import make_small, module_state, train_policy

pytestmark = pytest.mark.usefixtures("ray_cluster")


@pytest.mark.parametrize("overlap", [False, True], ids=["in turn", "overlapped"])
def test_continuing_from_a_checkpoint_equals_uninterrupted_training(config, tmp_path, overlap):
    config.env_runners(num_env_runners=int(overlap)).training(overlap_rollouts=overlap)
    algo = config.build_algo()
    train_policy(algo, 2)
    path = algo.save_to_path(str(tmp_path / "checkpoint"))
    train_policy(algo, 2)
    uninterrupted = module_state(algo)
    algo.stop()

    restored = DAMO.from_checkpoint(path)
    result = train_policy(restored, 2)
    assert result["num_gradient_steps_lifetime"] == 80
    continued = module_state(restored)
    restored.stop()
    assert uninterrupted.keys() == continued.keys()
    for name, value in uninterrupted.items():
        np.testing.assert_array_equal(value, continued[name], err_msg=name)


def test_restoring_an_older_checkpoint_in_place_restores_the_weights(config, tmp_path):
    algo = config.build_algo()
    train_policy(algo, 1)
    path = algo.save_to_path(str(tmp_path / "checkpoint"))
    saved = module_state(algo)
    train_policy(algo, 1)
    algo.restore_from_path(path)
    check(module_state(algo), saved)
    evaluating = algo.eval_env_runner_group.local_env_runner.module.state_dict()
    check(evaluating["actor.net.0.weight"].numpy(), saved["actor.net.0.weight"])
    algo.stop()


@pytest.mark.parametrize("kind", [DAMOConfig, BehaviorCloningConfig])
def test_a_checkpoint_of_other_data_is_refused(kind, config, tmp_path):
    saved = kind().environment("Pendulum-v1").offline_data(input_=config.input_)
    saved.training(hidden_dims=(8,)).evaluation(evaluation_interval=None)
    other = saved.copy(copy_frozen=False).offline_data(input_=datasets.generate("pendulum-mixed", 1000, seed=1))
    algo = saved.build_algo()
    path = algo.save_to_path(str(tmp_path / "checkpoint"))
    algo.restore_from_path(path)
    algo.stop()
    algo = other.build_algo()
    with pytest.raises(ValueError, match="trained on other data than"):
        algo.restore_from_path(path)
    algo.stop()


def test_a_state_in_memory_can_be_taken_twice(config):
    """Training on does not change it."""
    algo = config.evaluation(evaluation_interval=None).build_algo()
    train_policy(algo, 2)
    state, ends = algo.get_state(), []
    for _ in range(2):
        algo.set_state(state)
        train_policy(algo, 2)
        ends.append(module_state(algo))
    algo.stop()
    check(*ends)


def test_other_rollouts_may_follow_a_checkpoint_but_no_other_networks(config, tmp_path):
    algo = config.evaluation(evaluation_interval=None).build_algo()
    train_policy(algo, 2)
    path = algo.save_to_path(str(tmp_path / "checkpoint"))
    algo.stop()
    longer = config.copy(copy_frozen=False).training(rollout_length=3, rollout_batch_size=60).build_algo()
    longer.restore_from_path(path)
    assert len(longer.learner_group._learner.model_buffer) == 400
    train_policy(longer, 1)
    assert len(longer.learner_group._learner.model_buffer) == 580
    longer.stop()
    wider = config.copy(copy_frozen=False).training(hidden_dims=(48, 32)).build_algo()
    with pytest.raises(RuntimeError, match="networks are not this configuration's: restore with its hidden_dims"):
        wider.restore_from_path(path)
    wider.stop()


def test_restoring_in_place_drops_the_round_that_was_asked_for_since(config, tmp_path):
    config.env_runners(num_env_runners=1).training(overlap_rollouts=True).evaluation(evaluation_interval=None)
    algo = config.build_algo()
    train_policy(algo, 1)
    path = algo.save_to_path(str(tmp_path / "checkpoint"))
    train_policy(algo, 2)
    expected = module_state(algo)
    algo.restore_from_path(path)
    train_policy(algo, 2)
    check(module_state(algo), expected)
    algo.stop()


def test_optimisers_of_another_layout_are_named(config):
    algo = config.build_algo()
    learner = algo.learner_group._learner
    state = learner.get_state()
    for optimizer in state["optimizer"].values():
        optimizer["state"]["param_groups"][0]["params"] = [0, 1]  # one for each parameter, as before they were flat
    with pytest.raises(ValueError, match="optimisers are of another layout"):
        learner.set_state(state)
    algo.stop()


def test_learning_rates_follow_their_schedules_also_after_a_restore(config, tmp_path):
    config.training(actor_lr=[[0, 1e-3], [20, 5e-4], [40, 0.0]], critic_lr=1e-4)
    algo = config.build_algo()
    learners = [train_policy(algo, 1)["learners"]["default_policy"]]
    saved = algo.save_to_path(str(tmp_path / "checkpoint"))
    learners.append(train_policy(algo, 1)["learners"]["default_policy"])
    assert [metrics["actor_learning_rate"] for metrics in learners] == pytest.approx([5e-4, 0.0])
    assert [metrics["critic_learning_rate"] for metrics in learners] == pytest.approx([1e-4, 1e-4])
    before = module_state(algo)
    train_policy(algo, 1)
    after = module_state(algo)
    assert all(np.array_equal(after[name], before[name]) for name in before if name.startswith("actor."))
    assert not all(np.array_equal(after[name], before[name]) for name in before if name.startswith("critics."))
    algo.stop()
    restored = Algorithm.from_checkpoint(saved)
    metrics = train_policy(restored, 1)["learners"]["default_policy"]
    assert metrics["actor_learning_rate"] == pytest.approx(0.0)
    assert metrics["qf_loss"] == pytest.approx(learners[1]["qf_loss"], rel=1e-6)
    restored.stop()


def test_a_schedules_first_rate_is_the_same_number_after_a_restore(config, tmp_path):
    """Also before the first step: a rate in float32 is not the one in float64 that it came from."""

    def rate(algo):
        learner = algo.learner_group._learner
        return learner.get_optimizer(DEFAULT_MODULE_ID, "actor").param_groups[0]["lr"]

    algo = config.training(actor_lr=[[0, 3e-4], [50, 0.0]]).build_algo()
    path = algo.save_to_path(tmp_path)
    restored = DAMO.from_checkpoint(path)
    assert repr(rate(algo)) == repr(rate(restored)) == "0.0003"
    algo.stop()
    restored.stop()


def test_a_restore_takes_the_learning_rate_of_the_configuration(config, tmp_path):
    config.evaluation(evaluation_interval=None)
    algo = config.build_algo()
    train_policy(algo, 1)
    saved = algo.save_to_path(str(tmp_path / "checkpoint"))
    algo.stop()
    slower = config.copy(copy_frozen=False).training(actor_lr=1e-6).build_algo()
    slower.restore_from_path(saved)
    rates = {name: group["lr"] for name, o in slower.learner_group._learner._update.optimizers.items()
             for group in o.param_groups}  # fmt: skip
    assert rates["actor"] == 1e-6
    assert rates["critic"] == 3e-4
    slower.stop()


def test_a_checkpoint_that_is_older_than_an_option_goes_on_with_its_default(config, tmp_path):
    algo = config.evaluation(evaluation_interval=None).build_algo()
    train_policy(algo, 1)
    path = algo.save_to_path(str(tmp_path / "checkpoint"))
    algo.stop()
    file = tmp_path / "checkpoint" / "class_and_ctor_args.pkl"
    stored = pickle.loads(file.read_bytes())
    older = stored["ctor_args_and_kwargs"][0][0]
    del older["cuda_graphs"]
    file.write_bytes(cloudpickle.dumps(stored))
    seal(path)
    restored = DAMO.from_checkpoint(path)
    assert restored.config.cuda_graphs is False
    assert restored.config.hidden_dims == (32, 32)  # what it does have stays
    assert train_policy(restored, 1)["num_gradient_steps_lifetime"] == 40
    restored.stop()


def test_a_restored_stream_of_windows_goes_on(config, tmp_path):
    config.offline_data(max_dataset_rows=800).evaluation(evaluation_interval=None)
    algo = config.build_algo()
    for window in (1, 2):
        train_policy(algo, 1)
        assert algo.offline_data.window == window
    saved = algo.save_to_path(str(tmp_path / "checkpoint"))
    third = train_policy(algo, 1)
    assert len(algo.learner_group._learner._offline) <= 800
    algo.stop()
    restored = Algorithm.from_checkpoint(saved)
    assert restored.offline_data.window == 2
    again = train_policy(restored, 1)
    assert again["dataset"] == third["dataset"]
    assert again["learners"][DEFAULT_MODULE_ID]["qf_loss"] == third["learners"][DEFAULT_MODULE_ID]["qf_loss"]
    restored.stop()


def test_a_stream_that_was_saved_before_its_first_step_begins_with_the_first_window(dataset, tmp_path):
    """Also where the gradient steps of an earlier run are counted."""
    config = make_small(TD3BCConfig(), dataset, "").offline_data(max_dataset_rows=800)
    config.evaluation(evaluation_interval=None)
    first = config.copy(copy_frozen=False).build_algo()
    restored = TD3BC.from_checkpoint(first.save_to_path(str(tmp_path / "first")))
    train_policy(restored, 1)
    assert restored.offline_data.window == 1
    start = restored.save_to_path(str(tmp_path / "start"))
    going_on = config.offline_data(start_from=start).build_algo()
    again = TD3BC.from_checkpoint(going_on.save_to_path(str(tmp_path / "second")))
    for window in (1, 2):
        assert train_policy(again, 1)["num_gradient_steps_lifetime"] == 20 + 20 * window
        assert again.offline_data.window == window
    for running in (first, restored, going_on, again):
        running.stop()


def test_rl_module_from_checkpoint_acts(config, tmp_path):
    algo = config.build_algo()
    train_policy(algo, 1)
    path = algo.save_to_path(str(tmp_path / "checkpoint"))
    algo.stop()
    module = RLModule.from_checkpoint(f"{path}/learner_group/learner/rl_module/{DEFAULT_MODULE_ID}")
    actions = module.forward_inference({"obs": torch.zeros(4, 3)})["actions"]
    assert actions.shape == (4, 1)
    assert (actions.abs() <= 1).all()
