"""benchmarks/action_gradient.py: start states, shifted actions, environments that go on from an observed state."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

import action_gradient

from rllib_damo.data.schema import Transitions


def test_shifted_actions_climb_q_by_the_distance() -> None:
    target = torch.tensor([[0.5, -0.5]])

    def q(obs: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        return -(actions - target).square().sum(-1) * obs[:, 0]

    act = action_gradient.shifted(lambda obs: torch.zeros(len(obs), 2), q, 0.1)
    torch.testing.assert_close(act(torch.ones(3, 1)), torch.tensor([[0.1, -0.1]]).expand(3, 2))


def test_start_states_lie_before_the_fall() -> None:
    rows = 1000
    data = Transitions(
        observations=np.arange(rows, dtype=np.float32)[:, None],
        actions=np.zeros((rows, 1), np.float32),
        rewards=np.zeros(rows, np.float32),
        next_observations=np.arange(rows, dtype=np.float32)[:, None] + 1,
        terminations=np.arange(rows) == 499,
        truncations=np.arange(rows) == 999,
    )
    states = action_gradient.start_states(data, 500)[:, 0]
    falling, others = states[states < 500], states[states >= 500]
    assert min(len(falling), len(others)) > 100
    assert 300 <= falling.min() <= falling.max() < 480
    assert others.min() < 600 <= others.max() < 980


def test_play_goes_on_from_the_states() -> None:
    """As the environment itself would, from a state that it was in, with the rewards discounted."""
    env: Any = gym.make("Hopper-v5").unwrapped
    obs, _ = env.reset(seed=0)
    for _ in range(5):
        obs, *_ = env.step(np.zeros(3))
    start, expected = obs, 0.0
    for t in range(10):
        _, reward, *_ = env.step(np.full(3, 0.2))
        expected += 0.9**t * reward
    actual = action_gradient.returns_from("Hopper-v5", start[None], lambda obs: torch.full((1, 3), 0.2), 10, 0.9)
    np.testing.assert_allclose(actual, [expected], rtol=1e-3)
