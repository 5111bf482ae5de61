"""Readers of flat columns, a row a step, episode after episode: what HDF5, Parquet, CSV and NPZ have in common."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from rllib_damo.data.formats.assemble import as_column, as_float_matrix, assemble, check_lengths, episode_ends
from rllib_damo.data.formats.columns import END_COLUMNS, Names, each_column, match_names
from rllib_damo.data.formats.reader import DEFAULT_CONVENTIONS, Conventions, Reader, split_at_ends
from rllib_damo.data.formats.rllib_packed import normalized_to_env
from rllib_damo.data.schema import Transitions
from rllib_damo.errors import DataError


class FlatReader(Reader):
    """Flat columns; units are rows. A format provides `names`, `num_rows` and `columns`.

    Args:
        name: the file, for messages.
        conventions: what it does not say of itself.
    """

    # RLlib recorded it: rows of several episodes may be interleaved, and actions are normalised by default.
    is_recording = False

    def __init__(self, name: str, conventions: Conventions = DEFAULT_CONVENTIONS) -> None:
        self.name = name
        self._conventions = conventions

    @abstractmethod
    def names(self) -> Names:
        """Which columns hold which part of the schema, as `columns.match_names` finds them."""

    @abstractmethod
    def num_rows(self) -> int: ...

    @abstractmethod
    def columns(self, names: Names, start: int, stop: int) -> dict[str, np.ndarray]:
        """The rows [start, stop) of the named columns, by schema name; `vector` joins those of several columns."""

    def read(self, start: int = 0, stop: int | None = None) -> Transitions:
        names, total = self.names(), self.num_rows()
        stop = total if stop is None else min(stop, total)
        lookahead = "next_observations" not in names and stop < total
        columns = self.columns(names, start, stop + lookahead)
        if self.is_recording and "episode_ids" in columns:
            columns = _in_episodes(columns)
        if self._conventions.are_normalized(self.is_recording):
            space = self._conventions.action_space
            columns["actions"] = normalized_to_env(self.name, columns["actions"], space, is_recording=self.is_recording)
        return assemble(self.name, columns, lookahead=lookahead, partial=not (start == 0 and stop == total))

    def splits(self, max_rows: int) -> list[tuple[int, int]]:
        names, rows = self.names(), self.num_rows()
        marks = self.columns({key: names[key] for key in END_COLUMNS if key in names}, 0, rows)
        typed = {key: as_column(self.name, key, values) for key, values in marks.items()}
        return split_at_ends(episode_ends(typed, rows), max_rows)


def _in_episodes(columns: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Rows of one episode together, episodes in order of first appearance."""
    _, first, codes = np.unique(columns["episode_ids"], return_index=True, return_inverse=True)
    order = np.argsort(first[codes], kind="stable")
    return {key: values[order] for key, values in columns.items()}


class ArraysReader(FlatReader):
    """Flat columns that are held in memory as a whole, from the first use on. A format provides `load`."""

    _loaded: Mapping[str, np.ndarray] | None = None

    @abstractmethod
    def load(self) -> Mapping[str, np.ndarray]:
        """All columns by the names that they have in the file, arrays of (N,) or (N, width)."""

    def names(self) -> Names:
        arrays = self._arrays()
        names = match_names(self.name, arrays, self._conventions.input_read_schema)
        check_lengths(
            self.name, {key: len(arrays[each]) for key, column in names.items() for each in each_column(column)}
        )
        return names

    def num_rows(self) -> int:
        return len(self._arrays()[each_column(self.names()["rewards"])[0]])

    def columns(self, names: Names, start: int, stop: int) -> dict[str, np.ndarray]:
        arrays = self._arrays()
        return {
            key: vector(self.name, key, column, lambda each: arrays[each][start:stop]) for key, column in names.items()
        }

    def _arrays(self) -> Mapping[str, np.ndarray]:
        if self._loaded is None:
            self._loaded = self.load()
        return self._loaded

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_loaded": None}


def vector(name: str, key: str, column: str | tuple[str, ...], get: Callable[[str], np.ndarray]) -> np.ndarray:
    """The values of one part of the schema; those of several columns side by side, as float32 (N, width).

    Args:
        name: of the dataset, for messages.
        key: the part's name in the schema.
        column: its column, or the columns that make up its vectors.
        get: gives one column's values, (N,) or (N, width).

    Raises:
        DataError: if one of several columns holds no numbers, or actions are whole numbers in all of them.
    """
    if isinstance(column, str):
        return get(column)
    parts = [get(each) for each in column]
    if key == "actions" and all(part.dtype.kind in "biu" for part in parts):
        raise DataError(
            f"{name}: the action columns {', '.join(column)} hold {parts[0].dtype}; actions must be continuous (a "
            "Box). If they are, write them as floating point numbers (1.0)."
        )
    return np.concatenate(
        [as_float_matrix(name, f"{key}, column {each!r},", part, 2) for each, part in zip(column, parts, strict=True)],
        axis=1,
    )
