"""Parquet with a row an episode: each column a list of the steps' values, vectors as lists of lists."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rllib_damo.data.formats.columns import FLAGS, each_column, find_names
from rllib_damo.data.formats.tables import TableFile
from rllib_damo.errors import DataError

_ID = "episode_id"
_NEXT = "next_observations"


def by_steps(name: str, file: TableFile, given: Mapping[str, str | Sequence[str]], first_id: int) -> TableFile:
    """The file with a row a step, if it has one an episode; else as it is.

    Args:
        name: of the file, for messages.
        file: whose rewards tell what its rows are.
        given: `input_read_schema`.
        first_id: of its first row, where there is no column of episode ids.
    """
    present = set(file.schema.names)  # columns of folders are added later, and what is missing is told then
    own = {
        alias: column
        for alias, column in given.items()
        if present.issuperset([column] if isinstance(column, str) else column)
    }
    names = find_names(name, file.schema.names, own)
    rewards = names.get("rewards")
    if not isinstance(rewards, str) or file.schema.names.count(rewards) > 1:
        return file
    if not _is_list(file.schema.field(rewards).type) or _is_one_a_row(file, rewards):
        return file
    return _EpisodeRows(name, file, names, rewards, first_id)


class _EpisodeRows:
    """A row a step. Where observations are one more than rewards, next observations follow from them."""

    def __init__(
        self, name: str, file: TableFile, names: Mapping[str, str | tuple[str, ...]], rewards: str, first_id: int
    ) -> None:
        self._name = name
        self._file = file
        self._flags = {each for key in FLAGS if key in names for each in each_column(names[key])}
        self._observations = each_column(names["observations"]) if "observations" in names else ()
        self._lengths = [_lengths(file.read(group, [rewards])[rewards]) for group in range(len(file.group_rows))]
        self._first_ids = first_id + np.cumsum([0, *file.group_rows])
        self.group_rows = [int(lengths.sum()) for lengths in self._lengths]
        fields = [pa.field(field.name, _value_type(field.type)) for field in file.schema]
        if "episode_ids" not in names:
            fields.append(pa.field(_ID, pa.int64()))
        self._has_more = len(self._observations) == 1 and _NEXT not in names and self._has_last_observations()
        if self._has_more:
            fields.append(pa.field(_NEXT, _value_type(file.schema.field(self._observations[0]).type)))
        self.schema = pa.schema(fields, file.schema.metadata)

    def read(self, group: int, columns: list[str]) -> pa.Table:
        lengths = self._lengths[group]
        present = [column for column in columns if column in self._file.schema.names]
        sources = [*present, *(self._observations if _NEXT in columns and self._has_more else ())]
        table = self._file.read(group, list(dict.fromkeys(sources))) if sources else None
        arrays: list[pa.Array | pa.ChunkedArray] = []
        for column in columns:
            if table is None or (column == _ID and column not in present):
                arrays.append(pa.array(np.repeat(self._first_ids[group] + np.arange(len(lengths)), lengths)))
            elif column == _NEXT and column not in present:
                arrays.append(self._steps(table[self._observations[0]], self._observations[0], lengths, drop="first"))
            else:
                arrays.append(self._steps(table[column], column, lengths, drop="last"))
        return pa.table(arrays, names=columns)

    def _steps(
        self, values: pa.ChunkedArray, column: str, lengths: np.ndarray, drop: str
    ) -> pa.Array | pa.ChunkedArray:
        """One column's values of all steps."""
        if not _is_list(values.type):
            stops = np.cumsum(lengths)
            if column not in self._flags:
                return values.take(pa.array(np.repeat(np.arange(len(lengths)), lengths)))
            flags = np.zeros(int(stops[-1]) if len(stops) else 0, bool)  # of the episode: at its last step
            flags[stops[lengths > 0] - 1] = values.to_numpy()[lengths > 0].astype(bool)
            return pa.array(flags)
        own = _lengths(values)
        is_longer = self._has_more and column in self._observations
        wrong = np.flatnonzero(own != lengths + is_longer)
        if len(wrong):
            row = wrong[0]
            raise DataError(
                f"{self._name}: row {row} has {lengths[row]} rewards, but {own[row]} values in column {column!r}; with "
                "a row an episode, all columns must have one a step (observations one more, in all rows or in none)."
            )
        flat = pc.list_flatten(values)
        if not is_longer:
            return flat
        keep = np.ones(len(flat), bool)
        keep[np.cumsum(own) - (1 if drop == "last" else own)] = False
        return flat.filter(pa.array(keep))

    def _has_last_observations(self) -> bool:
        column = self._observations[0]
        if not _is_list(self._file.schema.field(column).type):
            return False
        for group, lengths in enumerate(self._lengths):
            if len(lengths):
                return bool((_lengths(self._file.read(group, [column])[column]) == lengths + 1).all())
        return False


def _is_one_a_row(file: TableFile, rewards: str) -> bool:
    """Whether each list holds a single reward, of one step."""
    return all((_lengths(file.read(group, [rewards])[rewards]) == 1).all() for group in range(len(file.group_rows)))


def _lengths(values: pa.ChunkedArray) -> np.ndarray:
    return pc.fill_null(pc.list_value_length(values), 0).to_numpy().astype(np.int64)


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind)


def _value_type(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if _is_list(kind) else kind
