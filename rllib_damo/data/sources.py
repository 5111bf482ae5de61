"""One name for every kind of dataset: short names, Minari ids, HDF5 and Parquet files, buckets, RLlib's recordings."""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

import gymnasium as gym
from pyarrow import fs

from rllib_damo.data.formats.d4rl_hdf5 import D4RLReader
from rllib_damo.data.formats.minari import MinariReader, download
from rllib_damo.data.formats.minari_files import METADATA_FILE, local_ids, local_path
from rllib_damo.data.formats.parquet import ParquetReader
from rllib_damo.data.formats.parquet_files import find_files, is_glob
from rllib_damo.data.formats.reader import DEFAULT_CONVENTIONS, HDF5_SUFFIXES, PARQUET_SUFFIXES, Conventions, Reader
from rllib_damo.data.formats.rllib_episodes import EpisodesReader
from rllib_damo.data.generate import datasets
from rllib_damo.data.schema import Transitions, check, concatenate
from rllib_damo.errors import DataError
from rllib_damo.utils.uris import without_password

Input: TypeAlias = "str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | Transitions"

MINARI_SCHEME = "minari://"


def load(
    input_: Input,
    *,
    observation_space: gym.Space | None = None,
    conventions: Conventions = DEFAULT_CONVENTIONS,
    filesystem: fs.FileSystem | None = None,
) -> Transitions:
    """Resolve, read and check a dataset, or several of one environment.

    Args:
        input_: a name (see `resolve`), a list of names, or transitions that are only checked.
        observation_space: the environment's; the data's width is checked against it.
        conventions: the action space, whose width and bounds are checked, and what else the files do not say.
        filesystem: for Parquet elsewhere; by default it follows from the address.

    Raises:
        DataError: for unknown names (with near matches), unreadable files, and data that breaks the schema.
    """
    if isinstance(input_, Transitions):
        _refuse_conventions(input_.name, conventions)
        transitions = input_
    else:
        readers = resolve_all(input_, conventions=conventions, filesystem=filesystem)
        transitions = concatenate([reader.read() for reader in readers])
    check(transitions, observation_space, conventions.action_space)
    return transitions


def resolve_all(
    input_: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    conventions: Conventions = DEFAULT_CONVENTIONS,
    filesystem: fs.FileSystem | None = None,
) -> list[Reader]:
    """The readers of one name or several; arguments as for `load`.

    Raises:
        DataError: as `resolve` does, or for an empty list.
    """
    names = [input_] if isinstance(input_, (str, os.PathLike)) else list(input_)
    if not names:
        raise DataError("input_ is an empty list; name at least one dataset.")
    return [resolve(name, conventions=conventions, filesystem=filesystem) for name in names]


def resolve(
    input_: str | os.PathLike[str],
    *,
    conventions: Conventions = DEFAULT_CONVENTIONS,
    filesystem: fs.FileSystem | None = None,
) -> Reader:
    """The reader of what a name stands for. No rows are read yet; a dataset of a short name is made if it is not there.

    In this order: `minari://<id>`; an address with another scheme (`s3://…`: Parquet); a path to HDF5, Parquet (file,
    glob, folder) or a Minari folder; a short name such as `hopper-medium`; a Minari id, downloaded if it is not here.

    Raises:
        DataError: naming near matches among short names, local Minari ids and the files of the folder.
    """
    if not isinstance(input_, (str, os.PathLike)) or not os.fspath(input_):
        raise DataError(f"input_={input_!r}: name a dataset as text, such as 'hopper-medium' or '/path/data.hdf5'.")
    name = os.fspath(input_)
    if name.startswith(MINARI_SCHEME):
        return _minari(name.removeprefix(MINARI_SCHEME), conventions)
    if "://" in name or filesystem is not None:
        if name.endswith(HDF5_SUFFIXES):
            raise DataError(
                f"{without_password(name)}: HDF5 is read by a path of this machine only; download it, or convert it to "
                "Parquet."
            )
        return _parquet(name, conventions, filesystem)
    path = Path(name).expanduser()
    if path.is_dir():
        for folder in (path, path / "data"):
            if (folder / METADATA_FILE).exists():
                _refuse_conventions(name, conventions)
                return MinariReader(folder, name)
        return _parquet(str(path), conventions)
    is_file = path.is_file()
    if is_file or is_glob(name) or name.endswith((*HDF5_SUFFIXES, *PARQUET_SUFFIXES)):
        if not name.endswith((*HDF5_SUFFIXES, *PARQUET_SUFFIXES)):
            raise DataError(
                f"{name}: files are read that end in {', '.join(HDF5_SUFFIXES + PARQUET_SUFFIXES)}; "
                "`rllib_damo.data.formats.parquet.write_parquet` makes one of arrays."
            )
        if not is_file and not is_glob(name):
            raise DataError(f"{name}: no such file." + _near(name))
        if is_file and name.endswith(HDF5_SUFFIXES):
            return D4RLReader(path, conventions)
        return _parquet(str(path), conventions)
    if name in short_names():
        _refuse_conventions(name, conventions)
        dataset_id = datasets.NAMES[name].dataset_id
        return _minari(dataset_id if local_path(dataset_id) else datasets.make(name), conventions)
    if "/" not in name and local_path(name) is None and (near := _near(name)):
        raise DataError(f"{name!r}: no dataset of this name.{near}")
    return _minari(name, conventions)


def short_names() -> list[str]:
    """The names of the datasets that the package makes."""
    return list(datasets.NAMES)


def _minari(dataset_id: str, conventions: Conventions) -> Reader:
    name = f"{MINARI_SCHEME}{dataset_id}"
    _refuse_conventions(name, conventions)
    path = local_path(dataset_id) if dataset_id and ".." not in dataset_id else None
    if path is None:
        stem, _, version = dataset_id.rpartition("-v")
        if not stem or not version.isdigit():
            raise DataError(f"{dataset_id!r}: no dataset of this name." + (_near(dataset_id) or _kinds()))
        path = download(dataset_id, _near(dataset_id))
    return MinariReader(path, name)


def _refuse_conventions(name: str, conventions: Conventions) -> None:
    """Raises DataError where the format says itself what ``conventions`` would say otherwise."""
    if conventions.are_normalized(is_recording=False):
        raise DataError(
            f"{name}: actions_in_input_normalized=True, but here actions are in the environment's units by definition. "
            "Leave it None."
        )
    _refuse_schema(name, conventions)


def _refuse_schema(name: str, conventions: Conventions) -> None:
    if conventions.input_read_schema:
        raise DataError(
            f"{name}: input_read_schema names the columns of HDF5 and Parquet files, and here there are none of those. "
            "Leave it empty."
        )


def _parquet(name: str, conventions: Conventions, filesystem: fs.FileSystem | None = None) -> Reader:
    files = find_files(name, filesystem)
    columns = files.open(files.paths[0]).schema_arrow.names
    if columns != ["item"]:
        return ParquetReader(files, conventions)
    _refuse_schema(files.name, conventions)
    return EpisodesReader(files, conventions)


def _near(name: str) -> str:
    """A sentence with the near matches, or nothing."""
    folder = Path(name).expanduser().parent
    files = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
    candidates = {**{item: str(folder / item) for item in files if item.endswith((*HDF5_SUFFIXES, *PARQUET_SUFFIXES))}}
    candidates |= {item: item for item in (*short_names(), *local_ids())}
    near = difflib.get_close_matches(name, candidates, n=4, cutoff=0.6)
    near += [
        item for item in difflib.get_close_matches(Path(name).name, candidates, n=4, cutoff=0.6) if item not in near
    ]
    return f" Did you mean {' or '.join(candidates[item] for item in near)}?" if near else ""


def _kinds() -> str:
    return (
        f" There are the short names {', '.join(short_names())}; Minari ids such as minari://D4RL/door/human-v2; "
        "files in .hdf5 or .parquet; and s3:// addresses of Parquet."
    )
