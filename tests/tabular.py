"""Small tabular MDPs on which docs/damo.md's objective and its dual can be evaluated exactly, in NumPy alone.

S states, A actions; dynamics ``(S, A, S)``, policies ``(S, A)``, transition occupancies ρ(s,a,s') ``(S, A, S)``.
Nothing here imports the package, so that the tests compare two independent writings of the same equations.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
ArrayFn = Callable[[Array], Array]


@dataclass(frozen=True)
class Divergence:
    """f, f', the conjugate f*, f*' and f*'' (docs/damo.md 7)."""

    f: ArrayFn
    f_prime: ArrayFn
    conjugate: ArrayFn
    conjugate_prime: ArrayFn
    conjugate_second: ArrayFn


DIVERGENCES: dict[str, Divergence] = {
    "half_squared": Divergence(
        f=lambda x: x**2 / 2,
        f_prime=lambda x: x,
        conjugate=lambda y: y**2 / 2,
        conjugate_prime=lambda y: y,
        conjugate_second=np.ones_like,
    ),
    # y + y²/4 for y >= -2 and -1 below, written as one square
    "chi_squared": Divergence(
        f=lambda x: (x - 1) ** 2,
        f_prime=lambda x: 2 * (x - 1),
        conjugate=lambda y: np.maximum(1 + y / 2, 0) ** 2 - 1,
        conjugate_prime=lambda y: np.maximum(1 + y / 2, 0),
        conjugate_second=lambda y: 0.5 * (y > -2),
    ),
    # p = 1.5 and q = 3
    "power": Divergence(
        f=lambda x: np.abs(x) ** 3 / 3,
        f_prime=lambda x: np.sign(x) * x**2,
        conjugate=lambda y: np.abs(y) ** 1.5 / 1.5,
        conjugate_prime=lambda y: np.sign(y) * np.sqrt(np.abs(y)),
        conjugate_second=lambda y: 0.5 / np.sqrt(np.maximum(np.abs(y), 1e-12)),
    ),
}
#: p of "power".
POWER = 1.5


def kl(p: Array, q: Array) -> float:
    """KL(p‖q) in nats; p's support must lie within q's."""
    on = p > 0
    return float((p[on] * np.log(p[on] / q[on])).sum())


def f_divergence(name: str, p: Array, q: Array) -> float:
    """D_f(p‖q) = E_q[f(p/q)] over q's support, which must contain p's."""
    on = q > 0
    return float((q[on] * DIVERGENCES[name].f(p[on] / q[on])).sum())


@dataclass(frozen=True)
class Problem:
    """Real dynamics T, learned dynamics M, rewards r(s,a,s'), d0, behaviour policy μ, learning policy π, and γ."""

    real: Array
    model: Array
    rewards: Array
    initial: Array
    behavior: Array
    policy: Array
    gamma: float

    @property
    def rho_real(self) -> Array:
        """ρ^π_T."""
        return occupancy(self.real, self.initial, self.policy, self.gamma)

    @property
    def rho_model(self) -> Array:
        """ρ^π_M."""
        return occupancy(self.model, self.initial, self.policy, self.gamma)

    @property
    def rho_behavior(self) -> Array:
        """ρ^μ_T."""
        return occupancy(self.real, self.initial, self.behavior, self.gamma)

    def value(self) -> float:
        """J(π) = E_{ρ^π_T}[r], by policy evaluation: (1-γ) E_{d0}[V]."""
        r = np.einsum("sa,sat,sat->s", self.policy, self.real, self.rewards)
        p = np.einsum("sa,sat->st", self.policy, self.real)
        return float((1 - self.gamma) * self.initial @ np.linalg.solve(np.eye(len(r)) - self.gamma * p, r))

    def modified_rewards(self, eta: float) -> Array:
        """r̃ = r - η log(ρ^π_M/ρ^μ_T) where ρ^π_M > 0, and 0 elsewhere, where nothing weighs it (docs/damo.md 3)."""
        rho_model, rho_behavior = self.rho_model, self.rho_behavior
        on = rho_model > 0
        result = np.zeros_like(rho_model)
        result[on] = self.rewards[on] - eta * np.log(rho_model[on] / rho_behavior[on])
        return result

    def surrogate(self, eta: float, divergence: str, rho: Array | None = None) -> float:
        """The surrogate (1) at ρ (default: ρ^π_T): E_ρ[r̃] - η D_f(ρ‖ρ^π_M)."""
        rho = self.rho_real if rho is None else rho
        aligned = float((rho * self.modified_rewards(eta)).sum())
        return aligned - eta * f_divergence(divergence, rho, self.rho_model)


def random_problem(seed: int, num_states: int = 5, num_actions: int = 3, deterministic: bool = False) -> Problem:
    """Random T, M, r, d0, μ and π, the policies with full support; ``deterministic`` makes T one-hot and M = T."""
    rng = np.random.default_rng(seed)

    def distributions(*shape: int) -> Array:
        p = rng.dirichlet(np.ones(shape[-1]), size=shape[:-1]) + 0.05
        return p / p.sum(-1, keepdims=True)

    shape = (num_states, num_actions, num_states)
    if deterministic:
        real = model = np.eye(num_states)[rng.integers(num_states, size=shape[:2])]
    else:
        real = distributions(*shape)
        model = 0.5 * real + 0.5 * distributions(*shape)
    return Problem(
        real=real,
        model=model,
        rewards=rng.normal(size=shape),
        initial=distributions(num_states),
        behavior=distributions(*shape[:2]),
        policy=distributions(*shape[:2]),
        gamma=float(rng.uniform(0.5, 0.95)),
    )


def occupancy(dynamics: Array, initial: Array, policy: Array, gamma: float) -> Array:
    """ρ(s,a,s') = (1-γ) Σ_t γ^t Pr(s_t=s, a_t=a, s_{t+1}=s'), by one linear solve."""
    p = np.einsum("sa,sat->st", policy, dynamics)
    states = np.linalg.solve(np.eye(len(p)) - gamma * p.T, (1 - gamma) * initial)
    return states[:, None, None] * policy[:, :, None] * dynamics


def flow_violation(rho: Array, initial: Array, policy: Array, gamma: float) -> float:
    """Largest violation of Σ_s' ρ(s,a,s') = π(a|s) [(1-γ) d0(s) + γ Σ_{s̄,ā} ρ(s̄,ā,s)]."""
    arrivals = (1 - gamma) * initial + gamma * rho.sum((0, 1))
    return float(np.abs(rho.sum(-1) - policy * arrivals[:, None]).max())


class Dual:
    """The inner problem of the maximin (2), min_Q (1-γ) E[Q(s0,a0)] + η E_ρ[f*(x/η)], for a fixed policy.

    x(s,a,s') = r̃ + γ E_{a'~π}[Q(s',a')] - Q(s,a). Q is a table ``(S, A)``.

    Args:
        problem: supplies ρ^π_M, r̃, d0, π and γ.
        eta: η.
        divergence: its name.
    """

    def __init__(self, problem: Problem, eta: float, divergence: str):
        self.eta, self.name, self.divergence = eta, divergence, DIVERGENCES[divergence]
        self.rho, self.r = problem.rho_model, problem.modified_rewards(eta)
        num_states, num_actions = problem.policy.shape
        size = num_states * num_actions
        # Linear maps on the flattened Q: the residual's rows (S·A·S, S·A), and the initial term.
        expected = np.zeros((num_states, size))  # Q -> E_{a'~π}[Q(s',a')]
        for s in range(num_states):
            expected[s, s * num_actions : (s + 1) * num_actions] = problem.policy[s]
        self.initial_map = (1 - problem.gamma) * problem.initial @ expected
        self.residual_map = problem.gamma * np.tile(expected, (size, 1)) - np.repeat(np.eye(size), num_states, axis=0)
        self.shape = (num_states, num_actions)

    def residual(self, q: Array) -> Array:
        """x ``(S, A, S)`` at a Q table ``(S, A)``."""
        return self.r + (self.residual_map @ q.ravel()).reshape(self.r.shape)

    def value(self, q: Array) -> float:
        """The objective (2) at Q."""
        conjugate = self.divergence.conjugate(self.residual(q) / self.eta)
        return float(self.initial_map @ q.ravel() + self.eta * (self.rho * conjugate).sum())

    def gradient(self, q: Array) -> Array:
        """∂(2)/∂Q ``(S, A)``: how much ρ·f*'(x/η) violates the Bellman flow."""
        slope = self.rho * self.divergence.conjugate_prime(self.residual(q) / self.eta)
        return (self.initial_map + self.residual_map.T @ slope.ravel()).reshape(self.shape)

    def minimise(self) -> Array:
        """The minimising Q, by one linear solve for half_squared and Newton's method for the others."""
        zero = np.zeros(self.shape)
        if self.name == "half_squared":
            return zero - self._newton_step(zero)
        # Start at the minimum of chi_squared's unclipped conjugate, which is quadratic
        q = zero - self._newton_step(zero, all_rows=True)
        for _ in range(200):
            if np.abs(self.gradient(q)).max() < 1e-14:
                break
            step, size = self._newton_step(q), 1.0
            while size > 1e-12 and self.value(q - size * step) > self.value(q):
                size /= 2
            q = q - size * step
        return q

    def _newton_step(self, q: Array, all_rows: bool = False) -> Array:
        y = self.residual(q) / self.eta
        slope = 1 + y / 2 if all_rows else self.divergence.conjugate_prime(y)
        curvature = 0.5 * np.ones_like(y) if all_rows else self.divergence.conjugate_second(y)
        gradient = self.initial_map + self.residual_map.T @ (self.rho * slope).ravel()
        hessian = self.residual_map.T @ ((curvature / self.eta * self.rho).ravel()[:, None] * self.residual_map)
        step: Array = np.linalg.lstsq(hessian, gradient, rcond=1e-13)[0]
        return step.reshape(self.shape)

    def optimiser(self, q: Array) -> Array:
        """ρ* = ρ^π_M f*'(x/η) ``(S, A, S)``."""
        return self.rho * self.divergence.conjugate_prime(self.residual(q) / self.eta)
