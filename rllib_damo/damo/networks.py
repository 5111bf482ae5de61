"""DAMO's transition classifier."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from rllib_damo.nn.stacked_mlp import mlp
from rllib_damo.nn.standardize import Standardize


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
