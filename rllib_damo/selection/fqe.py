"""Fitted Q evaluation of several policies at once (Le et al. 2019, arXiv 1903.08738), on bootstraps of the episodes.

For policy i, head e and a row (s, a, r, s') of episode k:

    y = r + γ (1 - terminated) Q̄_{i,e}(s', π_i(s')),    loss = w_{e,k} (Q_{i,e}(s, a) - y)²

w_{e,k} is how often a bootstrap of the episodes drew episode k. A batch holds rows of each head's own bootstrap, drawn
so often: with weights instead, a third of the rows of a batch would count nothing, and a batch of n rows would say as
much as one of n/2. All policies have the same bootstraps, batches and first networks, so their differences have a much
smaller error than their values.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from rllib_damo.selection.critic import BATCH, Critic
from rllib_damo.selection.rows import Rows

#: Share of a policy's targets beyond the bounds from which its critic counts as diverged.
CLIPPED_SHARE = 0.01
_WIDENED = 0.2  # the bounds, in ranges of the rewards


class Bounds(NamedTuple):
    """The least and the largest value that is possible, and the mean and spread of the data's returns, (M,) each."""

    low: Tensor
    high: Tensor
    center: Tensor
    scale: Tensor

    @classmethod
    def of(cls, rows: Rows, signals: Tensor, gamma: float) -> Bounds:
        """From the data: ``signals (N, M)`` are the rewards, and whatever else is summed in the same way.

        An episode that was cut is taken to go on with the mean signal. Rewards times a number multiply all four by it;
        where nothing terminates, rewards plus c add c / (1 - γ) to all but the spread.
        """
        parts = []
        for signal in signals.T:
            least, most = float(signal.min()), float(signal.max())
            margin, spread = _WIDENED * (most - least), float(signal.double().std())
            to_go = rows.returns_to_go(signal, gamma, tail=float(signal.double().mean()) / (1 - gamma))
            low, high = (least - margin) / (1 - gamma), (most + margin) / (1 - gamma)
            if rows.terminated.any():  # an end gives one reward and no more
                low, high = min(low, least - margin), max(high, most + margin)
            scale = max(float(to_go.std()), spread / (1 - gamma) / 20) or 1.0
            parts.append((low, high, float(to_go.mean()), scale))
        return cls(*torch.tensor(parts, dtype=torch.float64).T)


def episode_weights(num_heads: int, num_episodes: int, seed: int) -> Tensor:
    """How often each head's bootstrap draws each episode: ``(E, episodes)``."""
    rng = np.random.default_rng((seed, 1))
    drawn = rng.multinomial(num_episodes, np.full(num_episodes, 1 / num_episodes), size=num_heads)
    return torch.from_numpy(drawn.astype(np.float32))


def bellman_targets(signals: Tensor, terminated: Tensor, next_values: Tensor, gamma: float) -> Tensor:
    """y ``(K, E, B, M)`` from signals ``(B, M)``, terminated ``(B,)`` bool and values ``(K, E, B, M)`` at s'.

    Signals and terminated may be of each head's own rows, ``(E, B, M)`` and ``(E, B)``.

    A terminal row's s' is never read: it may be anything, NaN included.
    """
    return signals + gamma * next_values.masked_fill(terminated[..., None], 0.0)


class FQE:
    """Evaluates K policies by E heads each.

    Args:
        rows: the data.
        next_actions: ``(K, N, act)`` unit actions of each policy at the rows' next states.
        start_actions: ``(K, episodes, act)`` at the episodes' first states.
        critic: the functions to be fitted.
        gamma: the discount.
        signals: ``(N, M)``, the rewards first.
        bounds: of what is possible.
        weights: ``(E, episodes)``, as of `episode_weights`.
        seed: of the batches: the batch of a step depends on it and on the step's number alone.
        batch_size: rows of a step and head, drawn from the head's bootstrap; None: all, in order and with weights.
    """

    def __init__(
        self, rows: Rows, next_actions: Tensor, start_actions: Tensor, critic: Critic, *, gamma: float, signals: Tensor,
        bounds: Bounds, weights: Tensor, seed: int = 0, batch_size: int | None = BATCH,
    ):  # fmt: skip
        self.rows, self.critic, self.gamma, self.step_number = rows, critic, gamma, 0
        self._next_actions, self._start_actions, self._signals = next_actions, start_actions, signals
        self._low, self._high = bounds.low.to(signals.dtype), bounds.high.to(signals.dtype)
        self._weights, self._seed, self._batch_size = weights, seed, batch_size
        self._drawn = (weights.double() * (rows.stops - rows.starts)).cumsum(-1)  # (E, episodes), rows up to each
        self._clipped = torch.zeros(len(next_actions), dtype=torch.float64)
        self._targets = 0
        self.diverged = torch.zeros(len(next_actions), dtype=torch.bool)

    @property
    def num_policies(self) -> int:
        return len(self._next_actions)

    def replace(self, i: int, next_actions: Tensor, start_actions: Tensor) -> None:
        """Goes on with another policy in the i-th place: ``(N, act)`` and ``(episodes, act)``."""
        self._next_actions[i], self._start_actions[i] = next_actions, start_actions

    def train(self, steps: int, tau: Callable[[int], float]) -> None:
        """So many steps; ``tau`` gives the weight of the newest networks in the targets for a step's number."""
        for _ in range(steps):
            self.step(tau(self.step_number))

    @torch.no_grad()
    def step(self, tau: float) -> None:
        """One batch of each head, the same for all policies."""
        rows, (index, weights) = self.rows, self._batch()
        terminated = rows.terminated[index]
        next_obs = rows.next_obs[index].masked_fill(terminated[..., None], 0.0)
        next_values = self.critic.values(next_obs, self._next_actions[:, index])
        targets = bellman_targets(self._signals[index], terminated, next_values, self.gamma)
        clipped = targets.clamp(self._low, self._high)
        self._clipped += (clipped[..., 0] != targets[..., 0]).double().mean((1, 2))  # NaN counts as beyond
        self._targets += 1
        clipped = torch.where(clipped.isfinite(), clipped, self._low)
        self.critic.update(rows.obs[index], rows.actions[index], clipped, weights)
        self.critic.follow(tau)
        self.step_number += 1

    def _batch(self) -> tuple[Tensor, Tensor]:
        """Rows ``(E, B)``, or ``(B,)`` of all heads, and the weights ``(E, B)`` of their losses."""
        if self._batch_size is None:
            return torch.arange(len(self.rows)), self._weights[:, self.rows.episode]
        rng = np.random.default_rng((self._seed, 2, self.step_number))
        share = torch.from_numpy(rng.random((len(self._weights), self._batch_size)))
        place = (share * self._drawn[:, -1:]).floor()  # among the rows of the bootstrap
        episode = torch.searchsorted(self._drawn, place, right=True)
        last = self.rows.stops[episode] - 1
        following = (self._drawn.gather(1, episode) - 1 - place).long() % (last + 1 - self.rows.starts[episode])
        return last - following, torch.ones(place.shape)

    def values(self) -> Tensor:
        """V ``(K, E, M)``: the mean of Q̄(s_0, π(s_0)) over each head's bootstrap of the episodes.

        It also closes the account of targets beyond the bounds since the last call: see ``diverged``.
        """
        found = self.critic.values(self.rows.obs[self.rows.starts], self._start_actions)
        values = torch.einsum("kebm,eb->kem", found.double(), self._weights.double())
        values = values / self._weights.double().sum(-1)[None, :, None]
        if self._targets:
            self.diverged = (self._clipped / self._targets > CLIPPED_SHARE) | ~values.isfinite().all(-1).all(-1)
            self._clipped.zero_()
            self._targets = 0
        return values

    def state(self) -> dict[str, Any]:
        """All that changes in training, to be taken right after `values`."""
        return {"step": self.step_number, "critic": self.critic.state(), "diverged": self.diverged}

    def set_state(self, state: dict[str, Any]) -> None:
        self.step_number, self.diverged = state["step"], state["diverged"]
        self.critic.set_state(state["critic"])


def default_gamma(longest: int, trained_with: float) -> float:
    """The selection's discount: 1 - 3/T for episodes of up to T steps, between the training's and 0.997.

    At 0.99 a fall at step 500 of 1,000 costs 0.7 % of the value, and no estimate is that exact.
    """
    return max(trained_with, min(1 - 3 / max(longest, 4), 0.997))


def settling_steps(gamma: float, tau: float) -> int:
    """Steps until the first networks' part in the values has fallen to a fifth: one backup takes 1/τ steps."""
    return math.ceil(math.log(0.2) / math.log(gamma) / tau)
