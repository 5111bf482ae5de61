"""Rollout runners and learners in processes of their own: what they do, and what happens when they fail."""

from __future__ import annotations

import os

import numpy as np
import pytest
import ray
import torch
from ray.data._internal.execution.streaming_executor import StreamingExecutor
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.utils.test_utils import check

from rllib_damo import DAMO
from tests.small_runs import module_state, train_policy

pytestmark = pytest.mark.usefixtures("ray_cluster")


@pytest.mark.parametrize("overlap", [False, True], ids=["in turn", "overlapped"])
def test_remote_rollout_runners_survive_a_killed_one(config, overlap):
    config.env_runners(num_env_runners=2).evaluation(evaluation_interval=None).training(overlap_rollouts=overlap)
    algo = config.fault_tolerance(restart_failed_env_runners=True).build_algo()
    assert train_policy(algo, 1)["env_runners"]["rollout"]["num_transitions"] == 200
    ray.kill(algo.env_runner_group._worker_manager.actors()[1], no_restart=False)
    for steps in (40, 60, 80):
        assert train_policy(algo, 1)["num_gradient_steps_lifetime"] == steps
    algo.stop()


@pytest.mark.parametrize("overlap", [False, True], ids=["in turn", "overlapped"])
def test_a_runner_that_dies_after_its_round_is_no_loss_nor_is_the_only_one(config, overlap):
    config.env_runners(num_env_runners=1).evaluation(evaluation_interval=None).training(overlap_rollouts=overlap)
    algo = config.build_algo()
    train_policy(algo, 1)
    manager = algo.env_runner_group._worker_manager
    if overlap:  # until the round that was asked for is there
        ray.get(manager.actors()[1].ping.remote())
    ray.kill(manager.actors()[1], no_restart=False)
    for steps in (40, 60):
        assert train_policy(algo, 1)["num_gradient_steps_lifetime"] == steps
    algo.stop()


def test_an_evaluation_whose_runners_are_dead_has_no_result(config):
    """RLlib repeats the last one's."""
    config.evaluation(evaluation_num_env_runners=1, evaluation_parallel_to_training=False)
    algo = config.fault_tolerance(restart_failed_env_runners=False, ignore_env_runner_failures=True).build_algo()
    assert "normalized_score" in train_policy(algo, 1)["evaluation"]["env_runners"]
    (runner,) = algo.eval_env_runner_group._worker_manager.actors().values()
    ray.kill(runner)
    for _ in range(2):
        evaluation = train_policy(algo, 1)["evaluation"]
        assert "env_runners" not in evaluation
        assert evaluation["num_healthy_workers"] == 0
    with pytest.raises(RuntimeError, match="No evaluation runner could play, for 3 evaluations in a row"):
        algo.train()
    algo.stop()


def test_runners_that_never_answer_end_training(config, monkeypatch):
    monkeypatch.setattr("rllib_damo.dynamics.rollout_rounds.time.sleep", lambda seconds: None)
    config.env_runners(num_env_runners=1).evaluation(evaluation_interval=None)
    algo = config.fault_tolerance(num_consecutive_env_runner_failures_tolerance=2).build_algo()
    monkeypatch.setattr(algo.env_runner_group, "fetch_ready_async_reqs", lambda **kwargs: [])
    with pytest.raises(RuntimeError, match=r"for 3 rounds.*num_env_runners=0"):
        train_policy(algo, 10)
    algo.stop()


def test_an_error_in_a_rollout_runner_is_raised(config):
    config.env_runners(num_env_runners=1).evaluation(evaluation_interval=None)
    algo = config.dynamics(termination_fn=_faulty_rule).build_algo()
    with pytest.raises(RuntimeError, match="a fault of the user's rule"):
        train_policy(algo, 1)
    algo.stop()


def _faulty_rule(obs, actions, next_obs):
    if len(obs) == 100:  # a round's starts; the dataset's rows pass
        raise ArithmeticError("a fault of the user's rule")
    return torch.zeros(len(obs), dtype=torch.bool)


def test_an_error_in_a_remote_learner_is_raised(config):
    algo = config.training(critic_lr=1e30, actor_lr=1e30).learners(num_learners=1).build_algo()
    with pytest.raises(RuntimeError, match="Training diverged within the last 20 gradient steps"):
        train_policy(algo, 3)
    algo.stop()


def test_overlapped_rounds_follow_the_policy_of_the_iteration_before(config):
    config.env_runners(num_env_runners=1).training(overlap_rollouts=True).evaluation(evaluation_interval=None)
    algo = config.build_algo()
    for steps in (20, 40, 60):
        policy = module_state(algo)["actor.net.0.weight"].copy()
        result = train_policy(algo, 1)
        assert result["env_runners"]["rollout"]["num_transitions"] == 200
        assert result["num_gradient_steps_lifetime"] == algo._rounds.pending["iteration"] == steps
        asked_for = algo._rounds.pending["weights"][DEFAULT_MODULE_ID]["actor.net.0.weight"]
        np.testing.assert_array_equal(asked_for, policy)
        assert (module_state(algo)["actor.net.0.weight"] != policy).any()
    rows = algo.learner_group._learner.model_buffer.rows[:600]
    assert len(rows.unique(dim=0)) == 600  # each round has random numbers of its own
    algo.stop()


def test_two_learners_hold_the_same_networks_and_half_of_the_rollouts_each(config, tmp_path):
    algo = config.learners(num_learners=2).evaluation(evaluation_interval=None).build_algo()
    train_policy(algo, 2)
    sums = algo.learner_group.foreach_learner(_parameter_sums)
    first, second = (result.get() for result in sums)
    assert first == second
    assert first["rows"] == 200
    if hasattr(os, "SCHED_BATCH"):  # what gloo's threads inherit
        policies = algo.learner_group.foreach_learner(lambda learner: os.sched_getscheduler(0))
        assert [result.get() for result in policies] == [os.SCHED_BATCH] * 2
        assert os.sched_getscheduler(0) == os.SCHED_OTHER
    # A checkpoint has both halves of the model buffer.
    path = algo.save_to_path(str(tmp_path / "checkpoint"))
    train_policy(algo, 2)
    uninterrupted = module_state(algo)
    algo.restore_from_path(path)
    train_policy(algo, 2)
    check(module_state(algo), uninterrupted, decimals=12)
    algo.stop()


def test_learners_do_without_the_scheduling_that_a_system_refuses(config, monkeypatch):
    def refuse(*args):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "sched_setscheduler", refuse, raising=False)
    config.learners(num_learners=2).get_default_learner_class()(config=config)


def _parameter_sums(learner) -> dict[str, float]:
    module = learner.module[DEFAULT_MODULE_ID]
    return {"rows": len(learner.model_buffer)} | {n: float(p.double().sum()) for n, p in module.named_parameters()}


def test_a_round_is_read_without_an_executor_of_ray_data(config, monkeypatch):
    """Its reference cycles would keep the blocks in the object store until Python's garbage collection."""
    algo = config.evaluation(evaluation_interval=None).build_algo()
    train_policy(algo, 1)
    started = []
    monkeypatch.setattr(StreamingExecutor, "execute", lambda self, *args, **kwargs: started.append(self))
    train_policy(algo, 2)
    algo.stop()
    assert not started


def test_a_trial_whose_setup_failed_can_be_named():
    """Ray asks an actor for its name, and where that fails it reports this instead of the error."""
    algo = DAMO.__new__(DAMO)
    algo.config = None
    assert repr(algo) == "DAMO"
