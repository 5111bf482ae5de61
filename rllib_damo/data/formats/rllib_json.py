"""JSON lines: the sample batches of RLlib's old JsonWriter (`output=` before episodes), or one row a line.

A line of the former is `{"type": "SampleBatch", "obs": ..., "actions": [...], ...}` with the columns of some steps;
observations are packed text. Steps of several episodes may be interleaved.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from rllib_damo.data.formats.columns import ALIASES, warn_once
from rllib_damo.data.formats.files import Files
from rllib_damo.data.formats.flat import ArraysReader
from rllib_damo.data.formats.reader import Conventions, Format
from rllib_damo.data.formats.rllib_packed import unpack_array
from rllib_damo.errors import DataError

SUFFIXES = (".json", ".jsonl")
_MAX_BYTES = 1 << 30  # of one column of one line, unpacked
_DONES = "dones"  # terminations and truncations in one, before Ray 2.3


class JSONReader(ArraysReader):
    """Files of JSON lines, read into memory as a whole."""

    def __init__(self, files: Files, conventions: Conventions) -> None:
        super().__init__(files.name, conventions)
        self._files = files
        given = conventions.input_read_schema.values()
        self._known = {name for names in ALIASES.values() for name in names} | {_DONES}
        self._known |= {each for column in given for each in ([column] if isinstance(column, str) else column)}

    @property
    def is_recording(self) -> bool:  # type: ignore[override]
        self._arrays()
        return self._is_recording

    def load(self) -> Mapping[str, np.ndarray]:
        parts: list[dict[str, np.ndarray]] = []
        kinds = set()
        for path in self._files.paths:
            shown = self._files.shown(path)
            with self._files.reading(path), self._files.filesystem.open_input_stream(path) as stream:
                for number, line in enumerate(stream.read().splitlines(), 1):
                    if line.strip():
                        batch = _batch(f"{shown}, line {number}", line)
                        kinds.add(batch.get("type"))
                        parts.append(self._columns_of(f"{shown}, line {number}", batch))
                        if parts[-1].keys() != parts[0].keys():
                            raise DataError(
                                f"{shown}, line {number}: columns {sorted(parts[-1])}, where the first line has "
                                f"{sorted(parts[0])}; all lines must have the same ones."
                            )
        if not parts:
            raise DataError(f"{self.name}: there is no line.")
        self._is_recording = kinds == {"SampleBatch"}
        if self._is_recording and self._conventions.actions_in_input_normalized is None:
            warn_once(
                "%s: actions are taken to be normalised to [-1, 1], as RLlib records them. If they are in the "
                "environment's units, set actions_in_input_normalized=False (--plain-actions).", self.name,
            )  # fmt: skip
        return self._without_dones({key: _join(self.name, key, [part[key] for part in parts]) for key in parts[0]})

    def _columns_of(self, where: str, batch: dict[str, Any]) -> dict[str, np.ndarray]:
        columns = {key: value for key, value in batch.items() if key in self._known}
        is_row = not any(isinstance(columns.get(name), (list, str)) for name in ("rewards", "reward"))
        arrays = {}
        for key, value in columns.items():
            values = unpack_array(where, key, value, _MAX_BYTES) if isinstance(value, str) and not is_row else value
            if key in ALIASES["episode_ids"]:  # numbers of up to 64 bits
                values = [str(each) for each in ([values] if is_row else values)]
            try:
                arrays[key] = np.asarray([values] if is_row and key not in ALIASES["episode_ids"] else values)
            except ValueError as error:
                raise DataError(f"{where}: column {key!r} holds vectors of different widths ({error}).") from error
        lengths = {key: len(array) if array.ndim else 0 for key, array in arrays.items()}
        if len(set(lengths.values())) > 1:
            raise DataError(f"{where}: the columns have different lengths ({lengths}); every step needs all of them.")
        return arrays

    def _without_dones(self, columns: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """`dones` as terminations, where there is nothing better."""
        given = [column for column in self._conventions.input_read_schema.values() if isinstance(column, str)]
        if _DONES in columns and _DONES not in given and not set(ALIASES["terminations"]) & columns.keys():
            warn_once(
                "%s: `dones` are taken as terminations, with value 0 after them. Where they are time limits, say "
                "input_read_schema={'truncateds': 'dones'} (--column truncateds=dones).", self.name,
            )  # fmt: skip
            columns["terminateds"] = columns.pop(_DONES)
        return columns


def _batch(where: str, line: bytes) -> dict[str, Any]:
    try:
        batch = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{where}: no JSON object ({error}). Files of sample batches have one in each line, as RLlib's JsonWriter "
            "writes them."
        ) from error
    if isinstance(batch, dict) and batch.get("type") == "MultiAgentBatch":
        policies = batch.get("policy_batches") or {}
        if list(policies) != ["default_policy"]:
            raise DataError(f"{where}: a batch of the policies {sorted(policies)}; only one agent's can be read.")
        batch = {**policies["default_policy"], "type": "SampleBatch"}
    if not isinstance(batch, dict):
        raise DataError(f"{where}: holds {str(batch)[:40]!r}, where an object of columns is expected.")
    return batch


def _join(name: str, key: str, parts: list[np.ndarray]) -> np.ndarray:
    try:
        return np.concatenate(parts)
    except ValueError as error:
        raise DataError(f"{name}: column {key!r} holds vectors of different widths ({error}).") from error


FORMAT = Format(
    "rllib_json",
    "JSON lines of RLlib's old sample batches, or of rows",
    lambda place, conventions: JSONReader(place.files(SUFFIXES, "JSON"), conventions),
    SUFFIXES,
    read_method="read_json",
)
