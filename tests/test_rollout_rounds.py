"""Rounds of rollouts with runners in this process only, which answer as they are told to."""

import numpy as np
import pytest
import ray
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig

from rllib_damo.dynamics import rollout_rounds
from rllib_damo.dynamics.rollout_rounds import RolloutRounds


class FakeRunner:
    def __init__(self, name="local", error=None):
        self.name, self.error, self.jobs = name, error, []

    def sample(self, **job):
        self.jobs.append(job)
        if self.error is not None:
            raise self.error
        return [f"{self.name}, round {job['iteration']}"]

    def get_metrics(self):
        return {"of": self.name}


class FakeGroup:
    """Runs what it is asked for when it is asked; runners that are ``dead`` do not answer."""

    def __init__(self, *runners):
        self.runners, self.dead, self.answers = runners, [], []

    def foreach_env_runner_async(self, func, tag, *, kwargs):
        alive = [runner for runner in self.runners if runner not in self.dead]
        self.answers += [(tag, index, func(runner, **kwargs)) for index, runner in enumerate(alive, 1)]

    def fetch_ready_async_reqs(self, *, tags, timeout_seconds):
        assert timeout_seconds is None  # waits for all
        answers, self.answers = self.answers, []
        return [(index, answer) for tag, index, answer in answers if tag == tags]


@pytest.fixture(autouse=True)
def no_ray(monkeypatch):
    monkeypatch.setattr(ray, "put", lambda value: ("in the object store", value))
    monkeypatch.setattr(rollout_rounds, "_PAUSE_SECONDS", 0.0)


def make_config(num_env_runners=2, tolerance=2):
    config = AlgorithmConfig().env_runners(num_env_runners=num_env_runners)
    return config.fault_tolerance(num_consecutive_env_runner_failures_tolerance=tolerance)


def remote_rounds(*runners, tolerance=2):
    group = FakeGroup(*(runners or (FakeRunner("first"), FakeRunner("second"))))
    return RolloutRounds(make_config(tolerance=tolerance), None, group), group


def test_the_local_runner_rolls_out_when_the_round_is_collected():
    runner = FakeRunner()
    rounds = RolloutRounds(make_config(num_env_runners=0), runner, None)
    rounds.request("weights", 3, dynamics_path="file", start_states="states")
    assert runner.jobs == []
    assert rounds.pending == {"weights": "weights", "iteration": 3}
    assert rounds.collect() == (["local, round 3"], [{"of": "local"}])
    assert runner.jobs == [
        {"weights": "weights", "iteration": 3, "dynamics_path": "file", "start_states": "states"},
    ]
    assert rounds.pending == {}


def test_what_the_local_runner_raises_is_raised():
    rounds = RolloutRounds(make_config(num_env_runners=0), FakeRunner(error=ArithmeticError("too large")), None)
    rounds.request({}, 0)
    with pytest.raises(ArithmeticError, match="too large"):
        rounds.collect()


def test_remote_parts_and_metrics_come_in_flat_lists():
    rounds, group = remote_rounds()
    rounds.request("weights", 3, dynamics_path="file", dynamics_state="state")
    assert group.runners[0].jobs == group.runners[1].jobs
    assert group.runners[0].jobs[0] == {
        "weights": ("in the object store", "weights"),
        "iteration": 3,
        "dynamics_path": "file",
        "dynamics_state": ("in the object store", "state"),
    }
    assert rounds.collect() == (["first, round 3", "second, round 3"], [{"of": "first"}, {"of": "second"}])


def test_a_saved_request_can_be_asked_for_again():
    rounds, _ = remote_rounds()
    rounds.request("weights", 3, dynamics_path="file", dynamics_state="state", start_states=np.zeros((2, 3)))
    saved = rounds.pending
    assert saved == {"weights": "weights", "iteration": 3, "dynamics_state": "state"}
    expected = rounds.collect()
    other, group = remote_rounds()
    other.request("of the run before", 9)
    other.discard()
    assert (other.pending, group.answers) == ({}, [])
    other.request(**saved, dynamics_path="file")
    assert other.collect() == expected


def test_a_round_that_is_discarded_may_have_failed():
    rounds, _ = remote_rounds(FakeRunner(error=ArithmeticError("too large")))
    rounds.request({}, 0)
    rounds.discard()
    rounds.discard()
    assert rounds.pending == {}


def test_one_round_at_a_time():
    rounds, _ = remote_rounds()
    with pytest.raises(RuntimeError, match=r"call request\(\) first"):
        rounds.collect()
    rounds.request({}, 0)
    with pytest.raises(RuntimeError, match=r"collect\(\) or discard\(\) before"):
        rounds.request({}, 1)


def test_a_remote_error_is_raised_with_its_type_text_and_place():
    rounds, _ = remote_rounds(FakeRunner("first"), FakeRunner(error=ArithmeticError("too large")))
    rounds.request({}, 0)
    with pytest.raises(RuntimeError) as caught:
        rounds.collect()
    first, *trace = str(caught.value).splitlines()
    assert first.startswith(f"A rollout runner failed: ArithmeticError: too large ({__file__}:")
    assert "in sample). " in first
    assert first.endswith("with num_env_runners=0, rollouts run in this process, where a debugger can follow.")
    assert trace[0].startswith("Traceback")
    assert rounds.pending == {}


def test_a_runner_that_died_is_left_out():
    rounds, group = remote_rounds()
    group.dead = group.runners[:1]
    rounds.request({}, 0)
    assert rounds.collect() == (["second, round 0"], [{"of": "second"}])


def test_missed_rounds_are_tolerated_until_there_are_too_many_in_a_row(caplog):
    rounds, group = remote_rounds(tolerance=2)

    def next_round(dead):
        group.dead = dead
        rounds.request({}, 0)
        return rounds.collect()

    for _ in range(2):
        assert next_round(group.runners) == ([], [])
    assert caplog.messages == ["No rollout runner answered; this iteration goes on without a new round."] * 2
    assert len(next_round([])[0]) == 2
    for _ in range(2):
        assert next_round(group.runners) == ([], [])
    with pytest.raises(RuntimeError, match=r"for 3 rounds.*`=2\).*num_env_runners=0"):
        next_round(group.runners)
