"""What an input names: files by path, pattern, folder or address, in natural order (2.parquet before 10.parquet)."""

from __future__ import annotations

import fnmatch
import functools
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import pyarrow as pa
from pyarrow import fs

from rllib_damo.errors import DataError
from rllib_damo.utils.uris import address, connect, why, without_password


@dataclass(frozen=True)
class Files:
    """Files of one kind in reading order, and the filesystem they are on."""

    paths: tuple[str, ...]
    filesystem: fs.FileSystem
    name: str
    kind: str

    def shown(self, path: str) -> str:
        """One file's path for messages, an address where the files have one."""
        return address(path, self.name.partition("?")[0])

    @contextmanager
    def reading(self, path: str) -> Iterator[None]:
        """Turns what is raised in its block, at reading that file, into a DataError with the fix."""
        name = self.shown(path)
        try:
            yield
        except DataError:
            raise
        except pa.ArrowInvalid as error:
            raise DataError(f"{name}: not a readable {self.kind} file ({error}). Copy or download it again.") from error
        except Exception as error:
            if "://" in name:
                raise DataError(f"{name}: cannot be read: {why(error)} If these are right, upload it again.") from error
            if not isinstance(error, (OSError, MemoryError, pa.ArrowException)):
                raise
            fix = "Check its permissions." if isinstance(error, PermissionError) else "Copy or download it again."
            raise DataError(f"{name}: cannot be read ({error}). {fix}") from error


class Place:
    """What an input names, before its format is known: a file, a folder, a pattern of these, or an address.

    Args:
        name: as the user gives it.
        filesystem: where it is; None: this machine, or what the address says.
    """

    def __init__(self, name: str, filesystem: fs.FileSystem | None = None) -> None:
        self.name = name
        self.shown = without_password(name)  # for messages
        self.is_address = "://" in name or filesystem is not None
        self.path = Path(name).expanduser()
        self._filesystem = filesystem

    @property
    def is_folder(self) -> bool:
        """Whether it is a folder of this machine."""
        return not self.is_address and self.path.is_dir()

    @property
    def is_file(self) -> bool:
        """Whether it is a file of this machine."""
        return not self.is_address and self.path.is_file()

    @property
    def is_pattern(self) -> bool:
        return is_glob(self.name)

    def has(self, suffixes: tuple[str, ...]) -> bool:
        """Whether any file there ends in one of the suffixes."""
        return any(path.endswith(suffixes) for path in self.listing.paths)

    def files(self, suffixes: tuple[str, ...], kind: str) -> Files:
        """The files there that end in one of the suffixes; a single file that is named has any ending.

        Args:
            suffixes: of the format.
            kind: what to call these files in messages.

        Raises:
            DataError: if there are none.
        """
        paths = tuple(path for path in self.listing.paths if self.is_single or path.endswith(suffixes))
        if not paths:
            raise DataError(
                f"{self.shown}: no {kind} file there ({', '.join(suffixes)}). Names that begin with _ or . are passed "
                "over in folders and globs."
            )
        return Files(paths, self.listing.filesystem, self.shown, kind)

    def local_file(self, suffixes: tuple[str, ...], kind: str) -> Path:
        """The one file of this machine that is named, for formats that are read by path.

        Raises:
            DataError: if it is an address, a folder or a pattern.
        """
        if self.is_address:
            raise DataError(
                f"{self.shown}: {kind} is read by a path of this machine only; download it, or convert it to Parquet."
            )
        if self.is_file:
            return self.path
        found = [path for path in self.listing.paths if path.endswith(suffixes)]
        raise DataError(
            f"{self.name}: {kind} is read by the names of files, several as a list: {', '.join(found[:3]) or 'none'}."
        )

    @functools.cached_property
    def is_single(self) -> bool:
        """Whether it is the name of one file, here or at an address."""
        return self.is_file or (self.is_address and self.listing.is_single)

    @functools.cached_property
    def listing(self) -> _Listing:
        return _list_files(self.name, self._filesystem)


@dataclass(frozen=True)
class _Listing:
    paths: tuple[str, ...]
    filesystem: fs.FileSystem
    is_single: bool


def _list_files(pattern: str, filesystem: fs.FileSystem | None) -> _Listing:
    """The files that a path, a glob, a folder (searched in depth) or a URI (`s3://…`) names, in natural order.

    In a glob, `*` stays within a folder and `**` stands for any number of them. What exists by the very name is that.
    Files and folders whose names begin with `_` or `.` are passed over, unless the glob's part does so, too.

    Raises:
        DataError: if the filesystem cannot be reached.
    """
    name, path = without_password(pattern), pattern
    wanted: tuple[str, ...] = ()  # the parts of a glob, below the folder `base`
    try:
        if filesystem is None and "://" in pattern:
            filesystem, path = connect(pattern)
        elif "://" in pattern:
            path = pattern.split("://", 1)[1]
        if filesystem is None:
            filesystem, path = fs.LocalFileSystem(), str(Path(pattern).expanduser())
        base = PurePosixPath(path)
        info = filesystem.get_file_info(str(base))
        while info.type == fs.FileType.NotFound and is_glob(str(base)):
            base, wanted = base.parent, (base.name, *wanted)
            info = filesystem.get_file_info(str(base))
        found = [info.path] if info.type == fs.FileType.File and not wanted else []
        if info.type == fs.FileType.Directory:
            wanted = wanted or ("**", "*")
            selector = fs.FileSelector(str(base), recursive=len(wanted) != 1 or wanted[0] == "**")
            items = [item.path for item in filesystem.get_file_info(selector) if item.type == fs.FileType.File]
            found = in_natural_order(
                [item for item in items if _matches(PurePosixPath(item).relative_to(base).parts, wanted)]
            )
    except Exception as error:
        if "://" not in name and not isinstance(error, (OSError, pa.ArrowException)):
            raise
        raise DataError(f"{name}: cannot be reached: {why(error)}") from error
    return _Listing(tuple(found), filesystem, info.type == fs.FileType.File)


def in_natural_order(names: Sequence[str]) -> list[str]:
    """Sorted as text, but numbers in it by their value: a2 before a10. With numbers of one width, the order of text."""
    return sorted(names, key=_natural)


def _natural(name: str) -> list[tuple[int, int, int]]:
    return [
        (ord("0"), int(part), len(part)) if part.isdecimal() else (ord(part), 0, 0)
        for part in re.findall(r"[0-9]+|[^0-9]", name, re.DOTALL)
    ]


def is_glob(path: str) -> bool:
    return any(sign in path for sign in "*?[")


def _matches(parts: tuple[str, ...], wanted: tuple[str, ...]) -> bool:
    """Whether the parts of a path are those of a glob; hidden ones only where the glob's part begins so, too."""
    if not wanted:
        return not parts
    if wanted[0] == "**" and _matches(parts, wanted[1:]):
        return True
    if not parts or (parts[0].startswith(("_", ".")) and parts[0][0] != wanted[0][0]):
        return False
    if wanted[0] == "**":
        return _matches(parts[1:], wanted)
    return fnmatch.fnmatch(parts[0], wanted[0]) and _matches(parts[1:], wanted[1:])
