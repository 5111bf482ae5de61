"""Does an algorithm learn at all? Each one on ``pendulum-mixed``, from which -200 or better can be learned.

    python benchmarks/pendulum.py MOPO MOBILE OfflineIQL --out pendulum.json
    python benchmarks/pendulum.py MOBILE --options '{"penalty_coef": 0.5}' --seed 1 --out pendulum.json

One thread, networks of 64 units, 10,000 gradient steps, evaluations of 20 episodes. Results are added to the file, and
runs that are in it already are not repeated.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import ray
import torch

from rllib_damo import ALGORITHMS
from rllib_damo.core.config import ModelBasedConfig

STEPS, BETWEEN = 10_000, 2_500
#: Those of these that an algorithm has.
OPTIONS = {
    "hidden_dims": (64, 64), "rollout_freq": 500, "critic_lr": 1e-3, "rollout_length": 3, "rollout_batch_size": 5_000,
    "real_ratio": 0.5, "initial_alpha": 0.1, "max_alpha": 1.0, "critic_layer_norm": True, "tau": 0.02,
    "policy_tau": 0.01,
}  # fmt: skip


def run(name: str, options: dict[str, Any], seed: int) -> dict[str, Any]:
    """Returns at each evaluation, and the learner's last metrics."""
    config = ALGORITHMS[name].get_default_config()
    taken = {key: value for key, value in OPTIONS.items() if key in config.own_options("training")}
    config.environment("Pendulum-v1").offline_data(input_="pendulum-mixed").debugging(seed=seed)
    config.training(**taken | options)
    if isinstance(config, ModelBasedConfig):
        config.dynamics(
            dynamics_hidden_dims=(64, 64), dynamics_weight_decay=(2.5e-5, 5e-5, 1e-4), dynamics_max_epochs=10
        )
    # evaluated below, by gradient steps and not by iterations
    config.evaluation(
        evaluation_interval=1_000_000, evaluation_duration=20, evaluation_config={"num_envs_per_env_runner": 20}
    )
    algo = config.build_algo()
    steps, returns, metrics = 0, {}, {}
    while steps < STEPS:
        result = algo.train()
        steps = int(result["num_gradient_steps_lifetime"])
        if steps and steps % BETWEEN == 0:
            returns[steps] = round(float(algo.evaluate()["env_runners"]["episode_return_mean"]), 1)
            print(name, steps, returns[steps], flush=True)
            metrics = result["learners"]["default_policy"]
    algo.stop()
    numbers = {key: round(float(value), 4) for key, value in metrics.items() if isinstance(value, (int, float))}
    return {"algorithm": name, "options": options, "seed": seed, "returns": returns, "metrics": numbers}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("algorithms", nargs="+", choices=sorted(ALGORITHMS))
    parser.add_argument("--options", type=json.loads, default={})
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    ray.init("local", num_cpus=1, include_dashboard=False, log_to_driver=False)
    found = json.loads(args.out.read_text()) if args.out.exists() else []
    done = [(row["algorithm"], row["options"], row["seed"]) for row in found]
    for name in args.algorithms:
        if (name, args.options, args.seed) not in done:
            found.append(run(name, args.options, args.seed))
            args.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
