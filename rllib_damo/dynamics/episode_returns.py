"""What a policy returns in whole episodes of the dynamics model, by each of its members alone."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from rllib_damo.dynamics.ensemble import DynamicsEnsemble
from rllib_damo.dynamics.known_range import KnownRange
from rllib_damo.dynamics.rollout import as_terminated
from rllib_damo.dynamics.termination import TerminationFn


@torch.inference_mode()
def episode_returns(
    policy: Callable[[Tensor], Tensor],
    dynamics: DynamicsEnsemble,
    termination_fn: TerminationFn,
    starts: Tensor,
    length: int,
    generator: torch.Generator,
    known: KnownRange,
) -> Tensor:
    """Sums of rewards until the episode ends, or for ``length`` steps.

    Rollouts for training draw another elite at each step. Here one elite predicts a whole episode, so that the elites'
    returns differ where the model is unsure of what the policy does.

    Args:
        policy: ``obs (B, obs) -> unit actions (B, act)``.
        dynamics: the trained model; its E elites predict.
        termination_fn: ``(obs, unit actions, next_obs) -> (B,)`` bool.
        starts: ``(N, obs)`` states; all elites start from each.
        length: longest episode, in steps.
        generator: of the model's noise, on the tensors' device.
        known: the range of the dataset. An episode that leaves it has the lowest reward for all steps that are left.

    Returns:
        ``(E, N)`` undiscounted returns, of the model's rewards within the dataset's.
    """
    draw, num, (starts_each, dim) = dynamics.elite_sampler(), dynamics.num_elites, starts.shape
    obs = starts.expand(num, starts_each, dim).reshape(num * starts_each, dim)
    returns, running = obs.new_zeros(len(obs)), torch.ones(len(obs), dtype=torch.bool, device=obs.device)
    for step in range(length):
        actions = policy(obs)
        inputs = torch.cat((obs, actions), dim=-1).view(num, starts_each, -1)
        drawn = draw(inputs, generator).view(len(obs), dim + 1)
        next_obs, rewards = dynamics.clip(obs + drawn[:, :dim]), drawn[:, dim]
        terminated = as_terminated(termination_fn(obs, actions, next_obs), next_obs)
        left = known.is_left(next_obs, rewards, terminated)
        rewards = rewards.clamp(known.lowest_reward, known.highest_reward)
        rewards = torch.where(left, known.lowest_reward * (length - step), rewards)
        returns = torch.where(running, returns + rewards, returns)
        running = running & ~left & ~terminated
        if not running.any():
            break
        obs = torch.where(running[:, None], next_obs, obs)
    return returns.view(num, starts_each)
