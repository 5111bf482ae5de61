"""HDF5 with an array or a group for each episode: d3rlpy's dumps (version 2), robomimic's demonstrations, and alike.

d3rlpy has `observations_0, actions_0, ..., observations_1, ...` at the top; the others have groups such as
`data/demo_0` with the usual names in them. Observations may be a group of arrays themselves (`obs/object`), of which
`observation_keys` chooses; they stand in the vector in the order of their names. Where a group has one observation more
than rewards, next observations follow from them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import h5py
import numpy as np

from rllib_damo.data.formats.columns import ALIASES, warn_once
from rllib_damo.data.formats.files import Place, in_natural_order
from rllib_damo.data.formats.flat import ArraysReader
from rllib_damo.data.formats.hdf5 import SUFFIXES, is_of_minari, open_hdf5
from rllib_damo.data.formats.hdf5_inside import refuse_storage_outside
from rllib_damo.data.formats.reader import Conventions, Format
from rllib_damo.errors import DataError

_D3RLPY = {"columns", "version", "actions_0"}
_DONES = "dones"


class EpisodesReader(ArraysReader):
    """One file, read into memory as a whole."""

    def load(self) -> Mapping[str, np.ndarray]:
        parts: dict[str, list[np.ndarray]] = {}
        with open_hdf5(self.name) as file:
            for number, (label, arrays) in enumerate(_episodes(file)):
                columns = self._columns_of(label, arrays)
                columns["episode_id"] = np.full(len(next(iter(columns.values()))), number)
                if number and columns.keys() != parts.keys():
                    raise DataError(
                        f"{self.name}: {label} has {sorted(columns)}, where the first episode has {sorted(parts)}."
                    )
                for key, values in columns.items():
                    parts.setdefault(key, []).append(values)
        try:
            return {key: np.concatenate(values) for key, values in parts.items()}
        except ValueError as error:
            raise DataError(f"{self.name}: episodes have vectors of different widths ({error}).") from error

    def _columns_of(self, label: str, arrays: dict[str, h5py.Dataset]) -> dict[str, np.ndarray]:
        """One episode's columns: those that the schema or the user names, with a flag of the episode at its end."""
        given = self._conventions.input_read_schema.values()
        named = {each for column in given for each in ([column] if isinstance(column, str) else column)}
        found, inner = {}, {}
        for path, dataset in arrays.items():
            top = path.partition("/")[0]
            if top in ALIASES["observations"] + ALIASES["next_observations"] and "/" in path and path not in named:
                inner[path] = dataset
            elif top in _KNOWN or path in named:
                found[path] = self._read(f"{label}/{path}", dataset)
        if inner:
            found |= self._vectors(label, inner)
        lengths = {key: len(values) for key, values in found.items() if values.ndim}
        length = min(lengths.values(), default=0)
        observations = next((key for key in ALIASES["observations"] if lengths.get(key) == length + 1), None)
        if observations and not set(ALIASES["next_observations"]) & found.keys():
            found["next_observations"] = found[observations][1:]
            found[observations] = found[observations][:-1]
        for key, values in found.items():
            if not values.ndim:  # one flag for the episode
                found[key] = np.zeros(length, values.dtype)
                found[key][-1:] = values
        lengths = {key: len(values) for key, values in found.items()}
        if set(lengths.values()) != {length} or not length:
            raise DataError(
                f"{self.name}: {label} has arrays of lengths {lengths}; rewards and all others must have one for each "
                "step, and observations may have one more."
            )
        if _DONES in found and _DONES not in named:
            warn_once(
                "%s: `dones` are taken as terminations, with value 0 after them. Where they only mark the end of a "
                "demonstration, say input_read_schema={'truncateds': 'dones'} (--column truncateds=dones).", self.name,
            )  # fmt: skip
            found["terminations"] = found.pop(_DONES)
        return found

    def _vectors(self, label: str, inner: dict[str, h5py.Dataset]) -> dict[str, np.ndarray]:
        keys = sorted(self._conventions.observation_keys)
        tops = {path.partition("/")[0] for path in inner}
        known = sorted({path.partition("/")[2] for path in inner})
        if not keys or set(keys) - set(known):
            found = f"found observation_keys={keys}" if keys else "they are groups"
            raise DataError(
                f"{self.name}: {label}: observations must be vectors, and {found}. Choose among {known} by "
                "observation_keys=[...] (--observation-key), which are put together in the order of their names."
            )
        vectors = {}
        for top in tops:
            parts = [self._read(f"{label}/{top}/{key}", inner[f"{top}/{key}"]) for key in keys]
            vectors[top] = np.concatenate([part.reshape(len(part), -1) for part in parts], axis=1)
        return vectors

    def _read(self, label: str, dataset: h5py.Dataset) -> np.ndarray:
        refuse_storage_outside(f"{self.name}: {label!r}", dataset.id)
        return np.asarray(dataset[()])


_KNOWN = {name for names in ALIASES.values() for name in names} | {_DONES}


def _episodes(file: h5py.File) -> Iterator[tuple[str, dict[str, h5py.Dataset]]]:
    """(label, {path within the episode: array}) of each episode, in natural order."""
    if file.keys() >= _D3RLPY:
        numbers = sorted({int(key.rpartition("_")[2]) for key in file if re.fullmatch(r"actions_[0-9]+", key)})
        keys = [key.decode() for key in file["columns"][()]]
        for number in numbers:
            yield f"episode {number}", {key: file[f"{key}_{number}"] for key in keys if f"{key}_{number}" in file}
        return
    holder = _holder(file)
    assert holder is not None
    for name in in_natural_order(list(holder)):
        arrays: dict[str, h5py.Dataset] = {}
        holder[name].visititems(
            lambda path, item, arrays=arrays: arrays.update({path: item}) if isinstance(item, h5py.Dataset) else None
        )
        yield holder[name].name, arrays


def _holder(file: h5py.File) -> h5py.Group | None:
    """The group whose groups are episodes: the file itself, or `data` in it."""
    for group in (file, file.get("data")):
        if isinstance(group, h5py.Group) and len(group):
            items = [group[name] for name in group]
            if all(isinstance(item, h5py.Group) and set(ALIASES["actions"]) & item.keys() for item in items):
                return group
    return None


def _is_of_episodes(place: Place) -> bool:
    if not place.is_file or not h5py.is_hdf5(place.path):
        return False
    with open_hdf5(str(place.path)) as file:
        return file.keys() >= _D3RLPY or (_holder(file) is not None and not is_of_minari(file))


def _open(place: Place, conventions: Conventions) -> EpisodesReader:
    return EpisodesReader(str(Path(place.path)), conventions)


FORMAT = Format(
    "hdf5_episodes",
    "HDF5 with a group an episode (robomimic), or d3rlpy's dumps",
    _open,
    SUFFIXES,
    recognises=_is_of_episodes,
    reads=("actions_in_input_normalized", "input_read_schema", "observation_keys"),
)
