"""Parquet of flat transitions, one row each.

Vectors may be lists, fixed-size lists or Ray's tensor columns. RLlib's recordings in columns are this format too, with
observations and actions packed (compressed pickles of numpy arrays), normalised actions, and rows of several
episodes interleaved.
"""

from __future__ import annotations

import functools
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rllib_damo.data.formats.columns import (
    END_COLUMNS,
    FLAGS,
    as_column,
    assemble,
    episode_ends,
    find_names,
    match_names,
    warn_once,
)
from rllib_damo.data.formats.parquet_files import FilesReader
from rllib_damo.data.formats.reader import split_at_ends
from rllib_damo.data.formats.rllib_packed import normalized_to_env, unpack_array
from rllib_damo.data.schema import Transitions
from rllib_damo.errors import DataError
from rllib_damo.utils.paths import new_file

METADATA_KEY = b"rllib_damo"
ROW_GROUP = 1 << 17


class ParquetReader(FilesReader):
    """Flat transitions in Parquet files that share their columns."""

    def read(self, start: int = 0, stop: int | None = None) -> Transitions:
        total = self.num_rows()
        stop = total if stop is None else min(stop, total)
        names, is_recording = self._names
        lookahead = "next_observations" not in names and stop < total
        columns = self._columns(names, start, stop + lookahead)
        if is_recording:
            columns = _in_episodes(columns)
        if self._conventions.are_normalized(is_recording):
            space = self._conventions.action_space
            columns["actions"] = normalized_to_env(self.name, columns["actions"], space, is_recording=is_recording)
        return assemble(self.name, columns, lookahead=lookahead, partial=not (start == 0 and stop == total))

    def splits(self, max_rows: int) -> list[tuple[int, int]]:
        names, _ = self._names
        names = {key: names[key] for key in END_COLUMNS if key in names}
        rows = self.num_rows()
        return split_at_ends(episode_ends(self._columns(names, 0, rows), rows), max_rows)

    def num_rows(self) -> int:
        return self._total()

    def metadata(self) -> dict[str, Any]:
        stored = (self.files.open(self.files.paths[0]).schema_arrow.metadata or {}).get(METADATA_KEY)
        return json.loads(stored) if stored else {}

    @functools.cached_property
    def _names(self) -> tuple[dict[str, str], bool]:
        present = self.files.open(self.files.paths[0]).schema_arrow.names
        names = match_names(self.name, present, self._conventions.input_read_schema)
        is_recording = {"eps_id", "new_obs", "terminateds", "module_id"} <= set(present)
        return names, is_recording

    def _check_columns(self, path: str, present: list[str]) -> None:
        names, _ = self._names
        missing = set(names.values()) - set(present)
        if missing:
            raise DataError(f"{path}: column(s) {sorted(missing)} are missing, which the first file has.")
        found = find_names(path, present, self._conventions.input_read_schema)
        more = sorted(found[key] for key in found.keys() - names.keys())
        if more:
            raise DataError(
                f"{path}: column(s) {more} are not in the first file, {self.files.shown(self.files.paths[0])}; all "
                "files must have them, or none."
            )

    def _columns(self, names: dict[str, str], start: int, stop: int) -> dict[str, np.ndarray]:
        """Rows [start, stop) of the named columns; row group by row group into arrays made once, to save memory."""
        out: dict[str, np.ndarray] = {}
        starts: dict[str, int] = {}
        for path, offset, table in self._tables(list(names.values()), start, stop):
            starts.setdefault(path, offset)
            for key, column in names.items():
                values = column_to_numpy(self.name, column, table[column], start + offset, key)
                values = as_column(path, key, values)
                if key not in out:
                    out[key] = np.empty((stop - start, *values.shape[1:]), values.dtype)
                elif values.shape[1:] != out[key].shape[1:]:
                    raise DataError(
                        f"{path}: column {column!r} has rows of shape {values.shape[1:]} after rows of shape "
                        f"{out[key].shape[1:]}; all rows must have one width."
                    )
                elif values.dtype.kind != out[key].dtype.kind:
                    raise DataError(
                        f"{path}: column {column!r} holds ids of type {values.dtype} after ids of type "
                        f"{out[key].dtype} in the files before; write all in one type."
                    )
                out[key][offset : offset + len(values)] = values
        if "observations" in out and "next_observations" not in out and "episode_ids" in out:
            self._warn_of_stitches(out, starts)
        return out or {key: np.zeros((0, 1), np.float32) for key in names}

    def _warn_of_stitches(self, columns: dict[str, np.ndarray], starts: dict[str, int]) -> None:
        """A file that begins with the id that the one before ends with may have an episode of its own there."""
        ends = episode_ends({key: columns[key] for key in END_COLUMNS if key in columns}, len(columns["rewards"]))
        for path, start in starts.items():
            if start and not ends[start - 1]:
                warn_once(
                    "%s: %s begins with the episode id that the file before ends with, %s, so its first rows are taken "
                    "to go on with that episode. If they don't, use ids that no two files share.",
                    self.name, path, columns["episode_ids"][start],
                )  # fmt: skip


def _in_episodes(columns: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Rows of one episode together, episodes in order of first appearance."""
    _, first, codes = np.unique(columns["episode_ids"], return_index=True, return_inverse=True)
    order = np.argsort(first[codes], kind="stable")
    return {key: values[order] for key, values in columns.items()}


def column_to_numpy(name: str, column: str, values: pa.ChunkedArray, first_row: int = 0, key: str = "") -> np.ndarray:
    """A Parquet column as an array of N rows: numbers and flags (N,), vectors (N, width), strings (N,) object.

    Args:
        name: of the dataset, for messages.
        column: its name, for messages.
        values: the column, or a part of it.
        first_row: the number of its first row, for messages.
        key: its name in the schema. Strings are taken for arrays that RLlib packed, but in `episode_ids`.

    Raises:
        DataError: for missing values, or vectors of different widths.
    """
    parts = []
    for chunk in values.chunks:
        if len(chunk):
            parts.append(_chunk_to_numpy(name, column, chunk, first_row, key))
        first_row += len(chunk)
    if len({part.shape[1:] for part in parts}) > 1:
        raise DataError(f"{name}: column {column!r} holds vectors of different widths.")
    return np.concatenate(parts) if len(parts) > 1 else parts[0]


def _chunk_to_numpy(name: str, column: str, chunk: pa.Array, first_row: int, key: str) -> np.ndarray:
    _refuse_missing(name, column, chunk, 1, first_row, key)
    if isinstance(chunk, pa.ExtensionArray):
        chunk = chunk.storage
    kind = chunk.type
    if pa.types.is_fixed_size_list(kind) or pa.types.is_list(kind) or pa.types.is_large_list(kind):
        flat = chunk.flatten()
        width = kind.list_size if pa.types.is_fixed_size_list(kind) else len(chunk[0])
        if len(flat) != width * len(chunk) or (not pa.types.is_fixed_size_list(kind) and _is_ragged(chunk, width)):
            raise DataError(
                f"{name}: column {column!r} holds vectors of different widths; all must be as wide as the first."
            )
        if pa.types.is_nested(flat.type):
            raise DataError(f"{name}: column {column!r} holds {kind}; every row must be one flat vector.")
        _refuse_missing(name, column, flat, width, first_row, key)
        return flat.to_numpy(zero_copy_only=False).reshape(len(chunk), width)
    values = chunk.to_numpy(zero_copy_only=False)
    is_bytes = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_binary(kind)
    if is_bytes and key != "episode_ids":
        unpacked = [np.asarray(unpack_array(name, column, value)) for value in values]
        if len({item.shape for item in unpacked}) > 1:
            raise DataError(f"{name}: column {column!r} holds vectors of different widths.")
        return np.stack(unpacked)
    return values


def _refuse_missing(name: str, column: str, values: pa.Array, width: int, first_row: int, key: str) -> None:
    if values.null_count:
        row = first_row + int(np.flatnonzero(values.is_null().to_numpy(zero_copy_only=False))[0]) // width
        mend = "write false for them" if key in FLAGS else "remove the episodes that have any"
        raise DataError(f"{name}: column {column!r} has missing values, the first in row {row}; {mend}.")


def _is_ragged(chunk: pa.Array, width: int) -> bool:
    return bool((np.diff(chunk.offsets.to_numpy()) != width).any())


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
