"""The networks that algorithms share: squashed-Gaussian actor, stacked critics, transition classifier."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from rllib_damo.nn.squashed_gaussian import mean_and_log_std, squashed_sample
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


class Critics(nn.Module):
    """C action-value functions: ``(B, obs)``, ``(B, act)`` → ``(C, B)``."""

    def __init__(self, obs_dim: int, act_dim: int, hidden_dims: Sequence[int], num: int = 2, layer_norm: bool = False):
        super().__init__()
        self.standardize = Standardize(obs_dim)
        self.net = StackedMLP(num, (obs_dim + act_dim, *hidden_dims, 1), layer_norm)

    def forward(self, obs: Tensor, actions: Tensor) -> Tensor:
        return self.net(torch.cat((self.standardize(obs), actions), dim=-1)).squeeze(-1)


class Classifier(nn.Module):
    """logit h(s,a,s'): how much likelier a transition is offline than synthetic.

    Its inputs are (s, a, s' - s), each column standardised by the dataset's statistics: s' is nearly s, and only the
    difference shows what the dynamics did.
    """

    def __init__(self, obs_dim: int, act_dim: int, hidden_dims: Sequence[int], spectral_norm: bool = False):
        super().__init__()
        self.standardize = Standardize(2 * obs_dim + act_dim)
        self.net = mlp((2 * obs_dim + act_dim, *hidden_dims, 1), spectral_norm)

    def inputs(self, obs: Tensor, actions: Tensor, next_obs: Tensor) -> Tensor:
        return self.standardize(torch.cat((obs, actions, next_obs - obs), dim=-1))

    def forward(self, inputs: Tensor) -> Tensor:
        """``(B, 2 obs_dim + act_dim)`` from ``inputs`` → logits ``(B,)``."""
        return self.net(inputs).squeeze(-1)
