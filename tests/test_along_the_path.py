"""benchmarks/along_the_path.py: real returns-to-go, and what critics say beside them."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

import along_the_path as bench


class StillPolicy:
    """Does nothing; its critics say 1 and 2 everywhere."""

    device = torch.device("cpu")

    def __init__(self, act_dim: int):
        self.module: Any = SimpleNamespace(
            critics=lambda obs, actions: torch.tensor([[1.0], [2.0]]).expand(2, len(obs)),
            mean_actions=lambda obs: obs.new_zeros(len(obs), act_dim),
        )

    def __call__(self, observation: np.ndarray) -> np.ndarray:
        return np.zeros(self.module.mean_actions(torch.zeros(1, 1)).shape[1], np.float32)


def test_returns_to_go() -> None:
    assert bench.returns_to_go(np.array([1.0, 2.0, 4.0]), 0.5) == pytest.approx([3.0, 4.0, 4.0])


def test_a_fall_is_seen_from_its_end() -> None:
    (episode,) = bench.walk(StillPolicy(3), "Hopper-v5", 1, seed=0)  # type: ignore[arg-type]
    assert episode.fell
    found = bench.along_the_path(StillPolicy(3), "Hopper-v5", 0.9, 1, seed=0)  # type: ignore[arg-type]
    real = bench.returns_to_go(episode.rewards, 0.9)
    assert found["path_falls"] == 1
    assert found["path_value"] == 1  # the smaller critic's
    assert found["path_return"] == pytest.approx(real.mean(), abs=0.01)
    assert found["path_excess"] == pytest.approx(np.maximum(1 - real, 0).mean(), abs=0.01)
    assert found["before_a_fall"][5] == pytest.approx([1.0, real[-5]], abs=0.1)


def test_what_the_time_limit_cuts_is_left_out() -> None:
    found = bench.along_the_path(StillPolicy(1), "Pendulum-v1", 0.9, 2, seed=0)  # type: ignore[arg-type]
    kept = 200 - 29  # 0.9^29 < 0.05
    real = [
        bench.returns_to_go(episode.rewards, 0.9)[:kept]
        for episode in bench.walk(StillPolicy(1), "Pendulum-v1", 2, seed=0)  # type: ignore[arg-type]
    ]
    assert (found["path_falls"], found["before_a_fall"]) == (0, {})
    assert found["path_return"] == pytest.approx(np.mean(real), abs=0.01)
    cut = bench.along_the_path(StillPolicy(1), "Pendulum-v1", 0.99, 1, seed=0)  # type: ignore[arg-type]
    assert cut["path_value"] is None  # 298 steps are more than an episode has
