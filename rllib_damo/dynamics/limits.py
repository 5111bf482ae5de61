"""Limits at which the states of a dataset were clipped: no state lies beyond them, and many lie exactly there."""

from __future__ import annotations

import torch
from torch import Tensor

#: Rows that must lie exactly at a column's largest (or smallest) value, and how many times those at the next value.
#: In MuJoCo's Hopper and Walker2d, which clip velocities at ±10, there are up to a seventh of all rows there. A clock
#: has as many rows at its last value as at the one before, and goes on in longer episodes.
MIN_ROWS, MIN_RATIO = 10, 10


def clipping_limits(next_obs: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """The limits of each column; -inf and inf where none can be seen.

    A model of the changes of states does not know of them: it predicts 10.3 where the environment says 10, and the
    next prediction starts from where no data are.

    Args:
        next_obs: ``(N, obs)`` states that transitions led to. Those that episodes start in may all be one state.
        others: ``(M, obs)`` further states of the dataset.

    Returns:
        ``low (obs,)`` and ``high (obs,)``.
    """
    return -_upper_limit(-next_obs, -others), _upper_limit(next_obs, others)


def _upper_limit(next_obs: Tensor, others: Tensor) -> Tensor:
    highest = torch.maximum(next_obs.amax(0), others.amax(0))
    below = next_obs.where(next_obs < highest, -torch.inf).amax(0)
    there, beside = (next_obs == highest).sum(0), (next_obs == below).sum(0)
    return highest.where((there >= MIN_ROWS) & (there >= MIN_RATIO * beside), torch.inf)
