"""Hive's folders: `episode_id=7/part.parquet` has a column `episode_id` whose value stands in the path."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import TYPE_CHECKING
from urllib.parse import unquote

import pyarrow as pa

if TYPE_CHECKING:
    from rllib_damo.data.formats.tables import TableFile

_NULL = "__HIVE_DEFAULT_PARTITION__"


class Partitions:
    """What the folders of some files say: {column: value} of each file, a column in one type for all of them.

    Whole numbers, other numbers and true/false are told by the values; everything else is text.
    """

    def __init__(self, paths: Sequence[str]) -> None:
        texts = {path: _texts(path) for path in paths}
        self._values: dict[str, dict[str, pa.Scalar]] = {path: {} for path in paths}
        for column in dict.fromkeys(column for values in texts.values() for column in values):
            having = [path for path in paths if column in texts[path]]
            for path, value in zip(having, _typed([texts[path][column] for path in having]), strict=True):
                self._values[path][column] = value
        self._folders: dict[tuple[str, str], int] = {}

    def add_to(self, path: str, file: TableFile) -> TableFile:
        """The file with the columns of its folders; a column of the same name in the file itself goes before."""
        values = {column: value for column, value in self._values[path].items() if column not in file.schema.names}
        self._values[path] = values
        return _PartitionedFile(file, values) if values else file

    def folder_number(self, path: str, column: str) -> int | None:
        """A number of its own for each folder that tells the column's value; None where no folder does.

        With `robot=a/episode_id=7` and `robot=b/episode_id=7`, these are two.
        """
        if column not in self._values[path]:
            return None
        parts = PurePosixPath(path).parts
        last = max(i for i, part in enumerate(parts) if part.partition("=")[0] == column)
        return self._folders.setdefault((column, "/".join(parts[: last + 1])), len(self._folders))


class _PartitionedFile:
    def __init__(self, file: TableFile, values: dict[str, pa.Scalar]) -> None:
        self._file = file
        self._values = values
        self.group_rows = file.group_rows
        self.schema = file.schema
        for column, value in values.items():
            self.schema = self.schema.append(pa.field(column, value.type))

    def read(self, group: int, columns: list[str]) -> pa.Table:
        own = [column for column in columns if column not in self._values]
        table = self._file.read(group, own) if own else None
        rows = self.group_rows[group]
        arrays = [
            pa.repeat(self._values[column], rows) if table is None or column in self._values else table[column]
            for column in columns
        ]
        return pa.table(arrays, names=columns)


def _texts(path: str) -> dict[str, str]:
    parts = (part.partition("=") for part in PurePosixPath(path).parts[:-1] if "=" in part[1:])
    return {name: unquote(value) for name, _, value in parts}


def _typed(texts: list[str]) -> pa.Array:
    for convert in (int, float, _flag, str):
        try:
            return pa.array([None if text == _NULL else convert(text) for text in texts])
        except (ValueError, OverflowError):  # pyarrow's errors are ValueErrors
            continue
    raise AssertionError("text is always possible")


def _flag(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ValueError(text)
    return text.lower() == "true"
