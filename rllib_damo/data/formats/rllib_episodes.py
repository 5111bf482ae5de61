"""RLlib's recorded episodes: Parquet with one msgpack'ed `SingleAgentEpisode` state a row, in a column `item`."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Any

import msgpack
import numpy as np

from rllib_damo.data.formats.assemble import as_float_matrix
from rllib_damo.data.formats.files import Place
from rllib_damo.data.formats.parquet import SUFFIXES, ParquetFile
from rllib_damo.data.formats.reader import Conventions, Format
from rllib_damo.data.formats.rllib_packed import decode_box, decode_msgpack_hook, normalized_to_env
from rllib_damo.data.formats.tables import TablesReader
from rllib_damo.data.schema import Transitions
from rllib_damo.errors import DataError

_EPISODES_PER_SPLIT = 32


@dataclass
class _Chunk:
    """A recorded piece of an episode, steps [start, start + T)."""

    episode_id: str
    start: int
    observations: np.ndarray  # (T + 1, obs)
    actions: np.ndarray  # (T, act) env units
    rewards: np.ndarray  # (T,)
    terminated: bool
    truncated: bool


class EpisodesReader(TablesReader):
    """RLlib's recorded episodes (`output_write_episodes=True`). Pieces of one episode are put together again."""

    def read(self, start: int = 0, stop: int | None = None) -> Transitions:
        total = self._total()
        stop = total if stop is None else min(stop, total)
        chunks = [
            self._decode(self.files.shown(path), item.as_py())
            for path, _, table in self._tables(["item"], start, stop)
            for item in table["item"]
        ]
        chunks = [chunk for chunk in chunks if len(chunk.rewards)]
        if not chunks and start == 0 and stop == total:
            raise DataError(f"{self.name}: no recorded episode has a step.")
        if not chunks:
            vectors, numbers, flags = np.zeros((0, 1), np.float32), np.zeros(0, np.float32), np.zeros(0, bool)
            return Transitions(vectors, vectors, numbers, vectors, flags, flags, self.name)
        widths = {(chunk.observations.shape[1], chunk.actions.shape[1]) for chunk in chunks}
        if len(widths) > 1:
            raise DataError(f"{self.name}: episodes have different (observation, action) widths: {sorted(widths)}.")
        return self._join(_in_order(chunks))

    def splits(self, max_rows: int) -> list[tuple[int, int]]:
        total = self._total()
        return [(i, min(i + _EPISODES_PER_SPLIT, total)) for i in range(0, total, _EPISODES_PER_SPLIT)]

    def _open(self, path: str) -> ParquetFile:
        return ParquetFile(self.files, path)

    def _check_columns(self, path: str, present: list[str]) -> None:
        if present != ["item"]:
            raise DataError(
                f"{path}: columns {sorted(present)}, where {self.files.shown(self.files.paths[0])} has recorded "
                "episodes in a column 'item'; keep the two kinds in folders of their own."
            )

    def _join(self, chunks: list[_Chunk]) -> Transitions:
        terminations, truncations = [], []
        for chunk, successor in zip(chunks, [*chunks[1:], None], strict=True):
            continues = (
                successor is not None
                and successor.episode_id == chunk.episode_id
                and successor.start == chunk.start + len(chunk.rewards)
            )
            flags = np.zeros((2, len(chunk.rewards)), bool)
            flags[:, -1] = chunk.terminated, not chunk.terminated and (chunk.truncated or not continues)
            terminations.append(flags[0])
            truncations.append(flags[1])
        return Transitions(
            np.concatenate([chunk.observations[:-1] for chunk in chunks]),
            np.concatenate([chunk.actions for chunk in chunks]),
            np.concatenate([chunk.rewards for chunk in chunks]),
            np.concatenate([chunk.observations[1:] for chunk in chunks]),
            np.concatenate(terminations),
            np.concatenate(truncations),
            self.name,
        )

    def _decode(self, path: str, item: bytes) -> _Chunk:
        try:
            state: dict[str, Any] = msgpack.unpackb(item, object_hook=decode_msgpack_hook, strict_map_key=False)
            observations, actions, rewards = (
                self._column(state, key) for key in ("observations", "actions", "rewards")
            )
            if len(rewards) and self._conventions.are_normalized(is_recording=True):
                space = self._conventions.action_space or decode_box(state.get("_action_space"))
                actions = normalized_to_env(self.name, actions, space, is_recording=True)
            return _Chunk(
                str(state["id_"]),
                int(state["t_started"]),
                observations,
                actions,
                rewards.reshape(-1),
                bool(state["is_terminated"]),
                bool(state["is_truncated"]),
            )
        except DataError as error:
            raise DataError(f"{path}: {error}") from error
        except (KeyError, TypeError, ValueError, MemoryError, zlib.error, msgpack.UnpackException) as error:
            raise DataError(
                f"{path}: not an episode as RLlib 2.60 records it with output_write_episodes=True ({error!r})."
            ) from error

    def _column(self, state: dict[str, Any], key: str) -> np.ndarray:
        """Values of one column after the lookback, (T or T + 1, …) float32."""
        buffer = state[key]
        data = buffer["data"][buffer["lookback"] :]
        if len(data) and isinstance(data[0] if isinstance(data, list) else data, dict):
            raise DataError(f"{key} are dictionaries; they must be flat vectors (FlattenObservation).")
        dims = 1 if key == "rewards" else 2
        values = np.asarray(data, None if key == "actions" else np.float32)
        if values.size == 0:
            return np.zeros((0,) * dims, np.float32)
        if values.ndim != dims:
            raise DataError(f"{key} have shape {values.shape[1:]} a step; they must be flat vectors.")
        return as_float_matrix(self.name, key, values, dims)


def _in_order(chunks: list[_Chunk]) -> list[_Chunk]:
    """Pieces of one episode together and by time; episodes by first appearance."""
    rank: dict[str, int] = {}
    for chunk in chunks:
        rank.setdefault(chunk.episode_id, len(rank))
    return sorted(chunks, key=lambda chunk: (rank[chunk.episode_id], chunk.start))


def _open(place: Place, conventions: Conventions) -> EpisodesReader:
    return EpisodesReader(place.files(SUFFIXES, "Parquet"), conventions)


def _is_recording(place: Place) -> bool:
    files = place.files(SUFFIXES, "Parquet")
    return ParquetFile(files, files.paths[0]).schema.names == ["item"]


FORMAT = Format(
    "rllib_episodes",
    "episodes that RLlib recorded (output_write_episodes=True)",
    _open,
    SUFFIXES,
    recognises=_is_recording,
    reads=("actions_in_input_normalized",),
)
