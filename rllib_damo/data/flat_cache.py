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


def store(file: Path, transitions: Transitions) -> None:
    """Keep a flat copy of what `file` holds. A cache that cannot be written (full, read-only) is passed over."""
    place = _place(file)
    scratch = None
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(dir=place.parent))
        for key, array in transitions.arrays().items():
            np.save(scratch / f"{key}.npy", array)
        os.replace(scratch, place)
    except OSError:
        if scratch is not None:
            shutil.rmtree(scratch, ignore_errors=True)


def load(file: Path, name: str) -> Transitions | None:
    """The flat copy of `file`, or None where there is none."""
    place = _place(file)
    try:
        arrays = {
            key: np.load(place / f"{key}.npy", allow_pickle=False)
            for key in Transitions.__dataclass_fields__
            if key != "name"
        }
    except (OSError, ValueError):
        return None
    return Transitions(**arrays, name=name)


def _place(file: Path) -> Path:
    status = file.stat()
    key = hashlib.sha256(f"{file.resolve()}:{status.st_size}:{status.st_mtime_ns}".encode()).hexdigest()[:24]
    root = os.environ.get("RLLIB_DAMO_CACHE") or Path.home() / ".cache" / "rllib_damo"
    return Path(root) / "datasets" / key
