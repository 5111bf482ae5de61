"""One name for every kind of dataset: short names, Minari ids, and what the registry of formats knows."""

from __future__ import annotations

import difflib
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

import gymnasium as gym
from pyarrow import fs

from rllib_damo.data.formats import minari, registry
from rllib_damo.data.formats.files import Place
from rllib_damo.data.formats.minari_files import SCHEME, local_ids, local_path
from rllib_damo.data.formats.reader import DEFAULT_CONVENTIONS, Conventions, Reader
from rllib_damo.data.generate import datasets
from rllib_damo.data.schema import Transitions, check, concatenate
from rllib_damo.errors import DataError

Input: TypeAlias = "str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | Transitions"


def load(
    input_: Input,
    *,
    observation_space: gym.Space | None = None,
    conventions: Conventions = DEFAULT_CONVENTIONS,
    filesystem: fs.FileSystem | None = None,
    read_method: str = "",
) -> Transitions:
    """Resolve, read and check a dataset, or several of one environment.

    Args:
        input_: a name (see `resolve`), a list of names, or transitions that are only checked.
        observation_space: the environment's; the data's width is checked against it.
        conventions: the action space, whose width and bounds are checked, and what else the files do not say.
        filesystem: for files elsewhere; by default it follows from the address.
        read_method: RLlib's `input_read_method`, such as "read_json", where the names of files do not tell the format.

    Raises:
        DataError: for unknown names (with near matches), unreadable files, and data that breaks the schema.
    """
    if isinstance(input_, Transitions):
        conventions.refuse_unread(input_.name, ())
        transitions = input_
    else:
        readers = resolve_all(input_, conventions=conventions, filesystem=filesystem, read_method=read_method)
        transitions = concatenate([reader.read() for reader in readers])
    check(transitions, observation_space, conventions.action_space)
    return transitions


def resolve_all(
    input_: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    conventions: Conventions = DEFAULT_CONVENTIONS,
    filesystem: fs.FileSystem | None = None,
    read_method: str = "",
) -> list[Reader]:
    """The readers of one name or several; arguments as for `load`.

    Raises:
        DataError: as `resolve` does, or for an empty list.
    """
    names = [input_] if isinstance(input_, (str, os.PathLike)) else list(input_)
    if not names:
        raise DataError("input_ is an empty list; name at least one dataset.")
    return [resolve(name, conventions=conventions, filesystem=filesystem, read_method=read_method) for name in names]


def resolve(
    input_: str | os.PathLike[str],
    *,
    conventions: Conventions = DEFAULT_CONVENTIONS,
    filesystem: fs.FileSystem | None = None,
    read_method: str = "",
) -> Reader:
    """The reader of what a name stands for. No rows are read yet; a dataset of a short name is made if it is not there.

    An address, a path that is there, a pattern, or the name of a file goes to the registry of formats. Other names are
    short names such as `hopper-medium`, or Minari ids, downloaded if they are not here.

    Raises:
        DataError: naming near matches among short names, local Minari ids and the files of the folder.
    """
    if not isinstance(input_, (str, os.PathLike)) or not os.fspath(input_):
        raise DataError(f"input_={input_!r}: name a dataset as text, such as 'hopper-medium' or '/path/data.hdf5'.")
    place = Place(os.fspath(input_), filesystem)
    name = place.name
    is_there = place.is_address or place.is_folder or place.is_file or place.is_pattern
    if is_there and not name.startswith(SCHEME):
        form = registry.find(place, read_method)
        conventions.refuse_unread(place.shown, form.reads)
        return form.open(place, conventions)
    if not is_there and name.endswith(registry.suffixes()):
        raise DataError(f"{name}: no such file, as this machine ({platform.node()}) sees it." + _near(name))
    return _by_name(name.removeprefix(SCHEME), conventions, is_short=not is_there)


def short_names() -> list[str]:
    """The names of the datasets that the package makes, without sizes."""
    return list(datasets.NAMES)


def _by_name(name: str, conventions: Conventions, is_short: bool) -> Reader:
    """The reader of a Minari id, or of a short name if it may be one."""
    spec = datasets.find_spec(name) if is_short else None
    if spec is not None:
        conventions.refuse_unread(name, minari.FORMAT.reads)
        name = spec.dataset_id if local_path(spec.dataset_id) else datasets.make(name)
    conventions.refuse_unread(SCHEME + name, minari.FORMAT.reads)
    path = local_path(name) if name and ".." not in name else None
    if path is None:
        stem, _, version = name.rpartition("-v")
        near = _near(name)
        if not stem or not version.isdigit() or (is_short and "/" not in name and near):
            raise DataError(f"{name!r}: no dataset of this name." + (near or _kinds()))
        path = minari.download(name, near)
    return minari.MinariReader(path, SCHEME + name, conventions)


def _near(name: str) -> str:
    """A sentence with the near matches, or nothing."""
    folder = Path(name).expanduser().parent
    files = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
    candidates = {item: str(folder / item) for item in files if item.endswith(registry.suffixes())}
    candidates |= {item: item for item in (*short_names(), *local_ids())}
    base, at, size = name.partition("@")
    if at and "/" not in name:  # a short name with a size
        candidates |= {item + at + size: item + at + size for item in difflib.get_close_matches(base, short_names())}
    near = difflib.get_close_matches(name, candidates, n=4, cutoff=0.6)
    near += [
        item for item in difflib.get_close_matches(Path(name).name, candidates, n=4, cutoff=0.6) if item not in near
    ]
    return f" Did you mean {' or '.join(candidates[item] for item in near)}?" if near else ""


def _kinds() -> str:
    return f" There are the short names {', '.join(short_names())}; {registry.kinds()}."
