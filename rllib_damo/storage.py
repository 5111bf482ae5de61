"""Where runs and checkpoints lie: a folder, or an address (``s3://...``) of a storage that pyarrow knows."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
from pyarrow import fs

from rllib_damo.checkpoints import CheckpointError
from rllib_damo.cli_inputs import UsageError

DEFAULT = "~/ray_results"


def check(path: str | None) -> str:
    """The storage of a run: an address as it is given, or the absolute path of a folder, which is made.

    Raises:
        UsageError: if pyarrow has no such storage, or the folder can't be made.
    """
    path = path or os.environ.get("RAY_AIR_LOCAL_CACHE_DIR") or DEFAULT
    if "://" in path:
        try:
            fs.FileSystem.from_uri(path)
        except (OSError, pa.ArrowException) as error:
            raise UsageError(f"--storage-path {path}: no storage that pyarrow knows ({error}).") from error
        return path
    folder = Path(path).expanduser().absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--storage-path: {folder} can't be made ({error.strerror}).") from error
    return str(folder)


def latest_run(storage: str, name: str) -> str:
    """The folder or address of the newest run of that name that Tune can restore.

    Raises:
        UsageError: if there is none, or the storage can't be read.
    """
    try:
        filesystem, path = fs.FileSystem.from_uri(storage)
        found = filesystem.get_file_info(fs.FileSelector(path, allow_not_found=True))
        folders = sorted(info.path for info in found if re.fullmatch(rf"{re.escape(name)}_\d[\d_-]*", info.base_name))
        runs = [run for run in folders if filesystem.get_file_info(f"{run}/tuner.pkl").is_file]
    except (OSError, pa.ArrowException) as error:
        raise UsageError(f"--resume: {storage} cannot be read: {error}") from error
    if not runs:
        raise UsageError(f"--resume: {storage} has no run of the name {name!r}.")
    return address(runs[-1], storage)


def address(path: str, storage: str) -> str:
    """A path in `storage` as users can pass it on: pyarrow's leave out the scheme and the parameters."""
    scheme, remote, rest = storage.partition("://")
    if not remote or path.startswith("/"):
        return path
    _, mark, parameters = rest.partition("?")
    return f"{scheme}://{path}{mark}{parameters}"


@contextmanager
def local_copy(checkpoint: str | Path) -> Iterator[Path]:
    """The folder of a checkpoint; one with an address (``s3://...``) is downloaded, and deleted again after the block.

    Raises:
        CheckpointError: if there is none at that address, or it can't be reached.
    """
    if "://" not in str(checkpoint):
        yield Path(checkpoint)
        return
    with tempfile.TemporaryDirectory(prefix="rllib_damo_") as folder:
        try:
            filesystem, path = fs.FileSystem.from_uri(str(checkpoint))
            fs.copy_files(path, folder, source_filesystem=filesystem)
        except (OSError, pa.ArrowException) as error:
            raise CheckpointError(f"no checkpoint could be read at {checkpoint}: {error}") from error
        yield Path(folder)
