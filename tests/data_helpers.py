"""Small datasets for the data tests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rllib_damo.data.schema import Transitions

OBS, ACT = 3, 2
OBSERVATION_SPACE = gym.spaces.Box(-np.inf, np.inf, (OBS,), np.float64)
ACTION_SPACE = gym.spaces.Box(np.array([-2.0, 0.0]), np.array([2.0, 1.0]), dtype=np.float32)


def make_transitions(
    lengths: Sequence[int] = (4, 1, 7), terminated: Sequence[bool] | None = None, seed: int = 0, name: str = "made"
) -> Transitions:
    """Episodes of the given lengths; `terminated` tells which end in a terminal (by turns, unless given)."""
    rng = np.random.default_rng(seed)
    terminated = [i % 2 == 0 for i in range(len(lengths))] if terminated is None else terminated
    total = int(sum(lengths))
    observations, next_observations = [], []
    for length in lengths:
        chain = rng.standard_normal((length + 1, OBS)).astype(np.float32)
        observations.append(chain[:-1])
        next_observations.append(chain[1:])
    terminations, truncations = np.zeros(total, bool), np.zeros(total, bool)
    last = np.cumsum(lengths) - 1
    terminations[last] = terminated
    truncations[last] = ~np.asarray(terminated)
    actions = rng.uniform(ACTION_SPACE.low, ACTION_SPACE.high, (total, ACT)).astype(np.float32)
    rewards = rng.standard_normal(total).astype(np.float32)
    return Transitions(
        np.concatenate(observations),
        actions,
        rewards,
        np.concatenate(next_observations),
        terminations,
        truncations,
        name,
    )


def assert_equal(found: Transitions, expected: Transitions) -> None:
    """Bit-equal arrays of equal types."""
    for key, array in expected.arrays().items():
        other = getattr(found, key)
        assert other.dtype == array.dtype, key
        np.testing.assert_array_equal(other, array, err_msg=key)


def d4rl_columns(data: Transitions) -> dict[str, np.ndarray]:
    names = {"terminations": "terminals", "truncations": "timeouts"}
    return {names.get(key, key): array for key, array in data.arrays().items()}


def write_hdf5(path: Path, columns: dict[str, Any]) -> str:
    with h5py.File(path, "w") as file:
        for key, values in columns.items():
            file[key] = values
    return str(path)


def write_columns(path: Path, columns: dict[str, Any]) -> str:
    pq.write_table(pa.table({key: list(values) for key, values in columns.items()}), path)
    return str(path)


WRITERS = pytest.mark.parametrize("write", [write_hdf5, write_columns])
