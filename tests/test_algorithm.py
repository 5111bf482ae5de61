"""DAMO end to end in RLlib: dynamics, rollouts, gradient steps, evaluation. Small, on Pendulum."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch
from ray.rllib.algorithms.registry import ALGORITHMS, _get_algorithm_class
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.utils.metrics.metrics_logger import MetricsLogger
from ray.rllib.utils.test_utils import check
from ray.tune.registry import get_trainable_cls, register_env

from rllib_damo import DAMO, BehaviorCloningConfig, DAMOConfig
from rllib_damo.core.cuda_graph import RecordedSteps
from rllib_damo.core.model_based_algorithm import rollout_starts
from rllib_damo.core.update import RowGroup
from rllib_damo.data.generate import datasets
from rllib_damo.evaluation.policy import load_policy
from rllib_damo.utils.arrow import from_arrow
from rllib_damo.utils.batch import unknown_successors
from tests.data_helpers import write_hdf5
from tests.recording import record_on_cpu
from tests.small_runs import module_state, train_policy

pytestmark = pytest.mark.usefixtures("ray_cluster")


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


class Switches(gym.Env):
    """Three switches, of which a positive action turns the first; ten steps long."""

    observation_space = gym.spaces.MultiBinary(3)
    action_space = gym.spaces.Box(-1, 1, (1,))

    def reset(self, **kwargs):
        self.steps, self.state = 0, np.zeros(3, np.int8)
        return self.state, {}

    def step(self, action):
        self.steps += 1
        self.state = np.append(action > 0, self.state[:2]).astype(np.int8)
        return self.state, float(self.state[0]), False, self.steps == 10, {}


def test_observations_of_whole_numbers_are_taken_as_floats(config, tmp_path):
    register_env("switches", lambda context: gym.wrappers.FlattenObservation(Switches()))
    actions = np.random.default_rng(0).uniform(-1, 1, (500, 1)).astype(np.float32)
    rows = []
    env = Switches()
    for row, action in enumerate(actions):
        obs = env.reset()[0] if row % 10 == 0 else env.state
        rows.append((obs, *env.step(action)))
    observations, next_observations, rewards, _, ends, _ = zip(*rows, strict=True)
    columns = {"observations": observations, "next_observations": next_observations, "rewards": rewards}
    path = write_hdf5(tmp_path / "switches.hdf5", {**columns, "actions": actions, "timeouts": ends})
    algo = config.environment("switches").offline_data(input_=path).build_algo()
    assert algo.config.observation_space.dtype == np.int8
    assert 0 <= train_policy(algo, 1)["evaluation"]["env_runners"]["episode_return_mean"] <= 10
    action = load_policy(algo.save_to_path(tmp_path / "checkpoint"))(env.state)
    assert Switches.action_space.contains(action)
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
    assert algo.dynamics.device.type == algo.env_runner._device.type == "cuda"
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


def test_metrics_are_means_over_every_tenth_step_and_the_last(config):
    algo = config.training(rollout_freq=24).evaluation(evaluation_interval=None).build_algo()
    learner = algo.learner_group._learner
    update, taken = learner._update, []
    original = update.step

    def step(*args):
        taken.append(original(*args))
        return taken[-1]

    update.step = step
    reported = train_policy(algo, 1)["learners"][DEFAULT_MODULE_ID]
    assert [len(metrics) > 0 for metrics in taken] == [i in (3, 13, 23) for i in range(24)]
    means = {name: float(sum(taken[i][name] for i in (3, 13, 23)) / 3) for name in taken[3]}
    assert {name: reported[name] for name in means} == pytest.approx(means, rel=1e-5)
    algo.stop()


def test_the_delivered_policy_is_the_average_of_those_in_training(config):
    config.training(rollout_freq=1, policy_tau=0.7).evaluation(evaluation_interval=None)
    algo = config.build_algo()
    actors, averages = [], []
    for _ in range(4):
        train_policy(algo, 1)
        state = module_state(algo)
        actors.append(state["actor.net.0.weight"].copy())
        averages.append(state["averaged_actor.net.0.weight"].copy())
    algo.stop()
    np.testing.assert_array_equal(averages[0], actors[0])
    for i, newest in enumerate((5 / 6, 5 / 7, 0.7), start=1):  # 5 / 8 is less than `policy_tau`
        expected = (1 - newest) * averages[i - 1] + newest * actors[i]
        np.testing.assert_allclose(averages[i], expected, rtol=1e-5, atol=1e-7)
    assert (averages[3] != actors[3]).any()


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


def test_batches_and_rollouts_start_from_the_best_share_of_the_data(config):
    algo = config.training(data_fraction=0.5).evaluation(evaluation_interval=None).build_algo()
    transitions = algo.offline_data.transitions
    best = transitions.best_rows(0.5)
    assert 0 < len(best) < len(transitions)
    learner = algo.learner_group._learner
    np.testing.assert_array_equal(learner._rows_of["selected"], best)
    reward_size = np.abs(transitions.rewards[best]).mean()
    assert learner._update.return_size == pytest.approx((reward_size + config.eta) / (1 - config.gamma), rel=1e-5)
    start_states = {tuple(state) for state in transitions.observations[best].tolist()}
    train_policy(algo, 1)
    branched = from_arrow(algo.env_runner.sample()[0])["obs"][:100]  # of the first step
    assert {tuple(state) for state in branched.tolist()} <= start_states
    drawn = learner._draw(RowGroup(1000, of="selected"))
    assert {tuple(state) for state in drawn.obs.tolist()} <= start_states
    assert algo.learner_group._learner._groups["update"].of == "selected"
    algo.stop()


def test_a_share_of_the_rollouts_starts_where_episodes_do(config):
    config.training(data_fraction=0.5, episode_start_ratio=0.6, rollout_batch_size=2000, rollout_length=1)
    algo = config.evaluation(evaluation_interval=None).build_algo()
    transitions = algo.offline_data.transitions
    best = transitions.best_rows(0.5)
    firsts = np.intersect1d(transitions.episode_bounds()[:, 0], best)
    train_policy(algo, 1)
    states = [tuple(state) for state in from_arrow(algo.env_runner.sample()[0])["obs"].tolist()]
    assert set(states) <= {tuple(state) for state in transitions.observations[best].tolist()}
    starting = {tuple(state) for state in transitions.observations[firsts].tolist()}
    assert np.mean([state in starting for state in states]) == pytest.approx(0.6, abs=0.05)
    algo.stop()


def test_starts_of_rollouts_are_counted_by_rows():
    selected, firsts = np.arange(2, 12), np.array([0, 4, 8])
    assert rollout_starts(selected, firsts, 0.0) is selected
    rows = rollout_starts(selected, firsts, 0.75).tolist()  # 30 more among 10: both starts 15 times each
    assert (rows[:10], len(rows), rows.count(4), rows.count(8)) == (selected.tolist(), 40, 16, 16)
    assert rollout_starts(selected, firsts[:1], 0.75) is selected  # no selected row starts an episode


def test_dataset_in_memory_and_user_callbacks(config):
    from ray.rllib.callbacks.callbacks import RLlibCallback

    class Mine(RLlibCallback):
        called = False

        def on_train_result(self, **kwargs):
            Mine.called = True

    config.offline_data(input_=datasets.generate("pendulum-mixed", 1000, seed=0)).callbacks(Mine)
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
        {"target_networks": False, "f_divergence": "chi_squared"},
        {"initial_states": "episode_start", "twin_q": False, "bc_weight": 0.0},
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


def test_the_classifier_sees_no_successor_that_the_source_does_not_know(config):
    """The real rows of the critics' batches do, for their rewards."""
    spaces = gym.spaces.Box(-np.inf, np.inf, (3,), np.float32), gym.spaces.Box(-1, 1, (1,), np.float32)
    config.environment(observation_space=spaces[0], action_space=spaces[1])
    spec = config.get_multi_rl_module_spec(spaces={DEFAULT_MODULE_ID: spaces})
    learner = config.get_default_learner_class()(config=config, module_spec=spec)
    learner.build()
    rng, num = np.random.default_rng(0), 60
    obs, terminated = rng.normal(size=(num, 3)), np.arange(num) % 3 == 0
    next_obs = obs + ~terminated[:, None]
    rows = learner._layout.pack(obs, rng.uniform(-1, 1, (num, 1)), next_obs, np.zeros(num), terminated)
    learner.set_dataset(rows, np.array([0]), np.arange(num), True)
    learner.model_buffer.add(torch.from_numpy(rows[1:3]))
    for _ in range(5):
        learner.update_many(1)
        seen = {name: unknown_successors(b.obs, b.next_obs, b.terminated).sum() for name, b in (
            ("classifier", learner._batch["classifier_offline"]), ("critics", learner._batch["update"])
        )}  # fmt: skip
        assert seen["classifier"] == 0
        assert seen["critics"] > 0
    assert not learner._update.knows_terminals
    learner._layout.unpack(rows).next_obs[0] += 1
    learner.set_dataset(rows, np.array([0]), np.arange(num), True)
    assert learner._update.knows_terminals
