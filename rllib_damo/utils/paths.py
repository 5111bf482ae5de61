"""Places of files, and files that appear whole or not at all."""

from __future__ import annotations

import glob
import os
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow.fs

from rllib_damo.errors import DataError, UsageError
from rllib_damo.utils.disk import disk_full, is_full


def cache_root() -> Path:
    """``$RLLIB_DAMO_CACHE``, or else ``~/.cache/rllib_damo``."""
    return Path(absolute(os.environ.get("RLLIB_DAMO_CACHE") or "~/.cache/rllib_damo"))


def absolute(place: Any) -> Any:
    """A path as absolute text; other values are returned as they are.

    In a trial's own folder, relative paths start at the folder where the search was started.

    Raises:
        DataError: for an address; ``file://`` is taken off.
    """
    if not isinstance(place, (str, Path)) or not place:
        return place
    if "://" in str(place):
        return _on_this_machine(str(place))
    return os.path.abspath(os.path.join(os.environ.get("TUNE_ORIG_WORKING_DIR", ""), os.path.expanduser(place)))


def _on_this_machine(address: str) -> str:
    # Imported here, since the processes that play episodes do not need pyarrow.
    from rllib_damo.utils.uris import connect, why, without_password

    try:
        if address.startswith("file://"):
            return connect(address)[1]
        found = ""
    except Exception as error:
        found = f" ({why(error)})"
    raise DataError(
        f"{without_password(address)}: dynamics_cache_dir, dynamics_path and RLLIB_DAMO_CACHE must be a folder or file "
        f"of this machine; for several machines, on a filesystem that all of them see.{found}"
    )


def place_of(place: str | Path) -> tuple[pyarrow.fs.FileSystem, str]:
    """The filesystem of a path or an address, and the path on it."""
    # Imported here, since the processes that play episodes do not need pyarrow.
    import pyarrow.fs

    return pyarrow.fs.FileSystem.from_uri(str(place).rstrip("/") if "://" in str(place) else absolute(place))


def absolute_input(place: Any) -> Any:
    """Paths that are there, and patterns of such, as absolute text; other text (a name, an address) as it is."""
    if isinstance(place, (list, tuple)):
        return [*map(absolute_input, place)]
    if isinstance(place, str) and ("://" in place or not glob.glob(absolute(place))):
        return place
    return absolute(place)


def check_new_file(path: str | os.PathLike[str], overwrite: bool = True) -> None:
    """Refuses a file that could not be written, before the work that it is for. Its folder is made.

    Raises:
        UsageError: for an address, a folder, or a place that cannot be written.
        DataError: ``path`` exists and ``overwrite`` is not set.
    """
    if "://" in str(path):
        from rllib_damo.utils.uris import without_password

        raise UsageError(f"{without_password(str(path))}: a file of this machine is written; copy it afterwards.")
    path = Path(path).expanduser()
    if path.is_dir():
        raise UsageError(f"{path} is a folder: name a file.")
    _refuse_existing(path, overwrite)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise UsageError(f"{path} cannot be written ({error.strerror}): name a file in another folder.") from error


def _refuse_existing(path: Path, overwrite: bool) -> None:
    if path.exists() and not overwrite:
        raise DataError(f"{path} exists; choose another name, or replace it by overwrite=True (--overwrite).")


@contextmanager
def new_file(path: str | os.PathLike[str], overwrite: bool = True) -> Iterator[Path]:
    """A name to write to, in the same folder; what is there becomes ``path`` when the block ends, whole or not at all.

    Raises:
        DataError: if ``path`` exists and `overwrite` is not set; nothing has been done then.
        DiskFullError: there is no room.
    """
    path = Path(path)
    _refuse_existing(path, overwrite)
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".writing-{uuid.uuid4().hex}-{path.name}")
    try:
        yield scratch
        os.replace(scratch, path)
    except OSError as error:
        if is_full(error):
            raise disk_full(str(path), path, "try again") from error
        raise
    finally:
        scratch.unlink(missing_ok=True)


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """As `new_file`, a file to write into."""
    with new_file(path) as scratch, scratch.open("wb") as file:
        yield file
