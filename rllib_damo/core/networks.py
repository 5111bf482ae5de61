"""The networks that algorithms share: squashed-Gaussian actor, stacked critics."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rllib_damo.nn.stacked_mlp import StackedMLP, mlp
from rllib_damo.nn.standardize import Standardize

LOG_STD_MIN, LOG_STD_MAX = -5.0, 2.0


class Actor(nn.Module):
    """A tanh-squashed diagonal Gaussian over unit actions."""

    def __init__(self, obs_dim: int, act_dim: int, hidden_dims: Sequence[int]):
        super().__init__()
        self.standardize = Standardize(obs_dim)
        self.net = mlp((obs_dim, *hidden_dims, 2 * act_dim))

    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log standard deviation before squashing, ``(B, act_dim)`` each."""
        mean, log_std = self.net(self.standardize(obs)).chunk(2, dim=-1)
        return mean, log_std.clamp(LOG_STD_MIN, LOG_STD_MAX)

    def sample(self, obs: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Re-parameterised unit actions ``(B, act_dim)`` and their log density ``(B,)``.

        Args:
            obs: ``(B, obs_dim)`` raw observations.
            noise: ``(B, act_dim)`` standard normal.
        """
        mean, log_std = self(obs)
        u = mean + log_std.exp() * noise
        # log N(u) - log|d tanh(u)/du|, the latter as 2(log 2 - u - softplus(-2u)), which does not underflow
        log_prob = -0.5 * noise.square() - log_std - 0.5 * math.log(2 * math.pi)
        log_prob = log_prob - 2 * (math.log(2) - u - F.softplus(-2 * u))
        return u.tanh(), log_prob.sum(-1)


class Critics(nn.Module):
    """C action-value functions: ``(B, obs)``, ``(B, act)`` → ``(C, B)``."""

    def __init__(self, obs_dim: int, act_dim: int, hidden_dims: Sequence[int], num: int = 2, layer_norm: bool = False):
        super().__init__()
        self.standardize = Standardize(obs_dim)
        self.net = StackedMLP(num, (obs_dim + act_dim, *hidden_dims, 1), layer_norm)

    def forward(self, obs: Tensor, actions: Tensor) -> Tensor:
        return self.net(torch.cat((self.standardize(obs), actions), dim=-1)).squeeze(-1)
