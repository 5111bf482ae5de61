"""Parquet of flat transitions, one row each.

RLlib's recordings in columns are this format too, with observations and actions packed (compressed pickles of numpy
arrays), normalised actions, and rows of several episodes interleaved.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rllib_damo.data.formats.episode_rows import by_steps
from rllib_damo.data.formats.files import Files
from rllib_damo.data.formats.reader import Format
from rllib_damo.data.formats.tables import FlatTablesReader, TableFile
from rllib_damo.data.schema import Transitions
from rllib_damo.utils.paths import new_file

SUFFIXES = (".parquet", ".pq")
METADATA_KEY = b"rllib_damo"
ROW_GROUP = 1 << 17
_RECORDED_COLUMNS = {"eps_id", "new_obs", "terminateds", "module_id"}


class ParquetFile:
    """One Parquet file as a `TableFile`.

    Raises:
        DataError: if it cannot be reached or is no Parquet.
    """

    def __init__(self, files: Files, path: str) -> None:
        with files.reading(path):
            self._file = pq.ParquetFile(files.filesystem.open_input_file(path))
        self.schema = self._file.schema_arrow
        self.group_rows = [self._file.metadata.row_group(i).num_rows for i in range(self._file.num_row_groups)]

    def read(self, group: int, columns: list[str]) -> pa.Table:
        return self._file.read_row_group(group, columns=columns)


class ParquetReader(FlatTablesReader):
    """Flat transitions in Parquet files that share their columns."""

    @property
    def is_recording(self) -> bool:  # type: ignore[override]
        return set(self._first_schema().names) >= _RECORDED_COLUMNS

    def metadata(self) -> dict[str, Any]:
        stored = (self._first_schema().metadata or {}).get(METADATA_KEY)
        return json.loads(stored) if stored else {}

    def _open(self, path: str) -> TableFile:
        file = ParquetFile(self.files, path)
        first_id = self.files.paths.index(path) << 32  # no two files share one
        return by_steps(self.files.shown(path), file, self._conventions.input_read_schema, first_id)


def write_parquet(
    transitions: Transitions,
    path: str | os.PathLike[str],
    *,
    metadata: dict[str, Any] | None = None,
    overwrite: bool = False,
) -> Path:
    """Write transitions as one Parquet file of flat rows (vectors as fixed-size lists); equal arguments, equal bytes.

    Args:
        transitions: what to write.
        path: the file; its folder is made where needed.
        metadata: JSON values kept in the schema's `rllib_damo` entry, so that converting back restores them.
        overwrite: replace an existing file.

    Raises:
        DataError: if the file exists and `overwrite` is not set.
    """
    path = Path(path)
    arrays = {}
    for key, array in transitions.arrays().items():
        flat = pa.array(np.ascontiguousarray(array).reshape(-1))
        arrays[key] = pa.FixedSizeListArray.from_arrays(flat, array.shape[1]) if array.ndim == 2 else flat
    table = pa.table(arrays)
    if metadata:
        table = table.replace_schema_metadata({METADATA_KEY: json.dumps(metadata, sort_keys=True).encode()})
    with new_file(path, overwrite) as scratch:
        pq.write_table(table, scratch, row_group_size=ROW_GROUP, use_dictionary=False)
    return path


FORMAT = Format(
    "parquet",
    "Parquet of flat transitions, a row a step",
    lambda place, conventions: ParquetReader(place.files(SUFFIXES, "Parquet"), conventions),
    SUFFIXES,
    write=write_parquet,
    read_method="read_parquet",
)
