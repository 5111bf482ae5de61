"""DAMO's losses, one small function for each step of the derivation (arXiv 2502.00850; numbers of docs/damo.md).

A batch has B transitions (s, a, r, s', terminated) and B0 initial states s0; a' ~ π(s') and a0 ~ π(s0) are
re-parameterised samples. ``(C, B)`` marks tensors with one row for each of the C critics. Everything here is a pure
function of tensors; ``update.py`` says which networks produce them and who receives which gradient. TD's and SAC's
losses are in ``core/losses.py``.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from rllib_damo.damo.divergences import FDivergence


def classifier_loss(offline_logits: Tensor, synthetic_logits: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Binary cross-entropy of h(s,a,s') = sigmoid(logit), offline against synthetic transitions [4].

    Args:
        offline_logits: ``(B,)`` logits of rows of the dataset, whose label is 1.
        synthetic_logits: ``(B,)`` logits of rows that the model generated, whose label is 0.
        label_smoothing: ε moves the labels to 1-ε and ε, which bounds the optimal logit by log((1-ε)/ε).
    """
    offline = F.binary_cross_entropy_with_logits(offline_logits, torch.full_like(offline_logits, 1 - label_smoothing))
    synthetic = F.binary_cross_entropy_with_logits(synthetic_logits, torch.full_like(synthetic_logits, label_smoothing))
    return (offline + synthetic) / 2


def modified_reward(rewards: Tensor, logits: Tensor, eta: float) -> Tensor:
    """r̃ = r - η log(ρ^π_M/ρ^μ_T) = r + η logit, the data alignment [5]. All ``(B,)``."""
    return rewards + eta * logits


def terminal_value(mean_logit: Tensor, eta: float, gamma: float, divergence: FDivergence | None) -> Tensor:
    """η (ℓ - f'(1)) / (1-γ), the value of a terminal state, which repeats itself for ever with a reward of 0 [13].

    Args:
        mean_logit: ``()`` ℓ, the logit of each of its repetitions.
        eta, gamma: the coefficient η and the discount factor.
        divergence: f of the critic's loss, under its full gradient; None where targets pass no gradient, and in plain
            TD: there the residual of a repetition is 0, and not η f'(1).
    """
    residual = 0.0 if divergence is None else divergence.f_prime(torch.ones_like(mean_logit))
    return eta * (mean_logit - residual) / (1 - gamma)


def critic_loss(
    q: Tensor,
    target: Tensor,
    initial_q: Tensor,
    eta: float,
    gamma: float,
    divergence: FDivergence,
) -> Tensor:
    """η(1-γ) Q(s0,a0) + η² f*((target - Q(s,a))/η), the inner minimisation times η, summed over the critics [9].

    A linear part of f*, which ``chi_squared`` has, must cancel against (1-γ)Q(s0,a0) (Bellman flow). It does under the
    full gradient alone; with target networks it raises Q without bound, and `DAMOConfig` refuses it there.

    Args:
        q: ``(C, B)`` Q(s,a).
        target: ``(B,)``, or ``(C, B)`` with each critic's own value and its gradient (no target networks).
        initial_q: ``(C, B0)`` Q(s0, a0).
        eta: the coefficient η > 0.
        gamma: discount factor.
        divergence: f, its conjugate and their derivatives.
    """
    dual = eta**2 * divergence.conjugate((target - q) / eta)
    return (dual.mean(-1) + eta * (1 - gamma) * initial_q.mean(-1)).sum()


def density_ratio(residual: Tensor, actor_eta: float, divergence: FDivergence, max_weight: float) -> Tensor:
    """w = f*'(x/actor_eta), an estimate of ρ*/ρ^π_M, clamped to [0, max_weight], without gradient [10]. ``(B,)``."""
    return divergence.conjugate_prime(residual.detach() / actor_eta).clamp(0, max_weight)


def consistent_actor_loss(
    initial_q: Tensor, next_q: Tensor, weight: Tensor, terminated: Tensor, gamma: float
) -> Tensor:
    """-[(1-γ) Q(s0,π(s0)) + w γ (1-terminated) Q(s',π(s'))]: ascends the critic's own objective [10].

    Its entropy term, w γ (1-terminated) α log π, is added where this is used.

    Args:
        initial_q: ``(B0,)`` the smallest Q(s0, π(s0)) of the critics.
        next_q: ``(B,)`` the smallest Q(s', π(s')) of the critics.
        weight: ``(B,)`` from ``density_ratio``.
        terminated: ``(B,)`` 1 where s' is terminal.
        gamma: discount factor.
    """
    return -((1 - gamma) * initial_q.mean() + (weight * gamma * (1 - terminated) * next_q).mean())


def gradient_penalty(logits: Tensor, inputs: Tensor) -> Tensor:
    """E[(‖∇_x logit‖ - 1)₊²], a one-sided penalty on the classifier's slope in its standardised inputs ``(B, D)``."""
    (slope,) = torch.autograd.grad(logits.sum(), inputs, create_graph=True)
    return (slope.norm(dim=-1) - 1).clamp(min=0).square().mean()
