"""The f-divergences that DAMO's dual may use (docs/damo.md, step 7).

The bound behind the objective needs ``D_f(p‖q) >= KL(p‖q)`` for all p, q. Half the χ²-divergence, f(x) = (x-1)²/2,
does not satisfy it and is therefore not offered. A new divergence is a row of `DIVERGENCES`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

TensorFn = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class FDivergence:
    """A convex f, its derivative, its conjugate f*(y) = max_{x>=0} xy - f(x) and the conjugate's derivative.

    Attributes:
        has_linear_part: f* has a linear part around 0. It must cancel against (1-γ)Q(s0,a0) (Bellman flow), which it
            does under the full gradient alone: with target networks it raises the critic without bound.
    """

    f: TensorFn
    f_prime: TensorFn
    conjugate: TensorFn
    conjugate_prime: TensorFn
    has_linear_part: bool = False


def power(p: float) -> FDivergence:
    """f*(y) = |y|^p/p and f(x) = |x|^q/q, 1/p + 1/q = 1, for 1 < p <= 2; p = 2 is half_squared.

    D_f >= KL, since f(x) > x log x for all x > 0: below 1 the right side is negative, at 1 the left is 1/q, and above
    it grows faster. Large residuals weigh less than in a squared loss. As half_squared's, the conjugate is not clipped
    at y < 0.
    """
    q = p / (p - 1)
    return FDivergence(
        f=lambda x: x.abs().pow(q) / q,
        f_prime=lambda x: x.sign() * x.abs().pow(q - 1),
        conjugate=lambda y: y.abs().pow(p) / p,
        conjugate_prime=lambda y: y.sign() * y.abs().pow(p - 1),
    )


#: By name, each a function of the option ``f_power``.
DIVERGENCES: dict[str, Callable[[float], FDivergence]] = {
    # D_f = (1 + χ²)/2 >= log(1 + χ²) >= KL. The conjugate is not clipped at y < 0 (x may turn negative there).
    "half_squared": lambda p: FDivergence(
        f=lambda x: x.square() / 2,
        f_prime=lambda x: x,
        conjugate=lambda y: y.square() / 2,
        conjugate_prime=lambda y: y,
    ),
    # D_f = χ² >= KL.
    "chi_squared": lambda p: FDivergence(
        f=lambda x: (x - 1).square(),
        f_prime=lambda x: 2 * (x - 1),
        conjugate=lambda y: torch.where(y >= -2, y + y.square() / 4, -torch.ones_like(y)),
        conjugate_prime=lambda y: (1 + y / 2).clamp(min=0),
        has_linear_part=True,
    ),
    "power": power,
}
