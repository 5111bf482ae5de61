"""Can this dataset judge policies at all? Two tests of the evaluation on policies whose order is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rllib_damo.selection.behavior_density import actions_differ
from rllib_damo.selection.clone import Policy
from rllib_damo.selection.rows import Rows
from rllib_damo.selection.rule import half_interval

#: A behaviour's value may be wrong by this part of the range of returns, 5 to 95 %.
TOLERANCE = 0.1


@dataclass(frozen=True)
class SelfTest:
    """The result of a test: ``passed`` is None where the data do not allow it."""

    name: str
    passed: bool | None
    text: str


def behavior_test(values: np.ndarray, returns: np.ndarray, spread: float, where: str) -> SelfTest:
    """Is the value of the logged behaviour its real return?

    Args:
        values: Q̄ of the logged behaviour at the episodes' first states and actions, ``(E, episodes)``.
        returns: the episodes' discounted returns, completed where they were cut.
        spread: q95 - q05 of the data's returns.
        where: which episodes these are, for the text.
    """
    errors = values.mean(0) - returns
    by_head = half_interval(values.mean(-1))
    noise = 1.645 * errors.std(ddof=1) / np.sqrt(len(errors))
    allowed = max(float(np.hypot(by_head if np.isfinite(by_head) else 0.0, noise)), TOLERANCE * spread)
    passed = bool(abs(errors.mean()) <= allowed)
    return SelfTest(
        "behaviour",
        passed,
        f"value {values.mean():.4g}, {where} {returns.mean():.4g}, allowed error {allowed:.3g}",
    )


def thirds(rows: Rows) -> list[Tensor] | None:
    """Rows of the episodes in the lower, middle and upper third of return; None where their means are too near.

    Where nothing terminates, an episode that was cut early has a small return for no fault of its own, so the mean
    reward counts.
    """
    returns = rows.discounted_returns(1.0)
    if not rows.terminated.any():
        returns = returns / (rows.stops - rows.starts)
    order = returns.argsort()
    parts = [order[: len(order) // 3], order[len(order) // 3 : -(len(order) // 3)], order[-(len(order) // 3) :]]
    low, high = returns[parts[0]], returns[parts[2]]
    error = torch.sqrt(low.var() / len(low) + high.var() / len(high))
    if not float(high.mean() - low.mean()) > 2 * float(error):
        return None
    chosen = []
    for part in parts:
        mask = torch.zeros(len(returns), dtype=torch.bool)
        mask[part] = True
        chosen.append(rows.of_episodes(mask))
    return chosen


def differing(clones: Sequence[Policy], obs: Tensor) -> bool:
    """Whether the first and the last of the clones act differently."""
    return actions_differ(clones[0](obs), clones[-1](obs))


def order_test(values: np.ndarray | None) -> SelfTest:
    """Are clones of the worst and the best third of the episodes put in this order?

    Args:
        values: ``(3, E)`` of the thirds' clones, the worst first; None where the thirds are all alike.
    """
    name = "order of thirds"
    if values is None:
        return SelfTest(name, None, "untestable: clones of the worst and the best episodes are alike")
    means = ", ".join(f"{value:.4g}" for value in values.mean(-1))
    return SelfTest(name, bool(values[2].mean() > values[0].mean()), f"values {means}")
