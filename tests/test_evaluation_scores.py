from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ray.rllib.utils.metrics.metrics_logger import MetricsLogger
from ray.train._internal.checkpoint_manager import _CheckpointManager
from ray.train._internal.session import _TrainingResult
from ray.tune import Checkpoint, CheckpointConfig

from rllib_damo import DAMOConfig
from rllib_damo.evaluation import runner as runner_module
from rllib_damo.evaluation.runner import EvaluationEnvRunner
from rllib_damo.evaluation.scores import ScoreCallbacks, discounted_return
from rllib_damo.tasks import REFERENCE_RETURNS, TASKS, normalized_score, normalized_std, reference_returns


@pytest.mark.parametrize("env_id", sorted(TASKS))
def test_references_score_0_and_100(env_id: str) -> None:
    low, high = REFERENCE_RETURNS[TASKS[env_id]]
    assert normalized_score(env_id, low) == 0.0
    assert normalized_score(env_id, high) == pytest.approx(100.0)
    assert normalized_score(f"gymnasium.envs.mujoco:{env_id}", high) == pytest.approx(100.0)


def test_d4rl_value() -> None:
    # D4RL: a Hopper return of 1000 scores (1000 + 20.272305) / 3254.572305.
    assert normalized_score("Hopper-v5", 1000.0) == pytest.approx(31.3489, abs=1e-3)
    np.testing.assert_allclose(normalized_score("hopper", np.array([-20.272305, 3234.3])), [0.0, 100.0])


@pytest.mark.parametrize("env_id", ["HopperHard-v5", "MyHopper-v5", "CartPole-v1", "Hopper", "", None, gym.Env])
def test_no_reference_for_other_environments(env_id: object) -> None:
    assert reference_returns(env_id) is None
    assert normalized_score(env_id, 1.0) is None
    assert normalized_std(env_id, 1.0) is None


@given(st.lists(st.floats(-1e4, 1e4), min_size=2, max_size=20), st.sampled_from(sorted(REFERENCE_RETURNS)))
def test_std_is_scaled_not_shifted(returns: list[float], task: str) -> None:
    scores = normalized_score(task, np.array(returns))
    std = normalized_std(task, float(np.std(returns)))
    assert scores is not None
    assert std == pytest.approx(float(np.std(scores)), abs=1e-6)


def test_discounted_return() -> None:
    assert discounted_return([1.0, 2.0, 4.0], 0.5) == 1.0 + 1.0 + 1.0
    assert discounted_return([], 0.9) == 0.0
    assert discounted_return(np.ones(1000, dtype=np.float32), 1.0) == 1000.0


class FakeLogger:
    def __init__(self) -> None:
        self.values: dict[str, list[float]] = {}

    def log_value(self, key: str, value: float, **kwargs: Any) -> None:
        self.values.setdefault(key, []).append(value)


def end_episode(in_evaluation: bool, chunks: list[list[float]]) -> FakeLogger:
    logger = FakeLogger()
    config = SimpleNamespace(in_evaluation=in_evaluation, gamma=0.5)
    *previous, last = [SimpleNamespace(get_rewards=lambda rewards=rewards: rewards) for rewards in chunks]
    ScoreCallbacks().on_episode_end(
        episode=last,
        prev_episode_chunks=previous,
        env_runner=SimpleNamespace(config=config),
        metrics_logger=logger,
        env_index=0,
    )
    return logger


def test_discounted_return_spans_the_chunks_of_an_episode() -> None:
    logger = end_episode(True, [[1.0, 2.0], [4.0]])
    assert logger.values == {"_episode_returns": [7.0], "_discounted_returns": [3.0], "_episode_lengths": [3]}


def test_training_episodes_are_not_counted() -> None:
    assert end_episode(False, [[1.0]]).values == {}


def evaluate_end(env: object, env_runners: dict[str, Any]) -> dict[str, Any]:
    metrics = {"env_runners": env_runners}
    algorithm = SimpleNamespace(evaluation_config=SimpleNamespace(env=env), config=None)
    ScoreCallbacks().on_evaluate_end(algorithm=algorithm, evaluation_metrics=metrics)
    return metrics["env_runners"]


def played(returns: list[float]) -> dict[str, Any]:
    """What RLlib gives to `on_evaluate_end` of episodes with these returns, its own numbers left out."""
    return {"_episode_returns": returns, "_discounted_returns": returns, "_episode_lengths": [1 for _ in returns]}


def test_scores_join_the_evaluation_metrics() -> None:
    returns = [1000.0, 2000.0]
    results = evaluate_end("Hopper-v5", {"episode_return_mean": 1400.0, **played(returns)})
    scores = normalized_score("hopper", np.array(returns))
    assert scores is not None
    assert results["episode_return_mean"] == 1500.0
    assert results["normalized_score"] == pytest.approx(scores.mean())
    assert results["normalized_score_std"] == pytest.approx(scores.std())
    assert results["episode_return_std"] == 500.0


def test_unknown_environment_gets_no_score() -> None:
    results = evaluate_end("CartPole-v1", played([9.0]))
    assert results["episode_return_mean"] == 9.0
    assert not any("score" in name for name in results)


def test_evaluation_without_a_finished_episode() -> None:
    assert evaluate_end("Hopper-v5", {}) == {}
    assert evaluate_end("Hopper-v5", {"num_episodes": 0}) == {"num_episodes": 0}


def test_echo_of_an_evaluation_leaves_the_next_result() -> None:
    echo = {"evaluation": {"env_runners": {"episode_return_mean": 1.0, "_episode_returns": [1.0]}}, "iteration": 2}
    ScoreCallbacks().on_train_result(algorithm=None, result=echo)
    assert echo == {"iteration": 2}
    fresh = {"evaluation": {"env_runners": {"episode_return_mean": 1.0}, "num_healthy_workers": 0}}
    ScoreCallbacks().on_train_result(algorithm=None, result=fresh)
    assert fresh["evaluation"]["env_runners"] == {"episode_return_mean": 1.0}


def test_tune_keeps_the_best_checkpoints_by_a_nested_metric(tmp_path: Path) -> None:
    """In Python, too, where nothing but the callbacks of the config is at work."""
    metric = "evaluation/env_runners/normalized_score"
    keeper = _CheckpointManager(CheckpointConfig(num_to_keep=1, checkpoint_score_attribute=metric))
    for i, score in enumerate((10.0, 30.0, 20.0)):
        result: dict[str, Any] = {
            "evaluation": {"env_runners": {"episode_return_mean": 2.0, "normalized_score": score}}
        }
        ScoreCallbacks().on_train_result(algorithm=None, result=result)
        assert result["evaluation/env_runners/episode_return_mean"] == 2.0
        (tmp_path / str(i)).mkdir()
        keeper.register_checkpoint(_TrainingResult(Checkpoint(str(tmp_path / str(i))), result))
    assert (tmp_path / "1").exists()
    assert not (tmp_path / "0").exists()
    unscored: dict[str, Any] = {"evaluation": {"env_runners": {"episode_return_mean": float("nan")}}, "x": 1}
    ScoreCallbacks().on_train_result(algorithm=None, result=unscored)
    assert unscored.keys() == {"evaluation", "x"}


class Coin(gym.Env[np.ndarray, np.ndarray]):
    """Episodes of 2 or of 50 steps, as likely; the return is the length. The observation is the episode's own."""

    observation_space = action_space = gym.spaces.Box(-1.0, 1.0, (1,))

    def __init__(self, config: Any = None) -> None:
        self.length = self.left = 0
        self.observation = np.zeros(1, np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.length = self.left = int(self.np_random.choice([2, 50]))
        self.observation = self.np_random.uniform(-1.0, 1.0, 1).astype(np.float32)
        return self.observation, {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.left -= 1
        return self.observation, 1.0, self.left == 0, False, {}


def evaluation_runner(num_envs: int, index: int = 0, seed: int = 0, **evaluation: Any) -> EvaluationEnvRunner:
    config = DAMOConfig().environment(Coin).offline_data(input_="unused").debugging(seed=seed)
    config.evaluation(evaluation_config={"num_envs_per_env_runner": num_envs}, **evaluation)
    evaluating: Any = config.get_evaluation_config_object()
    assert evaluating.env_runner_cls is EvaluationEnvRunner
    return EvaluationEnvRunner(config=evaluating, worker_index=index)


def test_short_episodes_are_no_more_likely_in_copies_side_by_side() -> None:
    runner = evaluation_runner(100)
    lengths = [len(episode) for episode in runner.sample(num_episodes=100)]
    assert len(lengths) == 100
    # All of the long ones that were begun. RLlib's own runner has 100 short ones together before a long one can end.
    assert 35 <= lengths.count(50) <= 65
    runner.stop()


@pytest.mark.parametrize("num_envs", [1, 3, 8])
def test_as_many_episodes_as_asked_for(num_envs: int) -> None:
    """More than copies, and fewer; the metrics are of these alone."""
    runner = evaluation_runner(num_envs)
    episodes = runner.sample(num_episodes=5)
    metrics = runner.get_metrics()
    assert len(episodes) == 5
    assert metrics["num_episodes"].peek() == 5
    assert metrics["episode_return_mean"].peek() == np.mean([len(episode) for episode in episodes])
    assert sum(map(len, runner.sample(num_timesteps=120))) >= 120
    runner.stop()


def test_an_environment_that_does_not_end_is_warned_of(monkeypatch, caplog) -> None:
    runner = evaluation_runner(2)
    for long, warned in ((60, False), (40, True)):
        monkeypatch.setattr(runner_module, "_LONG", long)
        runner.sample(num_timesteps=200)
        assert "TimeLimit" not in caplog.text  # no end is waited for
        runner.sample(num_episodes=20)
        assert ("TimeLimit" in caplog.text) == warned


@pytest.mark.parametrize(
    ("num_envs", "shares"), [(10, [150]), (1, [3, 2])], ids=["more than RLlib's window", "unequal shares"]
)
def test_numbers_are_of_all_episodes_alike(num_envs: int, shares: list[int]) -> None:
    runners = [evaluation_runner(num_envs, index) for index in range(len(shares))]
    episodes = [runner.sample(num_episodes=share) for runner, share in zip(runners, shares, strict=True)]
    lengths = np.array([len(episode) for own in episodes for episode in own])
    logger = MetricsLogger(root=True)
    logger.aggregate([runner.get_metrics() for runner in runners], key=("evaluation", "env_runners"))
    results = evaluate_end("Hopper-v5", logger.peek("evaluation", latest_merged_only=True)["env_runners"])
    assert results["num_episodes"] == len(lengths) == sum(shares)
    for name in ("return", "len"):
        found = [results[f"episode_{name}_{statistic}"] for statistic in ("mean", "min", "max")]
        assert found == pytest.approx([lengths.mean(), lengths.min(), lengths.max()])
    for name in ("agent_episode_return_mean", "module_episode_return_mean"):
        assert [*results[name].values()] == pytest.approx([lengths.mean()])
    assert results["episode_return_std"] == pytest.approx(lengths.std())
    assert results["discounted_return_mean"] == pytest.approx(np.mean((1 - 0.99**lengths) / 0.01))
    assert results["normalized_score"] == pytest.approx(normalized_score("hopper", lengths.mean()))
    assert not any(name.startswith("_") for name in results)
    for runner in runners:
        runner.stop()


def starts(runner: EvaluationEnvRunner, **kwargs: Any) -> list[float]:
    return [float(episode.get_observations(0)[0]) for episode in runner.sample(**kwargs)]


def test_no_two_runners_or_seeds_share_a_start() -> None:
    runners = [evaluation_runner(10, index, seed) for index, seed in ((0, 3), (0, 4), (1, 3), (2, 3))]
    found = [start for runner in runners for start in starts(runner, num_episodes=10)]
    assert len(set(found)) == 40
    for runner in runners:
        runner.stop()


@pytest.mark.parametrize("unit", ["num_episodes", "num_timesteps"])
def test_every_evaluation_starts_from_the_same_states(unit: str) -> None:
    """And none goes on with an episode of the last one, however RLlib asks for it."""
    runner = evaluation_runner(3)
    first = starts(runner, **{unit: 75})
    assert starts(runner, **{unit: 75}) == first
    assert starts(runner, **{unit: 75}, force_reset=True) == first
    runner.stop()


def test_an_episode_goes_on_where_no_reset_is_wanted() -> None:
    runner = evaluation_runner(1)
    first = starts(runner, num_timesteps=1)
    assert starts(runner, num_timesteps=1, force_reset=False) == first
    runner.stop()
    for own in ({"evaluation_force_reset_envs_before_iteration": False}, {"custom_evaluation_function": starts}):
        runner = evaluation_runner(1, **own)
        assert starts(runner, num_timesteps=75) != starts(runner, num_timesteps=75)
        runner.stop()


class Breaking(Coin):
    """Raises at every so many steps, counted over all copies."""

    steps, every = 0, 40

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        Breaking.steps += 1
        if Breaking.steps % self.every == 0:
            raise RuntimeError("broken")
        return super().step(action)


def restarting_runner(monkeypatch: pytest.MonkeyPatch, every: int) -> EvaluationEnvRunner:
    monkeypatch.setattr(Breaking, "every", every)
    config = DAMOConfig().environment(Breaking).offline_data(input_="unused").debugging(seed=0)
    config.evaluation(evaluation_config={"num_envs_per_env_runner": 20, "restart_failed_sub_environments": True})
    return EvaluationEnvRunner(config=config.get_evaluation_config_object(), worker_index=1)


def test_shares_and_starts_outlive_an_environment_that_was_made_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    runner = restarting_runner(monkeypatch, every=1500)
    episodes = runner.sample(num_episodes=200)
    lengths = [len(episode) for episode in episodes]
    assert len(lengths) == 200
    assert 70 <= lengths.count(50) <= 130
    starts = [float(episode.get_observations(0)[0]) for episode in episodes]
    assert len(set(starts)) == 200
    runner.stop()


def test_an_environment_that_always_fails_ends_the_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RuntimeError, match="the environment failed 21 times in a row, and no episode ended"):
        restarting_runner(monkeypatch, every=1).sample(num_episodes=20)
