"""The range of the dataset's states, beyond which a model's predictions mean nothing."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class KnownRange(NamedTuple):
    """The smallest and largest value of each column of the dataset's states, widened, and those of its rewards.

    A rollout that leaves the range has come to where no data tell what follows. It ends there, with the lowest reward
    for ever, as in MOReL's HALT state (Kidambi et al. 2020, arXiv 2005.05951).

    Attributes:
        low, high: ``(obs,)``.
        lowest_reward, highest_reward: of the dataset.
    """

    low: Tensor
    high: Tensor
    lowest_reward: float
    highest_reward: float

    @classmethod
    def of(cls, obs: np.ndarray | Tensor, rewards: np.ndarray | Tensor, margin: float) -> KnownRange:
        """Args:
        obs: ``(N, obs)``.
        rewards: ``(N,)``.
        margin: by which the range is widened at both ends, as a share of it.
        """
        states, gains = torch.as_tensor(obs), torch.as_tensor(rewards)
        low, high = states.amin(0), states.amax(0)
        wider = margin * (high - low)
        return cls(low - wider, high + wider, float(gains.min()), float(gains.max()))

    def to(self, device: torch.device) -> KnownRange:
        return self._replace(low=self.low.to(device), high=self.high.to(device))

    def is_left(self, next_obs: Tensor) -> Tensor:
        """``(B,)`` bool: which of ``next_obs (B, obs)`` are outside, or not finite."""
        return ~((next_obs >= self.low) & (next_obs <= self.high)).all(-1)

    def within(self, next_obs: Tensor) -> Tensor:
        """The nearest states of the range, ``(B, obs)``."""
        return next_obs.nan_to_num().clamp(self.low, self.high)
