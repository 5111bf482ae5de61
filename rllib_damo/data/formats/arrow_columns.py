"""Columns of Arrow tables (of Parquet and CSV) as numpy arrays; types that are no numbers are named with the cast."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from rllib_damo.data.formats.columns import FLAGS
from rllib_damo.data.formats.rllib_packed import unpack_array
from rllib_damo.errors import DataError


def column_to_numpy(name: str, column: str, values: pa.ChunkedArray, first_row: int = 0, key: str = "") -> np.ndarray:
    """A column as an array of N rows: numbers and flags (N,), vectors (N, width), strings (N,) object.

    Vectors are lists, fixed-size lists, Ray's tensors, or structs of numbers (in the order of their fields). Decimals
    become floats, and dictionaries (categories) their values.

    Args:
        name: of the dataset, for messages.
        column: its name, for messages.
        values: the column, or a part of it.
        first_row: the number of its first row, for messages.
        key: its name in the schema. Strings are taken for arrays that RLlib packed, but in `episode_ids`.

    Raises:
        DataError: for missing values, vectors of different widths, or types that are no numbers.
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
    if isinstance(chunk, pa.DictionaryArray):
        chunk = chunk.dictionary_decode()
        _refuse_missing(name, column, chunk, 1, first_row, key)
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
        return _numbers(name, column, flat, key).reshape(len(chunk), width)
    if pa.types.is_struct(kind):
        fields = zip(kind, chunk.flatten(), strict=True)
        values = [_chunk_to_numpy(name, f"{column}.{field.name}", part, first_row, key) for field, part in fields]
        if not values or any(value.ndim > 1 for value in values):
            raise DataError(f"{name}: column {column!r} holds {kind}; a struct must have one number a field.")
        return np.stack(values, axis=1)
    is_bytes = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_binary(kind)
    if is_bytes and key != "episode_ids":
        unpacked = [np.asarray(unpack_array(name, column, value)) for value in chunk.to_numpy(zero_copy_only=False)]
        if len({item.shape for item in unpacked}) > 1:
            raise DataError(f"{name}: column {column!r} holds vectors of different widths.")
        return np.stack(unpacked)
    return _numbers(name, column, chunk, key)


def _numbers(name: str, column: str, values: pa.Array, key: str) -> np.ndarray:
    if pa.types.is_decimal(values.type) and key != "episode_ids":
        values = values.cast(pa.float64())
    found = values.to_numpy(zero_copy_only=False)
    if key != "episode_ids" and found.dtype.kind not in "biuf":
        raise DataError(
            f"{name}: column {column!r} has the type {values.type}, which is no number. Write it as numbers; in "
            f"pyarrow: table[{column!r}].cast('float64') (of dates and times by way of 'int64'); in pandas: "
            f"frame[{column!r}].astype(float)."
        )
    return found


def _refuse_missing(name: str, column: str, values: pa.Array, width: int, first_row: int, key: str) -> None:
    if values.null_count:
        row = first_row + int(np.flatnonzero(values.is_null().to_numpy(zero_copy_only=False))[0]) // width
        fix = "write false for them" if key in FLAGS else "remove the episodes that have any"
        raise DataError(f"{name}: column {column!r} has missing values, the first in row {row}; {fix}.")


def _is_ragged(chunk: pa.Array, width: int) -> bool:
    return bool((np.diff(chunk.offsets.to_numpy()) != width).any())
