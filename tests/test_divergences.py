"""The f-divergence table against its definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from rllib_damo.damo.divergences import DIVERGENCES, FDivergence, power
from tests import tabular

every = pytest.mark.parametrize("name", sorted(DIVERGENCES))
Y = torch.linspace(-6, 6, 241, dtype=torch.float64)
X = torch.linspace(0.05, 8, 160, dtype=torch.float64)  # f' may be -inf at 0
UNCLIPPED = ("half_squared", "power")


def torch_divergence(name: str) -> FDivergence:
    return DIVERGENCES[name](tabular.POWER)


@every
def test_conjugate_is_the_supremum(name: str) -> None:
    """f*(y) = sup_{x>=0} xy - f(x); an unclipped conjugate lets x turn negative, so it deviates at y < 0."""
    divergence = torch_divergence(name)
    x = torch.linspace(0, 8, 8_001, dtype=torch.float64)
    x = torch.cat((x, divergence.conjugate_prime(Y).clamp(min=0)))  # a grid is too coarse where f'' is large
    supremum = torch.stack([(x * y - divergence.f(x)).max() for y in Y])
    clipped = Y < 0 if name in UNCLIPPED else torch.zeros_like(Y, dtype=torch.bool)
    torch.testing.assert_close(divergence.conjugate(Y)[~clipped], supremum[~clipped], atol=1e-8, rtol=0)
    if name in UNCLIPPED:  # both are even
        torch.testing.assert_close(supremum[clipped], torch.zeros_like(supremum[clipped]), atol=1e-8, rtol=0)
        torch.testing.assert_close(divergence.conjugate(Y), divergence.conjugate(-Y), atol=0, rtol=0)


@every
def test_derivatives(name: str) -> None:
    divergence = torch_divergence(name)
    for function, derivative, points in (
        (divergence.f, divergence.f_prime, X),
        (divergence.conjugate, divergence.conjugate_prime, Y),
    ):
        points = points.clone().requires_grad_()
        (slope,) = torch.autograd.grad(function(points).sum(), points)
        torch.testing.assert_close(derivative(points.detach()), slope, atol=1e-12, rtol=0)


@every
def test_conjugate_derivative_inverts_the_derivative(name: str) -> None:
    divergence = torch_divergence(name)
    torch.testing.assert_close(divergence.conjugate_prime(divergence.f_prime(X)), X, atol=1e-12, rtol=0)


@every
def test_conjugate_is_convex_and_finite(name: str) -> None:
    values = torch_divergence(name).conjugate(torch.linspace(-1e4, 1e4, 4001, dtype=torch.float64))
    assert torch.isfinite(values).all()
    assert (values[2:] - 2 * values[1:-1] + values[:-2] >= -1e-6).all()


@every
def test_gradient_of_the_conjugate_is_finite_at_extreme_residuals(name: str) -> None:
    y = torch.tensor([-1e6, -2.0, 0.0, 1e6], requires_grad=True)
    (slope,) = torch.autograd.grad(torch_divergence(name).conjugate(y).sum(), y)
    assert torch.isfinite(slope).all()


@every
@pytest.mark.parametrize("size", [2, 5, 40])
def test_bounds_kl(name: str, size: int) -> None:
    rng = np.random.default_rng(size)
    for concentration in (0.1, 1.0, 10.0):
        for p, q in zip(*rng.dirichlet(np.full(size, concentration), size=(2, 200)) + 1e-9, strict=True):
            p, q = p / p.sum(), q / q.sum()
            divergence = (torch.tensor(q) * torch_divergence(name).f(torch.tensor(p / q))).sum().item()
            assert divergence >= tabular.kl(p, q) - 1e-12
            assert divergence == pytest.approx(tabular.f_divergence(name, p, q), rel=1e-12)


@every
def test_equals_the_tabular_one(name: str) -> None:
    ours, divergence = torch_divergence(name), tabular.DIVERGENCES[name]
    for function in ("f", "f_prime", "conjugate", "conjugate_prime"):
        points = X if function.startswith("f") else Y
        np.testing.assert_allclose(
            getattr(ours, function)(points), getattr(divergence, function)(points.numpy()), atol=1e-12
        )


def test_power_of_two_is_half_squared() -> None:
    of_two, half_squared = power(2.0), torch_divergence("half_squared")
    for function in ("f", "f_prime", "conjugate", "conjugate_prime"):
        points = X if function.startswith("f") else Y
        torch.testing.assert_close(getattr(of_two, function)(points), getattr(half_squared, function)(points))


@pytest.mark.parametrize("p", [1.05, 1.3, 1.5, 1.9, 2.0])
def test_power_bounds_kl_pointwise(p: float) -> None:
    """f(x) >= x log x, so that D_f >= KL."""
    x = torch.logspace(-6, 1.5, 2_001, dtype=torch.float64)
    assert (power(p).f(x) > x * x.log()).all()


@every
def test_only_a_conjugate_with_a_linear_part_says_so(name: str) -> None:
    """f*'(0) is not 0."""
    slope = float(torch_divergence(name).conjugate_prime(torch.zeros(1)))
    assert torch_divergence(name).has_linear_part == (slope != 0)


def test_half_chi_squared_is_not_offered() -> None:
    assert "half_chi_squared" not in DIVERGENCES
    p, q = np.array([0.9, 0.1]), np.array([0.6, 0.4])
    assert (q * (p / q - 1) ** 2 / 2).sum() < tabular.kl(p, q)
    # while half_squared's bound is KL <= log(1 + χ²) <= (1 + χ²)/2
    chi_squared = tabular.f_divergence("chi_squared", p, q)
    assert tabular.kl(p, q) <= math.log1p(chi_squared) <= tabular.f_divergence("half_squared", p, q)
