"""Where trained dynamics are kept: one file per (dataset, settings, seed), shared by all runs of a user."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from rllib_damo.dynamics.ensemble import FILE_FIX, DynamicsEnsemble
from rllib_damo.errors import UserError
from rllib_damo.utils.paths import absolute, atomic_write, cache_root

logger = logging.getLogger(__name__)

#: Part of every key; raise it when training changes so that files of older versions are not used for the same settings.
_VERSION = 3
_FIX = "Name a writable cache in dynamics_cache_dir or in the environment variable RLLIB_DAMO_CACHE."


def key(fingerprint: str, settings: Mapping[str, Any], seed: int | None) -> str:
    """A name for what training would give: equal inputs, equal key.

    Args:
        fingerprint: of the dataset's content (`Transitions.fingerprint`).
        settings: all that shapes the result (sizes, optimiser, action bounds, ...); plain JSON values.
        seed: of the training.

    Raises:
        ValueError: a setting that is not a plain value.
    """
    try:
        text = json.dumps([_VERSION, fingerprint, dict(settings), seed], sort_keys=True, default=_plain)
    except TypeError as error:
        raise ValueError(f"The dynamics settings must be plain numbers, strings and lists: {error}.") from error
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _plain(value: Any) -> Any:
    """NumPy's numbers as Python's."""
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{value!r} is none of these")


def directory(cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """``cache_dir``, or else `cache_root`; created if missing.

    Raises:
        ValueError: it cannot be created.
    """
    folder = Path(absolute(cache_dir)) if cache_dir else cache_root()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"The cache directory {folder} cannot be created ({error.strerror}). {_FIX}") from error
    return folder


def check_writable(cache_dir: str | os.PathLike[str] | None = None) -> None:
    """Raises ValueError where nothing can be kept in `directory`."""
    folder = directory(cache_dir)
    if not os.access(folder, os.W_OK):
        raise ValueError(
            f"The cache directory {folder} is not writable, and the dynamics model is to be trained and kept there. "
            + _FIX
        )


def path(key: str, cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """The file of a key, there or not. `DynamicsEnsemble.save` writes it whole or not at all."""
    return directory(cache_dir) / f"dynamics-{key}.pt"


def read(file: Path, otherwise: str) -> DynamicsEnsemble | None:
    """The model in a file of the cache, on the CPU; None where there is none, or a damaged one, which is removed.

    Args:
        file: as of `path`.
        otherwise: a sentence for the warning of a damaged file: where the model comes from now.

    Raises:
        UserError: the damaged file cannot be removed.
    """
    if not file.exists():
        return None
    try:
        return DynamicsEnsemble.load(file, "cpu")
    except ValueError as error:
        what = str(error).removesuffix(FILE_FIX)
        logger.warning(f"{what}It is removed from the cache. {otherwise}")
        try:
            file.unlink(missing_ok=True)
        except OSError as denied:
            raise UserError(f"{what}It can't be removed ({denied.strerror}): delete it. {_FIX}") from denied
        return None


def lock(key: str, cache_dir: str | os.PathLike[str] | None = None) -> FileLock:
    """A lock between processes, to be held while looking for a key's file and training it.

    It is released when the process that holds it dies. ``with lock(key): ...`` waits, and
    ``lock(key).acquire(timeout=...)`` raises `Timeout`. The object holds it, not a thread:
    RLlib trains in a new thread each time when it evaluates in parallel to that.
    """
    return FileLock(str(path(key, cache_dir)) + ".lock", thread_local=False)


def write(content: bytes, cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """Writes a dynamics file's bytes (from a checkpoint) to the cache; their hash is the file's name."""
    target = directory(cache_dir) / f"dynamics-content-{hashlib.sha256(content).hexdigest()[:32]}.pt"
    if not target.exists() or target.read_bytes() != content:  # damaged since
        with atomic_write(target) as file:
            file.write(content)
    return target
