"""File systems without room: how one is recognised, and what is said of it."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

from rllib_damo.errors import DiskFullError


def is_full(error: BaseException) -> bool:
    """Whether an error of the system means that there is no room, or that a quota is used up."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def free_bytes(place: str | os.PathLike[str]) -> int:
    """The room on the file system of a file or folder, there or not."""
    return shutil.disk_usage(_existing(place)).free


def folder_size(folder: str | os.PathLike[str]) -> int:
    """Of all files in a folder, in bytes."""
    return sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())


def disk_full(what: str, place: str | os.PathLike[str], then: str, needed: int | None = None) -> DiskFullError:
    """The error for something that has no room.

    Args:
        what: is written, such as "The checkpoint /x/checkpoint_000003".
        place: the file or folder.
        then: what to do once there is room, as the end of a sentence.
        needed: bytes; None: not known.
    """
    mount = _existing(place)
    while not mount.is_mount():
        mount = mount.parent
    room = f"{free_bytes(place) / 1e6:.1f} MB free" + ("" if needed is None else f", {needed / 1e6:.1f} MB needed")
    return DiskFullError(
        f"{what} cannot be written: the file system {mount} is full, or a quota is used up ({room}). Make room, and "
        f"{then}."
    )


def _existing(place: str | os.PathLike[str]) -> Path:
    path = Path(place).absolute()
    while not path.exists():
        path = path.parent
    return path
