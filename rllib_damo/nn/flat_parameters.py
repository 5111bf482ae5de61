"""Many parameters in one piece of memory: an optimiser steps through one tensor where it would loop over a list."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import nn

_ALIGNMENT = 16  # elements: what matrix products like their operands to start at


def flatten(params: Sequence[nn.Parameter]) -> nn.Parameter:
    """Moves parameters, and their gradients, into the memory of one.

    Args:
        params: of one dtype and device. Each stays a parameter of its module, as a view of its part of the result, and
            has a ``.grad``, a view too: to be written into, not to be replaced.

    Returns:
        One parameter ``(N,)`` for an elementwise optimiser (SGD, Adam), whose step on it is that on all of ``params``.
        Elements of no parameter are 0 and have gradient 0.
    """
    sizes = [-(-p.numel() // _ALIGNMENT) * _ALIGNMENT for p in params]
    flat = nn.Parameter(params[0].detach().new_zeros(sum(sizes)))
    flat.grad = torch.zeros_like(flat)
    for param, start in zip(params, itertools.accumulate(sizes, initial=0), strict=False):
        end = start + param.numel()
        value = flat.detach()[start:end].view_as(param)
        value.copy_(param.detach())
        param.data = value
        param.grad = flat.grad[start:end].view_as(param)
    return flat


def gradient_of(param: torch.Tensor) -> torch.Tensor:
    """The parameter's ``.grad``, which is made where there is none."""
    if param.grad is None:
        param.grad = torch.zeros_like(param)
    return param.grad
