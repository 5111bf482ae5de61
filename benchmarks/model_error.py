"""How good is the dynamics model? Its error after h steps on episodes that it has not seen, and its calibration.

    python benchmarks/model_error.py --tasks hopper-medium walker2d-medium
    python benchmarks/model_error.py --tasks halfcheetah-medium --options '{"dynamics_max_epochs": 40}'

Trains the model of `scores.py` for each task, or takes it from the cache, plays new episodes of the task's behaviour
policies, and follows their actions in the model as rollouts do: each row draws an elite and noise at each step. Prints
one JSON line a task: for each h, ``error`` is the median over rows of the root mean square over the state's columns of
(predicted - real), in standard deviations of the dataset's columns, and ``still`` the same for the prediction that
nothing moves. Of one step, over members, rows and columns: ``coverage`` is the share of targets within a member's
central 90 % interval, ``squared_error`` is in variances of the targets, and ``likelihood_loss`` the mean of
(μ - y)²/σ² + log σ² on standardised targets, as in training.
"""

import argparse
import json
import logging
from typing import Any

import numpy as np
import ray
import torch
from score_settings import add_options, make_config

from rllib_damo import DAMO
from rllib_damo.data.generate.datasets import generate
from rllib_damo.data.schema import Transitions
from rllib_damo.dynamics import DynamicsEnsemble
from rllib_damo.utils.spaces import to_unit

STEPS = (1, 5, 10, 20)
Z_90 = 1.6449  # half the width of a normal distribution's central 90 % interval


def trained_model(task: str, options: dict[str, Any]) -> tuple[DynamicsEnsemble, DAMO]:
    """The model of seed 0, and the algorithm that has trained it."""
    algo = make_config(task, "damo", 0, task, options, 1).build_algo()
    while not algo.dynamics.ready:
        algo.dynamics.train_epoch()
    return DynamicsEnsemble.load(algo.dynamics.path), algo


def errors(model: DynamicsEnsemble, episodes: Transitions, unit_actions: np.ndarray, rows: int) -> dict[str, dict]:
    """``error`` and ``still`` for each h, from states that have the longest h ahead of them in their episode."""
    bounds = episodes.episode_bounds()
    last = np.repeat(bounds[:, 1], bounds[:, 1] - bounds[:, 0])
    inner = np.flatnonzero(np.arange(len(episodes)) + max(STEPS) < last)
    starts = torch.from_numpy(np.random.default_rng(0).choice(inner, size=min(rows, len(inner)), replace=False))
    real, actions = torch.from_numpy(episodes.observations), torch.from_numpy(unit_actions)
    scale = model.input_std[: model.obs_dim]

    def distance(a: torch.Tensor, b: torch.Tensor) -> float:
        return round(float(((a - b) / scale).square().mean(-1).sqrt().median()), 4)

    step, generator = model.sampler(), torch.Generator().manual_seed(0)
    result: dict[str, dict] = {"error": {}, "still": {}}
    obs = real[starts]
    for h in range(1, max(STEPS) + 1):
        obs, _ = step(obs, actions[starts + h - 1], generator)
        if h in STEPS:
            result["error"][h] = distance(obs, real[starts + h])
            result["still"][h] = distance(real[starts], real[starts + h])
    return result


@torch.no_grad()
def one_step(model: DynamicsEnsemble, episodes: Transitions, unit_actions: np.ndarray) -> dict[str, float]:
    """``coverage``, ``squared_error`` and ``likelihood_loss`` of [s' - s, r]."""
    obs = torch.from_numpy(episodes.observations)
    mean, logvar = model(obs, torch.from_numpy(unit_actions))
    change = torch.from_numpy(episodes.next_observations) - obs
    error = mean - torch.cat((change, torch.from_numpy(episodes.rewards)[:, None]), -1)
    varies = model.target_std > 0  # of the others, the model says what the data does
    error, logvar, std = error[..., varies], logvar[..., varies], model.target_std[varies]
    squared = (error / std).square()
    likelihood_loss = error.square() * (-logvar).exp() + logvar - 2 * std.log()
    return {
        "coverage": round(float((error.abs() < Z_90 * (logvar / 2).exp()).float().mean()), 3),
        "squared_error": round(float(squared.mean()), 5),
        "likelihood_loss": round(float(likelihood_loss.mean()), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tasks", nargs="+", required=True)
    parser.add_argument("--transitions", type=int, default=10_000, help="of the new episodes")
    parser.add_argument("--rows", type=int, default=2000, help="start states")
    add_options(parser)
    args = parser.parse_args()
    ray.init("local", include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    for task in args.tasks:
        model, algo = trained_model(task, args.options)
        episodes = generate(task, args.transitions, seed=1_000_003)  # datasets are made with 0
        unit_actions = to_unit(episodes.actions, algo.config.action_space)
        row = {"benchmark": "model_error", "task": task, "options": args.options}
        row |= errors(model, episodes, unit_actions, args.rows) | one_step(model, episodes, unit_actions)
        print(json.dumps(row), flush=True)
        algo.stop()
    ray.shutdown()


if __name__ == "__main__":
    main()
