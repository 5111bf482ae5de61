"""The f-divergences that DAMO's dual may use (docs/damo.md, step 7).

The bound behind the objective needs ``D_f(p‖q) >= KL(p‖q)`` for all p, q. Half the χ²-divergence, f(x) = (x-1)²/2,
does not satisfy it and is therefore not offered.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

TensorFn = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class FDivergence:
    """A convex f, its derivative, its conjugate f*(y) = max_{x>=0} xy - f(x) and the conjugate's derivative."""

    f: TensorFn
    f_prime: TensorFn
    conjugate: TensorFn
    conjugate_prime: TensorFn


DIVERGENCES: dict[str, FDivergence] = {
    # D_f = (1 + χ²)/2 >= log(1 + χ²) >= KL. The conjugate is not clipped at y < 0 (x may turn negative there).
    "half_squared": FDivergence(
        f=lambda x: x.square() / 2,
        f_prime=lambda x: x,
        conjugate=lambda y: y.square() / 2,
        conjugate_prime=lambda y: y,
    ),
    # D_f = χ² >= KL.
    "chi_squared": FDivergence(
        f=lambda x: (x - 1).square(),
        f_prime=lambda x: 2 * (x - 1),
        conjugate=lambda y: torch.where(y >= -2, y + y.square() / 4, -torch.ones_like(y)),
        conjugate_prime=lambda y: (1 + y / 2).clamp(min=0),
    ),
}
