"""The networks that algorithms share: actors, and stacked critics and state values."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from rllib_damo.nn.squashed_gaussian import LOG_STD_MAX, LOG_STD_MIN, mean_and_log_std, squashed_sample
from rllib_damo.nn.stacked_mlp import StackedMLP, mlp
from rllib_damo.nn.standardize import Standardize


class Actor(nn.Module):
    """A tanh-squashed diagonal Gaussian over unit actions."""

    def __init__(self, obs_dim: int, act_dim: int, hidden_dims: Sequence[int]):
        super().__init__()
        self.standardize = Standardize(obs_dim)
        self.net = mlp((obs_dim, *hidden_dims, 2 * act_dim))

    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log standard deviation before squashing, ``(B, act_dim)`` each."""
        return mean_and_log_std(self.net(self.standardize(obs)))

    def sample(self, obs: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Re-parameterised unit actions ``(B, act_dim)`` and their log density ``(B,)``.

        Args:
            obs: ``(B, obs_dim)`` raw observations.
            noise: ``(B, act_dim)`` standard normal.
        """
        mean, log_std = self(obs)
        return squashed_sample(mean, log_std, noise)


class GaussianActor(nn.Module):
    """A diagonal Gaussian N(tanh(net(s)), σ²) over unit actions, σ one vector for all states; samples are not squashed.

    The density of actions at the bounds ±1, of which datasets have many, is finite: unlike that of `Actor`.
    """

    def __init__(self, obs_dim: int, act_dim: int, hidden_dims: Sequence[int]):
        super().__init__()
        self.standardize = Standardize(obs_dim)
        self.net = mlp((obs_dim, *hidden_dims, act_dim))
        self.log_std = nn.Parameter(torch.zeros(act_dim))

    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """As `Actor`: tanh of the first is the mean; the log standard deviation, ``(B, act_dim)``, is of the action."""
        mean = self.net(self.standardize(obs))
        return mean, self.log_std.clamp(LOG_STD_MIN, LOG_STD_MAX).expand_as(mean)

    def log_prob(self, obs: Tensor, actions: Tensor) -> Tensor:
        """Log density ``(B,)`` of unit actions ``(B, act_dim)``."""
        mean, log_std = self(obs)
        return gaussian_log_prob((actions - mean.tanh()) * (-log_std).exp(), log_std)

    def sample(self, obs: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """As `Actor.sample`; the actions are clipped to [-1, 1], and the log density is of those before."""
        mean, log_std = self(obs)
        return (mean.tanh() + log_std.exp() * noise).clamp(-1, 1), gaussian_log_prob(noise, log_std)


def gaussian_log_prob(noise: Tensor, log_std: Tensor) -> Tensor:
    """Log density ``(B,)`` of a diagonal Gaussian at ``noise`` standard deviations from its mean, ``(B, dim)`` each."""
    return (-0.5 * noise.square() - log_std - 0.5 * math.log(2 * math.pi)).sum(-1)


class Critics(nn.Module):
    """C action-value functions: ``(B, obs)``, ``(B, act)`` → ``(C, B)``."""

    def __init__(self, obs_dim: int, act_dim: int, hidden_dims: Sequence[int], num: int = 2, layer_norm: bool = False):
        super().__init__()
        self.standardize = Standardize(obs_dim)
        self.net = StackedMLP(num, (obs_dim + act_dim, *hidden_dims, 1), layer_norm)

    def inputs(self, obs: Tensor, actions: Tensor) -> Tensor:
        """What ``net`` reads: [standardised observation | action], ``(B, obs + act)``."""
        return torch.cat((self.standardize(obs), actions), dim=-1)

    def forward(self, obs: Tensor, actions: Tensor) -> Tensor:
        return self.net(self.inputs(obs, actions)).squeeze(-1)


class Values(nn.Module):
    """C state-value functions: ``(B, obs)`` → ``(C, B)``."""

    def __init__(self, obs_dim: int, hidden_dims: Sequence[int], num: int = 1, layer_norm: bool = False):
        super().__init__()
        self.standardize = Standardize(obs_dim)
        self.net = StackedMLP(num, (obs_dim, *hidden_dims, 1), layer_norm)

    def forward(self, obs: Tensor) -> Tensor:
        return self.net(self.standardize(obs)).squeeze(-1)
