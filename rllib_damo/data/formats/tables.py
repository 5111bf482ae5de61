"""Tables of flat transitions in one or more files, row group by row group: what Parquet and CSV have in common."""

from __future__ import annotations

import itertools
from abc import abstractmethod
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from rllib_damo.data.formats.arrow_columns import column_to_numpy
from rllib_damo.data.formats.assemble import as_column, episode_ends
from rllib_damo.data.formats.columns import END_COLUMNS, Names, each_column, find_names, match_names, warn_once
from rllib_damo.data.formats.files import Files
from rllib_damo.data.formats.flat import FlatReader, vector
from rllib_damo.data.formats.partitions import Partitions
from rllib_damo.data.formats.reader import DEFAULT_CONVENTIONS, Conventions, Reader
from rllib_damo.errors import DataError


class TableFile(Protocol):
    """One file: its columns, and its rows in groups that are read as a whole."""

    schema: pa.Schema
    group_rows: list[int]

    def read(self, group: int, columns: list[str]) -> pa.Table:
        """These columns of the group of this number."""


class TablesReader(Reader):
    """A reader of files of tables; units are rows. A format provides `_open` and `_check_columns`.

    Args:
        files: which.
        conventions: what they do not say of themselves.
    """

    def __init__(self, files: Files, conventions: Conventions = DEFAULT_CONVENTIONS) -> None:
        self.files = files
        self.name = files.name
        self._conventions = conventions
        self._partitions = Partitions(files.paths)
        self._groups: list[tuple[str, int, int]] | None = None
        self._opened: tuple[str, TableFile] | None = None  # the file that was read last
        self._held: tuple[tuple[str, int, list[str]], pa.Table] | None = None  # a row group that is read in pieces

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_held": None, "_opened": None}

    def tasks(self, max_rows: int) -> list[list[tuple[int, int]]]:
        ends = np.cumsum([rows for _, _, rows in self._row_groups()])
        groups = itertools.groupby(self.splits(max_rows), lambda split: int(np.searchsorted(ends, split[0], "right")))
        return [list(splits) for _, splits in groups]  # by the row group in which they begin, which is read whole

    @abstractmethod
    def _open(self, path: str) -> TableFile:
        """Opens one of the files; errors within `self.files.reading(path)` become DataErrors."""

    @abstractmethod
    def _check_columns(self, path: str, present: list[str]) -> None:
        """Raises DataError where a file's columns are not those of the first one."""

    def _file(self, path: str) -> TableFile:
        if self._opened is None or self._opened[0] != path:
            self._opened = path, self._partitions.add_to(path, self._open(path))
        return self._opened[1]

    def _first_schema(self) -> pa.Schema:
        return self._file(self.files.paths[0]).schema

    def _row_groups(self) -> list[tuple[str, int, int]]:
        """(path, number in the file, rows) of each row group."""
        if self._groups is None:
            groups = []
            for path in self.files.paths:
                file = self._file(path)
                if sum(file.group_rows):
                    self._check_columns(self.files.shown(path), file.schema.names)
                groups += [(path, i, rows) for i, rows in enumerate(file.group_rows)]
            self._groups = groups
        return self._groups

    def _total(self) -> int:
        return sum(rows for _, _, rows in self._row_groups())

    def _tables(self, columns: list[str], start: int, stop: int) -> Iterator[tuple[str, int, pa.Table]]:
        """The rows [start, stop), a table a row group: (its file, its first row less `start`, itself)."""
        position = 0
        for path, group, rows in self._row_groups():
            first, last = max(start - position, 0), min(stop - position, rows)
            if first < last:
                key = path, group, columns
                if self._held is not None and self._held[0] == key:
                    table = self._held[1]
                else:
                    with self.files.reading(path):
                        table = self._file(path).read(group, columns)
                self._held = (key, table) if last < rows else None
                yield path, position + first - start, table.slice(first, last - first)
            position += rows


class FlatTablesReader(TablesReader, FlatReader):
    """Flat transitions in files of tables that share their columns."""

    def names(self) -> Names:
        return match_names(self.name, self._first_schema().names, self._conventions.input_read_schema)

    def num_rows(self) -> int:
        return self._total()

    def _check_columns(self, path: str, present: list[str]) -> None:
        names = self.names()
        missing = {each for column in names.values() for each in each_column(column)} - set(present)
        if missing:
            raise DataError(f"{path}: column(s) {sorted(missing)} are missing, which the first file has.")
        found = find_names(path, present, self._conventions.input_read_schema)
        first = {each for column in names.values() for each in each_column(column)}
        more = sorted({each for column in found.values() for each in each_column(column)} - first)
        if more:
            raise DataError(
                f"{path}: column(s) {more} are not in the first file, {self.files.shown(self.files.paths[0])}; all "
                "files must have them, or none."
            )

    def columns(self, names: Names, start: int, stop: int) -> dict[str, np.ndarray]:
        """Rows [start, stop) of the named columns; row group by row group into arrays made once, to save memory."""
        out: dict[str, np.ndarray] = {}
        starts: dict[str, int] = {}
        wanted = list(dict.fromkeys(each for column in names.values() for each in each_column(column)))
        for path, offset, table in self._tables(wanted, start, stop):
            starts.setdefault(path, offset)
            shown = self.files.shown(path)
            for key, column in names.items():
                values = as_column(shown, key, self._column(key, column, path, table, start + offset))
                if key not in out:
                    out[key] = np.empty((stop - start, *values.shape[1:]), values.dtype)
                elif values.shape[1:] != out[key].shape[1:]:
                    raise DataError(
                        f"{shown}: column {column!r} has rows of shape {values.shape[1:]} after rows of shape "
                        f"{out[key].shape[1:]}; all rows must have one width."
                    )
                elif values.dtype.kind != out[key].dtype.kind:
                    raise DataError(
                        f"{shown}: column {column!r} holds ids of type {values.dtype} after ids of type "
                        f"{out[key].dtype} in the files before; write all in one type."
                    )
                out[key][offset : offset + len(values)] = values
        if "observations" in out and "next_observations" not in out:
            self._warn_of_stitches(out, starts)
        return out or {key: np.zeros((0, 1), np.float32) for key in names}

    def _column(
        self, key: str, column: str | tuple[str, ...], path: str, table: pa.Table, first_row: int
    ) -> np.ndarray:
        if key == "episode_ids":
            number = self._partitions.folder_number(path, each_column(column)[0])
            if number is not None:
                return np.full(len(table), number)
        return vector(
            self.name, key, column, lambda each: column_to_numpy(self.name, each, table[each], first_row, key)
        )

    def _warn_of_stitches(self, columns: dict[str, np.ndarray], starts: dict[str, int]) -> None:
        """Where a file does not end with an episode's end, the order of files decides what follows."""
        ends = episode_ends({key: columns[key] for key in END_COLUMNS if key in columns}, len(columns["rewards"]))
        order = ", ".join(path.rpartition("/")[2] for path in self.files.paths[:6])
        order += ", ..." if len(self.files.paths) > 6 else ""
        for path, start in starts.items():
            if not start or ends[start - 1]:
                continue
            if "episode_ids" in columns:
                warn_once(
                    "%s: %s begins with the episode id that the file before ends with, %s, so its first rows are taken "
                    "to go on with that episode. If they don't, use ids that no two files share.",
                    self.name, self.files.shown(path), columns["episode_ids"][start],
                )  # fmt: skip
            else:
                warn_once(
                    "%s: the file before %s does not end with an episode's end, so its last episode is taken to go on "
                    "there. The files are read in the order %s. If that is wrong, add an episode_id or next "
                    "observations, or mark the last row of each file in `timeouts`.",
                    self.name, self.files.shown(path), order,
                )  # fmt: skip
