"""Minari datasets read in bulk, in each of Minari's formats (`minari_files` says how they lie on disk)."""

from __future__ import annotations

import contextlib
import logging
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gymnasium as gym
import h5py
import minari
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset
from filelock import FileLock
from gymnasium.envs.registration import EnvSpec
from h5py import h5s
from minari.dataset.minari_storage import MinariStorage
from minari.serialization import deserialize_space, serialize_space

from rllib_damo.data.formats import flat_cache
from rllib_damo.data.formats.arrow_columns import column_to_numpy
from rllib_damo.data.formats.assemble import as_flags, as_float_matrix
from rllib_damo.data.formats.dict_observations import check_keys, flat_space, key_paths
from rllib_damo.data.formats.files import Place, in_natural_order
from rllib_damo.data.formats.hdf5_inside import open_own
from rllib_damo.data.formats.minari_files import (
    CACHE_ABOVE_EPISODES,
    MAIN_FILE,
    METADATA_FILE,
    SCHEME,
    dataset_place,
    local_path,
    write_minari,
)
from rllib_damo.data.formats.reader import DEFAULT_CONVENTIONS, Conventions, Format, Reader
from rllib_damo.data.schema import Transitions
from rllib_damo.errors import DataError

logger = logging.getLogger(__name__)

_STEP_COLUMNS = ("actions", "rewards", "terminations", "truncations")
_COLUMNS = ("observations", *_STEP_COLUMNS)
_UNREADABLE = (OSError, KeyError, TypeError, ValueError, RuntimeError, MemoryError, pa.ArrowException)


class MinariReader(Reader):
    """One local Minari dataset; units are episodes."""

    def __init__(self, path: Path, name: str, conventions: Conventions = DEFAULT_CONVENTIONS) -> None:
        self.path = path
        self.name = name
        self._keys = tuple(conventions.observation_keys)
        self._skip = conventions.skip_bad_episodes

    def read(self, start: int = 0, stop: int | None = None) -> Transitions:
        facts = self._raw_metadata()
        total, is_hdf5 = facts["total_episodes"], facts["data_format"] == "hdf5"
        stop = total if stop is None else min(stop, total)
        whole = start == 0 and stop == total
        cacheable = is_hdf5 and total > CACHE_ABOVE_EPISODES and not self._keys
        if cacheable and (copy := flat_cache.load(self.path / MAIN_FILE, self.name, start, stop)) is not None:
            return copy
        episodes = self._episodes(facts, start, stop)
        lengths = [len(rewards) for rewards in episodes["rewards"]]
        if whole and not any(lengths):
            raise DataError(f"{self.name}: no episode has a step.")
        transitions = self._join(episodes, lengths)
        if cacheable and whole and not self.skipped:
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
        facts = self._raw_metadata()
        if self._keys:  # what is read is not what the environment gives
            facts.pop("env_spec", None)
            space = deserialize_space(facts["observation_space"])
            facts["observation_space"] = serialize_space(flat_space(space, self._keys))
        return facts

    def _raw_metadata(self) -> dict[str, Any]:
        try:
            metadata = MinariStorage.read_raw_metadata(self.path)
        except ValueError as error:
            raise DataError(f"{self.name}: {self.path / METADATA_FILE} cannot be read ({error}).") from error
        needed = {"total_episodes", "total_steps", "data_format"} | ({"observation_space"} if self._keys else set())
        missing = needed - set(metadata)
        if missing:
            raise DataError(f"{self.name}: {self.path / METADATA_FILE} lacks {sorted(missing)}; download it again.")
        for key in ("observation_space", "action_space"):
            with contextlib.suppress(KeyError, NotImplementedError):
                space = deserialize_space(metadata[key])
                if key == "observation_space" and (self._keys or isinstance(space, gym.spaces.Dict)):
                    check_keys(self.name, space, self._keys)
                elif not isinstance(space, gym.spaces.Box) or len(space.shape) != 1:
                    raise DataError(f"{self.name}: its {key} is {space!r}; it must be a one-dimensional Box.")
        return metadata

    def _episodes(self, facts: dict[str, Any], start: int, stop: int) -> dict[str, list[np.ndarray]]:
        """The arrays of the episodes [start, stop); of those that are left out, none of length more than 0."""
        found: dict[str, list[np.ndarray]] = {key: [] for key in _COLUMNS}
        skipped, shape = [], self._shapes(facts)
        with self._opened(facts) as read:
            for index in range(start, stop):
                try:
                    episode = read(index)
                    problem = _problem(episode, shape)
                except _UNREADABLE as error:
                    problem = f"cannot be read ({error})"
                if problem and not self._skip:
                    raise DataError(
                        f"{self.name}: episode {index} {problem}. Download the dataset again, or leave such episodes "
                        "out by skip_bad_episodes=True (--skip-bad-episodes)."
                    )
                if problem:
                    logger.warning("%s: episode %d is left out: it %s.", self.name, index, problem)
                    skipped.append(index)
                    episode = dict.fromkeys(_STEP_COLUMNS, np.zeros(0, np.float32))
                    episode["observations"] = np.zeros(1, np.float32)
                elif len(episode["rewards"]):
                    shape = episode["observations"].shape[1:], episode["actions"].shape[1:]
                for key, parts in found.items():
                    parts.append(episode[key])
        self.skipped = skipped
        return found

    def _shapes(self, facts: dict[str, Any]) -> tuple[tuple[int, ...], ...] | None:
        """The shapes of an observation and an action by the dataset's spaces, None where it does not tell them."""
        try:
            observation, action = (deserialize_space(facts[key]) for key in ("observation_space", "action_space"))
        except (KeyError, NotImplementedError):
            return None
        return (flat_space(observation, self._keys) if self._keys else observation).shape, action.shape

    @contextmanager
    def _opened(self, facts: dict[str, Any]) -> Iterator[Callable[[int], dict[str, np.ndarray]]]:
        """A function that reads the episode of a number."""
        paths = [("observations", *path) for path in self._paths(facts)]
        if facts["data_format"] in ("arrow", "parquet"):
            yield lambda index: self._read_arrow(index, facts["data_format"], paths)
            return
        if facts["data_format"] != "hdf5":
            raise DataError(f"{self.name}: Minari's format {facts['data_format']!r} is not known; re-save it as hdf5.")
        blocks: dict[str, _Blocks] = defaultdict(_Blocks)
        try:
            file = h5py.File(self.path / MAIN_FILE, "r")
        except OSError as error:
            raise DataError(
                f"{self.name}: {self.path / MAIN_FILE} cannot be read ({error}); download it again."
            ) from error
        with file:
            yield lambda index: self._read_hdf5(file, index, paths, blocks)

    def _paths(self, facts: dict[str, Any]) -> list[tuple[str, ...]]:
        """Where in an episode's observations the parts of the vector are."""
        return key_paths(deserialize_space(facts["observation_space"]), self._keys) if self._keys else [()]

    def _read_hdf5(
        self, file: h5py.File, index: int, paths: list[tuple[str, ...]], blocks: dict[str, _Blocks]
    ) -> dict[str, np.ndarray]:
        name = f"episode_{index}"
        try:
            episode = open_own(file.id, name)
        except _UNREADABLE:
            if file.id.links.exists(name.encode()):
                raise
            raise self._too_few(self.path / MAIN_FILE, len(file)) from None

        def read(path: tuple[str, ...]) -> np.ndarray:
            item = episode
            for name in path:
                item = open_own(item, name)
            values = blocks[path[0]].take(item.shape, _narrow(item.dtype))
            item.read(h5s.ALL, h5s.ALL, values)  # HDF5 converts; what is too large becomes infinite
            return values

        return {
            "observations": _flat({path: read(path) for path in paths}),
            **{key: read((key,)) for key in _STEP_COLUMNS},
        }

    def _read_arrow(self, index: int, data_format: str, paths: list[tuple[str, ...]]) -> dict[str, np.ndarray]:
        folder = self.path / str(index)
        if not folder.is_dir():
            raise self._too_few(self.path, sum(entry.is_dir() for entry in self.path.iterdir()))
        files = in_natural_order([str(path) for path in folder.iterdir() if path.suffix == f".{data_format}"])
        table = pa.dataset.dataset(files, format=data_format).to_table(columns=list(_COLUMNS))

        def read(path: tuple[str, ...]) -> np.ndarray:
            values = table[path[0]]
            for name in path[1:]:
                values = pc.struct_field(values, name)
            return column_to_numpy(self.name, "/".join(path), values, key=path[0])

        steps = {key: read((key,))[:-1] for key in _STEP_COLUMNS}  # the last row is padded
        return {"observations": _flat({path: read(path) for path in paths}), **steps}

    def _too_few(self, place: Path, found: int) -> DataError:
        total = self._raw_metadata()["total_episodes"]
        return DataError(f"{place} holds {found} episodes, and {METADATA_FILE} beside them says {total}")

    def _join(self, episodes: dict[str, list[np.ndarray]], lengths: list[int]) -> Transitions:
        if any(lengths):
            kept = [index for index, length in enumerate(lengths) if length]
            episodes = {key: [parts[index] for index in kept] for key, parts in episodes.items()}
        observations = episodes.pop("observations")
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


def _flat(parts: Mapping[tuple[str, ...], np.ndarray]) -> np.ndarray:
    """Observations as they are, or the entries of dictionaries as one vector a row."""
    if ("observations",) in parts:
        return parts[("observations",)]
    return np.concatenate([part.reshape(len(part), -1) for part in parts.values()], axis=1)


def _problem(episode: dict[str, np.ndarray], shape: tuple[tuple[int, ...], ...] | None) -> str:
    """What is wrong with an episode, after its name; "" if nothing is. `shape`: of others' observations and actions."""
    length = len(episode["rewards"])
    found = {key: len(values) for key, values in episode.items()}
    if found != {"observations": length + 1, **dict.fromkeys(_STEP_COLUMNS, length)}:
        return f"has arrays of lengths {found}; observations must have one more than the others"
    for key in ("observations", "actions", "rewards"):
        if episode[key].dtype.kind == "f" and not np.isfinite(episode[key]).all():
            return f"has {key} that are not finite"
    own = episode["observations"].shape[1:], episode["actions"].shape[1:]
    if length and shape not in (None, own):
        return f"has observations and actions of the shapes {own}, and the others {shape}"
    return ""


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
    folder = _folder(place)
    assert folder is not None  # it was recognised by it
    return MinariReader(folder, place.name, conventions)


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
    reads=("observation_keys", "skip_bad_episodes"),
)
