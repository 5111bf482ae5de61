"""Resumes a run that was interrupted or killed, from the newest whole checkpoint of each trial."""

from __future__ import annotations

import contextlib
import json
import pickle
import re
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from pyarrow import fs
from ray import tune
from ray.tune import Callback
from ray.tune.result import EXPR_PARAM_PICKLE_FILE

from rllib_damo.command.inputs import default_config
from rllib_damo.command.report import console
from rllib_damo.errors import UsageError
from rllib_damo.evaluation.checkpoints import checkpoint_numbers, missing_code, newest_whole
from rllib_damo.utils import ray_internals
from rllib_damo.utils.paths import atomic_write
from rllib_damo.utils.uris import connect, without_password

if TYPE_CHECKING:
    from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
    from ray.tune.experiment import Trial

_COPY = "experiment_state-0.json"  # older than all others by its name, which is what Tune goes by


def restored_tuner(run: str, algorithm: Any) -> tune.Tuner:
    """The Tuner of an earlier run, which continues with its own config, stop and checkpoint options.

    Args:
        run: folder or address of the run.
        algorithm: class of the Algorithm.

    Raises:
        UsageError: if the run's state cannot be read, for instance since version 0.1 wrote it.
    """
    shown = without_password(run)
    _prepare_record(run)
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


def config_of(run: str) -> AlgorithmConfig:
    """The config of a run's first trial, as the run's newest readable record names it. Its pickle is executed.

    Args:
        run: folder or address of the run.

    Raises:
        UsageError: there is none, or it cannot be read.
    """
    filesystem, path = connect(run)
    try:
        records = reversed(_records(filesystem, path))
        content = next((found for record in records if (found := _read(filesystem, record)) is not None), {})
        algorithm, folder = ray_internals.first_trial(content)
        with filesystem.open_input_stream(f"{path}/{folder}/{EXPR_PARAM_PICKLE_FILE}") as file:
            settings = pickle.loads(file.read())
    except Exception as error:  # a damaged pickle may raise any
        raise UsageError(
            f"{without_password(run)} does not tell what was trained ({type(error).__name__}: {error}): give the file, "
            "or --algo, as when it began."
        ) from error
    return default_config(algorithm).update_from_dict(settings)


def _prepare_record(run: str) -> None:
    """Refuses a damaged record of the trials: Tune would train from the beginning, and only log it.

    Where `RecordCopy` has kept a copy, the damaged one is put aside.
    """
    filesystem, path = connect(run)
    records = _records(filesystem, path)
    if not records:
        return
    used, content = records[-1], _read(filesystem, records[-1])
    if content is None and len(records) > 1:
        damaged, used, content = used, records[-2], _read(filesystem, records[-2])
        if content is not None:
            filesystem.move(damaged.path, f"{damaged.path}.damaged")
            console.print(f"{damaged.path} is damaged ({damaged.size} bytes); {used.base_name} replaces it.")
    if content is None:
        raise UsageError(
            f"{records[-1].path} is damaged ({records[-1].size} bytes; was the disk full?), so the run cannot be "
            "resumed. Start a new run without --resume."
        )
    if ray_internals.forget_decisions(content):
        with filesystem.open_output_stream(used.path) as stream:
            stream.write(json.dumps(content, indent=2).encode())


def _records(filesystem: fs.FileSystem, run: str) -> list[fs.FileInfo]:
    """Tune's records of the trials in the folder of a run, the newest last."""
    entries = filesystem.get_file_info(fs.FileSelector(run, allow_not_found=True))
    records = [entry for entry in entries if re.fullmatch(r"experiment_state-.*\.json", entry.base_name)]
    return sorted(records, key=lambda entry: entry.base_name)


def _read(filesystem: fs.FileSystem, record: fs.FileInfo) -> dict[str, Any] | None:
    """What a record holds; None if it is damaged."""
    try:
        with filesystem.open_input_stream(record.path) as stream:
            return dict(json.loads(stream.read()))
    except (ValueError, TypeError):
        return None


class RecordCopy(Callback):
    """Keeps a copy of Tune's record of the trials on this machine's disk.

    Tune writes the record over the one before, so where the disk is full by then, neither is left.
    """

    def on_checkpoint(self, iteration: int, trials: list[Trial], trial: Trial, *args: Any, **info: Any) -> None:
        filesystem, folder = ray_internals.trial_folder(trial)
        if not isinstance(filesystem, fs.LocalFileSystem):
            return
        run = PurePosixPath(folder).parent
        records = [record for record in _records(filesystem, str(run)) if record.base_name != _COPY]
        if records and _read(filesystem, records[-1]) is not None:
            with contextlib.suppress(OSError), atomic_write(run / _COPY) as file:  # the disk may be full
                file.write(Path(records[-1].path).read_bytes())


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
