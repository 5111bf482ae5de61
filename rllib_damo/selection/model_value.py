"""The second opinion: values by short rollouts in a dynamics model that no candidate has seen, with Q̄ at their ends.

    V = mean over s_0 of Σ_{t<h} γ^t r_t + γ^h Q̄(s_h, π(s_h)),    cut where the episode ends or the model is unsure

The judge's model has other networks and another seed than the candidates', which may have exploited theirs. The
length h is the largest at which its open-loop error along logged actions is small.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from rllib_damo.dynamics import cache
from rllib_damo.dynamics.ensemble import DynamicsEnsemble
from rllib_damo.dynamics.rollout import as_terminated
from rllib_damo.dynamics.training import DynamicsTrainer
from rllib_damo.selection.behavior_density import StateBox
from rllib_damo.selection.clone import Policy
from rllib_damo.selection.rows import Rows
from rllib_damo.tasks import TerminationFn

LENGTHS = (50, 20, 10, 5)
_LARGEST_ERROR = 0.25  # of h steps, in standard deviations of the states
_SEED_OFFSET = 7919
_DRAWS = 5
_MOST_STARTS = 200
_ROWS_TRIED = 1000
_PART = 1024  # rows that pass through all members together


@dataclass(frozen=True)
class Judge:
    """A dynamics model that serves to compare policies.

    Attributes:
        model: the ensemble.
        rule: ``(obs, unit actions, next_obs) -> (B,)`` bool.
        length: h; 0: the model is too inexact, and there is no second opinion.
        errors: the open-loop error at each of ``LENGTHS``, in standard deviations.
        limit: disagreement of the members from which a rollout ends.
    """

    model: DynamicsEnsemble
    rule: TerminationFn
    length: int
    errors: dict[int, float]
    limit: float


def train_judge(
    rows: Rows, fingerprint: str, action_space: gym.spaces.Box, *, learn_terminations: bool, seed: int,
    cache_dir: str | os.PathLike[str] | None = None, hidden_dims: Sequence[int] = (256, 256, 256),
    epochs: int | None = None,
    progress: Callable[[str], None] = lambda text: None,
) -> DynamicsEnsemble:  # fmt: skip
    """The judge's model: from the cache, or trained on ``rows`` and kept there.

    Args:
        rows: the training part of the data.
        fingerprint: of these rows.
        action_space: the environment's, whose bounds the rows' unit actions stand for.
        learn_terminations: whether no rule is known.
        seed: of the selection; the model's is another one than any candidate's.
        cache_dir: as in ``.dynamics(dynamics_cache_dir=...)``.
        hidden_dims: of the networks.
        epochs: at most; None: 8 of 200,000 rows, more of fewer.
        progress: gets a line an epoch.

    Raises:
        UserError: the cache holds a damaged file that cannot be removed.
    """
    epochs = epochs or int(np.clip(1_600_000 // len(rows), 8, 60))
    decay = (2.5e-5, *[5e-5] * (len(hidden_dims) - 1), 1e-4)
    settings = {
        "judge": 1, "hidden_dims": tuple(hidden_dims), "epochs": epochs, "learn_terminations": learn_terminations,
        "action_bounds": [action_space.low.tolist(), action_space.high.tolist()],
    }  # fmt: skip
    key = cache.key(fingerprint, settings, seed + _SEED_OFFSET)
    path = cache.path(key, cache_dir)
    with cache.lock(key, cache_dir):
        cached = cache.read(path, "The judge's model is trained again.")
        if cached is not None:
            return cached
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed + _SEED_OFFSET)
            ensemble = DynamicsEnsemble(
                rows.obs.shape[1], rows.actions.shape[1], hidden_dims=hidden_dims, learn_terminations=learn_terminations
            )
        trainer = DynamicsTrainer(
            ensemble, rows.obs, rows.actions, rows.next_obs, rows.rewards, rows.terminated, lr=1e-3,
            weight_decay=decay, max_epochs=epochs, seed=seed + _SEED_OFFSET,
        )  # fmt: skip
        while not trainer.done:
            found = trainer.train_epoch()
            progress(f"judge's model: epoch {found['epoch']:.0f}, hold-out error {found['holdout_mse']:.4f}")
        trainer.finish().save(path)
    return ensemble


def make_judge(model: DynamicsEnsemble, rule: TerminationFn, rows: Rows, index: Tensor, seed: int = 0) -> Judge:
    """Measures the model along logged actions.

    Args:
        model: the ensemble.
        rule: of terminations, over unit actions.
        rows: the data.
        index: rows to measure on, whole episodes; held-out ones where there are any.
        seed: of the rows and the model's noise.
    """
    errors = open_loop_errors(model, rows, index, seed)
    length = next((h for h in LENGTHS if errors[h] <= _LARGEST_ERROR), 0)
    rng = np.random.default_rng((seed, 5))
    some = index[torch.from_numpy(rng.choice(len(index), min(len(index), 5_000), replace=False))]
    limit = float(torch.quantile(disagreement(model, rows.obs[some], rows.actions[some]).double(), 0.99))
    return Judge(model, rule, length, errors, limit)


@torch.inference_mode()
def open_loop_errors(model: DynamicsEnsemble, rows: Rows, index: Tensor, seed: int = 0) -> dict[int, float]:
    """Median over starts of the root mean square over columns of (predicted - real), in standard deviations.

    Infinite where too few episodes are that long.
    """
    last = rows.stops[rows.episode[index]]
    rng, scale = np.random.default_rng((seed, 6)), model.input_std[: model.obs_dim]
    generator, errors, step = torch.Generator().manual_seed(seed), {}, model.sampler()
    for h in LENGTHS:
        inner = index[index + h < last]
        errors[h] = float("inf")
        if len(inner) >= 20:
            at = inner[torch.from_numpy(rng.choice(len(inner), min(len(inner), _ROWS_TRIED), replace=False))]
            obs = rows.obs[at]
            for t in range(h):
                obs, _ = step(obs, rows.actions[at + t], generator)
            errors[h] = float((((obs - rows.obs[at + h]) / scale).square().mean(-1).sqrt()).median())
    return errors


@torch.inference_mode()
def disagreement(model: DynamicsEnsemble, obs: Tensor, actions: Tensor) -> Tensor:
    """The largest distance of an elite's mean next state from theirs, in standard deviations, (B,)."""
    found = []
    for part, own in zip(obs.split(_PART), actions.split(_PART), strict=True):
        mean = model(part, own)[0][model.elites, :, :-1] / model.input_std[: model.obs_dim]
        found.append((mean - mean.mean(0)).norm(dim=-1).amax(0))
    return torch.cat(found)


@dataclass(frozen=True)
class Rollouts:
    """What rollouts of one policy gave, for R starts.

    Attributes:
        rewards: discounted sums up to the ends, ``(R,)``.
        discounts: γ^t at the ends, 0 where the episode terminated, ``(R,)``.
        obs: the states at the ends, ``(R, obs)``.
        actions: the policy's actions there, ``(R, act)``.
        stopped: share that ended since the model was unsure.
        outside: share of the visited states outside the data.
    """

    rewards: Tensor
    discounts: Tensor
    obs: Tensor
    actions: Tensor
    stopped: float
    outside: float


@torch.inference_mode()
def roll_out(
    judge: Judge,
    policy: Policy,
    starts: Tensor,
    gamma: float,
    bounds: tuple[float, float],
    box: StateBox,
    seed: int = 0,
) -> Rollouts:
    """Follows a policy for ``judge.length`` steps, from each start several times.

    Args:
        judge: the model.
        policy: to be followed.
        starts: ``(S, obs)``.
        gamma: the discount.
        bounds: least and largest reward of the data, beyond which rewards are cut by more than a fifth of the range.
        box: of the data's states.
        seed: of the noise, the same for all policies.
    """
    obs = starts.repeat(_DRAWS, 1)
    num, generator, step = len(obs), torch.Generator().manual_seed(seed), judge.model.sampler()
    total, discount = torch.zeros(num, dtype=torch.float64), torch.ones(num, dtype=torch.float64)
    running, stopped = torch.ones(num, dtype=torch.bool), torch.zeros(num, dtype=torch.bool)
    margin, outside, visited = 0.2 * (bounds[1] - bounds[0]), 0.0, 0
    for _ in range(judge.length):
        actions = policy(obs)
        unsure = running & (disagreement(judge.model, obs, actions) > judge.limit)
        stopped |= unsure
        running &= ~unsure
        if not running.any():
            break
        following, rewards = step(obs, actions, generator)
        running &= (following.sum(-1) + rewards).isfinite()
        terminated = as_terminated(judge.rule(obs, actions, following), following)
        rewards = rewards.clamp(bounds[0] - margin, bounds[1] + margin)
        total += torch.where(running, discount * rewards.double(), 0.0)
        discount = torch.where(running, discount * gamma * (~terminated).double(), discount)
        obs = torch.where(running[:, None], following, obs)
        visited += int(running.sum())
        outside += box.share_outside(obs[running]) * int(running.sum())
        running &= ~terminated
    return Rollouts(
        total, discount, obs, policy(obs), float(stopped.double().mean()), outside / visited if visited else 0.0
    )


def model_values(rollouts: Sequence[Rollouts], tails: Callable[[Tensor, Tensor], Tensor]) -> np.ndarray:
    """V ``(K, E)``: the rollouts' rewards, and Q̄ of each head at their ends.

    Args:
        rollouts: of each policy.
        tails: ``(K, R, obs), (K, R, act) -> (K, E, R)``, as of the critic of the evaluation.
    """
    ends = tails(torch.stack([r.obs for r in rollouts]), torch.stack([r.actions for r in rollouts])).double()
    discounts = torch.stack([r.discounts for r in rollouts])[:, None]
    rewards = torch.stack([r.rewards for r in rollouts])[:, None]
    return (rewards + discounts * ends).mean(-1).cpu().numpy()


def first_states(rows: Rows, index: Tensor, seed: int = 0) -> Tensor:
    """First states ``(S, obs)`` of the episodes of some rows, at most 200 of them."""
    episodes = rows.episode[index].unique()
    if len(episodes) > _MOST_STARTS:
        rng = np.random.default_rng((seed, 7))
        episodes = episodes[torch.from_numpy(rng.choice(len(episodes), _MOST_STARTS, replace=False))]
    return rows.obs[rows.starts[episodes]]
