"""Branched rollouts of a policy in the dynamics model (docs/damo.md, "Model, rollouts, buffers")."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from rllib_damo.dynamics.ensemble import Sampler
from rllib_damo.dynamics.known_range import KnownRange
from rllib_damo.dynamics.termination import TerminationFn

#: ``(obs (B, obs), generator) -> unit actions (B, act)``
Policy = Callable[[Tensor, torch.Generator], Tensor]


class Model(Protocol):
    """What a rollout needs of a model; `DynamicsEnsemble` is one."""

    act_dim: int

    def sampler(self) -> Sampler:
        """A function that draws next states and rewards, for one whole rollout."""


#: Rows that go through all steps together: few enough that a CPU's cache holds their activations.
_CHUNK_ROWS = 2048


def rollout(
    policy: Policy,
    dynamics: Model,
    termination_fn: TerminationFn,
    start_obs: Tensor,
    length: int,
    generator: torch.Generator,
    known: KnownRange | None = None,
    gamma: float = 0.99,
) -> dict[str, Tensor]:
    """Follows the policy from each start state for at most ``length`` steps of the model.

    A row stops at its first terminal state, and at a prediction that is not finite, which is left out. With ``known``
    it stops where it leaves that range, too: that transition counts as terminal, its reward is the discounted sum of
    the lowest one for ever, and its next state is the nearest one of the range.

    Args:
        policy: draws unit actions.
        dynamics: the trained model; each step of each row draws its own elite.
        termination_fn: ``(obs, unit actions, next_obs) -> (B,)`` bool.
        start_obs: ``(N, obs)``.
        length: h.
        generator: on the tensors' device; the one source of randomness.
        known: the range of the dataset's states, on the tensors' device; None: there is no bound.
        gamma: discount factor, for that sum.

    Returns:
        Flat tensors of the M ≤ N·h transitions that happened: ``obs (M, obs)``, ``actions (M, act)`` in [-1, 1],
        ``rewards (M,)``, ``next_obs (M, obs)``, ``terminated (M,)`` bool. Rows are in no particular order.

    Raises:
        ValueError: the termination function returned another shape.
    """
    num, obs_dim = start_obs.shape
    step = dynamics.sampler()
    out = {
        "obs": start_obs.new_empty(num * length, obs_dim),
        "actions": start_obs.new_empty(num * length, dynamics.act_dim),
        "rewards": start_obs.new_empty(num * length),
        "next_obs": start_obs.new_empty(num * length, obs_dim),
        "terminated": torch.empty(num * length, dtype=torch.bool, device=start_obs.device),
    }
    count = 0
    with torch.inference_mode():
        for obs in start_obs.split(_CHUNK_ROWS if start_obs.device.type == "cpu" else num):
            for _ in range(length):
                actions = policy(obs, generator)
                next_obs, rewards = step(obs, actions, generator)
                terminated = as_terminated(termination_fn(obs, actions, next_obs), next_obs)
                if known is not None:
                    left = known.is_left(next_obs, rewards, terminated)
                    next_obs = torch.where(left[:, None], known.within(next_obs), next_obs)
                    rewards = torch.where(left, known.leaving_reward(rewards) / (1 - gamma), rewards)
                    terminated = terminated | left
                rows = {
                    "obs": obs,
                    "actions": actions,
                    "rewards": rewards,
                    "next_obs": next_obs,
                    "terminated": terminated,
                }
                finite = (next_obs.sum(-1) + rewards).isfinite()
                # both flags in one transfer: the CPU waits for each
                are_finite, go_on = torch.stack((finite.all(), ~terminated.any())).tolist()
                if not are_finite:
                    rows = {name: column[finite] for name, column in rows.items()}
                end = count + len(rows["obs"])
                for name, column in rows.items():
                    out[name][count:end] = column
                count = end
                obs = rows["next_obs"] if go_on else rows["next_obs"][~rows["terminated"]]
                if not len(obs):
                    break
    return {name: column[:count] for name, column in out.items()}


def as_terminated(result: Any, like: Tensor) -> Tensor:
    """What a termination function returned, as ``(B,)`` bool on the device of ``like (B, ...)``.

    Raises:
        ValueError: it is something else.
    """
    try:
        flags = torch.as_tensor(result, device=like.device)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"termination_fn must return a bool tensor, but returned {type(result).__name__}.") from error
    if flags.shape != (len(like),):
        raise ValueError(
            f"termination_fn must return one flag a row, shape ({len(like)},), but returned shape {tuple(flags.shape)}."
        )
    if flags.dtype != torch.bool:  # a probability of 0.3, say, would count as True
        raise ValueError(
            f"termination_fn must return a bool tensor, but returned {flags.dtype}: compare, as in `p > 0.5`."
        )
    return flags
