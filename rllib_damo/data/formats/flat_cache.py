"""Flat copies of datasets that are slow to open: a Minari file with tens of thousands of short episodes is 10^5 arrays.

Kept in `$RLLIB_DAMO_CACHE` (default `~/.cache/rllib_damo`) under `datasets/`, keyed by the file's path, size and time
of change, so that a changed file is read anew. Deleting the folder costs nothing but time.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np

from rllib_damo.data.schema import Transitions
from rllib_damo.utils.paths import cache_root

_STOPS = "episode_stops"


def store(file: Path, transitions: Transitions, episode_stops: np.ndarray) -> None:
    """Keep a flat copy of what `file` holds. A cache that cannot be written (full, read-only) is passed over.

    Args:
        file: the original.
        transitions: everything in it.
        episode_stops: (E,) int; one past the last row of each of the file's episodes, which flags need not tell.
    """
    place = _place(file)
    scratch = None
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(dir=place.parent))
        for key, array in {**transitions.arrays(), _STOPS: episode_stops}.items():
            np.save(scratch / f"{key}.npy", array)
        shutil.rmtree(place, ignore_errors=True)  # one that could not be loaded
        os.replace(scratch, place)
    except OSError:
        if scratch is not None:
            shutil.rmtree(scratch, ignore_errors=True)


def load(file: Path, name: str, start: int = 0, stop: int | None = None) -> Transitions | None:
    """The episodes [start, stop) of the flat copy of `file`, of which no more is read; None where there is no copy."""
    place = _place(file)
    try:
        stops = np.load(place / f"{_STOPS}.npy", allow_pickle=False)
        rows = slice(*np.append(0, stops)[[start, len(stops) if stop is None else stop]])
        arrays = {
            key: np.array(np.load(place / f"{key}.npy", mmap_mode="r", allow_pickle=False)[rows])
            for key in Transitions.__dataclass_fields__
            if key != "name"
        }
    except (OSError, ValueError):
        return None
    return Transitions(**arrays, name=name)


def _place(file: Path) -> Path:
    status = file.stat()
    key = hashlib.sha256(f"{file.resolve()}:{status.st_size}:{status.st_mtime_ns}".encode()).hexdigest()[:24]
    return cache_root() / "datasets" / key
