"""Minari datasets written and read in bulk, through the files themselves: Minari's own per-episode path is slow.

A Minari episode of L steps holds L + 1 observations, so that next observations follow from them. In its HDF5 format
every episode is a group of arrays; in its Arrow and Parquet formats it is a file of L + 1 rows, the last one padded.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec
from h5py import h5a, h5d, h5g, h5p, h5s, h5t
from minari import __version__ as minari_version
from minari.dataset.minari_dataset import parse_dataset_id
from minari.dataset.minari_storage import MinariStorage
from minari.namespace import create_namespace, list_local_namespaces
from minari.storage.datasets_root_dir import get_dataset_path

from rllib_damo.data.formats import flat_cache
from rllib_damo.data.formats.hdf5_write import new_hdf5
from rllib_damo.data.schema import Transitions
from rllib_damo.errors import DataError

SCHEME = "minari://"
MAIN_FILE = "main_data.hdf5"
METADATA_FILE = "metadata.json"
# Above this many episodes a flat copy is kept: opening five arrays an episode then takes longer than reading them.
CACHE_ABOVE_EPISODES = 4000


def dataset_place(dataset_id: str = "") -> Path:
    """Where a dataset is, or would be; by default the folder of all of them, which Minari makes.

    Raises:
        DataError: if it cannot be made.
    """
    try:
        return get_dataset_path(dataset_id)
    except OSError as error:
        raise DataError(
            f"Minari's folder of datasets cannot be made ({error}). Name a writable one in the environment variable "
            "MINARI_DATASETS_PATH."
        ) from error


def local_ids() -> list[str]:
    """Ids of the Minari datasets on this machine, sorted."""
    root = dataset_place()
    found = []
    for folder, subfolders, _ in os.walk(root):
        if "data" in subfolders and (Path(folder) / "data" / METADATA_FILE).exists():
            found.append(Path(folder).relative_to(root).as_posix())
            subfolders.clear()
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
    return sorted(found)


def local_path(dataset_id: str) -> Path | None:
    """Folder with the files of a local Minari dataset, or None where it is not on this machine."""
    path = dataset_place(dataset_id) / "data"
    return path if (path / METADATA_FILE).exists() else None


def write_minari(
    transitions: Transitions,
    dataset_id: str,
    *,
    env_spec: EnvSpec | str | None = None,
    observation_space: gym.Space | None = None,
    action_space: gym.Space | None = None,
    metadata: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> Path:
    """Write transitions as a local Minari dataset (HDF5 format), in bulk and byte-equal for equal arguments.

    The dataset appears at once or not at all: it is written beside its place and renamed. Besides the caller's
    metadata it stores the fingerprint and the statistics of the content.

    Args:
        transitions: within an episode every next observation must be the next row's observation, since Minari stores
            one chain of observations an episode.
        dataset_id: `(namespace/)name-vN`.
        env_spec: the environment, by id or spec; gives the spaces where they are not given.
        observation_space: a Box; stored with dtype float32, as the data is.
        action_space: a Box; stored with dtype float32.
        metadata: further JSON values, Minari's own among them: `ref_min_score` and `ref_max_score` (the returns of a
            random policy and an expert, for `minari.get_normalized_score`), lists `author` and `author_email`, ...
        overwrite: replace a dataset of this id.

    Returns:
        The folder with the files (`<root>/<dataset_id>/data`).

    Raises:
        DataError: for a malformed or taken id, missing spaces, or transitions that are not chained.
    """
    try:
        namespace = parse_dataset_id(dataset_id)[0]
    except (ValueError, TypeError) as error:
        raise DataError(
            f"{dataset_id!r} is no Minari dataset id; write (namespace/)name-vN, such as hopper/medium-v0."
        ) from error
    place = dataset_place(dataset_id)
    if place.exists() and not overwrite:
        raise DataError(
            f"A Minari dataset {dataset_id!r} exists at {place}; choose another id, or replace it by overwrite=True "
            "(--overwrite)."
        )
    check_chained(transitions)
    spec = gym.spec(env_spec) if isinstance(env_spec, str) else env_spec
    if observation_space is None or action_space is None:
        if spec is None:
            raise DataError(f"{dataset_id}: give env_spec, or both observation_space and action_space.")
        env = gym.make(spec)
        observation_space = observation_space or env.observation_space
        action_space = action_space or env.action_space
        env.close()
    if namespace is not None and namespace not in list_local_namespaces():
        create_namespace(namespace)
    place.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=".writing-", dir=place.parent))
    try:
        data = scratch / "data"
        MinariStorage.new(data, _as_float32(observation_space), _as_float32(action_space), spec, data_format="hdf5")
        _write_episodes(data / MAIN_FILE, transitions)
        stored = {
            **(metadata or {}),
            **MinariStorage.read_raw_metadata(data),
            "dataset_id": dataset_id,
            "minari_version": minari_version,
            "total_episodes": len(transitions.episode_bounds()),
            "total_steps": len(transitions),
            "dataset_size": round((data / MAIN_FILE).stat().st_size / 1e6, 1),
            "fingerprint": transitions.fingerprint(),
            "statistics": transitions.statistics(),
        }
        stored = {key: value for key, value in stored.items() if value is not None}
        (data / METADATA_FILE).write_text(json.dumps(stored, sort_keys=True, indent=1))
        if place.exists():
            shutil.rmtree(place)
        scratch.chmod(0o755)
        os.replace(scratch, place)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    stops = transitions.episode_bounds()[:, 1]
    if len(stops) > CACHE_ABOVE_EPISODES:
        flat_cache.store(place / "data" / MAIN_FILE, transitions, stops)
    return place / "data"


def check_chained(transitions: Transitions) -> None:
    """Refuse transitions whose next observation is not the next row's observation inside an episode.

    Raises:
        DataError: Minari stores one chain of observations an episode and cannot hold them.
    """
    inside = ~(transitions.terminations | transitions.truncations)
    if len(inside):
        inside[-1] = False
    rows = np.flatnonzero(inside)
    broken = (transitions.next_observations[rows] != transitions.observations[rows + 1]).any(axis=1)
    if broken.any():
        raise DataError(
            f"{transitions.name}: {int(broken.sum())} row(s), first {int(rows[broken][0])}, have a next observation "
            "that is not the next row's observation, which Minari cannot store. Write HDF5 or Parquet instead."
        )


def _as_float32(space: gym.Space) -> gym.Space:
    if not isinstance(space, gym.spaces.Box):
        raise DataError(f"Only Box spaces can be written, but found {space!r}.")
    return gym.spaces.Box(space.low.astype(np.float32), space.high.astype(np.float32), dtype=np.float32)


def _write_episodes(path: Path, transitions: Transitions) -> None:
    """One group an episode, as Minari lays them out, without time stamps (so that equal content gives equal bytes)."""
    dataset_options = h5p.create(h5p.DATASET_CREATE)
    dataset_options.set_fill_time(h5d.FILL_TIME_NEVER)
    dataset_options.set_obj_track_times(False)
    group_options = h5p.create(h5p.GROUP_CREATE)
    group_options.set_obj_track_times(False)
    types = {key: h5t.py_create(np.dtype(key), logical=True) for key in ("f4", "?", "i8")}
    scalar = h5s.create(h5s.SCALAR)
    arrays = {key: np.ascontiguousarray(array) for key, array in transitions.arrays().items()}
    last_observations = arrays.pop("next_observations")
    with new_hdf5(path, libver=("v110", "v110")) as file:
        for index, (start, stop) in enumerate(transitions.episode_bounds().tolist()):
            group = h5g.create(file.id, b"episode_%d" % index, gcpl=group_options)
            for attribute, number in ((b"id", index), (b"total_steps", stop - start)):
                h5a.create(group, attribute, types["i8"], scalar).write(np.array(number, np.int64))
            for key, array in arrays.items():
                values = array[start:stop]
                if key == "observations":
                    values = np.concatenate([values, last_observations[stop - 1 : stop]])
                dtype = types["?" if values.dtype == np.bool_ else "f4"]
                dataset = h5d.create(group, key.encode(), dtype, h5s.create_simple(values.shape), dataset_options)
                dataset.write(h5s.ALL, h5s.ALL, values, dtype)
