"""What is printed when a run or a search has ended."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import ActorUnavailableError, RayActorError

from rllib_damo.command.report import FAILED, INTERRUPTED, OK, report, varied
from tests.test_evaluation_checkpoints import write

METRIC = "env_runners/episode_return_mean"


def trial(name: str, *scores: float, error: Exception | None = None, done: bool = True, **config: Any) -> Any:
    """A trial with a checkpoint for each score, the last one last."""
    kept = [
        (SimpleNamespace(path=f"/r/{name}/{score:g}"), {"env_runners": {"episode_return_mean": score}})
        for score in scores
    ]
    return SimpleNamespace(
        path=f"/r/{name}", error=error, metrics={"done": done}, config=config, best_checkpoints=kept,
        checkpoint=kept[-1][0] if kept else None,
    )  # fmt: skip


def test_checkpoints_are_ranked_by_the_score_they_were_kept_by(capsys: pytest.CaptureFixture) -> None:
    assert report([trial("a", 100.0, -5.0)], metric=METRIC, place="/r", options=" --file 'my file.py'") == OK  # type: ignore[arg-type]
    printed = capsys.readouterr().out
    assert "Best checkpoint: /r/a/100 " in printed
    assert "Last checkpoint: /r/a/-5\n" in printed
    assert "rllib evaluate /r/a/100 --episodes 10 --file 'my file.py'\n" in printed


def test_a_searchs_trials_are_in_order_with_what_was_varied(capsys: pytest.CaptureFixture) -> None:
    trials = [
        trial("low", 10.0, 30.0, eta=0.5, more={"k": 1}),
        trial("none", eta=1.0, more={"k": 2}),
        trial("high", 90.5, 20.0, eta=2.0, more={"k": 3}),
    ]
    searched = [("eta",), ("more", "k")]
    assert report(trials, metric=METRIC, searched=searched, place="/r") == OK  # type: ignore[arg-type]
    printed = capsys.readouterr().out
    table = [line.split() for line in printed.splitlines()[2:6]]
    assert table == [
        ["eta", "k", "best", "last", "trial"],
        ["2", "3", "90.5", "20", "high"],
        ["0.5", "1", "30", "30", "low"],
        ["1", "2", "-", "-", "none"],
    ]
    assert "Best checkpoint: /r/high/90.5 " in printed
    assert "/r/low/" not in printed


def test_the_settings_that_trials_differ_in_are_found() -> None:
    configs = [
        {"eta": eta, "tau": 0.1, "more": {"k": eta, "j": 1}, "seed": None, "lr": lr, "callbacks_class": type(lr),
         "fn": lambda: 0}
        for eta, lr in ((0.5, 1e-3), (1.0, [[0, 1e-3]]))
    ]  # fmt: skip
    assert varied([*configs, None]) == [("eta",), ("lr",), ("more", "k")]
    assert varied(configs[:1]) == varied([None]) == varied([]) == []


def test_a_search_without_evaluations_names_the_command_that_chooses(capsys: pytest.CaptureFixture) -> None:
    trials = [trial("a", eta=0.5), trial("b", eta=1.0)]
    options: dict[str, Any] = {"searched": [("eta",)], "evaluated": False, "options": " --file mine.py"}
    report(trials, metric=METRIC, place="/r", **options)  # type: ignore[arg-type]
    printed = capsys.readouterr().out
    assert "rllib-damo select /r --file mine.py\n" in printed
    assert "\nTrials:\neta  trial\n0.5  a\n  1  b\n" in printed  # there are no scores
    report(trials, metric=METRIC, place="/r")  # type: ignore[arg-type]
    assert "select" not in capsys.readouterr().out


def test_without_evaluations_the_checkpoints_of_one_trial_are_candidates(capsys: pytest.CaptureFixture) -> None:
    report([trial("a", 1.0, 2.0)], metric=METRIC, place="/r", evaluated=False)  # type: ignore[arg-type]
    assert "rllib-damo select /r --checkpoints all\n" in capsys.readouterr().out
    report([trial("a", 1.0)], metric=METRIC, place="/r", evaluated=False)  # type: ignore[arg-type]
    assert "select" not in capsys.readouterr().out


def test_the_score_of_a_last_checkpoint_that_is_not_among_the_best(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    metrics = {"env_runners": {"episode_return_mean": 7.5}}
    ended = trial("a", 10.0, 30.0)
    ended.checkpoint = SimpleNamespace(
        path=str(write(tmp_path / "checkpoint_000009", metrics=metrics)), filesystem=None
    )
    report([ended, trial("b", 1.0)], metric=METRIC, place="/r")  # type: ignore[list-item]
    assert ["30", "7.5", "a"] in [line.split() for line in capsys.readouterr().out.splitlines()]


def test_a_lost_machine_is_told_from_an_error_with_the_ways_to_go_on(capsys: pytest.CaptureFixture) -> None:
    lost = trial("lost", error=ActorUnavailableError("Socket closed", b"0" * 16))
    assert report([lost, trial("well", 2.0)], metric=METRIC, place="/r") == FAILED  # type: ignore[list-item]
    assert "The trial's process or machine was lost" in (error := capsys.readouterr().err)
    assert "--resume" in error
    assert "--max-failures 3" in error
    raised = "The actor died because of an error raised in its creation task, ray::DAMO.__init__()\nDataError: no rows"
    report([trial("raised", error=RayActorError(error_msg=raised))], metric=METRIC, place="/r")  # type: ignore[list-item]
    assert "lost" not in capsys.readouterr().err


def test_failures_and_interruptions(capsys: pytest.CaptureFixture) -> None:
    failed = trial("failed", 1.0, error=ValueError("first line\nthe reason"))
    assert report([failed, trial("well", 2.0)], metric=METRIC, place="/r") == FAILED  # type: ignore[arg-type]
    captured = capsys.readouterr()
    assert "Failed: the reason" in captured.err
    assert "first line" not in captured.err
    assert "Best checkpoint: /r/well/2 " in captured.out
    assert report([trial("cut", 1.0, done=False)], metric=METRIC, place="/r") == INTERRUPTED  # type: ignore[arg-type]
    assert "--resume" in capsys.readouterr().out


def test_the_first_cause_of_a_failure_is_printed(capsys: pytest.CaptureFixture) -> None:
    text = """Traceback (most recent call last):
  File "/home/me/valve.py", line 10, in step
    raise ValueError("the valve is stuck [red]")
ValueError: the valve is stuck [red]

The above exception was the direct cause of the following exception:

Traceback (most recent call last):
  File "/ray/env_runner.py", line 291, in _try_env_step
    raise RuntimeError from e
RuntimeError
"""
    assert report([trial("a", error=RuntimeError(text))], metric=METRIC, place="/r") == FAILED  # type: ignore[arg-type]
    error = capsys.readouterr().err
    assert "Failed: ValueError: the valve is stuck [red]\n" in error
    assert "At: /home/me/valve.py, line 10, in step\n" in error
    assert "Cause" not in error
