"""CSV of flat transitions, a row a step, with a header; a vector has one column a dimension (`obs_0, obs_1, …`)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import csv

from rllib_damo.data.formats.files import Files
from rllib_damo.data.formats.reader import Format
from rllib_damo.data.formats.tables import FlatTablesReader
from rllib_damo.data.schema import Transitions
from rllib_damo.utils.paths import new_file

SUFFIXES = (".csv", ".csv.gz")
_LARGEST_BLOCK = (1 << 31) - 1


class CSVFile:
    """One CSV file as a `TableFile` of one row group; it is read as a whole.

    A column's type is told by all of its values, where they fit into one block of 2 GiB.
    """

    def __init__(self, files: Files, path: str) -> None:
        with files.reading(path):
            size = files.filesystem.get_file_info(path).size
            block = min(max(4 * size if path.endswith(".gz") else size + 1, 1 << 20), _LARGEST_BLOCK)
            with files.filesystem.open_input_stream(path) as stream:
                self._table = csv.read_csv(stream, csv.ReadOptions(block_size=block))
        self.schema = self._table.schema
        self.group_rows = [len(self._table)]

    def read(self, group: int, columns: list[str]) -> pa.Table:
        return self._table.select(columns)


class CSVReader(FlatTablesReader):
    """Flat transitions in CSV files that share their columns."""

    def _open(self, path: str) -> CSVFile:
        return CSVFile(self.files, path)


def write_csv(
    transitions: Transitions,
    path: str | os.PathLike[str],
    *,
    metadata: dict[str, Any] | None = None,
    overwrite: bool = False,
) -> Path:
    """Write transitions as CSV, one column a dimension; numbers are written so that they are read back as they are.

    Args:
        transitions: what to write.
        path: the file; its folder is made where needed.
        metadata: left out, since CSV has no place for it.
        overwrite: replace an existing file.

    Raises:
        DataError: if the file exists and `overwrite` is not set.
    """
    columns = {}
    for key, array in transitions.arrays().items():
        if array.ndim == 1:
            columns[key] = pa.array(array)
        else:
            columns |= {f"{key}_{i}": pa.array(array[:, i]) for i in range(array.shape[1])}
    with new_file(path, overwrite) as scratch:
        csv.write_csv(pa.table(columns), scratch)
    return Path(path)


FORMAT = Format(
    "csv",
    "CSV with a header, one column a dimension (obs_0, obs_1, ...)",
    lambda place, conventions: CSVReader(place.files(SUFFIXES, "CSV"), conventions),
    SUFFIXES,
    write=write_csv,
    read_method="read_csv",
)
