"""Do the critics know better actions than the policy's? Follows their action gradient in the real environment.

    python benchmarks/action_gradient.py --task hopper-medium --options '{"eta": 0.3}'

An actor can improve only as far as dQ/da at its own actions points to better ones. The policy of `scores.py` follows
its anchor alone for all ``--steps``, while the critics learn. Then, from states of the dataset (of the last 200 steps
of episodes that end by a fall), the real environment plays (1) the policy, (2) the policy with each action shifted by
``d`` (root mean square over coordinates) along dQ/da, for several ``d``; a negative one goes down. One JSON line: the
mean discounted return of (1), and for each shift the mean gain over the same states with its standard error.
Velocities that the observation clips (beyond ± 10) are clipped in the start states, too.
"""

import argparse
import json
import logging
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import ray
import torch
from playing import play, set_observed_state
from ray.rllib.core import DEFAULT_MODULE_ID
from score_settings import add_options, environment, make_config
from torch import Tensor

from rllib_damo.core.algorithm import NUM_GRADIENT_STEPS
from rllib_damo.data.offline_data import BulkOfflineData
from rllib_damo.data.schema import Transitions
from rllib_damo.evaluation.scores import discounted_return

SHIFTS = (0.05, 0.1, -0.1)
LAST = 200  # steps of an episode before its end
Policy = Callable[[Tensor], Tensor]


def start_states(data: Transitions, num: int) -> np.ndarray:
    """``(num, obs_dim)`` states of the dataset, at least 20 steps before their episode's end."""
    generator = np.random.default_rng(0)
    bounds = data.episode_bounds()
    bounds = bounds[bounds[:, 1] - bounds[:, 0] > 40]
    rows = []
    for start, end in bounds[generator.integers(len(bounds), size=num)]:
        first = max(start, end - LAST) if data.terminations[end - 1] else start
        rows.append(generator.integers(first, end - 20))
    return data.observations[rows]


def returns_from(env_id: str, states: np.ndarray, policy: Policy, steps: int, gamma: float) -> np.ndarray:
    """Discounted returns ``(N,)`` from each state; unit actions must be the environment's own."""
    envs: list[Any] = [gym.make(env_id).unwrapped for _ in states]
    for i, (env, state) in enumerate(zip(envs, states, strict=True)):
        env.reset(seed=i)
        set_observed_state(env, state)

    def act(obs: np.ndarray) -> np.ndarray:
        return policy(torch.from_numpy(obs).float()).clamp(-1, 1).numpy()

    return np.array([discounted_return(rewards, gamma) for rewards in play(envs, list(states), act, steps)])


def shifted(policy: Policy, q: Callable[[Tensor, Tensor], Tensor], distance: float) -> Policy:
    """The policy with each action moved by ``distance`` along the gradient of ``q(obs, actions) (B,)``."""

    def act(obs: Tensor) -> Tensor:
        actions = policy(obs).detach().requires_grad_()
        (gradient,) = torch.autograd.grad(q(obs, actions).sum(), actions)
        size = gradient.square().mean(-1, keepdim=True).sqrt()
        return actions.detach() + distance * gradient / size.clamp(min=1e-6)

    return act


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--task", required=True, help="of Hopper, HalfCheetah or Walker2d")
    parser.add_argument("--steps", type=int, default=15_000, help="gradient steps before the question")
    parser.add_argument("--states", type=int, default=300)
    parser.add_argument("--length", type=int, default=150, help="environment steps from each state")
    add_options(parser)
    args = parser.parse_args()
    ray.init("local", include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    config = make_config(args.task, "damo", 0, args.task, {"actor_warmup_steps": args.steps, **args.options}, 1)
    algo = config.build_algo()
    result: dict[str, Any] = {}
    while result.get(NUM_GRADIENT_STEPS, 0) < args.steps:
        result = algo.train()
    module = algo.learner_group._learner.module[DEFAULT_MODULE_ID]
    states = start_states(BulkOfflineData(config).transitions, args.states)

    def policy(obs: Tensor) -> Tensor:
        return module.mean_actions(obs).detach()

    def q(obs: Tensor, actions: Tensor) -> Tensor:
        return module.critics(obs, actions).min(0).values

    def returns(of: Policy) -> np.ndarray:
        return returns_from(environment(args.task), states, of, args.length, config.gamma)

    base, gains = returns(policy), {}
    for shift in SHIFTS:
        gain = returns(shifted(policy, q, shift)) - base
        gains[shift] = [round(float(x), 2) for x in (gain.mean(), gain.std() / len(gain) ** 0.5)]
    learner = result["learners"][DEFAULT_MODULE_ID]
    names = {"qf_mean", "entropy", "classifier_accuracy"} & learner.keys()
    known = {name: round(float(learner[name]), 3) for name in sorted(names)}
    row = {"benchmark": "action_gradient", "task": args.task, "options": args.options, "steps": args.steps}
    print(json.dumps({**row, "discounted_return": round(float(base.mean()), 1), "gains": gains, **known}))
    algo.stop()
    ray.shutdown()


if __name__ == "__main__":
    main()
