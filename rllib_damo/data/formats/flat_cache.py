"""Flat copies of datasets that are slow to open: a Minari file with tens of thousands of short episodes is 10^5 arrays.

Kept in `$RLLIB_DAMO_CACHE` (default `~/.cache/rllib_damo`) under `datasets/`, keyed by the file's path, size and time
of change, so that a changed file is read anew. Deleting the folder costs nothing but time. Each block of rows has a
checksum, which is compared when rows of it are read.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np

from rllib_damo.data.schema import Transitions
from rllib_damo.utils.paths import cache_root

logger = logging.getLogger(__name__)

_STOPS = "episode_stops"
_CHECKSUMS = "checksums.json"
_BLOCK_ROWS = 1 << 16


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
        arrays = {**transitions.arrays(), _STOPS: episode_stops}
        for key, array in arrays.items():
            np.save(scratch / f"{key}.npy", array)
        checksums = {
            key: [_checksum(array, block) for block in range(-(-len(array) // _BLOCK_ROWS))]
            for key, array in arrays.items()
        }
        (scratch / _CHECKSUMS).write_text(json.dumps(checksums))
        shutil.rmtree(place, ignore_errors=True)  # one that could not be loaded
        os.replace(scratch, place)
    except OSError:
        if scratch is not None:
            shutil.rmtree(scratch, ignore_errors=True)


def load(file: Path, name: str, start: int = 0, stop: int | None = None) -> Transitions | None:
    """The episodes [start, stop) of the flat copy of `file`, of which little more is read.

    Returns:
        None where there is no copy. A damaged one is removed, with a warning.
    """
    place = _place(file)
    if not place.is_dir():
        return None
    try:
        checksums = _read_checksums(place)
        stops = _rows(place, _STOPS, slice(None), checksums)
        rows = slice(*np.append(0, stops)[[start, len(stops) if stop is None else stop]].tolist())
        fields = [key for key in Transitions.__dataclass_fields__ if key != "name"]
        return Transitions(**{key: _rows(place, key, rows, checksums) for key in fields}, name=name)
    except OSError:
        return None
    except Exception as error:  # what a damaged header may raise
        logger.warning("%s is damaged (%s). It is removed, and %s is read instead.", place, error, file)
        shutil.rmtree(place, ignore_errors=True)
        return None


def _read_checksums(place: Path) -> dict[str, list[str]] | None:
    """The checksums of each array's blocks; None for a copy of an earlier version, which has none."""
    if not (place / _CHECKSUMS).exists():
        return None
    return dict(json.loads((place / _CHECKSUMS).read_text()))


def _rows(place: Path, key: str, rows: slice, checksums: dict[str, list[str]] | None) -> np.ndarray:
    array = np.load(place / f"{key}.npy", mmap_mode="r", allow_pickle=False)
    if checksums is not None:
        first, stop, _ = rows.indices(len(array))
        for block in range(first // _BLOCK_ROWS, -(-stop // _BLOCK_ROWS)):
            if _checksum(array, block) != checksums[key][block]:
                raise ValueError(f"the content of {key}.npy does not fit its checksum")
    return np.array(array[rows])


def _checksum(array: np.ndarray, block: int) -> str:
    """Of a block of an array's rows, and of the array's shape and type."""
    digest = hashlib.sha256(f"{array.dtype.str} {array.shape}".encode())
    digest.update(np.ascontiguousarray(array[block * _BLOCK_ROWS : (block + 1) * _BLOCK_ROWS]).data)
    return digest.hexdigest()


def _place(file: Path) -> Path:
    status = file.stat()
    key = hashlib.sha256(f"{file.resolve()}:{status.st_size}:{status.st_mtime_ns}".encode()).hexdigest()[:24]
    return cache_root() / "datasets" / key
