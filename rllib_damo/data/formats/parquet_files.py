"""Parquet files by path, glob, folder or address, and their rows, row group by row group."""

from __future__ import annotations

import fnmatch
import itertools
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from rllib_damo.data.formats.reader import DEFAULT_CONVENTIONS, HDF5_SUFFIXES, PARQUET_SUFFIXES, Conventions, Reader
from rllib_damo.errors import DataError
from rllib_damo.utils.uris import address, connect, why, without_password


@dataclass(frozen=True)
class Files:
    """Parquet files in reading order, and the filesystem they are on."""

    paths: tuple[str, ...]
    filesystem: fs.FileSystem
    name: str

    def open(self, path: str) -> pq.ParquetFile:
        """Open one file.

        Raises:
            DataError: if it cannot be reached or is no Parquet.
        """
        with self.reading(path):
            return pq.ParquetFile(self.filesystem.open_input_file(path))

    def shown(self, path: str) -> str:
        """One file's path for messages, an address where the files have one."""
        return address(path, self.name.partition("?")[0])

    @contextmanager
    def reading(self, path: str) -> Iterator[None]:
        """Turns what is raised in its block, at reading that file, into a DataError with the mend."""
        name = self.shown(path)
        try:
            yield
        except pa.ArrowInvalid as error:
            raise DataError(f"{name}: not a readable Parquet file ({error}). Copy or download it again.") from error
        except Exception as error:
            if "://" in name:
                raise DataError(f"{name}: cannot be read: {why(error)} If these are right, upload it again.") from error
            if not isinstance(error, (OSError, pa.ArrowException)):
                raise
            mend = "Check its permissions." if isinstance(error, PermissionError) else "Copy or download it again."
            raise DataError(f"{name}: cannot be read ({error}). {mend}") from error


def find_files(pattern: str, filesystem: fs.FileSystem | None = None) -> Files:
    """The Parquet files that a path, a glob, a folder (searched in depth) or a URI (`s3://…`) names, sorted.

    In a glob, `*` stays within a folder and `**` stands for any number of them. What exists by the very name is that.
    Files and folders whose names begin with `_` or `.` are passed over, unless the glob's part does so, too.

    Raises:
        DataError: if there are none, or the filesystem cannot be reached.
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
            found = sorted(item for item in items if _matches(PurePosixPath(item).relative_to(base).parts, wanted))
    except Exception as error:
        if "://" not in name and not isinstance(error, (OSError, pa.ArrowException)):
            raise
        raise DataError(f"{name}: cannot be reached: {why(error)}") from error
    files = found if info.type == fs.FileType.File else [item for item in found if item.endswith(PARQUET_SUFFIXES)]
    if not files:
        hdf5 = [item for item in found if item.endswith(HDF5_SUFFIXES)]
        mend = f"HDF5 is read by the names of files, several as a list: {', '.join(hdf5[:3])}."
        mend = mend if hdf5 else "Names that begin with _ or . are passed over in folders and globs."
        raise DataError(f"{name}: no Parquet file there. {mend}")
    return Files(tuple(files), filesystem, name)


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


class FilesReader(Reader):
    """A reader of Parquet files.

    Args:
        files: which.
        conventions: what they do not say of themselves.
    """

    def __init__(self, files: Files, conventions: Conventions = DEFAULT_CONVENTIONS) -> None:
        self.files = files
        self.name = files.name
        self._conventions = conventions
        self._groups: list[tuple[str, int, int]] | None = None
        self._held: tuple[tuple[str, int, list[str]], pa.Table] | None = None  # a row group that is read in pieces

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_held": None}

    def tasks(self, max_rows: int) -> list[list[tuple[int, int]]]:
        ends = np.cumsum([rows for _, _, rows in self._row_groups()])
        groups = itertools.groupby(self.splits(max_rows), lambda split: int(np.searchsorted(ends, split[0], "right")))
        return [list(splits) for _, splits in groups]  # by the row group in which they begin, which is read whole

    @abstractmethod
    def _check_columns(self, path: str, present: list[str]) -> None:
        """Raises DataError where a file's columns are not those of the first one."""

    def _row_groups(self) -> list[tuple[str, int, int]]:
        """(path, number in the file, rows) of each row group."""
        if self._groups is None:
            groups = []
            for path in self.files.paths:
                file = self.files.open(path)
                if file.metadata.num_rows:
                    self._check_columns(self.files.shown(path), file.schema_arrow.names)
                groups += [(path, i, file.metadata.row_group(i).num_rows) for i in range(file.num_row_groups)]
            self._groups = groups
        return self._groups

    def _total(self) -> int:
        return sum(rows for _, _, rows in self._row_groups())

    def _tables(self, columns: list[str], start: int, stop: int) -> Iterator[tuple[str, int, pa.Table]]:
        """The rows [start, stop), a table a row group: (its file's name, its first row less `start`, itself)."""
        position, opened_path, file = 0, "", None
        for path, group, rows in self._row_groups():
            first, last = max(start - position, 0), min(stop - position, rows)
            if first < last:
                key = path, group, columns
                if self._held is not None and self._held[0] == key:
                    table = self._held[1]
                else:
                    if file is None or opened_path != path:
                        opened_path, file = path, self.files.open(path)
                    with self.files.reading(path):
                        table = file.read_row_group(group, columns=columns)
                self._held = (key, table) if last < rows else None
                yield self.files.shown(path), position + first - start, table.slice(first, last - first)
            position += rows
