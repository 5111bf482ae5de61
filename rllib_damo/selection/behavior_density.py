"""How far a policy's actions are from those of the data: a density of the logged actions, given the state."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from rllib_damo.nn.adam import FusedAdam
from rllib_damo.nn.stacked_mlp import mlp
from rllib_damo.nn.standardize import input_scales
from rllib_damo.selection.rows import Rows

_COMPONENTS, _MEMBERS, _HIDDEN = 5, 2, 128
_LEAST_STD, _LR, _BATCH = 0.02, 1e-3, 512


class _Mixture(nn.Module):
    """p(a|s) of ``_COMPONENTS`` diagonal Gaussians over unit actions."""

    def __init__(self, obs_dim: int, act_dim: int):
        super().__init__()
        self.act_dim = act_dim
        self.net = mlp((obs_dim, _HIDDEN, _HIDDEN, _COMPONENTS * (1 + 2 * act_dim)))

    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Log shares ``(B, C)``, means and log standard deviations ``(B, C, act)``."""
        raw = self.net(obs)
        logits, rest = raw[:, :_COMPONENTS], raw[:, _COMPONENTS:].view(-1, _COMPONENTS, 2, self.act_dim)
        return logits.log_softmax(-1), rest[:, :, 0], rest[:, :, 1].clamp(math.log(_LEAST_STD), 1.0)


def _log_density(parts: tuple[Tensor, Tensor, Tensor], actions: Tensor) -> Tensor:
    """``actions (B, A, act)``: (B, A), A actions for each state."""
    shares, mean, log_std = parts
    z = (actions[:, :, None] - mean[:, None]) / log_std.exp()[:, None]
    terms = -0.5 * z.square() - log_std[:, None] - 0.5 * math.log(2 * math.pi)
    return torch.logsumexp(shares[:, None] + terms.sum(-1), -1)


class BehaviorDensity:
    """The distance of an action is log b(a*|s) - log b(a|s) in nats, a* the densest of the components' means.

    Args:
        rows: the data.
        epochs: passes over it; at most ``max_steps`` batches.
        seed: of the members and the batches.
    """

    def __init__(self, rows: Rows, *, epochs: int = 10, max_steps: int = 5_000, seed: int = 0):
        self._scales = input_scales(rows.obs)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self._members = [_Mixture(rows.obs.shape[1], rows.actions.shape[1]) for _ in range(_MEMBERS)]
        steps = min(max_steps, max(500, epochs * len(rows) // _BATCH))
        rng = np.random.default_rng((seed, 4))
        for member in self._members:
            optimizer = FusedAdam(member.parameters(), lr=_LR)
            for step in range(steps):
                index = torch.from_numpy(rng.integers(len(rows), size=_BATCH))
                density = _log_density(member(self._scaled(rows.obs[index])), rows.actions[index][:, None])
                optimizer.zero_grad()
                (-density.mean()).backward()
                optimizer.param_groups[0]["lr"] = _LR * (1 - step / steps)
                optimizer.step()

    def _scaled(self, obs: Tensor) -> Tensor:
        return (obs - self._scales[0]) / self._scales[1]

    @torch.no_grad()
    def distances(self, obs: Tensor, actions: Tensor) -> Tensor:
        """``(B,)`` for ``obs (B, obs)`` and unit actions ``(B, act)``; 0 is a mode, and it may be a little below."""
        found = []
        for part, own in zip(obs.split(4096), actions.split(4096), strict=True):
            given = [member(self._scaled(part)) for member in self._members]
            modes = torch.cat([mean for _, mean, _ in given], 1)
            tried = torch.cat((modes, own[:, None]), 1)
            density = torch.stack([_log_density(one, tried) for one in given]).logsumexp(0)
            found.append(density[:, :-1].amax(1) - density[:, -1])
        return torch.cat(found)

    def shares_off_data(self, obs: Tensor, logged: Tensor, actions: Tensor) -> np.ndarray:
        """The share of states where each policy's action is farther than the logged actions' 99 % quantile.

        Args:
            obs: ``(B, obs)``.
            logged: the data's actions there, ``(B, act)``.
            actions: each policy's, ``(K, B, act)``.
        """
        limit = torch.quantile(self.distances(obs, logged).double(), 0.99)
        return np.array([float((self.distances(obs, own) > limit).double().mean()) for own in actions])


class StateBox(NamedTuple):
    """The 0.1 to 99.9 % quantiles of the data's states, widened by 10 % on both sides."""

    low: Tensor
    high: Tensor

    @classmethod
    def of(cls, obs: Tensor) -> StateBox:
        low, high = np.quantile(obs.numpy(), (0.001, 0.999), axis=0)
        margin = 0.1 * (high - low)
        return cls(*(torch.from_numpy(part).to(obs.dtype) for part in (low - margin, high + margin)))

    def share_outside(self, obs: Tensor) -> float:
        """Of states ``(B, obs)``: outside in any column."""
        if not len(obs):
            return 0.0
        return float(((obs < self.low) | (obs > self.high)).any(-1).double().mean())


def actions_differ(first: Tensor, second: Tensor) -> bool:
    """Whether two policies' unit actions ``(B, act)`` differ by more than 0.1 in a tenth of the states."""
    return float(((first - second).abs().amax(-1) > 0.1).double().mean()) >= 0.1
