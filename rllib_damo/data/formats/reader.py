"""What a data format is: a `Format` says how its files are recognised, read and written; a `Reader` reads one dataset.

A new format is one file with a `Reader` and a `Format`, and one line in `registry.py` (or, from outside the package,
a call of `registry.register_format`). Most formats hold flat columns, a row a step; these inherit from
`flat.FlatReader`, or from `flat.ArraysReader`, whose subclasses only have to return the columns as numpy arrays.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import gymnasium as gym
import numpy as np

from rllib_damo.data.formats.columns import check_given
from rllib_damo.data.schema import Transitions
from rllib_damo.errors import DataError

if TYPE_CHECKING:
    from rllib_damo.data.formats.files import Place


@dataclass(frozen=True)
class Conventions:
    """What files do not say of themselves; the names are those of RLlib's options.

    Args:
        action_space: the environment's, to map normalised actions by.
        actions_in_input_normalized: actions lie in [-1, 1] and stand for the bounds of the space; None: in RLlib's own
            recordings, and in nothing else.
        input_read_schema: {one of the names that a column is known by: the name that it has in the files}. A list of
            names makes one vector of several columns.
        observation_keys: which entries of observations that are dictionaries make up the vector. They stand in it in
            the order of the space (gymnasium sorts the names), as FilterObservation and FlattenObservation give them.
        skip_bad_episodes: leave out episodes that cannot be read, or whose values are not finite, with a warning.
    """

    action_space: gym.Space | None = None
    actions_in_input_normalized: bool | None = None
    input_read_schema: Mapping[str, str | Sequence[str]] = field(default_factory=dict)
    observation_keys: Sequence[str] = ()
    skip_bad_episodes: bool = False

    def __post_init__(self) -> None:
        given = self.input_read_schema
        if not isinstance(given, Mapping) or not all(map(_are_names, given.values())):
            raise DataError(
                'input_read_schema must be a dict of column names, {"obs": "o_t"} or {"obs": ["position", "velocity"]};'
                f" found {given!r}."
            )
        check_given(given)

    def are_normalized(self, is_recording: bool) -> bool:
        """Whether actions are to be mapped to the environment's units; of RLlib's own recordings, or of others."""
        given = self.actions_in_input_normalized
        return is_recording if given is None else given

    def refuse_unread(self, name: str, reads: Collection[str]) -> None:
        """Raises DataError where an option is given that a format does not read; `reads` are those that it does."""
        for option, why in _UNREAD.items():
            if getattr(self, option) and option not in reads:
                raise DataError(f"{name}: {option}={getattr(self, option)!r}: {why}")


def _are_names(value: object) -> bool:
    return isinstance(value, str) or (isinstance(value, Sequence) and all(isinstance(name, str) for name in value))


_UNREAD = {
    "actions_in_input_normalized": "here actions are in the environment's units by definition. Leave it None.",
    "input_read_schema": "it names the columns of tables and arrays (Parquet, CSV, HDF5, NPZ), and here there are none "
    "of those. Leave it empty.",
    "observation_keys": "it chooses among the entries of dictionaries (Minari), and here observations are vectors. "
    "Leave it empty; columns are chosen by input_read_schema.",
    "skip_bad_episodes": "it leaves out episodes that a format holds each by itself (Minari), and here they are rows "
    "of one table. Remove them there, and leave it False.",
}
DEFAULT_CONVENTIONS = Conventions()


class Reader(ABC):
    """One dataset. Positions are in the format's own units (rows or whole episodes). Nothing is read before asked.

    A format must provide `name`, `read` and `splits`. All of them raise `DataError`, which names the file, what was
    found, and the fix. Nothing in a data file may be run as code. A reader pickles to a few names, so that Ray Data can
    send it to other processes.
    """

    name: str
    skipped: Sequence[int] = ()  # the episodes, by number, that skip_bad_episodes left out at the last reading

    @abstractmethod
    def read(self, start: int = 0, stop: int | None = None) -> Transitions:
        """The transitions of units [start, stop), everything by default; an episode cut at the edge ends truncated."""

    @abstractmethod
    def splits(self, max_rows: int) -> list[tuple[int, int]]:
        """Unit ranges covering the data, about `max_rows` transitions each, cut at episode ends where there are any."""

    def tasks(self, max_rows: int) -> list[list[tuple[int, int]]]:
        """The `splits`, those together that one process reads with less effort than several would."""
        return [[split] for split in self.splits(max_rows)]

    def num_rows(self) -> int | None:
        """Number of transitions where it is known without reading them (readers may drop a few rows), else None."""
        return None

    def metadata(self) -> dict[str, Any]:
        """What the dataset says of itself, in Minari's terms (`env_spec` and spaces as JSON text), where stored."""
        return {}


class Writer(Protocol):
    """Writes transitions to a path (or an id), and returns where they are."""

    def __call__(
        self, transitions: Transitions, target: str, /, *, metadata: dict[str, Any] | None, overwrite: bool
    ) -> str | Path: ...


@dataclass(frozen=True)
class Format:
    """A kind of dataset, as the registry knows it.

    Args:
        name: for messages and lists, such as "hdf5".
        help: what it is, in a few words.
        open: the reader of what a place names, with the user's conventions. It may read a header, but no rows.
        suffixes: how the names of its files end. Several formats may share suffixes where `recognises` tells them
            apart; the first in the registry that recognises a place has it.
        scheme: how its addresses begin, such as "minari://".
        recognises: whether a place (whose suffixes fit, if there are any) is of this format; None: every such place.
            It may raise DataError for files that cannot be read.
        write: makes a file (of the first of the suffixes), or None where there is no writer.
        read_method: the `input_read_method` of RLlib that asks for this format, or "".
        reads: which of the `Conventions` it reads; others are refused where they are given.
    """

    name: str
    help: str
    open: Callable[[Place, Conventions], Reader]
    suffixes: tuple[str, ...] = ()
    scheme: str = ""
    recognises: Callable[[Place], bool] | None = None
    write: Writer | None = None
    read_method: str = ""
    reads: tuple[str, ...] = ("actions_in_input_normalized", "input_read_schema")


def split_at_ends(ends: np.ndarray, max_rows: int) -> list[tuple[int, int]]:
    """Cut N rows into ranges of at most `max_rows`, at the last episode end that fits, else in an episode's middle.

    Args:
        ends: (N,) bool, true on the last row of an episode.
        max_rows: at least 1.
    """
    stops = np.flatnonzero(ends) + 1
    ranges, start = [], 0
    while start < len(ends):
        limit = min(start + max_rows, len(ends))
        last = int(np.searchsorted(stops, limit, side="right")) - 1
        stop = int(stops[last]) if last >= 0 and stops[last] > start else limit
        ranges.append((start, stop))
        start = stop
    return ranges
