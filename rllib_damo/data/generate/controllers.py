"""Behaviour policies that need no training: uniform random actions, and noisy swing-up controllers of the pendulum."""

from typing import Protocol

import numpy as np
from gymnasium import spaces


class BehaviorPolicy(Protocol):
    """A stochastic policy whose noise is drawn per episode, so that it does not depend on how episodes are batched."""

    def draw(self, rng: np.random.Generator, steps: int) -> np.ndarray:
        """Everything random in one episode: (steps, k) float32."""

    def actions(self, observations: np.ndarray, noise: np.ndarray) -> np.ndarray:
        """Actions (B, act) in the environment's units for observations (B, obs) and the steps' noise (B, k)."""


class RandomPolicy:
    """Uniform actions in the environment's Box."""

    version = "uniform-1"  # to be changed with the actions: stored work units are found by it

    def __init__(self, action_space: spaces.Box):
        self.low, self.high = action_space.low, action_space.high

    def draw(self, rng: np.random.Generator, steps: int) -> np.ndarray:
        return rng.random((steps, len(self.low)), dtype=np.float32)

    def actions(self, observations: np.ndarray, noise: np.ndarray) -> np.ndarray:
        return self.low + (self.high - self.low) * noise


class PendulumMixed:
    """Pendulum-v1 at every quality from aimless to nearly optimal.

    The controller pumps energy until the pendulum can reach the top (u = k sign(w) (E* - E)) and balances it there
    with linear feedback. Each episode draws how much of the controller's torque is used (none for ``aimless`` of the
    episodes, else U(0.2, 1)), and the size, U(0.2, 2), and correlation, U(0, 0.9), of an autoregressive torque
    noise. So the state space is covered widely while good actions are seen everywhere, though rarely in a row.
    """

    version = "pendulum-mixed-1"
    aimless = 0.4
    max_torque = 2.0

    def draw(self, rng: np.random.Generator, steps: int) -> np.ndarray:
        aimless = rng.random() < self.aimless
        share = 0.0 if aimless else rng.uniform(0.2, 1.0)
        scale = rng.uniform(0.2, 2.0)
        correlation = rng.uniform(0.0, 0.9)
        torque = rng.standard_normal(steps) * np.sqrt(1 - correlation**2)
        torque[0] /= np.sqrt(1 - correlation**2)
        for t in range(1, steps):
            torque[t] += correlation * torque[t - 1]
        return np.stack([np.full(steps, share), scale * torque], axis=1).astype(np.float32)

    def actions(self, observations: np.ndarray, noise: np.ndarray) -> np.ndarray:
        torque = noise[:, 0] * self.swing_up(observations) + noise[:, 1]
        return np.clip(torque, -self.max_torque, self.max_torque)[:, None].astype(np.float32)

    def swing_up(self, observations: np.ndarray) -> np.ndarray:
        """The noiseless controller's torque (B,) for observations (B, 3) = cos, sin, angular velocity (rad/s)."""
        cos, sin, velocity = observations.T
        angle = np.arctan2(sin, cos)  # 0 is upright
        # energy per moment of inertia, 0 when resting upright: w' = 15 sin(angle) + 3 u (g = 10, m = l = 1)
        energy = 0.5 * velocity**2 + 15.0 * (cos - 1.0)
        pump = -1.0 * energy * np.where(velocity >= 0, 1.0, -1.0)
        balance = -(12.0 * angle + 3.0 * velocity)
        torque = np.where(np.abs(12.0 * angle + 3.0 * velocity) < 4.0, balance, pump)
        torque = np.where((np.abs(angle) < 0.5) & (np.abs(velocity) < 3.0), balance, torque)
        return np.clip(torque, -self.max_torque, self.max_torque)
