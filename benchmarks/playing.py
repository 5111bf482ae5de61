"""Episodes of one policy side by side, each from its own start to its own end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np


def play(
    envs: Sequence[Any], starts: Sequence[np.ndarray], act: Callable[[np.ndarray], np.ndarray], steps: float = np.inf
) -> list[np.ndarray]:
    """Plays until each environment has terminated or been truncated, or for so many steps.

    Args:
        envs: environments that have been reset.
        starts: their observations ``(obs,)``.
        act: ``observations (B, obs) -> actions (B, act)``, called with those of all that still run.
        steps: at most.

    Returns:
        The rewards ``(T,)`` of each.
    """
    observations = list(starts)
    rewards: list[list[float]] = [[] for _ in envs]
    running, step = [*range(len(envs))], 0
    while running and step < steps:
        actions = act(np.stack([observations[i] for i in running]))
        still = []
        for i, action in zip(running, actions, strict=True):
            observations[i], reward, terminated, truncated, _ = envs[i].step(action)
            rewards[i].append(float(reward))
            if not (terminated or truncated):
                still.append(i)
        running, step = still, step + 1
    return [np.array(own) for own in rewards]


def set_observed_state(env: Any, observation: np.ndarray) -> None:
    """Puts an unwrapped MuJoCo environment into the state that it was observed in.

    Args:
        env: Hopper, HalfCheetah or Walker2d, whose observations leave out x: no reward and none of them depends on it.
        observation: ``(obs,)``.
    """
    num_positions = env.model.nq - 1
    env.set_state(np.concatenate(([0.0], observation[:num_positions])), observation[num_positions:])
