"""Resumes a run that was interrupted or killed, from the newest whole checkpoint of each trial."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from pyarrow import fs
from ray import tune
from ray.tune import Callback

from rllib_damo.command.report import console
from rllib_damo.errors import UsageError
from rllib_damo.evaluation.checkpoints import checkpoint_numbers, missing_code, newest_whole
from rllib_damo.utils import ray_internals
from rllib_damo.utils.uris import connect, without_password

if TYPE_CHECKING:
    from ray.tune.experiment import Trial


def restored_tuner(run: str, algorithm: Any) -> tune.Tuner:
    """The Tuner of an earlier run, which continues with its own config, stop and checkpoint options.

    Args:
        run: folder or address of the run.
        algorithm: class of the Algorithm.

    Raises:
        UsageError: if the run's state cannot be read, for instance since version 0.1 wrote it.
    """
    shown = without_password(run)
    _check_record(run)
    try:
        tuner = tune.Tuner.restore(run, trainable=algorithm, resume_errored=True)
    except (ImportError, AttributeError) as error:
        raise UsageError(f"{shown} cannot be resumed (--resume): {missing_code(error)}") from error
    except Exception as error:
        raise UsageError(
            f"{shown} cannot be resumed (--resume): its state cannot be read ({type(error).__name__}: {error}). Move "
            "the folder away to resume the run before it, or start a new run without --resume."
        ) from error
    ray_internals.add_callback(tuner, NewestCheckpoints())
    return tuner


def _check_record(run: str) -> None:
    """Refuses a damaged record of the trials: Tune would train from the beginning, and only log it."""
    filesystem, path = connect(run)
    entries = filesystem.get_file_info(fs.FileSelector(path, allow_not_found=True))
    records = [entry for entry in entries if re.fullmatch(r"experiment_state-.*\.json", entry.base_name)]
    if not records:
        return
    newest = max(records, key=lambda entry: entry.base_name)
    try:
        with filesystem.open_input_stream(newest.path) as stream:
            json.loads(stream.read())
    except ValueError as error:
        raise UsageError(
            f"{newest.path} is damaged ({newest.size} bytes; was the disk full?), so the run cannot be resumed. Delete "
            "it to resume from the record before it, if there is one, or start a new run without --resume."
        ) from error


class NewestCheckpoints(Callback):
    """Lets each trial start from its newest whole checkpoint.

    Tune starts from the latest one that its own snapshot names. The snapshot is written every 10 seconds or so, and by
    then Tune may have deleted that checkpoint for better ones, or have been killed while it wrote it.
    """

    def __init__(self) -> None:
        self._is_done = False

    def on_step_begin(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        if self._is_done:
            return
        self._is_done = True
        for trial in trials:
            if not trial.is_finished():
                _take_newest(trial)


def _take_newest(trial: Trial) -> None:
    filesystem, folder = ray_internals.trial_folder(trial)
    numbers = checkpoint_numbers(folder, filesystem)
    latest = ray_internals.latest_checkpoint(trial)
    ray_internals.forget_other_checkpoints(trial, numbers)
    # New checkpoints must not be written into the folder of a damaged one.
    ray_internals.number_checkpoints_after(trial, max(numbers.values(), default=-1))
    path, metrics = newest_whole(folder, filesystem) or (None, {})
    if path == latest:
        return
    if path is None:
        console.print(f"{trial}: no checkpoint is whole; the trial starts from the beginning.")
    else:
        console.print(f"{trial}: continues from {path.rsplit('/', 1)[-1]}, its newest whole checkpoint.")
    ray_internals.start_from(trial, path, metrics)
