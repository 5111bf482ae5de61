"""What every data format offers to the rest of the package: its rows at once, or in pieces that fit in memory."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym
import numpy as np

from rllib_damo.data.schema import Transitions

HDF5_SUFFIXES = (".hdf5", ".h5", ".hdf")
PARQUET_SUFFIXES = (".parquet", ".pq")


@dataclass(frozen=True)
class Conventions:
    """What files do not say of themselves; the names are those of RLlib's options.

    Args:
        action_space: the environment's, to map normalised actions by.
        actions_in_input_normalized: actions lie in [-1, 1] and stand for the bounds of the space; None: in RLlib's own
            recordings, and in nothing else.
        input_read_schema: {one of the names that a column is known by: the name that it has in HDF5 or Parquet}.
    """

    action_space: gym.Space | None = None
    actions_in_input_normalized: bool | None = None
    input_read_schema: Mapping[str, str] = field(default_factory=dict)

    def are_normalized(self, is_recording: bool) -> bool:
        """Whether actions are to be mapped to the environment's units; of RLlib's own recordings, or of others."""
        given = self.actions_in_input_normalized
        return is_recording if given is None else given


DEFAULT_CONVENTIONS = Conventions()


class Reader(ABC):
    """One dataset. Positions are in the format's own units (rows or whole episodes). Nothing is read before asked.

    A reader pickles to a few names, so that Ray Data can send it to other processes.
    """

    name: str

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
