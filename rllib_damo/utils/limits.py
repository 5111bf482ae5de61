"""Limits at which the states of a dataset were clipped: no state lies beyond them, and many lie exactly there."""

from __future__ import annotations

import math

import torch
from torch import Tensor

#: Rows that must lie exactly at a column's largest (or smallest) value, and how many times those at the next value.
#: In MuJoCo's Hopper and Walker2d, which clip velocities at ±10, there are up to a seventh of all rows there. A clock
#: has as many rows at its last value as at the one before, and goes on in longer episodes.
MIN_ROWS, MIN_RATIO = 10, 10


def clipping_limits(next_obs: Tensor, obs: Tensor) -> tuple[Tensor, Tensor]:
    """The limits of each column; -inf and inf where none can be seen.

    A model of the changes of states does not know of them: it predicts 10.3 where the environment says 10, and the
    next prediction starts from where no data are. A column that no transition changes, a goal, has none.

    Args:
        next_obs: ``(N, obs)`` states that transitions led to. Those that episodes start in may all be one state.
        obs: ``(N, obs)`` states that they came from.

    Returns:
        ``low (obs,)`` and ``high (obs,)``.
    """
    low, high = (next_obs.new_full(next_obs.shape[1:], limit) for limit in (-math.inf, math.inf))
    for column in range(next_obs.shape[1]):  # for the memory's sake
        after, before = next_obs[:, column], obs[:, column]
        changes = (after != before).any()
        high[column] = _upper_limit(after, before).where(changes, math.inf)
        low[column] = -_upper_limit(-after, -before).where(changes, math.inf)
    return low, high


def _upper_limit(after: Tensor, before: Tensor) -> Tensor:
    highest = torch.maximum(after.max(), before.max())
    below = after.where(after < highest, -math.inf).max()
    there, beside = (after == highest).sum(), (after == below).sum()
    return highest.where((there >= MIN_ROWS) & (there >= MIN_RATIO * beside), math.inf)
