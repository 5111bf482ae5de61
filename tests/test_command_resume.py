"""A resumed run starts from the newest whole checkpoint; its state must be of this version."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pyarrow import fs
from ray.rllib.algorithms.ppo import PPO
from ray.train._internal.checkpoint_manager import _CheckpointManager
from ray.train._internal.session import _TrainingResult
from ray.tune import Checkpoint, CheckpointConfig

from rllib_damo.command.resume import NewestCheckpoints, RecordCopy, _prepare_record, restored_tuner
from rllib_damo.errors import UsageError
from rllib_damo.evaluation.checkpoints import MANIFEST
from tests.test_evaluation_checkpoints import of_version_0_1, write  # noqa: F401

SCORE = "evaluation/env_runners/episode_return_mean"


def save(folder: Path, index: int, score: float) -> _TrainingResult:
    metrics = {"training_iteration": index, SCORE: score}
    path = write(folder / f"checkpoint_{index:06d}", metrics=metrics)
    return _TrainingResult(Checkpoint(str(path), filesystem=fs.LocalFileSystem()), metrics)


class FakeTrial:
    """A trial whose snapshot knows checkpoints 1 and 2, of which two are kept by score."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        manager = _CheckpointManager(CheckpointConfig(num_to_keep=2, checkpoint_score_attribute=SCORE))
        for index, score in ((1, 10.0), (2, 5.0)):
            manager.register_checkpoint(save(folder, index, score))
        self.run_metadata = SimpleNamespace(checkpoint_manager=manager, invalidate_cache=lambda: None)
        self.storage = SimpleNamespace(
            storage_filesystem=fs.LocalFileSystem(), trial_fs_path=str(folder), current_checkpoint_index=2
        )

    def is_finished(self) -> bool:
        return False

    def latest(self) -> str | None:
        result = self.run_metadata.checkpoint_manager.latest_checkpoint_result
        return result and Path(result.checkpoint.path).name

    def start(self) -> None:
        NewestCheckpoints().on_step_begin(iteration=0, trials=[self])  # type: ignore[list-item]


@pytest.fixture
def trial(tmp_path: Path) -> FakeTrial:
    return FakeTrial(tmp_path)


def test_the_latest_of_the_snapshot_is_taken_if_it_is_the_newest(trial: FakeTrial, capsys: Any) -> None:
    trial.start()
    assert trial.latest() == "checkpoint_000002"
    assert capsys.readouterr().out == ""


def test_a_newer_one_is_taken_where_tune_deleted_that_of_the_snapshot(trial: FakeTrial, capsys: Any) -> None:
    save(trial.folder, 3, 20.0)
    shutil.rmtree(trial.folder / "checkpoint_000002")
    trial.start()
    assert trial.latest() == "checkpoint_000003"
    result = trial.run_metadata.checkpoint_manager.latest_checkpoint_result
    assert result.metrics == {"training_iteration": 3, SCORE: 20.0}
    kept = trial.run_metadata.checkpoint_manager.best_checkpoint_results
    assert [Path(checkpoint.checkpoint.path).name for checkpoint in kept] == ["checkpoint_000001", "checkpoint_000003"]
    assert "continues from checkpoint_000003" in capsys.readouterr().out


def test_a_half_written_one_is_left_out_and_not_written_over(trial: FakeTrial) -> None:
    save(trial.folder, 3, 20.0)
    (trial.folder / "checkpoint_000003" / MANIFEST).unlink()
    trial.start()
    assert trial.latest() == "checkpoint_000002"
    assert trial.storage.current_checkpoint_index == 3  # the next one is number 4


def test_an_older_one_is_taken_if_the_latest_is_damaged(trial: FakeTrial) -> None:
    (trial.folder / "checkpoint_000002" / "algorithm_state.pkl").write_bytes(b"")
    trial.start()
    assert trial.latest() == "checkpoint_000001"


def test_without_a_whole_one_it_is_said_that_the_trial_begins_anew(trial: FakeTrial, capsys: Any) -> None:
    for index in (1, 2):
        (trial.folder / f"checkpoint_{index:06d}" / MANIFEST).unlink()
    trial.start()
    assert trial.latest() is None
    assert "no checkpoint is whole; the trial starts from the beginning" in capsys.readouterr().out


def test_a_search_of_version_0_1_says_so(tmp_path: Path, of_version_0_1: bytes) -> None:  # noqa: F811
    (tmp_path / "tuner.pkl").write_bytes(of_version_0_1)
    with pytest.raises(UsageError, match=r"cannot be resumed \(--resume\): it was written by rllib_damo 0\.1"):
        restored_tuner(str(tmp_path), PPO)


@pytest.mark.parametrize("content", [b"", b"hello"])
def test_a_damaged_state_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tuner.pkl").write_bytes(content)
    with pytest.raises(UsageError, match=rf"{tmp_path} cannot be resumed \(--resume\): its state cannot be read"):
        restored_tuner(str(tmp_path), PPO)


def test_a_damaged_record_of_the_trials_is_not_begun_anew(tmp_path: Path) -> None:
    """Tune would say nothing and train from the beginning."""
    (tmp_path / "experiment_state-2026-01-02_00-00-00.json").touch()
    with pytest.raises(UsageError, match=r"experiment_state-2026-01-02_00-00-00\.json is damaged \(0 bytes.*new run"):
        restored_tuner(str(tmp_path), PPO)


def test_a_damaged_record_of_the_trials_is_replaced_by_its_copy(trial: FakeTrial, capsys: Any) -> None:
    trial.storage.trial_fs_path = str(trial.folder / "trial")
    record = trial.folder / "experiment_state-2026-01-02_00-00-00.json"
    record.write_text('{"runner_data": {"_cached_trial_decisions": {"a": "STOP"}}}')
    RecordCopy().on_checkpoint(0, [trial], trial)  # type: ignore[list-item, arg-type]
    record.write_text('{"runner_data": {"_cac')
    RecordCopy().on_checkpoint(0, [trial], trial)  # type: ignore[list-item, arg-type]
    _prepare_record(str(trial.folder))
    assert "experiment_state-2026-01-02_00-00-00.json is damaged (22 bytes); experiment_state-0" in (
        capsys.readouterr().out.replace("\n", "")
    )
    assert [file.name for file in trial.folder.glob("experiment_state-*.json")] == ["experiment_state-0.json"]
    copied = json.loads((trial.folder / "experiment_state-0.json").read_text())
    assert copied == {"runner_data": {"_cached_trial_decisions": {}}}
