"""Losses that several algorithms share: TD, and SAC's (Haarnoja et al. 2018, arXiv 1812.05905).

A batch has B transitions (s, a, r, s', terminated); a' ~ π(s') and a ~ π(s) are re-parameterised samples. ``(C, B)``
marks tensors with one row for each of the C critics. All are pure functions of tensors; the update says which networks
produce them and who receives which gradient.
"""

from __future__ import annotations

from torch import Tensor


def bellman_target(
    rewards: Tensor, terminated: Tensor, next_q: Tensor, next_log_prob: Tensor, alpha: Tensor, gamma: float
) -> Tensor:
    """r + γ (1 - terminated) (Q(s',a') - α log π(a'|s')). ``next_q`` may be ``(B,)`` or ``(C, B)``."""
    return rewards + gamma * (1 - terminated) * (next_q - alpha * next_log_prob)


def td_loss(q: Tensor, target: Tensor) -> Tensor:
    """½ (target - Q(s,a))², summed over the critics. ``q (C, B)``, ``target (B,)`` or ``(C, B)``."""
    return 0.5 * (target - q).square().mean(-1).sum()


def sac_actor_loss(q: Tensor, log_prob: Tensor, alpha: Tensor) -> Tensor:
    """E[α log π(a|s) - Q(s,a)], a ~ π(s). ``q`` and ``log_prob`` are ``(B,)``."""
    return (alpha * log_prob - q).mean()


def alpha_loss(log_alpha: Tensor, log_prob: Tensor, target_entropy: float) -> Tensor:
    """-α (log π + target entropy): the automatic entropy coefficient, section 5."""
    return -(log_alpha.exp() * (log_prob.detach().mean() + target_entropy))
