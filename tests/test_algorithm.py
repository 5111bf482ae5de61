"""DAMO end to end in RLlib: dynamics, rollouts, gradient steps, evaluation, checkpoints. Small, on Pendulum."""

from __future__ import annotations

import errno
import gc
import pickle
import re
import time
from concurrent.futures import ThreadPoolExecutor

import gymnasium as gym
import numpy as np
import pytest
import ray
import torch
from ray import cloudpickle
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.registry import ALGORITHMS, _get_algorithm_class
from ray.rllib.connectors.env_to_module import MeanStdFilter
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.rl_module import RLModule
from ray.rllib.utils.metrics.metrics_logger import MetricsLogger
from ray.rllib.utils.test_utils import check
from ray.tune.registry import get_trainable_cls, register_env

from rllib_damo import DAMO, DAMOConfig
from rllib_damo.baselines import BehaviorCloningConfig
from rllib_damo.data import behavior
from rllib_damo.dynamics import DynamicsEnsemble, component
from rllib_damo.policy import load_policy
from rllib_damo.recorded_steps import RecordedSteps
from rllib_damo.update import METRICS
from tests.recording import record_on_cpu


@pytest.fixture(scope="module", autouse=True)
def ray_cluster(tmp_path_factory):
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> str:
    """A small Pendulum dataset in a Parquet file."""
    from rllib_damo.data.parquet import write_parquet

    path = tmp_path_factory.mktemp("data") / "pendulum.parquet"
    write_parquet(behavior.generate("pendulum-mixed", 2000, seed=0), path)
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


def train_policy(algo: Algorithm, iterations: int) -> dict:
    """Trains until ``iterations`` rounds of gradient steps are done; returns the last result."""
    result: dict = {}
    while iterations:
        result = algo.train()
        iterations -= result["phase"] == "policy"
    return result


def module_state(algo: Algorithm) -> dict:
    return algo.learner_group.get_state(components="learner/rl_module")["learner"]["rl_module"][DEFAULT_MODULE_ID]


def test_a_frozen_configuration_can_be_validated(config):
    config.freeze()
    config.validate()
    assert config.observation_space is None  # what the checks fill in, they fill into a copy


def test_is_registered():
    assert get_trainable_cls("DAMO") is DAMO
    # Tune turns to RLlib's own table after `ray.shutdown()` made it forget what was registered.
    assert _get_algorithm_class("DAMO") is DAMO
    assert isinstance(ALGORITHMS["DAMO"]()[1], DAMOConfig)


def test_an_evaluation_of_ones_own_needs_no_environment(config):
    def estimate(algorithm, env_runners):
        mine = MetricsLogger(root=False)
        mine.log_value("my_estimate", 3.0, window=1)
        algorithm.metrics.aggregate([mine.reduce()], key="evaluation")
        return {}, 0, 0

    spaces = {"observation_space": gym.spaces.Box(-8, 8, (3,)), "action_space": gym.spaces.Box(-2, 2, (1,))}
    config.environment(None, **spaces).evaluation(custom_evaluation_function=estimate)
    algo = config.training(target_entropy=-1).build_algo()
    assert algo.config.target_entropy == -1  # and not RLlib's mark of a deprecated option
    assert train_policy(algo, 1)["evaluation"]["my_estimate"] == 3.0
    algo.stop()


def test_trains_dynamics_first_then_policy_and_evaluates(config, tmp_path):
    algo = config.dynamics(dynamics_cache_dir=str(tmp_path)).build_algo()
    first = algo.train()
    assert first["phase"] == "dynamics"
    assert first["num_gradient_steps_lifetime"] == 0
    assert first["dynamics"]["epoch"] == 1
    assert np.isfinite([first["dynamics"]["train_loss"], first["dynamics"]["holdout_loss"]]).all()
    assert "evaluation" not in first or "episode_return_mean" not in first["evaluation"].get("env_runners", {})
    result = train_policy(algo, 1)
    learner = result["learners"][DEFAULT_MODULE_ID]
    assert np.isfinite([learner[k] for k in ("policy_loss", "qf_loss", "classifier_loss", "initial_value_mean")]).all()
    assert result["num_gradient_steps_lifetime"] == 20
    assert result["env_runners"]["rollout"]["num_transitions"] == 200
    evaluation = result["evaluation"]["env_runners"]
    assert -2000 < evaluation["episode_return_mean"] < 0
    assert "normalized_score" in evaluation
    assert evaluation["discounted_return_mean"] > evaluation["episode_return_mean"]
    algo.stop()


def test_results_have_the_returns_of_the_episodes_that_the_policy_learns_from(config):
    algo = config.training(data_fraction=0.3, gamma=0.9).evaluation(evaluation_interval=None).build_algo()
    found = train_policy(algo, 1)["dataset"]
    data = algo.offline_data.transitions
    algo.stop()
    used = data.best_rows(0.3)
    best = data.rewards.astype(float)[used].reshape(-1, 200)  # Pendulum's episodes are of 200 steps
    assert 0 < len(best) < len(data) / 200
    assert found["episode_return_mean"] == pytest.approx(best.sum(1).mean())
    assert found["discounted_return_mean"] == pytest.approx((best @ 0.9 ** np.arange(200)).mean())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_trains_on_a_gpu(config):
    algo = config.learners(num_gpus_per_learner=1).build_algo()
    learner = train_policy(algo, 2)["learners"][DEFAULT_MODULE_ID]
    assert np.isfinite([learner[k] for k in ("policy_loss", "qf_loss", "classifier_loss", "initial_value_mean")]).all()
    assert algo.learner_group._learner._offline.is_cuda
    algo.stop()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_trains_by_cuda_graphs_as_without(config, cache_dir):
    states = []
    for cuda_graphs in (False, True):
        one = config.copy(copy_frozen=False).learners(num_gpus_per_learner=1).training(cuda_graphs=cuda_graphs)
        algo = one.evaluation(evaluation_interval=None).build_algo()
        train_policy(algo, 3)
        states.append(module_state(algo))
        algo.stop()
    check(*states, rtol=1e-3)  # matrix products' sums may be in another order


def test_recorded_steps_train_as_steps_do(config, tmp_path):
    """Through iterations, learning rates that change, more rollouts and a restore in place; but for rounding."""
    config.training(actor_warmup_steps=30, actor_lr=[[0, 3e-4], [100, 0.0]]).evaluation(evaluation_interval=None)
    states = []
    for is_recorded in (False, True):
        algo = config.copy(copy_frozen=False).build_algo()
        learner = algo.learner_group._learner
        if is_recorded:
            learner._recorded = RecordedSteps(learner._update, record_on_cpu)
        train_policy(algo, 3)
        path = algo.save_to_path(str(tmp_path / f"checkpoint{is_recorded}"))
        train_policy(algo, 1)
        algo.restore_from_path(path)
        if is_recorded:
            assert learner._recorded.num_recorded == 0  # the restore dropped what was recorded
            learner._recorded = RecordedSteps(learner._update, record_on_cpu)
        train_policy(algo, 2)
        if is_recorded:
            assert learner._recorded.num_recorded > 0
        states.append(module_state(algo))
        algo.stop()
    check(*states, rtol=1e-5, atol=1e-6)


def test_second_run_takes_the_model_from_the_cache(config):
    algo = config.build_algo()
    train_policy(algo, 1)
    algo.stop()
    algo = config.copy(copy_frozen=False).training(eta=0.5).build_algo()
    assert algo.train()["phase"] == "policy"
    algo.stop()


def test_a_model_trained_in_bfloat16_is_another_one(config, tmp_path):
    """Not the one that float32 has left in the cache; near it, and as the cache's to whoever asks for it again."""
    losses = []
    for precision in ("fp32", "bf16"):
        config = config.copy(copy_frozen=False)
        config.dynamics(dynamics_cache_dir=str(tmp_path), dynamics_precision=precision)
        algo = config.build_algo()
        losses.append(algo.train()["dynamics"]["train_loss"])
        train_policy(algo, 1)
        algo.stop()
    assert losses[0] != losses[1] == pytest.approx(losses[0], rel=0.05)
    algo = config.build_algo()
    assert algo.train()["phase"] == "policy"
    algo.stop()


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


def test_optimisers_of_another_layout_are_named(config):
    algo = config.build_algo()
    learner = algo.learner_group._learner
    state = learner.get_state()
    for optimizer in state["optimizer"].values():
        optimizer["state"]["param_groups"][0]["params"] = [0, 1]  # one for each parameter, as before they were flat
    with pytest.raises(ValueError, match="optimisers are of another layout"):
        learner.set_state(state)
    algo.stop()


def test_metrics_are_means_over_every_tenth_step_and_the_last(config):
    algo = config.training(rollout_freq=24).evaluation(evaluation_interval=None).build_algo()
    learner = algo.learner_group._learner
    update, taken = learner._update, []
    original = update.step

    def step(batch):
        metrics = original(batch)
        taken.append(metrics)
        return metrics

    update.step = step
    reported = train_policy(algo, 1)["learners"][DEFAULT_MODULE_ID]
    assert [len(metrics) > 0 for metrics in taken] == [i in (3, 13, 23) for i in range(24)]
    means = dict(zip(METRICS, torch.stack([taken[i] for i in (3, 13, 23)]).mean(0).tolist(), strict=True))
    assert {name: reported[name] for name in METRICS} == pytest.approx(means, rel=1e-5)
    algo.stop()


def test_the_delivered_policy_is_the_average_of_those_in_training(config):
    config.training(rollout_freq=1, policy_tau=0.4).evaluation(evaluation_interval=None)
    algo = config.build_algo()
    actors, averages = [], []
    for _ in range(4):
        train_policy(algo, 1)
        state = module_state(algo)
        actors.append(state["actor.net.0.weight"].copy())
        averages.append(state["averaged_actor.net.0.weight"].copy())
    algo.stop()
    np.testing.assert_array_equal(averages[0], actors[0])
    np.testing.assert_allclose(averages[1], (actors[0] + actors[1]) / 2, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(averages[2], 0.6 * averages[1] + 0.4 * actors[2], rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(averages[3], 0.6 * averages[2] + 0.4 * actors[3], rtol=1e-5, atol=1e-7)
    assert (averages[3] != actors[3]).any()


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


@pytest.mark.parametrize(
    ("config_class", "runners"), [(DAMOConfig, 0), (DAMOConfig, 1), (BehaviorCloningConfig, 0)], ids=str
)
def test_get_module_is_the_policy_as_it_is_now(config, config_class, runners, tmp_path):
    if config_class is not DAMOConfig:
        offline = {"input_": config.input_}
        config = config_class().environment("Pendulum-v1").offline_data(**offline).training(hidden_dims=(32, 32))
        config.training(rollout_freq=20, train_batch_size_per_learner=32)
    config.env_runners(num_env_runners=runners).evaluation(evaluation_interval=None).training(actor_lr=1e-2)
    algo = config.build_algo()
    obs = torch.randn(5, 3)
    untrained = algo.get_module().forward_inference({"obs": obs})["actions"]
    for number in range(2):
        train_policy(algo, 1)
        actions = algo.get_module().forward_inference({"obs": obs})["actions"]
        load = load_policy(algo.save_to_path(tmp_path / str(number)))
        np.testing.assert_allclose(actions * 2, load(obs.numpy()), atol=1e-5)
        assert not torch.equal(actions, untrained)
        untrained = actions
    algo.stop()


def test_an_error_in_a_remote_learner_is_raised(config):
    algo = config.training(critic_lr=1e30, actor_lr=1e30).learners(num_learners=1).build_algo()
    with pytest.raises(RuntimeError, match="Training diverged within the last 20 gradient steps"):
        train_policy(algo, 3)
    algo.stop()


def test_a_cache_may_be_emptied_while_a_run_goes_on(config, tmp_path):
    algo = config.dynamics(dynamics_cache_dir=str(tmp_path / "cache")).build_algo()
    train_policy(algo, 1)
    algo.dynamics.path.unlink()
    path = algo.save_to_path(tmp_path / "checkpoint")
    assert algo.train()["phase"] == "policy"
    assert algo.dynamics.path.exists()
    algo.stop()
    restored = DAMO.from_checkpoint(path)
    assert restored.train()["phase"] == "policy"
    restored.stop()


def test_a_damaged_file_in_the_cache_is_trained_anew(config, tmp_path, caplog):
    config.dynamics(dynamics_cache_dir=str(tmp_path)).evaluation(evaluation_interval=None)
    algo = config.build_algo()
    train_policy(algo, 1)
    path = algo.dynamics.path
    algo.stop()
    path.write_bytes(path.read_bytes()[:1000])
    again = config.copy(copy_frozen=False).build_algo()
    assert "is damaged" in caplog.text
    assert "trained again" in caplog.text
    assert again.train()["phase"] == "dynamics"
    again.stop()


def test_a_model_that_cannot_be_written_is_not_lost(config, tmp_path, monkeypatch):
    algo = config.dynamics(dynamics_cache_dir=str(tmp_path)).evaluation(evaluation_interval=None).build_algo()
    algo.train()
    with monkeypatch.context() as patch:
        patch.setattr(DynamicsEnsemble, "save", _full_disk)
        for _ in range(2):
            with pytest.raises(ValueError, match=r"can't be written to .*dynamics-.*No space left.*dynamics_cache_dir"):
                algo.train()
    assert algo.train()["phase"] == "dynamics"
    assert algo.dynamics.path.exists()
    assert algo.train()["phase"] == "policy"
    algo.stop()


def _full_disk(*args):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_run_waits_for_anothers_model(config, tmp_path, monkeypatch, caplog):
    """In one iteration, whatever it lasts, and in whichever thread: as many iterations as where the model was there."""
    monkeypatch.setattr(component, "WAIT_SECONDS", 0.05)
    config.dynamics(dynamics_cache_dir=str(tmp_path)).evaluation(evaluation_interval=None)
    first, second = config.build_algo(), config.copy(copy_frozen=False).build_algo()
    first.train()
    with ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(second.train)
        time.sleep(0.3)
        assert not waiting.done()
        with ThreadPoolExecutor(1) as other:
            other.submit(first.train).result()
        result = waiting.result()
    assert result["phase"] == "dynamics"
    assert result["dynamics"]["waited_seconds"] > 0.2
    assert f"(lock {second.dynamics.path}.lock)" in caplog.text
    assert second.train()["phase"] == "policy"
    first.stop()
    second.stop()


def test_interrupted_dynamics_training_resumes(config, tmp_path):
    config.dynamics(dynamics_max_epochs=3, dynamics_cache_dir=str(tmp_path / "a"))
    algo = config.build_algo()
    algo.train()
    path = algo.save_to_path(str(tmp_path / "checkpoint"))
    algo.stop()
    restored = DAMO.from_checkpoint(path)
    assert restored.train()["dynamics"]["epoch"] == 2
    restored.stop()


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
    restored = DAMO.from_checkpoint(path)
    assert restored.config.cuda_graphs is False
    assert restored.config.hidden_dims == (32, 32)  # what it does have stays
    assert train_policy(restored, 1)["num_gradient_steps_lifetime"] == 40
    restored.stop()


def test_rl_module_from_checkpoint_acts(config, tmp_path):
    algo = config.build_algo()
    train_policy(algo, 1)
    path = algo.save_to_path(str(tmp_path / "checkpoint"))
    algo.stop()
    module = RLModule.from_checkpoint(f"{path}/learner_group/learner/rl_module/{DEFAULT_MODULE_ID}")
    actions = module.forward_inference({"obs": torch.zeros(4, 3)})["actions"]
    assert actions.shape == (4, 1)
    assert (actions.abs() <= 1).all()


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


def test_a_trial_whose_setup_failed_can_be_named():
    """Ray asks an actor for its name, and where that fails it reports this instead of the error."""
    algo = DAMO.__new__(DAMO)
    algo.config = None
    assert repr(algo) == "DAMO"


def _faulty_rule(obs, actions, next_obs):
    raise ArithmeticError("a fault of the user's rule")


def test_an_error_in_a_rollout_runner_is_raised(config):
    config.env_runners(num_env_runners=1).evaluation(evaluation_interval=None)
    algo = config.dynamics(termination_fn=_faulty_rule).build_algo()
    with pytest.raises(RuntimeError, match="a fault of the user's rule"):
        train_policy(algo, 1)
    algo.stop()


def test_runners_that_never_answer_end_training(config, monkeypatch):
    monkeypatch.setattr("rllib_damo.algorithm.time.sleep", lambda seconds: None)
    config.env_runners(num_env_runners=1).evaluation(evaluation_interval=None)
    algo = config.fault_tolerance(num_consecutive_env_runner_failures_tolerance=2).build_algo()
    monkeypatch.setattr(algo.env_runner_group, "fetch_ready_async_reqs", lambda **kwargs: [])
    with pytest.raises(RuntimeError, match=r"for 3 rounds.*num_env_runners=0"):
        train_policy(algo, 10)
    algo.stop()


def test_a_restored_stream_of_windows_goes_on(config, tmp_path):
    config.offline_data(max_dataset_rows=800).evaluation(evaluation_interval=None)
    algo = config.build_algo()
    train_policy(algo, 1)
    assert algo.offline_data.window == 2
    saved = algo.save_to_path(str(tmp_path / "checkpoint"))
    third = train_policy(algo, 1)
    algo.stop()
    restored = Algorithm.from_checkpoint(saved)
    assert restored.offline_data.window == 2
    again = train_policy(restored, 1)
    assert again["dataset"] == third["dataset"]
    assert again["learners"][DEFAULT_MODULE_ID]["qf_loss"] == third["learners"][DEFAULT_MODULE_ID]["qf_loss"]
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


def test_a_model_without_terminations_is_refused_where_they_are_needed(config, tmp_path):
    path = DynamicsEnsemble(3, 1, hidden_dims=(4,)).save(tmp_path / "model.pt")
    register_env("no-known-rule", lambda context: gym.make("Pendulum-v1"))
    config.environment("no-known-rule").dynamics(dynamics_path=path)
    with pytest.raises(ValueError, match=r"dynamics_path.*no-known-rule.*termination_fn"):
        config.build_algo()


def test_overlapped_rounds_follow_the_policy_of_the_iteration_before(config):
    config.env_runners(num_env_runners=1).training(overlap_rollouts=True).evaluation(evaluation_interval=None)
    algo = config.build_algo()
    for steps in (20, 40, 60):
        policy = module_state(algo)["actor.net.0.weight"].copy()
        result = train_policy(algo, 1)
        assert result["env_runners"]["rollout"]["num_transitions"] == 200
        assert result["num_gradient_steps_lifetime"] == algo._pending_round["iteration"] == steps
        asked_for = algo._pending_round["weights"][DEFAULT_MODULE_ID]["actor.net.0.weight"]
        np.testing.assert_array_equal(asked_for, policy)
        assert (module_state(algo)["actor.net.0.weight"] != policy).any()
    rows = algo.learner_group._learner._synthetic.rows[:600]
    assert len(rows.unique(dim=0)) == 600  # each round has random numbers of its own
    algo.stop()


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


def test_two_learners_hold_the_same_networks_and_half_of_the_rollouts_each(config, tmp_path):
    algo = config.learners(num_learners=2).evaluation(evaluation_interval=None).build_algo()
    train_policy(algo, 2)
    sums = algo.learner_group.foreach_learner(_parameter_sums)
    first, second = (result.get() for result in sums)
    assert first == second
    assert first["rows"] == 200
    # A checkpoint has both halves of the model buffer.
    path = algo.save_to_path(str(tmp_path / "checkpoint"))
    train_policy(algo, 2)
    uninterrupted = module_state(algo)
    algo.restore_from_path(path)
    train_policy(algo, 2)
    check(module_state(algo), uninterrupted, decimals=12)
    algo.stop()


def test_a_round_that_is_in_the_model_buffer_leaves_the_object_store(config):
    """The Ray Dataset that brought it is gone, executor and all, without waiting for Python's garbage collection."""
    algo = config.evaluation(evaluation_interval=None).build_algo()
    train_policy(algo, 1)
    gc.collect()
    gc.disable()
    try:
        train_policy(algo, 2)
        left = [type(o).__name__ for o in gc.get_objects()]
    finally:
        gc.enable()
    algo.stop()
    assert left.count("StreamingExecutor") == 0


def _parameter_sums(learner) -> dict[str, float]:
    module = learner.module[DEFAULT_MODULE_ID]
    return {"rows": len(learner._synthetic)} | {n: float(p.double().sum()) for n, p in module.named_parameters()}


def test_batches_and_rollouts_start_from_the_best_share_of_the_data(config):
    algo = config.training(data_fraction=0.5).evaluation(evaluation_interval=None).build_algo()
    transitions = algo.offline_data.transitions
    best = transitions.best_rows(0.5)
    assert 0 < len(best) < len(transitions)
    learner = algo.learner_group._learner
    np.testing.assert_array_equal(learner._used, best)
    reward_size = np.abs(transitions.rewards[best]).mean()
    assert learner._update.return_size == pytest.approx((reward_size + config.eta) / (1 - config.gamma), rel=1e-5)
    start_states = {tuple(state) for state in transitions.observations[best].tolist()}
    train_policy(algo, 1)
    branched = algo.env_runner.sample_tensors(num_starts=200, length=1)["obs"]
    assert {tuple(state) for state in branched.tolist()} <= start_states
    drawn = learner._draw(learner._used, 50, 20)
    assert set(drawn.flatten().tolist()) <= set(best.tolist())
    algo.stop()


@pytest.mark.parametrize("options", [{"eta": 1.0}, {"eta": 50.0}, {"eta": 50.0, "data_alignment": False}])
def test_an_eta_above_the_rewards_is_warned_of(config, options, caplog):
    """Pendulum's rewards are about -5 a step."""
    config.training(**options).evaluation(evaluation_interval=None).build_algo().stop()
    warned = [message for message in caplog.messages if message.startswith("eta=50 is larger than the rewards of ")]
    assert len(warned) == (options == {"eta": 50.0})
    if warned:
        assert re.search(r"pendulum.*\(\d\.\d+ in the mean.*Set eta to a third of that \([12]\.\d\)", warned[0])


def test_a_connector_that_changes_observations_is_warned_of(config, caplog):
    """It is used where the policy plays."""
    config.env_runners(env_to_module_connector=lambda env, spaces, device: MeanStdFilter())
    algo = config.build_algo()
    assert any(message.startswith("`env_to_module_connector` changes the obser") for message in caplog.messages)
    assert np.isfinite(train_policy(algo, 1)["evaluation"]["env_runners"]["episode_return_mean"])
    algo.stop()


def test_a_dataset_above_the_cap_streams_through(config):
    algo = config.offline_data(max_dataset_rows=800).evaluation(evaluation_interval=None).build_algo()
    sizes = []
    for _ in range(3):
        train_policy(algo, 1)
        sizes.append(len(algo.learner_group._learner._offline))
    algo.stop()
    assert max(sizes) <= 800


def test_dataset_in_memory_and_user_callbacks(config):
    from ray.rllib.callbacks.callbacks import RLlibCallback

    class Mine(RLlibCallback):
        called = False

        def on_train_result(self, **kwargs):
            Mine.called = True

    config.offline_data(input_=behavior.generate("pendulum-mixed", 1000, seed=0)).callbacks(Mine)
    algo = config.build_algo()
    result = train_policy(algo, 1)
    algo.stop()
    assert Mine.called
    assert "normalized_score" in result["evaluation"]["env_runners"]


def test_without_a_simulator(config):
    space = config.copy().environment("Pendulum-v1")
    space.validate()
    config.env = None
    config.environment(observation_space=space.observation_space, action_space=space.action_space)
    config.evaluation(evaluation_interval=None)
    algo = config.build_algo()
    assert train_policy(algo, 1)["num_gradient_steps_lifetime"] == 20
    algo.stop()


@pytest.mark.parametrize(
    "options",
    [
        {"data_alignment": False},
        {"behavior_alignment": False},
        {"policy_improvement": "inconsistent"},
        {"target_networks": False},
        {"initial_states": "episode_start", "twin_q": False, "bc_weight": 0.0},
        {"f_divergence": "chi_squared", "bc_weight": 1.0, "critic_layer_norm": True},
        {"classifier_gradient_penalty": 1.0, "classifier_noise": 0.1, "classifier_spectral_norm": True},
        {"precision": "bf16"},
    ],
    ids=lambda options: ",".join(options),
)
def test_every_variant_trains(config, options):
    algo = config.training(**options).evaluation(evaluation_interval=None).build_algo()
    result = train_policy(algo, 1)
    assert np.isfinite(result["learners"][DEFAULT_MODULE_ID]["qf_loss"])
    algo.stop()
