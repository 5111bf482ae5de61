"""NPZ of numpy arrays by the names of D4RL's columns (`numpy.savez`)."""

from __future__ import annotations

import json
import os
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rllib_damo.data.formats.flat import ArraysReader
from rllib_damo.data.formats.reader import Format
from rllib_damo.data.schema import Transitions
from rllib_damo.errors import DataError
from rllib_damo.utils.paths import new_file

SUFFIXES = (".npz",)
_METADATA = "rllib_damo"


class NPZReader(ArraysReader):
    """One NPZ file, read into memory as a whole; arrays of Python objects are refused, since they may hold code."""

    def load(self) -> Mapping[str, np.ndarray]:
        return {key: array for key, array in self._read().items() if key != _METADATA and array.ndim}

    def metadata(self) -> dict[str, Any]:
        stored = self._read(_METADATA).get(_METADATA)
        return json.loads(str(stored)) if stored is not None else {}

    def _read(self, only: str | None = None) -> dict[str, np.ndarray]:
        try:
            file = np.load(self.name, allow_pickle=False)
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise ValueError("it holds one array, and no names")
            with file:
                return {key: file[key] for key in file.files if only in (None, key)}
        except FileNotFoundError as error:
            raise DataError(f"{self.name}: no such file.") from error
        except (OSError, ValueError, EOFError, KeyError, MemoryError, zipfile.BadZipFile, zlib.error) as error:
            raise DataError(
                f"{self.name}: not a readable NPZ file ({error}). Write it with numpy.savez, of arrays of numbers."
            ) from error


def write_npz(
    transitions: Transitions,
    path: str | os.PathLike[str],
    *,
    metadata: dict[str, Any] | None = None,
    overwrite: bool = False,
) -> Path:
    """Write transitions as a compressed NPZ file with D4RL's names.

    Args:
        transitions: what to write.
        path: the file; its folder is made where needed.
        metadata: JSON values kept in an array `rllib_damo` of text, so that converting back restores them.
        overwrite: replace an existing file.

    Raises:
        DataError: if the file exists and `overwrite` is not set.
    """
    names = {"terminations": "terminals", "truncations": "timeouts"}
    arrays = {names.get(key, key): array for key, array in transitions.arrays().items()}
    if metadata:
        arrays[_METADATA] = np.array(json.dumps(metadata, sort_keys=True))
    with new_file(path, overwrite) as scratch:
        np.savez_compressed(scratch, **arrays)  # type: ignore[arg-type]
    return Path(path)


FORMAT = Format(
    "npz",
    "NPZ of arrays with D4RL's names",
    lambda place, conventions: NPZReader(str(place.local_file(SUFFIXES, "NPZ")), conventions),
    SUFFIXES,
    write=write_npz,
)
