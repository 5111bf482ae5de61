"""Steps in the real environment while training (`.online`)."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.envs.classic_control.pendulum import PendulumEnv

from rllib_damo import DAMO, TD3BC, DAMOConfig, OfflineIQL, OfflineIQLConfig, ReBRACConfig, TD3BCConfig
from rllib_damo.core.algorithm import OfflineAlgorithm
from rllib_damo.core.config import OfflineConfig
from rllib_damo.core.online import OnlineBuffer, OnlineSampler
from rllib_damo.core.update import RowGroup
from rllib_damo.data.schema import Transitions
from rllib_damo.dynamics import DynamicsEnsemble
from rllib_damo.dynamics.training import DynamicsTrainer
from rllib_damo.errors import UserError
from tests.small_runs import make_small, module_state, train_policy

in_ray = pytest.mark.usefixtures("ray_cluster")


class Counter(gym.Env):
    """The observation is the number of steps; it terminates after 3 in every second episode, and is cut after 5."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = gym.spaces.Box(-4.0, 4.0, (1,), np.float32)

    def __init__(self, config: Any = None):
        self.episode = 0

    def reset(self, **kwargs: Any) -> Any:
        self.step_, self.episode = 0, self.episode + 1
        return self.observe(), {}

    def observe(self) -> np.ndarray:
        return np.array([self.step_, self.episode], np.float32)

    def step(self, action: np.ndarray) -> Any:
        self.step_ += 1
        return self.observe(), float(action[0]), self.step_ == 3 and self.episode % 2 == 0, self.step_ == 5, {}


class CountedPendulum(gym.wrappers.TimeLimit):
    """Counts what is done with it, in this process."""

    steps = 0

    def __init__(self, config: Any = None):
        super().__init__(PendulumEnv(), 30)

    def step(self, action: Any) -> Any:
        type(self).steps += 1
        return super().step(action)


def small(config: OfflineConfig, dataset: Any, cache_dir: str, **online: Any) -> Any:
    return make_small(config, dataset, cache_dir).evaluation(evaluation_interval=None).online(**online)


def store(algo: Any) -> Any:
    """The learner, and the columns of its online rows."""
    learner = algo.learner_group._learner
    rows = learner._offline[learner._num_offline : learner._num_offline + learner._num_online]
    return learner, learner._layout.unpack(rows)


def dataset_columns(algo: Any) -> tuple[Any, ...]:
    rows = algo.offline_data.transitions
    return rows.observations, rows.actions, rows.next_observations, rows.rewards, rows.terminations


def online_rows(learner: Any) -> np.ndarray:
    return learner._offline[learner._num_offline :][: learner._num_online].numpy()


# -- sampling --------------------------------------------------------------------------------------------------------


def sampler_of(env: Any, **online: Any) -> OnlineSampler:
    config = TD3BCConfig().environment(env).offline_data(input_="pendulum-mixed").training(hidden_dims=(8,))
    config.debugging(seed=0).online(online_steps_per_iteration=7, **online).validate()
    return OnlineSampler(config)


def test_rows_are_transitions_in_the_environments_units() -> None:
    sampler = sampler_of(Counter)
    weights = sampler._module.get_state()
    rows = sampler.sample(20, weights, 0)
    assert len(rows) == 20
    np.testing.assert_array_equal(rows.next_observations[:, 0], rows.observations[:, 0] + 1)
    np.testing.assert_array_equal(rows.next_observations[:, 1], rows.observations[:, 1])
    np.testing.assert_allclose(rows.rewards, rows.actions[:, 0], rtol=1e-5)  # what the environment got
    # A time limit is no terminal state; and a part that is cut ends as one.
    step, episode = rows.next_observations.T
    np.testing.assert_array_equal(rows.terminations, (step == 3) & (episode % 2 == 0))
    np.testing.assert_array_equal(np.flatnonzero(rows.truncations), [4, 12, 19])
    # The next steps go on where these ended.
    assert sampler.sample(1, weights, 20).observations[0].tolist() == rows.next_observations[-1].tolist()
    assert sampler.metrics()["num_env_steps_sampled"] == 21
    # Unless another run's state was taken.
    sampler.reset()
    again = sampler.sample(2, weights, 21)
    assert again.observations[:, 0].tolist() == [0, 1]
    assert again.observations[0, 1] == rows.observations[-1, 1] + 1
    sampler.close()


def test_noise_follows_from_seed_and_steps_and_leaves_the_global_generator() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    runs = {noise: sampler_of("Pendulum-v1", online_noise=noise) for noise in (0.0, 0.5)}
    weights = runs[0.0]._module.get_state()
    torch.set_rng_state(before)
    plain, noisy = (runs[noise].sample(50, weights, 0) for noise in runs)
    assert torch.equal(torch.get_rng_state(), before)
    again = sampler_of("Pendulum-v1", online_noise=0.5).sample(50, weights, 0)
    np.testing.assert_array_equal(again.actions, noisy.actions)
    np.testing.assert_array_equal(plain.observations[0], noisy.observations[0])  # the same start state
    assert abs(plain.actions).max() < abs(noisy.actions).max() <= 2
    other = sampler_of("Pendulum-v1", online_noise=0.5).sample(50, weights, 100)
    assert not np.array_equal(other.observations[0], noisy.observations[0])


def test_what_is_not_finite_is_named() -> None:
    class Broken(Counter):
        def step(self, action: Any) -> Any:
            return self.observe() * np.nan, 0.0, False, False, {}

    sampler = sampler_of(Broken)
    with pytest.raises(UserError, match=r"gave (next_)?observations that are not finite"):
        sampler.sample(3, sampler._module.get_state(), 0)


# -- the buffer ------------------------------------------------------------------------------------------------------


def numbered(start: int, num: int) -> Transitions:
    values = np.arange(start, start + num, dtype=np.float32)
    flags = np.arange(num) == num - 1
    return Transitions(values[:, None], values[:, None], values, values[:, None], ~flags & False, flags)


def test_the_buffer_keeps_the_newest_rows_in_the_learners_order() -> None:
    buffer, ring, added = OnlineBuffer(10), np.full(10, -1.0), 0
    for num in (4, 3, 5, 25, 1):
        new = numbered(added, num)
        buffer.add(new)
        added += num
        newest = new.slice(max(0, num - 10), num)
        ring[buffer.slots(len(newest))] = newest.rewards
        np.testing.assert_array_equal(ring[buffer.slots(len(buffer))], buffer.rows.rewards)
    assert buffer.total == 38
    assert buffer.rows.rewards.tolist() == list(range(28, 38))

    again, smaller = OnlineBuffer(10), OnlineBuffer(4)
    for other in (again, smaller):
        other.set_state(buffer.get_state())
        assert other.total == 38
    np.testing.assert_array_equal(again.slots(10), buffer.slots(10))
    assert smaller.rows.rewards.tolist() == [34, 35, 36, 37]
    # Learners fill an empty ring from its first slot on, and draw from as many as there are.
    larger, ring = OnlineBuffer(15), np.full(15, -1.0)
    larger.set_state(buffer.get_state())
    for num in (0, 3, 4):
        if num:
            larger.add(numbered(larger.total, num))
        newest = num or len(larger)
        ring[larger.slots(newest)] = larger.rows.rewards[-newest:]
        np.testing.assert_array_equal(np.sort(ring[: len(larger)]), larger.rows.rewards)
    again = OnlineBuffer(15)
    again.set_state(larger.get_state())
    np.testing.assert_array_equal(again.slots(15), larger.slots(15))
    empty = OnlineBuffer(3)
    empty.set_state(OnlineBuffer(5).get_state())
    assert len(empty) == empty.total == 0


# -- runs ------------------------------------------------------------------------------------------------------------


@in_ray
def test_no_step_is_taken_unless_asked_for(dataset, cache_dir):
    config = small(TD3BCConfig(), dataset, cache_dir).environment(CountedPendulum)
    algo = config.build_algo()
    result = train_policy(algo, 2)
    algo.stop()
    assert CountedPendulum.steps == 0
    assert "online" not in result
    assert "num_online_steps_lifetime" not in result

    algo = config.copy(copy_frozen=False).online(online_steps_per_iteration=40, online_after_steps=40).build_algo()
    assert train_policy(algo, 2)["num_online_steps_lifetime"] == CountedPendulum.steps == 0
    result = train_policy(algo, 1)
    algo.stop()
    assert result["num_online_steps_lifetime"] == CountedPendulum.steps == 40
    assert result["online"]["buffer_size"] == 40
    assert result["online"]["num_episodes"] == 1
    assert -1000 < result["online"]["episode_return_mean"] < 0


@in_ray
def test_an_offline_run_goes_on_and_keeps_what_it_learned(dataset, cache_dir, tmp_path, monkeypatch):
    offline = small(DAMOConfig(), dataset, cache_dir).build_algo()
    train_policy(offline, 2)
    path = offline.save_to_path(str(tmp_path / "offline"))
    algo = DAMO.from_checkpoint(
        path, online_steps_per_iteration=50, online_first_steps=150, online_ratio=0.5, dynamics_refit_interval=200
    )
    for name, value in module_state(offline).items():
        np.testing.assert_array_equal(module_state(algo)[name], value)
    before, dataset_states = DynamicsEnsemble.load(algo.dynamics.file()), algo._starts["start_states"]
    result = train_policy(algo, 1)
    assert result["num_online_steps_lifetime"] == 150
    assert result["num_gradient_steps_lifetime"] == 60
    assert result["online"]["num_refits"] == 0
    assert torch.equal(DynamicsEnsemble.load(algo.dynamics.file()).weights[0], before.weights[0])
    for name in ("actor.standardize.mean", "critics.standardize.std"):
        np.testing.assert_array_equal(module_state(algo)[name], module_state(offline)[name])

    trainers: list[DynamicsTrainer] = []
    make = algo.dynamics._make_trainer
    monkeypatch.setattr(algo.dynamics, "_make_trainer", lambda *args: trainers.append(make(*args)) or trainers[-1])
    result = train_policy(algo, 1)
    assert result["online"]["num_refits"] == 1
    # What the first training kept aside is still new to the model.
    kept = trainers[0]._holdout
    first = DynamicsTrainer(
        DynamicsEnsemble(3, 1, hidden_dims=(8,)), *dataset_columns(algo), lr=1e-3, weight_decay=(0.0, 0.0),
        holdout_size=100, seed=3,
    )  # fmt: skip
    assert torch.equal(kept[:100], first._holdout)
    assert len(kept) == 110
    assert kept[100:].min() >= 2000
    assert not torch.isin(trainers[0]._bootstrap, kept).any()
    assert result["dynamics"]["holdout_mse"] > 0
    after = DynamicsEnsemble.load(algo.dynamics.file())
    assert not torch.equal(after.weights[0], before.weights[0])
    assert torch.equal(after.input_mean, before.input_mean)  # which the weights go with
    # Half of the rollouts start from online rows.
    np.testing.assert_array_equal(algo._starts["online_states"], store(algo)[1].obs)
    assert algo._starts["start_states"] is dataset_states
    online = {tuple(row) for row in algo._starts["online_states"].tolist()}
    drawn = torch.cat([algo.env_runner._draw_starts(algo._starts["online_states"]) for _ in range(20)])
    assert np.mean([tuple(row) in online for row in drawn.tolist()]) == pytest.approx(0.5, abs=0.05)

    # A checkpoint has it all; what is learned from it is the same, bit for bit, where no new steps are taken.
    path = algo.save_to_path(str(tmp_path / "online"))
    twins = [DAMO.from_checkpoint(path, online_steps_per_iteration=0) for _ in range(2)]
    for twin in twins:
        assert twin._online.total == 200
        assert twin._num_refits == 1
        assert torch.equal(store(twin)[0]._offline, store(algo)[0]._offline)
        assert torch.equal(DynamicsEnsemble.load(twin.dynamics.file()).weights[0], after.weights[0])
        assert train_policy(twin, 1)["num_online_steps_lifetime"] == 200
    algo._sampler.close()
    algo._sampler, algo._refit_at = None, 0  # takes no steps and so trains no model on them, as the twins
    assert train_policy(algo, 1)["online"]["num_refits"] == 1
    for states in zip(*(module_state(run).values() for run in (algo, *twins)), strict=True):
        np.testing.assert_array_equal(states[0], states[1])
        np.testing.assert_array_equal(states[0], states[2])
    # What is read of the dataset once more leaves the online rows in their places.
    twins[1]._read_columns()
    assert torch.equal(store(twins[1])[0]._offline, store(algo)[0]._offline)
    assert store(twins[1])[0]._num_online == 200
    twins[0].restore_from_path(str(tmp_path / "offline"))
    assert twins[0]._online.total == store(twins[0])[0]._num_online == 0
    assert "online_states" not in twins[0]._starts
    # A model of a run's own goes with the run.
    own = [run.dynamics.file() for run in (algo, twins[1])]
    assert own[0] != own[1]
    for running in (offline, algo, *twins):
        running.stop()
    assert not any(file.exists() for file in own)
    assert not list(Path(cache_dir).glob("dynamics-content-*"))
    assert offline.dynamics.path.exists()


@in_ray
def test_a_restored_run_has_the_rows_that_were_kept_and_goes_on_counting(dataset, cache_dir, tmp_path):
    options = {"online_steps_per_iteration": 30, "online_buffer_size": 50}
    algo = small(TD3BCConfig(), dataset, cache_dir, **options).environment(CountedPendulum).build_algo()
    train_policy(algo, 3)
    restored = TD3BC.from_checkpoint(algo.save_to_path(str(tmp_path)))
    assert restored._online.total == 90
    assert len(restored._online) == 50
    assert torch.equal(store(restored)[0]._offline, store(algo)[0]._offline)
    results = [train_policy(a, 1) for a in (algo, restored)]
    assert [r["num_online_steps_lifetime"] for r in results] == [120, 120]
    # One that runs goes on as one that was made for it, without the episode that it had begun.
    algo.restore_from_path(str(tmp_path))
    train_policy(algo, 1)
    np.testing.assert_array_equal(store(algo)[1].obs, store(restored)[1].obs)
    for first, second in zip(*(module_state(run).values() for run in (algo, restored)), strict=True):
        np.testing.assert_array_equal(first, second)
    for running in (algo, restored):
        running.stop()


@in_ray
def test_rewards_have_the_offline_runs_scale_and_batches_the_online_share(dataset, cache_dir, tmp_path):
    algo = small(OfflineIQLConfig(), dataset, cache_dir).build_algo()
    train_policy(algo, 1)
    path = algo.save_to_path(str(tmp_path))
    going_on = OfflineIQL.from_checkpoint(path, online_steps_per_iteration=60, online_ratio=0.25)
    train_policy(going_on, 1)
    learner, rows = store(going_on)
    np.testing.assert_allclose(rows.rewards, going_on._online.rows.rewards * algo._reward_scale, rtol=1e-6)
    assert algo._reward_scale != 1
    for group, share in (("selected", 0.25), ("known", 0.25), ("starts", 0.0)):
        picks = learner._pick_real(RowGroup(1000, of=group), 4)
        assert picks.shape == (4, 1000)
        assert (picks >= 2000).double().mean() == pytest.approx(share, abs=0.03)
        assert picks.max() < 2060
    for running in (algo, going_on):
        running.stop()


@in_ray
def test_start_from_takes_the_online_rows_to_other_data(dataset, cache_dir, tmp_path):
    algo = small(ReBRACConfig(), dataset, cache_dir, online_steps_per_iteration=40).build_algo()
    train_policy(algo, 2)
    path = algo.save_to_path(str(tmp_path))
    config = small(ReBRACConfig(), [dataset, dataset], cache_dir, online_steps_per_iteration=40)
    going_on = config.offline_data(start_from=path).build_algo()
    assert going_on._online.total == 80
    old, new = (a.learner_group._learner for a in (algo, going_on))
    for name, columns in new._extra.items():  # the next actions, which end with each part of an episode
        assert torch.equal(columns[4000:4080], old._extra[name][2000:2080])
    assert new._extra["has_next_action"][4000:4080].sum() == 78
    assert train_policy(going_on, 1)["num_online_steps_lifetime"] == 120
    for running in (algo, going_on):
        running.stop()


def test_a_model_of_other_data_is_trained_on_the_online_rows_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OfflineAlgorithm, "_go_on", lambda *args: None)
    algo = DAMO.__new__(DAMO)
    algo._is_same_data, algo._update_uses_dynamics = False, lambda: False
    algo._foreach_learner = lambda *args: []
    algo._go_on(SimpleNamespace(training={"dynamics_refits": (2, 500)}))
    assert (algo._num_refits, algo._refit_at) == (2, 0)


@in_ray
def test_the_rows_stay_when_the_dataset_goes_on_to_another_window(dataset, cache_dir, tmp_path):
    algo = small(TD3BCConfig(), dataset, cache_dir, online_steps_per_iteration=40).build_algo()
    train_policy(algo, 1)
    path = algo.save_to_path(str(tmp_path))
    windows = small(TD3BCConfig(), dataset, cache_dir).offline_data(start_from=path, max_dataset_rows=1000).build_algo()
    train_policy(windows, 2)
    assert windows.offline_data.window == 2
    np.testing.assert_array_equal(store(windows)[1].obs, algo._online.rows.observations)
    for running in (algo, windows):
        running.stop()


# -- refusals --------------------------------------------------------------------------------------------------------


def test_without_an_environment_it_is_refused() -> None:
    env = gym.make("Pendulum-v1")
    config = TD3BCConfig().environment(observation_space=env.observation_space, action_space=env.action_space)
    config.offline_data(input_="pendulum-mixed").evaluation(evaluation_interval=None)
    config.validate()
    with pytest.raises(ValueError, match="`online_steps_per_iteration`=10 takes steps in an environment, and there is"):
        config.online(online_steps_per_iteration=10).validate()


def test_environments_that_cannot_be_made_or_are_others_are_refused() -> None:
    spaces = {"observation_space": Counter.observation_space, "action_space": Counter.action_space}
    for env, message in (
        ("NoSuchEnv-v0", "online_steps_per_iteration=10 takes steps in env='NoSuchEnv-v0', which cannot be made"),
        ("Pendulum-v1", "whose observation_space .* is not the configuration's"),
        (gym.wrappers.RescaleAction, "which cannot be made"),
    ):
        config = TD3BCConfig().environment(env, **spaces).offline_data(input_="x").training(hidden_dims=(8,))
        with pytest.raises(UserError, match=message):
            OnlineSampler(config.online(online_steps_per_iteration=10))
    narrow = gym.spaces.Box(-1.0, 1.0, (1,), np.float32)
    config = TD3BCConfig().environment(Counter, observation_space=Counter.observation_space, action_space=narrow)
    with pytest.raises(UserError, match=r"whose action_space .* is not the configuration's"):
        OnlineSampler(config.training(hidden_dims=(8,)).online(online_steps_per_iteration=10))


def test_datasets_in_windows_are_refused() -> None:
    config = SimpleNamespace(online_steps_per_iteration=10, online_buffer_size=10, max_dataset_rows=100)
    algo = SimpleNamespace(config=config, offline_data=SimpleNamespace(is_capped=True))
    with pytest.raises(UserError, match="online_steps_per_iteration=10 needs the whole dataset in memory"):
        TD3BC._set_up_online(algo)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["env_to_module_connector", "module_to_env_connector"])
def test_what_changes_rows_on_their_way_is_refused(name: str) -> None:
    config = TD3BCConfig().environment("Pendulum-v1").offline_data(input_="pendulum-mixed")
    config.env_runners(**{name: lambda *args: []}).validate()
    with pytest.raises(ValueError, match=f"`online_steps_per_iteration`=10 records .* `{name}` changes it"):
        config.online(online_steps_per_iteration=10).validate()


# -- slow ------------------------------------------------------------------------------------------------------------


@in_ray
@pytest.mark.slow
@pytest.mark.parametrize("workers", [{"num_env_runners": 1, "num_learners": 1}, {"num_learners": 2}])
def test_learners_and_rollout_runners_elsewhere_get_the_rows(dataset, cache_dir, tmp_path, workers):
    config = small(DAMOConfig(), dataset, cache_dir, online_steps_per_iteration=60).dynamics(
        dynamics_refit_interval=100
    )
    config.env_runners(num_env_runners=workers.get("num_env_runners", 0)).learners(num_learners=workers["num_learners"])
    algo = config.build_algo()
    result = train_policy(algo, 2)
    assert result["num_online_steps_lifetime"] == 120
    assert result["online"]["num_refits"] == 1
    _, wanted, _ = algo._packed(algo._online.rows)
    stores = [found.get() for found in algo.learner_group.foreach_learner(online_rows)]
    assert len(stores) == workers["num_learners"]
    for rows in stores:
        np.testing.assert_array_equal(rows, wanted)
    path = algo.save_to_path(str(tmp_path))
    algo.stop()
    restored = DAMO.from_checkpoint(path)
    assert train_policy(restored, 1)["num_online_steps_lifetime"] == 180
    restored.stop()


@in_ray
@pytest.mark.slow
def test_real_steps_improve_a_policy_of_few_steps_without_a_fall(tmp_path):
    """`benchmarks/online.py` has the long runs."""
    config = ReBRACConfig().environment("Pendulum-v1").offline_data(input_="pendulum-mixed").debugging(seed=0)
    config.training(hidden_dims=(64, 64), rollout_freq=500, tau=0.02, policy_tau=0.01)
    config.evaluation(
        evaluation_interval=1_000_000, evaluation_duration=20, evaluation_config={"num_envs_per_env_runner": 20}
    )
    algo = config.build_algo()
    train_policy(algo, 6)
    returns = [algo.evaluate()["env_runners"]["episode_return_mean"]]
    path = algo.save_to_path(str(tmp_path))
    algo.stop()
    algo = config.algorithm_class().from_checkpoint(path, online_steps_per_iteration=500)
    for _ in range(3):
        train_policy(algo, 2)
        returns.append(algo.evaluate()["env_runners"]["episode_return_mean"])
    algo.stop()
    assert -1000 < returns[0] < -200
    assert min(returns) >= 1.1 * returns[0]
    assert returns[-1] > 0.8 * returns[0]
