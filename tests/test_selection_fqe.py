"""Fitted Q evaluation against exact oracles: the same code with a critic whose fit is exact, and the networks."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from rllib_damo.data.schema import Transitions
from rllib_damo.selection.critic import NetworkCritic
from rllib_damo.selection.fqe import FQE, Bounds, default_gamma, episode_weights, settling_steps
from rllib_damo.selection.rows import Rows

UNBOUNDED = Bounds(torch.tensor([-torch.inf]), torch.tensor([torch.inf]), torch.zeros(1), torch.ones(1))


class ExactCritic:
    """Least squares on features, solved anew at each step: fitted Q iteration in its textbook form."""

    def __init__(self, features: Any, num_policies: int, num_heads: int, ridge: float = 0.0):
        self.features, self.shape, self.ridge = features, (num_policies, num_heads), ridge
        self.theta = self.target = None

    def values(self, obs: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        obs = obs.expand(self.shape[0], *obs.shape[-2:])
        phi = self.features(obs.double(), actions.double())
        if self.target is None:
            return phi.new_zeros(*self.shape, phi.shape[1], 1)
        return torch.einsum("kbf,kef->keb", phi, self.target)[..., None]

    def update(self, obs, actions, targets, weights) -> None:
        phi = self.features(obs.double(), actions.double())
        gram = torch.einsum("bf,eb,bg->efg", phi, weights.double(), phi) + self.ridge * torch.eye(phi.shape[1])
        right = torch.einsum("bf,eb,keb->kef", phi, weights.double(), targets[..., 0])
        self.theta = torch.linalg.solve(gram.expand(self.shape[0], *gram.shape), right)

    def follow(self, tau: float) -> None:
        self.target = self.theta

    def state(self) -> dict[str, Any]:
        return {}

    def set_state(self, state: dict[str, Any]) -> None: ...


def rows_of(obs, actions, rewards, next_obs, terminated, ends, dtype=torch.float64) -> Rows:
    """Rows from plain arrays; ``ends`` marks the last row of each episode."""
    stops = np.flatnonzero(ends) + 1
    starts = np.concatenate([[0], stops[:-1]])

    def tensor(array):
        return torch.as_tensor(array, dtype=dtype)

    return Rows(
        tensor(obs), tensor(actions), tensor(rewards), tensor(next_obs), torch.as_tensor(terminated),
        torch.from_numpy(np.repeat(np.arange(len(stops)), stops - starts)), torch.from_numpy(starts),
        torch.from_numpy(stops),
    )  # fmt: skip


def exact(rows: Rows, policies, features, gamma: float, *, heads=1, steps=400, weights=None, ridge=0.0) -> FQE:
    """FQE to convergence by least squares on all rows."""
    next_actions = torch.stack([policy(rows.next_obs) for policy in policies])
    start_actions = torch.stack([policy(rows.obs[rows.starts]) for policy in policies])
    weights = torch.ones(heads, rows.num_episodes, dtype=torch.float64) if weights is None else weights
    critic = ExactCritic(features, len(policies), heads, ridge)
    fqe = FQE(
        rows, next_actions, start_actions, critic, gamma=gamma, signals=rows.rewards[:, None], bounds=UNBOUNDED,
        weights=weights, batch_size=None,
    )  # fmt: skip
    fqe.train(steps, lambda step: 1.0)
    return fqe


# -- a linear-quadratic regulator ------------------------------------------------------------------------------------

A = torch.tensor([[0.9, 0.2, 0.0], [0.0, 0.8, 0.1], [0.1, 0.0, 0.7]], dtype=torch.float64)
B = torch.tensor([[0.0], [0.5], [0.3]], dtype=torch.float64)
COST_S = torch.diag(torch.tensor([1.0, 0.5, 0.2], dtype=torch.float64))
COST_A = torch.tensor([[0.3]], dtype=torch.float64)
GAINS = [torch.tensor([[0.1, -0.3, 0.2]], dtype=torch.float64), torch.tensor([[-0.4, 0.0, 0.1]], dtype=torch.float64)]
GAMMA = 0.95


def quadratic(obs: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
    z = torch.cat((obs, actions), -1)
    i, j = torch.triu_indices(z.shape[-1], z.shape[-1])
    return torch.cat((z[..., i] * z[..., j], torch.ones_like(z[..., :1])), -1)


def lqr_rows(episodes=30, length=20, noise=1.0, seed=0, process=0.0) -> Rows:
    rng = torch.Generator().manual_seed(seed)
    states = torch.randn(episodes, 3, generator=rng, dtype=torch.float64)
    columns: list[list[torch.Tensor]] = [[], [], [], []]
    for _ in range(length):
        actions = noise * torch.randn(episodes, 1, generator=rng, dtype=torch.float64)
        following = states @ A.T + actions @ B.T
        if process:
            following = following + process * torch.randn(episodes, 3, generator=rng, dtype=torch.float64)
        cost = (states @ COST_S * states).sum(-1) + (actions @ COST_A * actions).sum(-1)
        for column, value in zip(columns, (states, actions, -cost, following), strict=True):
            column.append(value)
        states = following
    obs, actions, rewards, next_obs = (torch.stack(column, 1).flatten(0, 1) for column in columns)
    ends = np.tile(np.arange(length) == length - 1, episodes)
    return rows_of(obs, actions, rewards, next_obs, np.zeros(len(ends), bool), ends)


def lqr_value(gain: torch.Tensor, starts: torch.Tensor) -> torch.Tensor:
    """-s'Ps, where P solves P = Q + K'RK + γ F'PF with F = A + BK."""
    closed = A + B @ gain
    cost = COST_S + gain.T @ COST_A @ gain
    left = torch.eye(9, dtype=torch.float64) - GAMMA * torch.kron(closed.T, closed.T)
    p = torch.linalg.solve(left, cost.flatten()).view(3, 3)
    return -(starts @ p * starts).sum(-1)


def test_a_linear_quadratic_regulator_is_exact():
    rows = lqr_rows()
    policies = [lambda obs, k=gain: obs @ k.T for gain in GAINS]
    values = exact(rows, policies, quadratic, GAMMA).values()[:, 0, 0]
    for found, gain in zip(values, GAINS, strict=True):
        expected = lqr_value(gain, rows.obs[rows.starts]).mean()
        assert abs(float(found - expected)) < 1e-6


def test_noisy_regulators_are_put_in_order():
    """With process noise W the value is -(s'Ps + γ tr(PW) / (1 - γ)); an estimate from samples is near it."""
    rng, process = torch.Generator().manual_seed(1), 0.2
    rows = lqr_rows(episodes=600, process=process)
    gains = [0.2 * torch.randn(1, 3, generator=rng, dtype=torch.float64) for _ in range(8)]
    starts = rows.obs[rows.starts]
    exact_values, unit = [], torch.eye(3, dtype=torch.float64)
    for gain in gains:
        trace = -sum(float(lqr_value(gain, unit[i : i + 1])) for i in range(3))  # of P
        constant = GAMMA * process**2 * trace / (1 - GAMMA)
        exact_values.append(float(lqr_value(gain, starts).mean()) - constant)
    policies = [lambda obs, gain=gain: obs @ gain.T for gain in gains]
    found = exact(rows, policies, quadratic, GAMMA).values()[:, 0, 0].numpy()
    np.testing.assert_allclose(found, exact_values, rtol=0.25)
    order, real = np.argsort(np.argsort(found)), np.argsort(np.argsort(exact_values))
    assert np.corrcoef(order, real)[0, 1] >= 0.9


def test_divergence_is_noticed_and_ends():
    """With hardly any noise in the actions, the iteration's spectral radius is far above 1."""
    rows = lqr_rows(noise=0.005)
    rows.actions.add_(rows.obs @ torch.tensor([[0.2], [0.1], [-0.1]], dtype=torch.float64))
    rows.rewards.add_(1e-3 * torch.randn(len(rows), generator=torch.Generator().manual_seed(3), dtype=torch.float64))
    rows.next_obs.add_(0.3 * torch.randn(rows.next_obs.shape, generator=torch.Generator().manual_seed(4)))
    bounds = Bounds.of(rows, rows.rewards[:, None], GAMMA)
    policies = [lambda obs: -3 * obs[:, :1], lambda obs: obs @ torch.tensor([[0.2], [0.1], [-0.1]]).double()]
    actions = [torch.stack([p(part) for p in policies]) for part in (rows.next_obs, rows.obs[rows.starts])]
    fqe = FQE(
        rows, *actions, ExactCritic(quadratic, 2, 1), gamma=GAMMA, signals=rows.rewards[:, None], bounds=bounds,
        weights=torch.ones(1, rows.num_episodes), batch_size=None,
    )  # fmt: skip
    fqe.train(60, lambda step: 1.0)
    values = fqe.values()
    assert fqe.diverged.tolist() == [True, False]
    assert values.isfinite().all()


# -- a tabular problem -----------------------------------------------------------------------------------------------

STATES, ACTIONS = 5, 2


class Table:
    """Random transitions of 5 states and 2 actions; the last state ends an episode with certainty."""

    def __init__(self, seed: int = 0):
        rng = np.random.default_rng(seed)
        self.next = rng.dirichlet(np.ones(STATES), size=(STATES, ACTIONS))
        self.reward = rng.standard_normal((STATES, ACTIONS))
        self.first = rng.dirichlet(np.ones(STATES - 1))
        self.policy = rng.integers(ACTIONS, size=STATES)

    def episodes(self, number: int, length: int, seed: int) -> Rows:
        """Uniformly random actions; cut at ``length``."""
        rng, found, ends = np.random.default_rng(seed), [], []
        for _ in range(number):
            state = rng.choice(STATES - 1, p=self.first)
            for t in range(length):
                action = rng.integers(ACTIONS)
                following = rng.choice(STATES, p=self.next[state, action])
                over = following == STATES - 1
                found.append((state, action, self.reward[state, action] + rng.standard_normal(), following, over))
                ends.append(over or t == length - 1)
                if over:
                    break
                state = following
        state, action, reward, following, over = (np.array(column) for column in zip(*found, strict=True))
        return rows_of(state[:, None], action[:, None], reward, following[:, None], over, np.array(ends))

    def act(self, obs: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(self.policy)[obs[..., 0].nan_to_num().long()][..., None].to(obs.dtype)

    def value(self, gamma: float) -> float:
        """Of the true problem, from its first states."""
        s = np.arange(STATES - 1)
        follow = self.next[s, self.policy[s]][:, :-1]
        values = np.linalg.solve(np.eye(STATES - 1) - gamma * follow, self.reward[s, self.policy[s]])
        return float(self.first @ values)


def one_hot(obs: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
    index = (obs[..., 0].nan_to_num() * ACTIONS + actions[..., 0]).long()
    return torch.nn.functional.one_hot(index, STATES * ACTIONS).double()


def certainty_equivalent(rows: Rows, act, gamma: float, weights: torch.Tensor) -> float:
    """The linear solve for the problem that the weighted data describe."""
    index = one_hot(rows.obs, rows.actions)
    w = weights[rows.episode].double()
    counts = (index * w[:, None]).sum(0).clamp_min(1e-12)
    reward = (index * (w * rows.rewards)[:, None]).sum(0) / counts
    following = one_hot(rows.next_obs, act(rows.next_obs)) * (~rows.terminated)[:, None]
    p = torch.einsum("bf,b,bg->fg", index, w, following) / counts[:, None]
    q = torch.linalg.solve(torch.eye(len(p), dtype=torch.float64) - gamma * p, reward)
    starts = rows.obs[rows.starts]
    return float(((one_hot(starts, act(starts)) @ q) * weights).sum() / weights.sum())


def test_a_table_is_solved():
    table = Table()
    rows = table.episodes(60, 15, seed=1)
    weights = episode_weights(3, rows.num_episodes, seed=0).double()
    fqe = exact(rows, [table.act], one_hot, 0.9, heads=3, weights=weights, ridge=1e-10)
    for head in range(3):
        expected = certainty_equivalent(rows, table.act, 0.9, weights[head])
        assert abs(float(fqe.values()[0, head, 0]) - expected) < 1e-5


def test_many_episodes_give_the_true_value():
    table = Table()
    fqe = exact(table.episodes(3000, 15, seed=2), [table.act], one_hot, 0.9, steps=200, ridge=1e-10)
    assert abs(float(fqe.values()[0, 0, 0]) - table.value(0.9)) < 0.1


def test_terminals_end_and_truncations_go_on():
    """By hand: episode A ends in a terminal with reward 3 after 1, episode B is cut after reward 2 in state 1."""
    rows = rows_of(
        [[0], [1], [1]], [[0], [0], [0]], [1.0, 3.0, 3.0], [[1], [np.nan], [1]], [False, True, False],
        [False, True, True],
    )  # fmt: skip
    rows.terminated[1] = True
    fqe = exact(rows, [lambda obs: torch.zeros_like(obs[..., :1])], one_hot, 0.5, ridge=1e-12)
    at = fqe.critic.values(torch.tensor([[0.0], [1.0]]), torch.zeros(1, 2, 1))[0, 0, :, 0]
    # Q(1) is the mean of 3 and 3 + 0.5 Q(1); Q(0) = 1 + 0.5 Q(1)
    np.testing.assert_allclose(at, [1 + 0.5 * 4, 4], rtol=1e-9)


def test_the_order_of_episodes_does_not_matter():
    """So no row is paired with one of the episode after it."""
    table = Table()
    rows = table.episodes(20, 15, seed=3)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(0))
    index = torch.cat([torch.arange(int(rows.starts[k]), int(rows.stops[k])) for k in order])
    ends = np.zeros(len(rows), bool)
    ends[rows.stops.numpy() - 1] = True
    columns = (part[index] for part in (rows.obs, rows.actions, rows.rewards, rows.next_obs, rows.terminated))
    shuffled = rows_of(*columns, ends[index.numpy()])
    weights = episode_weights(2, 20, seed=0).double()
    values = [
        exact(part, [table.act], one_hot, 0.9, heads=2, weights=w, ridge=1e-10).values()
        for part, w in ((rows, weights), (shuffled, weights[:, order]))
    ]
    torch.testing.assert_close(*values, rtol=1e-9, atol=1e-9)


def test_four_heads_cover_the_truth():
    """Nominal 90 % over fresh datasets of 50 episodes."""
    table, t90 = Table(), 2.353
    truth, covered, repeats = table.value(0.9), 0, 100
    for seed in range(repeats):
        rows = table.episodes(50, 15, seed=100 + seed)
        weights = episode_weights(4, 50, seed=seed).double()
        values = [certainty_equivalent(rows, table.act, 0.9, w) for w in weights]
        covered += abs(np.mean(values) - truth) <= t90 * np.std(values, ddof=1)
    assert 0.82 <= covered / repeats <= 0.97


# -- the networks ----------------------------------------------------------------------------------------------------


def make_rows(episodes: int = 40, length: int = 10, seed: int = 0, terminals: bool = True) -> Rows:
    rng = np.random.default_rng(seed)
    n = episodes * length
    obs = rng.standard_normal((n, 2)).astype(np.float32)
    actions = rng.uniform(-1, 1, (n, 1)).astype(np.float32)
    rewards = (obs[:, 0] * actions[:, 0]).astype(np.float32)
    ends = np.tile(np.arange(length) == length - 1, episodes)
    terminated = ends & (rng.random(n) < 0.5) & terminals
    next_obs = (0.5 * obs + actions).astype(np.float32)
    return rows_of(obs, actions, rewards, next_obs, terminated, ends, torch.float32)


POLICIES = [lambda obs: obs[:, :1].tanh(), lambda obs: -obs[:, :1].tanh(), lambda obs: 0.1 * obs[:, 1:].tanh()]


def network(rows: Rows, policies, heads=2, seed=0, gamma=0.9, hidden=(16, 16)) -> FQE:
    signals = rows.rewards[:, None]
    bounds = Bounds.of(rows, signals, gamma)
    critic = NetworkCritic(
        len(policies), heads, (rows.obs.mean(0), rows.obs.std(0)), 1, bounds.center, bounds.scale, 1e-3, seed, hidden
    )
    actions = [torch.stack([p(part) for p in policies]) for part in (rows.next_obs, rows.obs[rows.starts])]
    weights = episode_weights(heads, rows.num_episodes, seed)
    return FQE(
        rows, *actions, critic, gamma=gamma, signals=signals, bounds=bounds, weights=weights, seed=seed, batch_size=32
    )


def trained(rows: Rows, policies, steps=100, **options) -> torch.Tensor:
    fqe = network(rows, policies, **options)
    fqe.train(steps, lambda step: 0.02)
    return fqe.values()[..., 0]


def test_a_heads_rows_are_those_of_its_bootstrap():
    """Each row as often as its episode was drawn, whatever the lengths; none of an episode that was not."""
    ends = np.isin(np.arange(12), (0, 4, 11))  # episodes of 1, 4 and 7 rows
    zeros = np.zeros((12, 1))
    rows = rows_of(zeros, zeros, zeros[:, 0], zeros, np.zeros(12, bool), ends, torch.float32)
    weights = torch.tensor([[3.0, 0.0, 1.0], [0.0, 2.0, 1.0]])
    bounds = Bounds.of(rows, rows.rewards[:, None], 0.9)
    critic = NetworkCritic(1, 2, (torch.zeros(1), torch.ones(1)), 1, bounds.center, bounds.scale, 1e-3, 0, (4,))
    actions = torch.zeros(1, 12, 1)
    fqe = FQE(
        rows, actions, actions[:, :3], critic, gamma=0.9, signals=rows.rewards[:, None], bounds=bounds, weights=weights,
        batch_size=500,
    )  # fmt: skip
    counts = torch.zeros(2, 12)
    for fqe.step_number in range(80):
        index, weight = fqe._batch()
        assert (weight == 1).all()
        counts += torch.stack([torch.bincount(own, minlength=12) for own in index])
    expected = weights[:, rows.episode] / weights[:, rows.episode].sum(-1, keepdim=True)
    torch.testing.assert_close(counts / counts.sum(-1, keepdim=True), expected, atol=0.006, rtol=0)
    assert (counts[expected == 0] == 0).all()


def test_identical_policies_have_identical_values():
    values = trained(make_rows(), [POLICIES[0], POLICIES[1], POLICIES[0]])
    assert torch.equal(values[0], values[2])
    assert not torch.equal(values[0], values[1])


def test_close_policies_differ_less_than_their_values_do():
    close = [POLICIES[0], lambda obs: 0.98 * obs[:, :1].tanh()]
    values = trained(make_rows(), close, heads=8, steps=300)
    assert (values[0] - values[1]).std() < 0.5 * values.std(1).max()


def test_the_stack_equals_networks_trained_alone():
    rows = make_rows()
    together = trained(rows, POLICIES)
    alone = torch.cat([trained(rows, [policy]) for policy in POLICIES])
    torch.testing.assert_close(together, alone, rtol=1e-6, atol=1e-6)


def test_every_episode_twice_has_the_same_values_and_narrower_heads():
    once = lqr_rows(episodes=30)
    names = ("obs", "actions", "rewards", "next_obs", "terminated")
    both = {name: getattr(once, name).repeat((2,) + (1,) * (getattr(once, name).ndim - 1)) for name in names}
    stops = np.concatenate([once.stops, once.stops + len(once)])
    ends = np.isin(np.arange(2 * len(once)), stops - 1)
    twice = rows_of(*(both[name] for name in names), ends)
    policies, heads = [lambda obs: obs @ GAINS[0].T], 200
    plain = [exact(rows, policies, quadratic, GAMMA).values()[0, 0, 0] for rows in (once, twice)]
    assert float(plain[0]) == pytest.approx(float(plain[1]), rel=1e-9)
    spreads = []
    for rows in (once, twice):
        weights = episode_weights(heads, rows.num_episodes, 0).double()
        spreads.append(float(exact(rows, policies, quadratic, GAMMA, heads=heads, weights=weights).values().std()))
    assert spreads[1] == pytest.approx(spreads[0] / 2**0.5, rel=0.15)


def test_ten_times_the_rewards_are_ten_times_the_values():
    rows = make_rows()
    values = trained(rows, POLICIES)
    rows.rewards.mul_(10)
    torch.testing.assert_close(trained(rows, POLICIES), 10 * values, rtol=1e-4, atol=1e-4)


def test_shifted_rewards_shift_the_values_where_nothing_terminates():
    rows = make_rows(terminals=False)
    values = trained(rows, POLICIES, gamma=0.8)
    rows.rewards.add_(2.0)
    torch.testing.assert_close(trained(rows, POLICIES, gamma=0.8), values + 2.0 / 0.2, rtol=1e-3, atol=1e-3)


def test_successors_of_terminals_are_not_read():
    rows, damaged = make_rows(), make_rows()
    damaged.next_obs[damaged.terminated] = torch.nan
    expected = network(rows, POLICIES)
    found = network(rows, POLICIES)
    found.rows = damaged
    found._next_actions = found._next_actions.masked_fill(damaged.terminated[:, None], torch.nan)
    for fqe in (expected, found):
        fqe.train(20, lambda step: 0.02)
    assert torch.equal(found.values(), expected.values())


def test_an_interrupted_training_goes_on_bit_for_bit():
    rows = make_rows()
    whole, first, second = (network(rows, POLICIES) for _ in range(3))
    whole.train(30, lambda step: 0.02)
    whole.values()
    whole.train(30, lambda step: 0.02)
    first.train(30, lambda step: 0.02)
    first.values()
    second.set_state(first.state())
    second.train(30, lambda step: 0.02)
    assert torch.equal(second.values(), whole.values())


def test_networks_find_the_better_policy():
    """The reward is s_0 a: following the sign of s_0 pays, the opposite costs."""
    values = trained(make_rows(100), POLICIES, steps=600, hidden=(32, 32)).mean(1)
    assert values[0] > values[2] > values[1]


# -- the rest --------------------------------------------------------------------------------------------------------


def test_bounds_hold_an_immediate_end():
    rows = make_rows()
    rows.rewards.fill_(1.0)
    bounds = Bounds.of(rows, rows.rewards[:, None], 0.9)
    assert float(bounds.low) == 1.0
    assert float(bounds.high) == pytest.approx(10.0)


def test_returns_are_completed_where_an_episode_was_cut():
    space = gym.spaces.Box(-2.0, 2.0, (1,))
    zeros = np.zeros((3, 1), np.float32)
    rewards = np.array([1, 2, 4], np.float32)
    ends = np.array([False, True, False]), np.array([False, False, True])
    rows = Rows.of(Transitions(zeros, zeros + 1, rewards, zeros, *ends), space)
    assert rows.actions.unique().tolist() == [0.5]
    assert rows.discounted_returns(0.5).tolist() == [2.0, 4.0]
    assert rows.discounted_returns(0.5, torch.tensor([10.0, 10.0])).tolist() == [2.0, 4.0 + 5.0]
    assert rows.returns_to_go(rows.rewards, 0.5, tail=10.0).tolist() == [2.0, 2.0, 4.0 + 5.0]


def test_the_discount_follows_the_length_of_episodes():
    assert default_gamma(1000, 0.99) == 0.997
    assert default_gamma(200, 0.9) == 1 - 3 / 200
    assert default_gamma(200, 0.99) == 0.99
    assert default_gamma(10_000, 0.999) == 0.999
    assert settling_steps(0.99, 0.02) == 8007
