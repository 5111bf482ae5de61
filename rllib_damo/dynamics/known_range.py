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
        lowest_reward: of the dataset, and at most 0: else leaving would be as good as an episode that goes on.
        highest_reward: of the dataset.
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
        return cls(low - wider, high + wider, min(float(gains.min()), 0.0), float(gains.max()))

    def to(self, device: torch.device) -> KnownRange:
        return self._replace(low=self.low.to(device), high=self.high.to(device))

    def is_left(self, next_obs: Tensor, rewards: Tensor, terminated: Tensor) -> Tensor:
        """``(B,)`` bool: which transitions lead out of the range, or are not finite.

        A terminal state may lie outside: the environment's rule says what a fall is.
        """
        is_finite = (next_obs.sum(-1) + rewards).isfinite()
        is_inside = ((next_obs >= self.low) & (next_obs <= self.high)).all(-1)
        return ~is_finite | ~(is_inside | terminated)

    def within(self, next_obs: Tensor) -> Tensor:
        """The nearest states of the range, ``(B, obs)``."""
        return next_obs.nan_to_num().clamp(self.low, self.high)

    def leaving_reward(self, rewards: Tensor) -> Tensor:
        """The reward of each of the steps that are left: the lowest one, or a penalised one below it. ``(B,)``.

        It is bounded by the width of the dataset's rewards: a penalty far outside of the data may be of any size.
        """
        lowest, width = self.lowest_reward, self.highest_reward - self.lowest_reward
        return rewards.nan_to_num(lowest, lowest, lowest).clamp(lowest - width, lowest)
