"""Minari datasets read in bulk, in each of Minari's formats (`minari_files` says how they lie on disk)."""

from __future__ import annotations

import contextlib
import math
from pathlib import Path
from typing import Any

import gymnasium as gym
import h5py
import minari
import numpy as np
import pyarrow as pa
import pyarrow.dataset
from filelock import FileLock
from gymnasium.envs.registration import EnvSpec
from h5py import h5d, h5g, h5s
from minari.dataset.minari_storage import MinariStorage
from minari.serialization import deserialize_space

from rllib_damo.data.formats import flat_cache
from rllib_damo.data.formats.arrow_columns import column_to_numpy
from rllib_damo.data.formats.assemble import as_flags, as_float_matrix
from rllib_damo.data.formats.files import Place, in_natural_order
from rllib_damo.data.formats.minari_files import (
    CACHE_ABOVE_EPISODES,
    MAIN_FILE,
    METADATA_FILE,
    SCHEME,
    dataset_place,
    local_path,
    write_minari,
)
from rllib_damo.data.formats.reader import Conventions, Format, Reader
from rllib_damo.data.schema import Transitions
from rllib_damo.errors import DataError

_STEP_COLUMNS = ("actions", "rewards", "terminations", "truncations")
_COLUMNS = ("observations", *_STEP_COLUMNS)


class MinariReader(Reader):
    """One local Minari dataset; units are episodes."""

    def __init__(self, path: Path, name: str) -> None:
        self.path = path
        self.name = name

    def read(self, start: int = 0, stop: int | None = None) -> Transitions:
        metadata = self._raw_metadata()
        total = metadata["total_episodes"]
        stop = total if stop is None else min(stop, total)
        whole = start == 0 and stop == total
        cacheable = metadata["data_format"] == "hdf5" and total > CACHE_ABOVE_EPISODES
        if cacheable and (copy := flat_cache.load(self.path / MAIN_FILE, self.name, start, stop)) is not None:
            return copy
        if metadata["data_format"] == "hdf5":
            episodes = self._read_hdf5(start, stop)
        elif metadata["data_format"] in ("arrow", "parquet"):
            episodes = self._read_arrow(start, stop, metadata["data_format"])
        else:
            raise DataError(
                f"{self.name}: Minari's format {metadata['data_format']!r} is not known; re-save it as hdf5."
            )
        lengths = [len(rewards) for rewards in episodes["rewards"]]
        if whole and not any(lengths):
            raise DataError(f"{self.name}: no episode has a step.")
        transitions = self._join(episodes, lengths)
        if cacheable and whole:
            flat_cache.store(self.path / MAIN_FILE, transitions, np.cumsum(lengths))
        return transitions

    def splits(self, max_rows: int) -> list[tuple[int, int]]:
        metadata = self._raw_metadata()
        total = metadata["total_episodes"]
        mean_length = max(metadata["total_steps"] / max(total, 1), 1)
        step = max(int(max_rows / mean_length), 1)
        return [(i, min(i + step, total)) for i in range(0, total, step)]

    def num_rows(self) -> int | None:
        return int(self._raw_metadata()["total_steps"])

    def metadata(self) -> dict[str, Any]:
        return self._raw_metadata()

    def _raw_metadata(self) -> dict[str, Any]:
        try:
            metadata = MinariStorage.read_raw_metadata(self.path)
        except ValueError as error:
            raise DataError(f"{self.name}: {self.path / METADATA_FILE} cannot be read ({error}).") from error
        missing = {"total_episodes", "total_steps", "data_format"} - set(metadata)
        if missing:
            raise DataError(f"{self.name}: {self.path / METADATA_FILE} lacks {sorted(missing)}; download it again.")
        for key in ("observation_space", "action_space"):
            with contextlib.suppress(KeyError, NotImplementedError):
                space = deserialize_space(metadata[key])
                if not isinstance(space, gym.spaces.Box) or len(space.shape) != 1:
                    raise DataError(f"{self.name}: its {key} is {space!r}; DAMO needs a one-dimensional Box.")
        return metadata

    def _read_hdf5(self, start: int, stop: int) -> dict[str, list[np.ndarray]]:
        episodes: dict[str, list[np.ndarray]] = {key: [] for key in _COLUMNS}
        blocks = {key: _Blocks() for key in _COLUMNS}
        try:
            with h5py.File(self.path / MAIN_FILE, "r") as file:
                for index in range(start, stop):
                    group = h5g.open(file.id, b"episode_%d" % index)
                    for key, parts in episodes.items():
                        dataset = h5d.open(group, key.encode())
                        values = blocks[key].take(dataset.shape, _narrow(dataset.dtype))
                        dataset.read(h5s.ALL, h5s.ALL, values)  # HDF5 converts; what is too large becomes infinite
                        parts.append(values)
        except (OSError, KeyError, TypeError) as error:
            raise DataError(
                f"{self.name}: {self.path / MAIN_FILE} cannot be read ({error}); download it again."
            ) from error
        return episodes

    def _read_arrow(self, start: int, stop: int, data_format: str) -> dict[str, list[np.ndarray]]:
        episodes: dict[str, list[np.ndarray]] = {key: [] for key in _COLUMNS}
        for index in range(start, stop):
            folder = self.path / str(index)
            try:
                files = in_natural_order([str(path) for path in folder.iterdir() if path.suffix == f".{data_format}"])
                table = pa.dataset.dataset(files, format=data_format).to_table(columns=list(_COLUMNS))
            except (OSError, pa.ArrowInvalid) as error:
                raise DataError(f"{self.name}: {folder} cannot be read ({error}); download it again.") from error
            for key, parts in episodes.items():
                values = column_to_numpy(self.name, key, table[key], key=key)
                parts.append(values if key == "observations" else values[:-1])
        return episodes

    def _join(self, episodes: dict[str, list[np.ndarray]], lengths: list[int]) -> Transitions:
        for index, length in enumerate(lengths):
            found = {key: len(parts[index]) for key, parts in episodes.items()}
            if found != {"observations": length + 1, **dict.fromkeys(_STEP_COLUMNS, length)}:
                raise DataError(
                    f"{self.name}: an episode's arrays have lengths {found}; observations must have one more."
                )
        observations = episodes.pop("observations")
        if any(lengths):
            observations = [part for part, length in zip(observations, lengths, strict=True) if length]
        if len({part.shape[1:] for part in observations}) > 1:
            raise DataError(f"{self.name}: episodes have observations of different widths.")
        columns = {key: np.concatenate(episodes.pop(key)) for key in _STEP_COLUMNS}
        terminations, truncations = (as_flags(self.name, key, columns[key]) for key in ("terminations", "truncations"))
        last = np.cumsum([length for length in lengths if length], dtype=np.int64) - 1
        truncations[last] |= ~terminations[last]
        return Transitions(
            as_float_matrix(self.name, "observations", np.concatenate([part[:-1] for part in observations]), 2),
            as_float_matrix(self.name, "actions", columns["actions"], 2),
            as_float_matrix(self.name, "rewards", columns["rewards"], 1),
            as_float_matrix(self.name, "observations", np.concatenate([part[1:] for part in observations]), 2),
            terminations,
            truncations,
            self.name,
        )


class _Blocks:
    """Hands out arrays that lie in large blocks, which the allocator gives back to the system as a whole.

    Freed arrays of an episode's size would stay with the process, in thousands of pieces.
    """

    _BYTES = 1 << 26  # resident only as far as it is written

    def __init__(self) -> None:
        self._free = np.empty(0, np.uint8)

    def take(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        size = math.prod(shape) * dtype.itemsize
        if len(self._free) < size:
            self._free = np.empty(max(size, self._BYTES), np.uint8)
        taken, self._free = self._free[:size], self._free[-(-size // 8) * 8 :]  # the next one is aligned, too
        return taken.view(dtype).reshape(shape)


def _narrow(dtype: np.dtype) -> np.dtype:
    """Wider floats are read as the float32 that the schema holds."""
    return np.dtype(np.float32) if dtype.kind == "f" and dtype.itemsize > 4 else dtype


def download(dataset_id: str, hint: str = "") -> Path:
    """Fetch a Minari dataset from the remote that Minari is set up for; `hint` ends the message where that fails.

    Raises:
        DataError: if it cannot be had, telling a missing network from an unknown id as far as Minari does.
    """
    folder = dataset_place(dataset_id)
    try:
        with FileLock(dataset_place() / ".download.lock"):  # another trial may be downloading it
            if local_path(dataset_id) is None:
                if folder.exists():  # Minari would leave it so
                    raise DataError(
                        f"{folder}: an incomplete dataset, without {METADATA_FILE}. Delete the folder and try again."
                    )
                minari.download_dataset(dataset_id)
    except DataError:
        raise
    except Exception as error:  # the remotes raise what their HTTP clients do
        raise DataError(
            f"Minari dataset {dataset_id!r} is not on this machine, and downloading it failed "
            f"({type(error).__name__}: {error}). Check the id and the network, "
            f"or make a dataset with `rllib-damo data make`.{hint}"
        ) from error
    path = local_path(dataset_id)
    if path is None:
        raise DataError(f"Minari dataset {dataset_id!r} was downloaded but is not at its place; download it again.")
    return path


def _folder(place: Place) -> Path | None:
    """The folder with a dataset's files, where a path names it or the one around it."""
    folders = (place.path, place.path / "data") if place.is_folder else ()
    return next((folder for folder in folders if (folder / METADATA_FILE).exists()), None)


def _open(place: Place, conventions: Conventions) -> MinariReader:
    conventions.refuse(place.name)
    folder = _folder(place)
    assert folder is not None  # it was recognised by it
    return MinariReader(folder, place.name)


def _write(
    transitions: Transitions, target: str, /, *, metadata: dict[str, Any] | None = None, overwrite: bool = False
) -> str:
    """As `write_minari`, to `minari://<id>`; the spaces, and the environment if it is known, are in the metadata."""
    facts = dict(metadata or {})
    if not {"observation_space", "action_space"} <= facts.keys():
        raise DataError(
            f"{transitions.name} does not say which spaces it has, and Minari needs them; name the environment "
            "(env_id, or --env)."
        )
    dataset_id = target.removeprefix(SCHEME)
    spec = EnvSpec.from_json(facts.pop("env_spec")) if "env_spec" in facts else None
    write_minari(
        transitions, dataset_id, env_spec=spec, observation_space=deserialize_space(facts["observation_space"]),
        action_space=deserialize_space(facts["action_space"]), metadata=facts, overwrite=overwrite,
    )  # fmt: skip
    return dataset_id


FORMAT = Format(
    "minari",
    f"Minari datasets by id or folder ({SCHEME}D4RL/door/human-v2)",
    _open,
    scheme=SCHEME,
    recognises=lambda place: _folder(place) is not None,
    write=_write,
)
