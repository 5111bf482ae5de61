"""Is the dynamics model at fault? Trains with rollouts in the simulator itself, in the place of the learned model.

    python benchmarks/perfect_model.py --task halfcheetah-medium --options '{"bc_weight": 0.2}' --steps 50000
    python benchmarks/perfect_model.py --task halfcheetah-medium --method mopo --options '{"penalty_coef": 0.0}'

Everything else is as in `scores.py`: what such a policy returns is what a better model could bring at most. Rollouts
start from the dataset's states, so positions that observations leave out (x) are 0, and velocities that observations
clip are as clipped. A simulator's step takes 50 µs, so rounds are smaller here. One thread; prints a JSON line.
"""

import argparse
import json
import logging
from typing import Any

import gymnasium as gym
import numpy as np
import ray
import torch
from playing import set_observed_state
from score_settings import add_options, environment, make_config
from score_trials import learned_policy, play_episodes
from torch import Tensor

from rllib_damo.core.algorithm import NUM_GRADIENT_STEPS
from rllib_damo.dynamics.ensemble import DynamicsEnsemble, Sampler
from rllib_damo.dynamics.rollout import Model
from rllib_damo.dynamics.rollout_runner import ModelRolloutEnvRunner
from rllib_damo.tasks import normalized_score


class Simulator:
    """A MuJoCo environment as the `Model` of rollouts, from its observations alone."""

    def __init__(self, env_id: str):
        env: Any = gym.make(env_id).unwrapped
        env.reset(seed=0)
        self._env, self.act_dim = env, env.action_space.shape[0]

    def sampler(self) -> Sampler:
        return self._step

    def _step(self, obs: Tensor, unit_actions: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        next_obs, rewards = np.empty(obs.shape, np.float32), np.empty(len(obs), np.float32)
        for i, (state, action) in enumerate(zip(obs.double().numpy(), unit_actions.numpy(), strict=True)):
            set_observed_state(self._env, state)
            next_obs[i], rewards[i], *_ = self._env.step(action)
        return torch.from_numpy(next_obs), torch.from_numpy(rewards)


class SimulatorRolloutEnvRunner(ModelRolloutEnvRunner):
    """Rolls out in the environment; the learned dynamics only tell where episodes end, as elsewhere."""

    def model(self, dynamics: DynamicsEnsemble) -> Model:
        return Simulator(self.config.env)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--task", required=True, help="of Hopper, HalfCheetah or Walker2d")
    parser.add_argument("--method", choices=("damo", "mopo"), default="damo")
    add_options(parser)
    parser.add_argument("--steps", type=int, default=50_000)
    parser.add_argument("--eval-every", type=int, default=5_000)
    parser.add_argument("--starts", type=int, default=4_000, help="start states of a round, each 1,000 gradient steps")
    args = parser.parse_args()
    torch.set_num_threads(1)
    ray.init("local", include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    options = {"rollout_batch_size": args.starts, "dynamics_max_epochs": 1, **args.options}
    config = make_config(args.task, args.method, 0, args.task, options, 1)
    config.env_runner_cls = SimulatorRolloutEnvRunner
    algo = config.build_algo()
    scores: list[Any] = []
    values, steps = [], 0
    while steps < args.steps:
        result = algo.train()
        taken, steps = steps, int(result.get(NUM_GRADIENT_STEPS) or 0)
        if steps > taken and steps % args.eval_every == 0:
            rewards = play_episodes(learned_policy(algo), environment(args.task), 10, seed=steps)
            scores.append(normalized_score(config.env, float(np.mean([own.sum() for own in rewards]))))
            values.append(float(result["learners"]["default_policy"]["initial_value_mean"]))
            print(f"{steps:>9,} steps  score {scores[-1]:6.1f}  value {values[-1]:8.1f}", flush=True)
    row = {"benchmark": "perfect_model", "task": args.task, "method": args.method, "options": args.options}
    print(json.dumps({**row, "scores": [round(s, 1) for s in scores], "values": [round(v) for v in values]}))
    algo.stop()
    ray.shutdown()


if __name__ == "__main__":
    main()
