"""HDF5 in D4RL's layout: flat arrays `observations`, `actions`, `rewards`, `terminals`, `timeouts` and others."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from rllib_damo.data.formats.assemble import check_lengths
from rllib_damo.data.formats.columns import Names, each_column, match_names
from rllib_damo.data.formats.flat import FlatReader, vector
from rllib_damo.data.formats.hdf5_inside import refuse_links_outside, refuse_storage_outside
from rllib_damo.data.formats.hdf5_write import new_hdf5
from rllib_damo.data.formats.reader import DEFAULT_CONVENTIONS, Conventions, Format
from rllib_damo.data.schema import Transitions
from rllib_damo.errors import DataError
from rllib_damo.utils.paths import new_file

SUFFIXES = (".hdf5", ".h5", ".hdf")
METADATA_ATTRIBUTE = "rllib_damo"


class HDF5Reader(FlatReader):
    """One D4RL-style HDF5 file; arrays and groups that the schema does not know (`infos/…`) are left alone."""

    def __init__(self, path: str | os.PathLike[str], conventions: Conventions = DEFAULT_CONVENTIONS) -> None:
        super().__init__(str(path), conventions)
        self.path = str(path)

    def names(self) -> Names:
        with open_hdf5(self.path) as file:
            return self._names(file)

    def num_rows(self) -> int:
        with open_hdf5(self.path) as file:
            return len(file[each_column(self._names(file)["rewards"])[0]])

    def columns(self, names: Names, start: int, stop: int) -> dict[str, np.ndarray]:
        with open_hdf5(self.path) as file:
            return {
                key: vector(self.name, key, column, functools.partial(_read, file, key, start=start, stop=stop))
                for key, column in names.items()
            }

    def metadata(self) -> dict[str, Any]:
        with open_hdf5(self.path) as file:
            stored = file.attrs.get(METADATA_ATTRIBUTE)
        return json.loads(stored) if stored else {}

    def _names(self, file: h5py.File) -> Names:
        if is_of_minari(file):
            raise DataError(
                f"{self.path}: this is the inside of a Minari dataset; give its id, or the folder that holds it."
            )
        for key, item in file.items():
            if isinstance(item, h5py.Dataset):
                refuse_storage_outside(f"{self.path}: {key!r}", item.id)
        datasets = [key for key, item in file.items() if isinstance(item, h5py.Dataset) and item.shape]
        if file and not datasets:
            raise DataError(
                f"{self.path}: no arrays at the top of the file, only groups ({', '.join(sorted(file)[:5])}). Put "
                "observations, actions, rewards and the marks of episode ends there, all episodes one after the "
                "other."
            )
        names = match_names(self.name, datasets, self._conventions.input_read_schema)
        check_lengths(
            self.name, {key: len(file[each]) for key, column in names.items() for each in each_column(column)}
        )
        return names


@contextmanager
def open_hdf5(path: str) -> Iterator[h5py.File]:
    """A file to read, none of whose links lead out of it; what goes wrong in the block is a DataError."""
    if not Path(path).is_file():
        raise DataError(f"{path}: no such file.")
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise DataError(f"{path}: not a readable HDF5 file ({error}). Copy or download it again.") from error
    with file:
        try:
            refuse_links_outside(path, file)
            yield file
        except (OSError, KeyError, RuntimeError, TypeError, MemoryError) as error:
            raise DataError(
                f"{path}: cannot be read ({error}). Copy or download it again; or, if it needs a filter that is not "
                "installed, write it with gzip or without compression."
            ) from error


def is_of_minari(file: h5py.File) -> bool:
    """Whether it is the inside of a Minari dataset, which has more in other files."""
    return "episode_0" in file and "total_steps" in file["episode_0"].attrs


def _read(file: h5py.File, key: str, column: str, start: int, stop: int) -> np.ndarray:
    """Rows [start, stop); wider floats become float32 on the way, a piece at a time, so that no second copy is held."""
    dataset = file[column]
    stop = min(stop, len(dataset))
    if key == "episode_ids" or dataset.dtype.kind != "f" or dataset.dtype.itemsize <= 4 or dataset.ndim > 2:
        return dataset[start:stop]
    values = np.empty((max(stop - start, 0), *dataset.shape[1:]), np.float32)
    with np.errstate(over="ignore"):
        for begin in range(start, stop, 1 << 16):
            values[begin - start : begin - start + (1 << 16)] = dataset[begin : min(begin + (1 << 16), stop)]
    return values


def write_hdf5(
    transitions: Transitions,
    path: str | os.PathLike[str],
    *,
    metadata: dict[str, Any] | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a D4RL-style HDF5 file with `next_observations` and `timeouts`; equal arguments, equal bytes.

    Args:
        transitions: what to write.
        path: the file; its folder is made where needed.
        metadata: JSON values kept in the file's `rllib_damo` attribute, so that converting back restores them.
        overwrite: replace an existing file.

    Raises:
        DataError: if the file exists and `overwrite` is not set.
    """
    path = Path(path)
    names = {"terminations": "terminals", "truncations": "timeouts"}
    with new_file(path, overwrite) as scratch, new_hdf5(scratch) as file:
        for key, array in transitions.arrays().items():
            file.create_dataset(
                names.get(key, key), data=array, compression="gzip", compression_opts=1, track_times=False
            )
        if metadata:
            file.attrs[METADATA_ATTRIBUTE] = json.dumps(metadata, sort_keys=True)
    return path


FORMAT = Format(
    "hdf5",
    "HDF5 in D4RL's layout",
    lambda place, conventions: HDF5Reader(place.local_file(SUFFIXES, "HDF5"), conventions),
    SUFFIXES,
    write=write_hdf5,
)
