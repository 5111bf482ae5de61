"""Datasets with D4RL's meaning, made by behaviour policies of our own."""

import gymnasium as gym
import numpy as np

from rllib_damo.data import collect
from rllib_damo.data.controllers import PendulumMixed


def generate(name: str, transitions: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Exactly ``transitions`` rows of dataset ``name``; a last episode that was cut ends with a truncation."""
    if name != "pendulum-mixed":
        raise ValueError(f"{name} is not available yet")
    spec = gym.spec("Pendulum-v1")
    episodes = -(-transitions // (spec.max_episode_steps or 1))
    rows = collect.play(spec.id, PendulumMixed(), collect.episode_seeds(seed, name, 0, episodes))
    rows.pop("lengths")
    rows = {field: value[:transitions] for field, value in rows.items()}
    rows["truncations"][-1] = not rows["terminations"][-1]
    return rows
