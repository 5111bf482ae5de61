"""The torch losses against docs/damo.md's equations, evaluated in NumPy on the same numbers (float64)."""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from rllib_damo.core.losses import alpha_loss, bellman_target, sac_actor_loss, td_loss
from rllib_damo.damo import losses
from rllib_damo.damo.divergences import DIVERGENCES
from tests import tabular
from tests.tabular import Dual, random_problem

GAMMA = 0.9
every_divergence = pytest.mark.parametrize("divergence", sorted(DIVERGENCES))


def close(actual: Tensor, expected: object, atol: float = 1e-10) -> None:
    np.testing.assert_allclose(actual.detach().numpy(), np.asarray(expected), atol=atol, rtol=0)


class Rows(NamedTuple):
    """Index columns of rows (s, a, s', a'), each repeated as often as its weight says, and of rows (s0, a0)."""

    s: np.ndarray
    a: np.ndarray
    s_next: np.ndarray
    a_next: np.ndarray
    s0: np.ndarray
    a0: np.ndarray
    rho: np.ndarray  # (S, A, S, A) the rational occupancy that the rows realise
    start: np.ndarray  # (S, A) the rational initial distribution


def replicated_rows(seed: int, num_states: int = 4, num_actions: int = 3) -> Rows:
    """Every (s, a, s', a') and (s0, a0), with random integer counts; a row's weight is its count over the total."""
    rng = np.random.default_rng(seed)
    shape = (num_states, num_actions, num_states, num_actions)
    counts, starts = rng.integers(0, 6, size=shape), rng.integers(1, 6, size=shape[:2])
    columns = np.repeat(np.indices(shape).reshape(4, -1), counts.ravel(), axis=1)
    initial = np.repeat(np.indices(shape[:2]).reshape(2, -1), starts.ravel(), axis=1)
    return Rows(*columns, *initial, counts / counts.sum(), starts / starts.sum())


def objective_2(
    q: np.ndarray, rows: Rows, rewards: np.ndarray, terminated: np.ndarray, eta: float, divergence: str
) -> float:
    """(1-γ) E[Q(s0,a0)] + η E_ρ[f*((r̃ + γ (1-terminated(s')) Q(s',a') - Q(s,a))/η)], by sums over the tables."""
    x = rewards[..., None] + GAMMA * (1 - terminated)[:, None] * q - q[:, :, None, None]
    conjugate = tabular.DIVERGENCES[divergence].conjugate(x / eta)
    return float((1 - GAMMA) * (rows.start * q).sum() + eta * (rows.rho * conjugate).sum())


def gentle_problem(seed: int) -> tabular.Problem:
    """One whose ρ*/ρ^π_M is positive everywhere, so that the actor's clamp of w at 0 does not act."""
    problem = random_problem(seed)
    return dataclasses.replace(
        problem,
        rewards=0.1 * problem.rewards,
        model=0.9 * problem.real + 0.1 * problem.model,
        behavior=0.9 * problem.policy + 0.1 * problem.behavior,
    )


def numeric_gradient(function: object, q: np.ndarray, h: float = 1e-5) -> np.ndarray:
    gradient = np.zeros_like(q)
    for index in np.ndindex(q.shape):
        e = np.zeros_like(q)
        e[index] = h
        gradient[index] = (function(q + e) - function(q - e)) / (2 * h)  # type: ignore[operator]
    return gradient


# -- critic ----------------------------------------------------------------------------------------------------------


@every_divergence
@pytest.mark.parametrize("eta", [0.3, 1.0, 3.0])
def test_full_gradient_critic_loss_is_eta_times_the_dual(divergence: str, eta: float) -> None:
    rows, rng = replicated_rows(0), np.random.default_rng(1)
    num_states, num_actions = rows.start.shape
    rewards = rng.normal(size=(num_states, num_actions, num_states))
    terminated = (np.arange(num_states) == num_states - 1).astype(float)
    tables = rng.normal(size=(2, num_states, num_actions))  # two critics

    q = torch.tensor(tables, requires_grad=True)
    target = bellman_target(
        torch.tensor(rewards[rows.s, rows.a, rows.s_next]),
        torch.tensor(terminated[rows.s_next]),
        q[:, rows.s_next, rows.a_next],
        torch.zeros(len(rows.s), dtype=torch.float64),
        torch.tensor(0.0, dtype=torch.float64),
        GAMMA,
    )
    loss = losses.critic_loss(
        q[:, rows.s, rows.a], target, q[:, rows.s0, rows.a0], eta, GAMMA, DIVERGENCES[divergence](tabular.POWER)
    )
    expected = [objective_2(table, rows, rewards, terminated, eta, divergence) for table in tables]
    assert loss.item() == pytest.approx(eta * sum(expected), abs=1e-10)
    (gradient,) = torch.autograd.grad(loss, q)
    for c, table in enumerate(tables):
        numeric = numeric_gradient(lambda t: objective_2(t, rows, rewards, terminated, eta, divergence), table)
        close(gradient[c], eta * numeric, atol=1e-7)


@every_divergence
def test_full_gradient_critic_loss_is_stationary_at_the_duals_minimum(divergence: str) -> None:
    """On ρ^π_M itself, with a'|s' in expectation, gradient and value of critic_loss are η times the tabular dual's."""
    eta, problem, stationary = 0.7, random_problem(5), []
    dual = Dual(problem, eta, divergence)
    policy, initial = torch.tensor(problem.policy), torch.tensor(problem.initial)
    weights, r = torch.tensor(dual.rho).reshape(-1), torch.tensor(dual.r).reshape(-1)
    for table in (dual.minimise(), np.random.default_rng(0).normal(size=dual.shape)):
        q = torch.tensor(table, requires_grad=True)
        values = (policy * q).sum(-1)  # E_{a'~π}[Q(s',a')]
        no_entropy = torch.zeros((), dtype=torch.float64)
        next_q = values.expand(*dual.r.shape).reshape(-1)
        target = bellman_target(r, torch.zeros_like(r), next_q, no_entropy, no_entropy, problem.gamma)
        rows = q[:, :, None].expand(dual.r.shape).reshape(-1)
        # a mean over rows with equal weights is turned into one with weights ρ by a loss for each row
        each = torch.stack([
            losses.critic_loss(
                rows[i : i + 1][None], target[i : i + 1][None], (initial * values).sum().reshape(1, 1), eta,
                problem.gamma, DIVERGENCES[divergence](tabular.POWER),
            )
            for i in range(len(r))
        ])  # fmt: skip
        loss = (weights * each).sum()
        assert loss.item() == pytest.approx(eta * dual.value(table), abs=1e-10)
        (gradient,) = torch.autograd.grad(loss, q)
        close(gradient, eta * dual.gradient(table))
        stationary.append(gradient.abs().max().item())
    assert stationary[0] < 1e-10 < 1e-3 < stationary[1]


@every_divergence
def test_one_sampled_next_action_bounds_the_dual_from_above(divergence: str) -> None:
    """f* is convex (Jensen): sampling a' inside f*, as the losses do, gives no less than its expectation."""
    problem, rng = random_problem(2), np.random.default_rng(0)
    dual, f = Dual(problem, 1.0, divergence), tabular.DIVERGENCES[divergence]
    for _ in range(10):
        q = rng.normal(size=dual.shape)
        x = dual.r[..., None] + problem.gamma * q - q[:, :, None, None]  # (S, A, S, A')
        sampled = (dual.rho[..., None] * problem.policy * f.conjugate(x)).sum()
        assert (1 - problem.gamma) * (problem.initial[:, None] * problem.policy * q).sum() + sampled >= dual.value(q)


@every_divergence
@pytest.mark.parametrize("eta", [0.5, 2.0])
def test_semi_gradient_critic_loss(divergence: str, eta: float) -> None:
    """Step 9 with a stopped target."""
    rng = np.random.default_rng(0)
    q, target, q0 = rng.normal(size=(2, 50)) * 3, rng.normal(size=50) * 3, rng.normal(size=(2, 20))
    y = (target - q) / eta
    dual = tabular.DIVERGENCES[divergence].conjugate(y)
    expected = eta**2 * dual.mean(1) + eta * (1 - GAMMA) * q0.mean(1)
    loss = losses.critic_loss(
        torch.tensor(q), torch.tensor(target), torch.tensor(q0), eta, GAMMA, DIVERGENCES[divergence](tabular.POWER)
    )
    assert loss.item() == pytest.approx(expected.sum(), abs=1e-10)


def test_chi_squared_has_a_linear_part() -> None:
    """Which raises Q(s,a) where the residual is zero, and lowers Q(s0,a0) as much in expectation."""
    q = torch.zeros(1, 4, dtype=torch.float64, requires_grad=True)
    q0 = torch.zeros(1, 4, dtype=torch.float64, requires_grad=True)
    residual = torch.tensor([-1e-3, 0.0, 0.0, 1e-3], dtype=torch.float64)
    loss = losses.critic_loss(q, residual, q0, 1.0, GAMMA, DIVERGENCES["chi_squared"](tabular.POWER))
    gradients = torch.autograd.grad(loss, (q, q0))
    close(gradients[0], [-(1 + residual.numpy() / 2) / 4])
    close(gradients[1], np.full((1, 4), (1 - GAMMA) / 4))


def test_half_squared_critic_is_td_plus_a_push_down() -> None:
    q = torch.randn(2, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    target, q0 = q[0] + 1, q[:, :3]
    loss = losses.critic_loss(q, target, q0, 2.0, GAMMA, DIVERGENCES["half_squared"](tabular.POWER))
    close(loss, td_loss(q, target) + 2.0 * (1 - GAMMA) * q0.mean(1).sum())


def test_td_loss() -> None:
    loss = td_loss(torch.tensor([[1.0, 2.0], [0.0, 0.0]]), torch.tensor([3.0, 2.0]))
    assert loss.item() == pytest.approx(0.5 * (4 + 0) / 2 + 0.5 * (9 + 4) / 2)


# -- rewards and targets ---------------------------------------------------------------------------------------------


def test_bellman_target() -> None:
    target = bellman_target(
        rewards=torch.tensor([1.0, 1.0]),
        terminated=torch.tensor([0.0, 1.0]),
        next_q=torch.tensor([10.0, 1e9]),
        next_log_prob=torch.tensor([-2.0, -1e9]),
        alpha=torch.tensor(0.5),
        gamma=GAMMA,
    )
    close(target, [1 + GAMMA * (10 + 0.5 * 2), 1.0], atol=1e-6)  # nothing is added beyond a terminal state


def test_bellman_target_of_each_critic() -> None:
    next_q = torch.arange(6.0).reshape(2, 3)
    target = bellman_target(torch.zeros(3), torch.zeros(3), next_q, torch.zeros(3), torch.tensor(0.0), GAMMA)
    close(target, GAMMA * next_q.numpy(), atol=1e-6)


def test_modified_reward_is_the_reward_minus_eta_log_ratio() -> None:
    problem, eta = random_problem(0), 1.7
    rho_model, rho_behavior = problem.rho_model, problem.rho_behavior
    h = rho_behavior / (rho_behavior + rho_model)  # the ideal classifier
    logits = torch.logit(torch.tensor(h))
    close(losses.modified_reward(torch.tensor(problem.rewards), logits, eta), problem.modified_rewards(eta))


# -- classifier ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.3])
def test_classifier_loss_value(smoothing: float) -> None:
    rng = np.random.default_rng(0)
    offline, synthetic = rng.normal(size=7), rng.normal(size=5)
    h, g = 1 / (1 + np.exp(-offline)), 1 / (1 + np.exp(-synthetic))
    expected = (
        -((1 - smoothing) * np.log(h) + smoothing * np.log(1 - h)).mean()
        - (smoothing * np.log(g) + (1 - smoothing) * np.log(1 - g)).mean()
    )
    loss = losses.classifier_loss(torch.tensor(offline), torch.tensor(synthetic), smoothing)
    assert loss.item() == pytest.approx(expected / 2, abs=1e-12)  # (3), as a mean over both halves


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.3])
def test_classifier_optimum_is_the_log_density_ratio(smoothing: float) -> None:
    """On exact, replicated discrete distributions p (offline) and q: logit = log p/q, or its smoothed version."""
    counts_p, counts_q = np.array([40, 5, 3, 1, 1]), np.array([1, 5, 4, 30, 60])
    p, q = counts_p / counts_p.sum(), counts_q / counts_q.sum()
    optimum = np.log(((1 - smoothing) * p + smoothing * q) / (smoothing * p + (1 - smoothing) * q))
    if smoothing == 0:
        np.testing.assert_allclose(optimum, np.log(p / q))
    else:
        assert np.abs(optimum).max() < math.log((1 - smoothing) / smoothing)
    rows_p, rows_q = np.repeat(np.arange(5), counts_p), np.repeat(np.arange(5), counts_q)
    logits = torch.tensor(optimum, requires_grad=True)
    loss = losses.classifier_loss(logits[rows_p], logits[rows_q], smoothing)
    (gradient,) = torch.autograd.grad(loss, logits)
    close(gradient, np.zeros(5))
    for i in range(5):  # convex: a stationary point is the minimum
        moved = torch.tensor(optimum + 0.1 * np.eye(5)[i])
        assert losses.classifier_loss(moved[rows_p], moved[rows_q], smoothing) > loss


def test_classifier_loss_survives_extreme_logits() -> None:
    logits = torch.tensor([-1e4, 1e4], requires_grad=True)
    loss = losses.classifier_loss(logits, logits, 0.1)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert torch.isfinite(loss)
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize(("weights", "expected"), [((3.0, 4.0), 16.0), ((0.3, 0.4), 0.0), ((0.6, 0.8), 0.0)])
def test_gradient_penalty_of_a_linear_classifier(weights: tuple[float, float], expected: float) -> None:
    w = torch.tensor(weights, requires_grad=True)
    inputs = torch.randn(6, 2, generator=torch.Generator().manual_seed(0)).requires_grad_()
    penalty = losses.gradient_penalty(inputs @ w + 1, inputs)
    assert penalty.item() == pytest.approx(expected, abs=1e-5)  # (‖w‖ - 1)₊²
    (gradient,) = torch.autograd.grad(penalty, w)
    norm = w.detach().norm()
    close(gradient, (2 * (norm - 1).clamp(min=0) * w.detach() / norm).numpy(), atol=1e-5)


# -- actor -----------------------------------------------------------------------------------------------------------


@every_divergence
def test_density_ratio_is_clamped_and_carries_no_gradient(divergence: str) -> None:
    residual = torch.tensor([-10.0, -1.0, 0.0, 1.0, 100.0], dtype=torch.float64, requires_grad=True)
    weight = losses.density_ratio(residual, 2.0, DIVERGENCES[divergence](tabular.POWER), max_weight=5.0)
    expected = tabular.DIVERGENCES[divergence].conjugate_prime(residual.detach().numpy() / 2.0)
    close(weight, expected.clip(0, 5))
    assert weight.min() == 0
    assert weight.max() == 5
    assert not weight.requires_grad


@every_divergence
def test_density_ratio_without_an_upper_bound(divergence: str) -> None:
    weight = losses.density_ratio(
        torch.tensor([-5.0, 1e6]), 1.0, DIVERGENCES[divergence](tabular.POWER), max_weight=math.inf
    )
    expected = tabular.DIVERGENCES[divergence].conjugate_prime(np.array([-5.0, 1e6]))
    assert weight.numpy() == pytest.approx(expected.clip(min=0))


@every_divergence
def test_density_ratio_at_the_duals_minimum_has_mean_one(divergence: str) -> None:
    eta, problem = 1.0, gentle_problem(1)
    dual = Dual(problem, eta, divergence)
    x = torch.tensor(dual.residual(dual.minimise()))
    weight = losses.density_ratio(x, eta, DIVERGENCES[divergence](tabular.POWER), max_weight=math.inf)
    close(torch.tensor(dual.rho) * weight, dual.optimiser(dual.minimise()))
    assert (torch.tensor(dual.rho) * weight).sum().item() == pytest.approx(1, abs=1e-8)


def test_consistent_actor_loss() -> None:
    rng = np.random.default_rng(0)
    q0, value, weight = rng.normal(size=5), rng.normal(size=9), rng.uniform(size=9)
    terminated = (rng.uniform(size=9) < 0.4).astype(float)
    expected = -((1 - GAMMA) * q0.mean() + (weight * GAMMA * (1 - terminated) * value).mean())
    loss = losses.consistent_actor_loss(*map(torch.tensor, (q0, value, weight, terminated)), GAMMA)
    assert loss.item() == pytest.approx(expected, abs=1e-12)


@every_divergence
def test_consistent_actor_loss_ascends_the_dual(divergence: str) -> None:
    """With actor_eta = η, its gradient in π is minus that of (2) at the same Q, ρ^π_M held fixed (envelope)."""
    eta, problem = 1.0, gentle_problem(4)
    dual, f = Dual(problem, eta, divergence), DIVERGENCES[divergence](tabular.POWER)
    table = dual.minimise()
    rho, r, q = torch.tensor(dual.rho), torch.tensor(dual.r), torch.tensor(table)
    logits = torch.tensor(np.log(problem.policy), requires_grad=True)
    values = (logits.softmax(-1) * q).sum(-1)
    x = r + problem.gamma * values - q[..., None]
    initial = (torch.tensor(problem.initial) * values).sum()
    dual_value = (1 - problem.gamma) * initial + eta * (rho * f.conjugate(x / eta)).sum()
    assert dual_value.item() == pytest.approx(dual.value(table), abs=1e-10)

    weight = losses.density_ratio(x, eta, f, max_weight=math.inf)
    assert weight.min() > 0
    count = rho.numel()  # the loss averages over rows of equal weight: fold ρ into the ratio
    loss = losses.consistent_actor_loss(
        initial.reshape(1), values.expand_as(r).reshape(-1), count * (rho * weight).reshape(-1),
        torch.zeros(count, dtype=torch.float64), problem.gamma,
    )  # fmt: skip
    (actual,) = torch.autograd.grad(loss, logits, retain_graph=True)
    (expected,) = torch.autograd.grad(dual_value, logits)
    close(actual, -expected.numpy())
    assert expected.abs().max() > 1e-4


def test_sac_actor_loss() -> None:
    q, log_prob = torch.tensor([1.0, 3.0], requires_grad=True), torch.tensor([-1.0, 0.5], requires_grad=True)
    loss = sac_actor_loss(q, log_prob, torch.tensor(0.2))
    assert loss.item() == pytest.approx(0.2 * -0.25 - 2.0)
    gradients = torch.autograd.grad(loss, (q, log_prob))
    close(gradients[0], [-0.5, -0.5])
    close(gradients[1], [0.1, 0.1], atol=1e-7)


@pytest.mark.parametrize(("log_prob", "direction"), [(5.0, 1), (-5.0, -1)])
def test_alpha_loss(log_prob: float, direction: int) -> None:
    """α rises while the entropy (-log π) is below its target -2, falls while it is above."""
    log_alpha = torch.tensor(math.log(0.5), requires_grad=True)
    log_probs = torch.full((4,), log_prob, requires_grad=True)
    loss = alpha_loss(log_alpha, log_probs, target_entropy=-2.0)
    assert loss.item() == pytest.approx(-0.5 * (log_prob - 2.0))
    gradient, policy_gradient = torch.autograd.grad(loss, (log_alpha, log_probs), allow_unused=True)
    assert gradient.item() == pytest.approx(-0.5 * (log_prob - 2.0))
    assert -gradient.sign() == direction
    assert policy_gradient is None
