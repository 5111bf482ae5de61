"""Samples of a tanh-squashed diagonal Gaussian: readable, and with gradients written out by hand."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

LOG_STD_MIN, LOG_STD_MAX = -5.0, 2.0


def mean_and_log_std(outputs: Tensor) -> tuple[Tensor, Tensor]:
    """Splits a network's outputs ``(..., 2 act_dim)``; log standard deviations are clamped."""
    mean, log_std = outputs.chunk(2, dim=-1)
    return mean, log_std.clamp(LOG_STD_MIN, LOG_STD_MAX)


def squashed_sample(mean: Tensor, log_std: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Re-parameterised unit actions ``(N, act_dim)`` and their log density ``(N,)``.

    Args:
        mean, log_std: ``(N, act_dim)``, before squashing.
        noise: ``(N, act_dim)`` standard normal.
    """
    u = mean + log_std.exp() * noise
    # log N(u) - log|d tanh(u)/du|, the latter as 2(log 2 - u - softplus(-2u)), which does not underflow
    log_prob = -0.5 * noise.square() - log_std - 0.5 * math.log(2 * math.pi)
    log_prob = log_prob - 2 * (math.log(2) - u - F.softplus(-2 * u))
    return u.tanh(), log_prob.sum(-1)


class SquashedSample:
    """`squashed_sample` of a network's outputs, with gradients and without an autograd graph.

    Args:
        outputs: means and log standard deviations ``(N, 2 act_dim)``, as `mean_and_log_std` reads them.
        noise: ``(N, act_dim)`` standard normal.
        out: ``(N, act_dim)``, where the actions go; None: a new tensor.

    Attributes:
        actions: ``(N, act_dim)`` unit actions.
        log_prob: ``(N,)`` their log density.
    """

    def __init__(self, outputs: Tensor, noise: Tensor, out: Tensor | None = None):
        mean, log_std = mean_and_log_std(outputs)
        self._is_free = log_std == outputs[..., mean.shape[-1] :]  # not clamped
        self._spread = log_std.exp().mul_(noise)
        u = mean + self._spread
        self.actions = torch.tanh(u, out=out)
        # The log density, halved: u + softplus(-2u) - (log σ + noise²/2)/2, and constants
        halves = F.softplus(-2 * u).add_(u).sub_(torch.add(log_std, noise.square(), alpha=0.5), alpha=0.5)
        self.log_prob = 2 * halves.sum(-1) - u.shape[1] * (0.5 * math.log(2 * math.pi) + 2 * math.log(2))

    def backward(self, action_delta: Tensor, log_prob_delta: Tensor) -> Tensor:
        """The gradient of a loss with respect to the outputs, ``(N, 2 act_dim)``.

        Args:
            action_delta: ``(N, act_dim)``, with respect to the actions.
            log_prob_delta: ``(N,)``, with respect to the log densities.
        """
        log_prob_delta = log_prob_delta[:, None]
        # -log|d tanh(u)/du| has the derivative 2 tanh(u)
        d_mean = action_delta * (1 - self.actions.square()) + 2 * log_prob_delta * self.actions
        d_log_std = (d_mean * self._spread - log_prob_delta) * self._is_free
        return torch.cat((d_mean, d_log_std), dim=-1)
