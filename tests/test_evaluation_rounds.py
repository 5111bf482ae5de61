"""Evaluations on remote runners that die, raise, or do not start."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from rllib_damo.baselines.bc import BehaviorCloningConfig
from rllib_damo.data.formats.parquet import write_parquet
from rllib_damo.evaluation.rounds import Evaluation, MissedEvaluations, Part, play_in_rounds, share
from tests.data_helpers import make_transitions


class FakeGroup:
    """Runners by index; `answer(runner, attempt, amount)` gives a Part, "dies", or "is late"."""

    def __init__(self, runners: int, answer: Callable[[int, int, int], Any]) -> None:
        self.healthy = list(range(1, runners + 1))
        self.answer = answer
        self.asked: list[dict[int, int]] = []
        self._worker_manager = SimpleNamespace(foreach_actor=lambda *args, **kwargs: [])

    def healthy_worker_ids(self) -> list[int]:
        return list(self.healthy)

    def foreach_env_runner(self, name: str, *, kwargs: dict[str, Any], remote_worker_ids: list[int], **_: Any) -> list:
        assert name == "try_play"
        shares = kwargs["shares"]
        assert list(shares) == remote_worker_ids
        self.asked.append(shares)
        answers = {runner: self.answer(runner, kwargs["attempt"], shares[runner]) for runner in shares}
        self.healthy = [runner for runner in self.healthy if answers.get(runner) != "dies"]
        return [answer for answer in answers.values() if isinstance(answer, Part)]


def play(group: FakeGroup, duration: int) -> Evaluation:
    return play_in_rounds(group, duration=duration, unit="episodes", force_reset=True, timeout_s=5.0)  # type: ignore[arg-type]


def plays(runner: int, attempt: int, amount: int) -> Part:
    return Part(runner, amount, 100 * amount, metrics=None)


def test_an_amount_is_divided() -> None:
    assert share(8, [1, 2, 3]) == {1: 3, 2: 3, 3: 2}
    assert share(1, [2, 3]) == {2: 1}


def test_all_are_played_in_one_round_where_nothing_happens() -> None:
    group = FakeGroup(3, plays)
    evaluation = play(group, 8)
    assert (evaluation.played, evaluation.env_steps, evaluation.errors, evaluation.losses) == (8, 800, [], [])
    assert len(group.asked) == 1


def test_a_dead_runners_episodes_are_played_by_the_others_in_a_later_attempt() -> None:
    attempts = []

    def answer(runner: int, attempt: int, amount: int) -> Any:
        attempts.append((runner, attempt))
        return "dies" if runner == 1 else plays(runner, attempt, amount)

    group = FakeGroup(3, answer)
    assert play(group, 7).played == 7
    assert group.asked == [{1: 3, 2: 2, 3: 2}, {2: 2, 3: 1}]
    assert attempts == [(1, 0), (2, 0), (3, 0), (2, 1), (3, 1)]


def test_an_evaluation_ends_when_all_have_died() -> None:
    group = FakeGroup(3, lambda runner, attempt, amount: "dies" if runner <= attempt + 1 else plays(runner, attempt, 0))
    assert play(group, 4).played == 0
    assert group.healthy == []


def test_a_runner_that_raises_is_not_asked_again() -> None:
    def answer(runner: int, attempt: int, amount: int) -> Any:
        return Part(runner, error="Traceback\nValueError: stuck") if runner == 2 else plays(runner, attempt, amount)

    group = FakeGroup(2, answer)
    evaluation = play(group, 4)
    assert (evaluation.played, evaluation.errors) == (4, ["Traceback\nValueError: stuck"])
    assert group.asked == [{1: 2, 2: 2}, {1: 2}]


def test_a_late_runner_ends_the_evaluation_with_what_is_there() -> None:
    group = FakeGroup(2, lambda runner, attempt, amount: None if runner == 1 else plays(runner, attempt, amount))
    evaluation = play(group, 4)
    assert evaluation.played == 2
    assert "did not answer in evaluation_sample_timeout_s=5.0 seconds" in evaluation.losses[0]


def test_what_is_tolerated(caplog: pytest.LogCaptureFixture) -> None:
    missed = MissedEvaluations()
    for _ in range(2):
        missed.check(Evaluation(4, losses=["the runner died\nout of memory"]), 3)
    assert "continues without evaluation: out of memory" in caplog.text
    missed.check(Evaluation(4, parts=[Part(1, 2)], losses=["x"]), 3)  # counted anew
    assert "played 2 of 4" in caplog.text
    for _ in range(2):
        missed.check(Evaluation(4), 3)
    with pytest.raises(RuntimeError, match=r"for 3 evaluations in a row .*skips`=3.*\nall evaluation runners died"):
        missed.check(Evaluation(4), 3)
    missed.check(Evaluation(4, errors=["ValueError: stuck"]), None)
    with pytest.raises(RuntimeError, match="ValueError: stuck"):
        MissedEvaluations().check(Evaluation(4, errors=["ValueError: stuck"]), 3)


# -- with Ray ----------------------------------------------------------------------------------------------------------


class Unsteady(gym.Env[np.ndarray, np.ndarray]):
    """Three steps an episode. Notes each start state; may fail as `env_config` says, on the runner of an index."""

    observation_space = gym.spaces.Box(-10.0, 10.0, (3,))
    action_space = gym.spaces.Box(-10.0, 10.0, (2,))

    def __init__(self, config: Any) -> None:
        self.config, self.steps, self.index = config, 0, getattr(config, "worker_index", 0)
        if self.index and config.get("port_is_taken"):
            raise RuntimeError("port 5005 is taken")

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.observation = self.np_random.uniform(-1.0, 1.0, 3).astype(np.float32)
        self.steps = 0
        return self.observation, {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.steps += 1
        if self.index == self.config.get("dies") and self.steps == 2:
            os._exit(1)
        if self.index == self.config.get("raises"):
            raise ValueError("the valve is stuck")
        if self.steps == 3 and self.index:
            with Path(self.config["notes"]).open("a") as notes:
                notes.write(f"{self.observation[0]:.8f}\n")
        return self.observation, 1.0, self.steps == 3, False, {}


@pytest.fixture
def make_algo(ray_cluster: None, tmp_path: Path):  # type: ignore[no-untyped-def]
    built = []

    def make(**env_config: Any) -> Any:
        data = tmp_path / "data.parquet"
        write_parquet(make_transitions((40,) * 10), data)
        config = BehaviorCloningConfig().environment(
            Unsteady, env_config={"notes": str(tmp_path / "notes"), **env_config}
        )
        config.offline_data(input_=str(data)).training(hidden_dims=(8,), rollout_freq=2, train_batch_size_per_learner=8)
        config.evaluation(
            evaluation_interval=1, evaluation_num_env_runners=2, evaluation_duration=8,
            evaluation_config={"num_cpus_per_env_runner": 0.5},
        ).debugging(seed=0)  # fmt: skip
        built.append(config.build_algo())
        return built[-1]

    yield make
    for algo in built:
        algo.stop()


def test_runners_that_cannot_start_end_the_run_with_the_cause(make_algo: Any) -> None:
    algo = make_algo(port_is_taken=True)
    with pytest.raises(RuntimeError, match="port 5005 is taken"):
        algo.train()


def test_an_environment_that_raises_everywhere_ends_the_run_with_the_cause(make_algo: Any) -> None:
    algo = make_algo(raises=1)
    evaluation = algo.train()["evaluation"]["env_runners"]  # the other runner plays all
    assert evaluation["num_episodes"] == 8
    algo.eval_env_runner_group.foreach_env_runner(_raise_everywhere, local_env_runner=False)
    with pytest.raises(RuntimeError, match="ValueError: the valve is stuck"):
        algo.train()


def _raise_everywhere(runner: Any) -> None:
    runner.env.unwrapped.envs[0].unwrapped.config["raises"] = runner.worker_index


def test_episodes_of_a_runner_that_dies_are_played_by_the_other_and_are_distinct(
    make_algo: Any, tmp_path: Path
) -> None:
    evaluation = make_algo(dies=1).train()["evaluation"]["env_runners"]
    starts = re.findall(".+", (tmp_path / "notes").read_text())
    assert evaluation["num_episodes"] == 8
    assert len(starts) == len(set(starts)) == 8
