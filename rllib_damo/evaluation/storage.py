"""Where runs and checkpoints are: a folder, or an address (``s3://...``) of a storage that pyarrow knows."""

from __future__ import annotations

import itertools
import os
import re
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pyarrow import fs
from ray.rllib.core import COMPONENT_LEARNER_GROUP

from rllib_damo.errors import CheckpointError, UsageError
from rllib_damo.evaluation.checkpoints import CONSTRUCTOR, no_checkpoint
from rllib_damo.utils.uris import address, connect, why, without_password

DEFAULT = "~/ray_results"
_INSIDE = f"/{COMPONENT_LEARNER_GROUP}/"


def check(path: str | None) -> str:
    """The storage of a run: an address as it is given, or the absolute path of a folder, which is made if needed.

    Raises:
        UsageError: if there is no such storage, or it cannot be written.
    """
    if path == "":
        raise UsageError("storage_path (--storage-path) is empty: name a folder, or leave it out.")
    path = path or os.environ.get("RAY_AIR_LOCAL_CACHE_DIR") or DEFAULT
    if "://" not in path:
        path = str(Path(path).expanduser().absolute())
    try:
        filesystem, folder = connect(path)
        filesystem.create_dir(folder)
        probe = f"{folder}/.rllib_damo_{uuid.uuid4().hex}"
        with filesystem.open_output_stream(probe) as stream:
            stream.write(b"can be written")
        filesystem.delete_file(probe)
    except Exception as error:
        fix = why(error) if "://" in path else f"{error}. Give another folder."
        shown = without_password(path)
        raise UsageError(f"storage_path (--storage-path) {shown}: cannot be written: {fix}") from error
    return path


def new_run(storage: str, name: str) -> str:
    """The name of a new run, `name` and the time, whose folder is made here and belongs to no other run.

    Args:
        storage: as `check` returns it.
        name: of the experiment.
    """
    filesystem, path = connect(storage)
    stamped = f"{name}_{time.strftime('%Y-%m-%d_%H-%M-%S')}"
    if isinstance(filesystem, fs.LocalFileSystem):
        for number in itertools.count(1):
            run = stamped if number == 1 else f"{stamped}_{number}"
            try:
                Path(path, run).mkdir()
                return run
            except FileExistsError:
                continue
    run = f"{stamped}_{uuid.uuid4().int % 1_000_000:06d}"  # other storages cannot make a folder exclusively
    filesystem.create_dir(f"{path}/{run}")
    return run


def latest_run(storage: str, name: str) -> str:
    """The folder or address of the newest run of that name that Tune can restore.

    Raises:
        UsageError: if there is none, or the storage can't be read.
    """
    shown = without_password(storage)
    try:
        filesystem, path = connect(storage)
        found = filesystem.get_file_info(fs.FileSelector(path, allow_not_found=True))
        folders = sorted(info.path for info in found if re.fullmatch(rf"{re.escape(name)}_\d[\d_-]*", info.base_name))
        runs = [run for run in folders if filesystem.get_file_info(f"{run}/tuner.pkl").is_file]
    except Exception as error:
        raise UsageError(f"no run to resume (--resume): {shown} cannot be read: {why(error)}") from error
    if not runs:
        raise UsageError(f"no run to resume (--resume): {shown} has no run of the name {name!r}.")
    return address(runs[-1], storage)


@contextmanager
def local_copy(checkpoint: str | Path) -> Iterator[Path]:
    """The folder of a checkpoint. One with an address (``s3://...``) is copied, and the copy deleted after the block.

    Raises:
        CheckpointError: if there is none at that address, or it can't be reached.
    """
    if "://" not in str(checkpoint):
        yield Path(checkpoint)
        return
    shown = without_password(str(checkpoint)).rstrip("/")
    with tempfile.TemporaryDirectory(prefix="rllib_damo_") as folder:
        try:
            filesystem, path = connect(str(checkpoint).rstrip("/"))
            if not filesystem.get_file_info(f"{path}/{CONSTRUCTOR}").is_file:
                found = [info.path for info in filesystem.get_file_info(fs.FileSelector(path, recursive=True))]
                inner = {path.split(_INSIDE)[0] for path in found if _INSIDE in path}
                raise no_checkpoint(shown, sorted(address(path, shown) for path in inner))
            fs.copy_files(path, folder, source_filesystem=filesystem)
        except CheckpointError:
            raise
        except Exception as error:
            raise CheckpointError(f"no checkpoint could be read at {shown}: {why(error)}") from error
        try:
            yield Path(folder)
        except CheckpointError as error:  # not the folder, which is gone by then
            raise CheckpointError(str(error).replace(folder, shown)) from error
