"""What the dual says and does not say (docs/damo.md, section of that name), exactly, on random tabular MDPs."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from rllib_damo.damo.divergences import DIVERGENCES as TORCH_DIVERGENCES
from rllib_damo.damo.losses import terminal_value
from tests.tabular import DIVERGENCES, POWER, Dual, Problem, flow_violation, kl, occupancy, random_problem

SEEDS = range(10)
ETAS = (0.1, 1.0, 3.0)
TOLERANCE = 1e-8

every = pytest.mark.parametrize("divergence", sorted(DIVERGENCES))
every_eta = pytest.mark.parametrize("eta", ETAS)


def test_every_offered_divergence_is_tested() -> None:
    assert set(DIVERGENCES) == set(TORCH_DIVERGENCES)


@pytest.mark.parametrize("seed", SEEDS)
def test_occupancies(seed: int) -> None:
    problem = random_problem(seed)
    for rho, policy in ((problem.rho_real, problem.policy), (problem.rho_behavior, problem.behavior)):
        assert rho.sum() == pytest.approx(1, abs=1e-12)
        assert flow_violation(rho, problem.initial, policy, problem.gamma) < 1e-12
    assert (problem.rho_real * problem.rewards).sum() == pytest.approx(problem.value(), abs=1e-12)


def test_occupancy_is_the_discounted_sum_of_visits() -> None:
    problem = random_problem(0)
    states, total = problem.initial, np.zeros_like(problem.real)
    for t in range(2000):
        visits = states[:, None, None] * problem.policy[:, :, None] * problem.real
        total += (1 - problem.gamma) * problem.gamma**t * visits
        states = visits.sum((0, 1))
    np.testing.assert_allclose(problem.rho_real, total, atol=1e-12)


@every
@every_eta
def test_surrogate_is_a_lower_bound_of_the_return(divergence: str, eta: float) -> None:
    for seed in SEEDS:
        for deterministic in (False, True):
            problem = random_problem(seed, deterministic=deterministic)
            penalised = problem.value() - eta * kl(problem.rho_real, problem.rho_behavior)
            assert problem.surrogate(eta, divergence) <= penalised + TOLERANCE
            assert penalised <= problem.value() + TOLERANCE


@every
@every_eta
def test_minimised_dual_equals_the_surrogate_where_dynamics_are_deterministic(divergence: str, eta: float) -> None:
    for seed in SEEDS:
        problem = random_problem(seed, deterministic=True)
        dual = Dual(problem, eta, divergence)
        assert dual.value(dual.minimise()) == pytest.approx(problem.surrogate(eta, divergence), abs=TOLERANCE)


@every
@every_eta
def test_minimised_dual_is_above_the_surrogate_otherwise(divergence: str, eta: float) -> None:
    gaps = []
    for seed in SEEDS:
        problem = random_problem(seed)
        dual = Dual(problem, eta, divergence)
        gaps.append(dual.value(dual.minimise()) - problem.surrogate(eta, divergence))
    assert min(gaps) >= -TOLERANCE
    assert max(gaps) > 1e-3  # the flow constraints do not pin s'|s,a


@every
@every_eta
def test_minimised_dual_is_the_maximum_over_flow_feasible_occupancies(divergence: str, eta: float) -> None:
    for seed in SEEDS:
        problem = random_problem(seed)
        dual = Dual(problem, eta, divergence)
        q = dual.minimise()
        rho = dual.optimiser(q)
        # Strong duality: ρ* is feasible and attains the dual's value ...
        assert flow_violation(rho, problem.initial, problem.policy, problem.gamma) < TOLERANCE
        assert rho.sum() == pytest.approx(1, abs=TOLERANCE)
        assert problem.surrogate(eta, divergence, rho) == pytest.approx(dual.value(q), abs=TOLERANCE)
        # ... which no other feasible ρ exceeds: those of π under any dynamics.
        for other in range(5):
            dynamics = random_problem(1000 + other).real
            feasible = occupancy(dynamics, problem.initial, problem.policy, problem.gamma)
            assert problem.surrogate(eta, divergence, feasible) <= dual.value(q) + TOLERANCE


@every
@every_eta
def test_residual_at_the_optimum_is_the_implicit_penalty(divergence: str, eta: float) -> None:
    """Theorem 5.2: x = η f'(ρ*/ρ^π_M); where f* is clipped, ρ* = 0 and x <= η f'(0)."""
    clipped = 0
    for seed in SEEDS:
        problem = random_problem(seed)
        dual = Dual(problem, eta, divergence)
        q = dual.minimise()
        x, ratio = dual.residual(q), dual.optimiser(q) / problem.rho_model
        inside = ratio > 0 if divergence == "chi_squared" else np.ones_like(x, dtype=bool)
        np.testing.assert_allclose(x[inside], eta * DIVERGENCES[divergence].f_prime(ratio[inside]), atol=TOLERANCE)
        assert (x[~inside] <= -2 * eta + TOLERANCE).all()
        clipped += int((~inside).sum())
    assert (clipped > 0) == (divergence == "chi_squared")


def ending(stay: float, behavior_stay: float = 0.9) -> Problem:
    """A state of reward 1 that the policy leaves with probability 1 - ``stay``, for one that ends the episode."""
    dynamics = np.array([[[1, 0], [0, 1]], [[0, 1], [0, 1]]], float)
    rewards = np.array([[[1, 1], [1, 1]], [[0, 0], [0, 0]]], float)
    policy, behavior = (np.array([[p, 1 - p], [0.5, 0.5]]) for p in (stay, behavior_stay))
    return Problem(dynamics, dynamics, rewards, np.array([1.0, 0.0]), behavior, policy, gamma=0.9)


def before_the_end(problem: Problem, eta: float, divergence: str, terminal_value: float) -> Dual:
    """The dual as it is learned: state 1 is terminal, no row starts there, and its value is given."""
    dual = Dual(problem, eta, divergence)
    of_terminal = slice(problem.policy.shape[1], None)
    dual.residual_map[:, of_terminal] = dual.initial_map[of_terminal] = dual.rho[1] = 0
    dual.r[0, :, 1] += problem.gamma * terminal_value
    return dual


@every
@every_eta
def test_a_terminal_state_is_worth_its_endless_repetition(divergence: str, eta: float) -> None:
    """docs/damo.md 13, deterministic and M = T: with that value the states before it have the whole problem's Q."""
    f = TORCH_DIVERGENCES[divergence](POWER)
    for stay in (0.5, 0.9, 0.95):
        problem = ending(stay)
        q = Dual(problem, eta, divergence).minimise()
        logit = np.log(problem.rho_behavior[1, 0, 1] / problem.rho_model[1, 0, 1])  # of every repetition
        value = float(terminal_value(torch.tensor(logit), eta, problem.gamma, f))
        np.testing.assert_allclose(q[1], value, atol=TOLERANCE)
        learned = before_the_end(problem, eta, divergence, value).minimise()
        np.testing.assert_allclose(learned[0], q[0], atol=1e-6)
        wrong = before_the_end(problem, eta, divergence, 0.0).minimise()
        assert abs(wrong[0] - q[0]).max() >= 0.1 * abs(value)


@every
def test_with_a_terminal_value_of_0_the_objective_ends_more_episodes(divergence: str) -> None:
    """Though the reward is paid for staying, and the data stay in nine of ten steps: η = 3, reward 1."""
    stays = np.linspace(0.05, 0.95, 19)
    duals = [Dual(ending(stay), 3.0, divergence) for stay in stays]
    assert stays[np.argmax([dual.value(dual.minimise()) for dual in duals])] >= 0.85
    duals = [before_the_end(ending(stay), 3.0, divergence, 0.0) for stay in stays]
    assert stays[np.argmax([dual.value(dual.minimise()) for dual in duals])] < 0.82


@every
def test_minimise_finds_a_minimum(divergence: str) -> None:
    rng = np.random.default_rng(0)
    for seed in SEEDS:
        dual = Dual(random_problem(seed), 0.5, divergence)
        q = dual.minimise()
        # a power's curvature is infinite where a residual is 0
        assert np.abs(dual.gradient(q)).max() < (1e-7 if divergence == "power" else 1e-10)
        for scale in (1e-3, 1.0):
            assert dual.value(q) <= dual.value(q + scale * rng.normal(size=q.shape))


@every
def test_gradient_of_the_dual(divergence: str) -> None:
    dual = Dual(random_problem(3), 0.5, divergence)
    q, h = np.random.default_rng(0).normal(size=dual.shape), 1e-6
    for s, a in ((0, 0), (2, 1), (4, 2)):
        e = np.zeros(dual.shape)
        e[s, a] = h
        assert dual.gradient(q)[s, a] == pytest.approx((dual.value(q + e) - dual.value(q - e)) / (2 * h), abs=1e-7)


@every
def test_surrogate_with_a_perfect_model_is_the_penalised_return(divergence: str) -> None:
    """With M = T, D_f(ρ‖ρ) is f(1), a constant."""
    problem = random_problem(0)
    problem = dataclasses.replace(problem, model=problem.real)
    penalised = problem.value() - 2.0 * kl(problem.rho_real, problem.rho_behavior)
    constant = float(DIVERGENCES[divergence].f(np.ones(1))[0])
    assert problem.surrogate(2.0, divergence) == pytest.approx(penalised - 2.0 * constant, abs=TOLERANCE)
