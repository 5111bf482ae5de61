"""Parquet files by path, glob, folder or address, and their rows, row group by row group."""

from __future__ import annotations

import fnmatch
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from rllib_damo.data.reader import DEFAULT_CONVENTIONS, HDF5_SUFFIXES, PARQUET_SUFFIXES, Conventions, Reader
from rllib_damo.data.schema import DataError


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
        try:
            return pq.ParquetFile(self.filesystem.open_input_file(path))
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"{path}: not a readable Parquet file ({error}).") from error


def find_files(pattern: str, filesystem: fs.FileSystem | None = None) -> Files:
    """The Parquet files that a path, a glob, a folder (searched in depth) or a URI (`s3://…`) names, sorted.

    In a glob, `*` stays within a folder and `**` stands for any number of them. What exists by the very name is that.

    Raises:
        DataError: if there are none, or the filesystem cannot be reached.
    """
    name, path = pattern, pattern
    wanted: tuple[str, ...] = ()  # the parts of a glob, below the folder `base`
    try:
        if filesystem is None and "://" in pattern:
            filesystem, path = fs.FileSystem.from_uri(pattern)
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
            selector = fs.FileSelector(str(base), recursive=len(wanted) != 1 or wanted[0] == "**")
            items = [item.path for item in filesystem.get_file_info(selector) if item.type == fs.FileType.File]
            found = sorted(
                item for item in items if not wanted or _matches(PurePosixPath(item).relative_to(base).parts, wanted)
            )
    except (OSError, pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise DataError(
            f"{pattern}: cannot be reached ({error}). Check the address, the network and the credentials."
        ) from error
    files = found if info.type == fs.FileType.File else [item for item in found if item.endswith(PARQUET_SUFFIXES)]
    if not files:
        hdf5 = [item for item in found if item.endswith(HDF5_SUFFIXES)]
        mend = f" HDF5 is read by the names of files, several as a list: {', '.join(hdf5[:3])}." if hdf5 else ""
        raise DataError(f"{pattern}: no Parquet file there.{mend}")
    return Files(tuple(files), filesystem, name)


def is_glob(path: str) -> bool:
    return any(sign in path for sign in "*?[")


def _matches(parts: tuple[str, ...], wanted: tuple[str, ...]) -> bool:
    """Whether the parts of a path are those of a glob."""
    if not wanted:
        return not parts
    if wanted[0] == "**":
        return any(_matches(parts[i:], wanted[1:]) for i in range(len(parts) + 1))
    return bool(parts) and fnmatch.fnmatch(parts[0], wanted[0]) and _matches(parts[1:], wanted[1:])


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
                    self._check_columns(path, file.schema_arrow.names)
                groups += [(path, i, file.metadata.row_group(i).num_rows) for i in range(file.num_row_groups)]
            self._groups = groups
        return self._groups

    def _total(self) -> int:
        return sum(rows for _, _, rows in self._row_groups())

    def _tables(self, columns: list[str], start: int, stop: int) -> Iterator[tuple[str, int, pa.Table]]:
        """The rows [start, stop), a table a row group: (path, place of its first row from `start` on, table)."""
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
                    try:
                        table = file.read_row_group(group, columns=columns)
                    except (OSError, pa.ArrowException) as error:
                        raise DataError(f"{path}: cannot be read ({error}). Copy or download it again.") from error
                self._held = (key, table) if last < rows else None
                yield path, position + first - start, table.slice(first, last - first)
            position += rows
