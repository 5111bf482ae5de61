"""From offline to online: how the return of a policy changes once it learns from real steps, too.

    python benchmarks/online.py DAMO --input pendulum-mixed --env Pendulum-v1 --offline-steps 3000 --out online.json
    python benchmarks/online.py ReBRAC --checkpoint CHECKPOINT --out online.json

A run trains offline, or loads a checkpoint, and then goes on with `.online(...)`. It is evaluated before the first real
step and then at equal distances, by 20 episodes. ``--options`` changes the offline part and ``--online`` the other one
(options of any method). Curves are printed as JSON and added to the file; runs that are in it are not repeated.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import ray
import torch

from rllib_damo import ALGORITHMS
from rllib_damo.command.inputs import apply_config
from rllib_damo.core.config import ModelBasedConfig

#: For Pendulum: those of these that an algorithm has.
SMALL = {
    "hidden_dims": (64, 64), "rollout_freq": 500, "critic_lr": 1e-3, "rollout_length": 3, "rollout_batch_size": 5_000,
    "real_ratio": 0.5, "initial_alpha": 0.1, "max_alpha": 1.0, "critic_layer_norm": True, "tau": 0.02,
    "policy_tau": 0.01, "bc_weight": 0.0, "data_fraction": 1.0, "eta": 0.1,
}  # fmt: skip
#: Evaluated when this script asks, from the same start states each time.
EVALUATION = {
    "evaluation_interval": 1_000_000, "evaluation_duration": 20, "evaluation_force_reset_envs_before_iteration": True,
    "evaluation_config": {"num_envs_per_env_runner": 20},
}  # fmt: skip


def train_offline(args: argparse.Namespace, seed: int, folder: str) -> str:
    """A checkpoint of ``--offline-steps`` gradient steps."""
    config = ALGORITHMS[args.algorithm].get_default_config()
    config.environment(args.env).offline_data(input_=args.input).debugging(seed=seed)
    if args.env == "Pendulum-v1":
        config.training(**{key: value for key, value in SMALL.items() if key in config.own_options("training")})
        if isinstance(config, ModelBasedConfig):
            config.dynamics(
                dynamics_hidden_dims=(64, 64), dynamics_weight_decay=(2.5e-5, 5e-5, 1e-4), dynamics_max_epochs=10
            )
    config = apply_config(config.evaluation(**EVALUATION), args.options, "--options")
    algo = config.build_algo()
    while algo.train()["num_gradient_steps_lifetime"] < args.offline_steps:
        pass
    path = algo.save_to_path(folder)
    algo.stop()
    return path


def run(args: argparse.Namespace, seed: int) -> dict[str, Any]:
    """The returns by real steps."""
    with TemporaryDirectory() as folder:
        checkpoint = args.checkpoint or train_offline(args, seed, folder)
        online = {"online_steps_per_iteration": args.every, "rollout_freq": args.every} | args.online
        algo = ALGORITHMS[args.algorithm].from_checkpoint(checkpoint, seed=seed, **EVALUATION | online)
    curve: list[dict[str, float]] = []
    result: dict[str, Any] = {}
    steps = 0
    while True:
        played = algo.evaluate()["env_runners"]["episode_return_mean"]
        curve.append({"real_steps": steps, "return": round(float(played), 1)})
        if steps:
            curve[-1]["online_return"] = round(float(result["online"]["episode_return_mean"]), 1)
        print(args.algorithm, args.name, seed, curve[-1], flush=True)
        if steps >= args.online_steps:
            break
        while steps < curve[-1]["real_steps"] + args.between:
            result = algo.train()
            steps = int(result["num_online_steps_lifetime"])
    algo.stop()
    offline = {"env": args.env, "input": args.input, "offline_steps": args.offline_steps, "options": args.options}
    return {
        "algorithm": args.algorithm, "name": args.name,
        **({"checkpoint": args.checkpoint} if args.checkpoint else offline),
        "online": args.online, "seed": seed, "curve": curve, "lowest": min(p["return"] for p in curve),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("algorithm", choices=sorted(ALGORITHMS))
    parser.add_argument("--env", default="Pendulum-v1")
    parser.add_argument("--input", default="pendulum-mixed")
    parser.add_argument("--checkpoint", help="in place of --offline-steps; its environment and dataset count")
    parser.add_argument("--offline-steps", type=int, default=3_000)
    parser.add_argument("--online-steps", type=int, default=20_000)
    parser.add_argument("--every", type=int, default=500, help="real steps, and gradient steps, of an iteration")
    parser.add_argument("--between", type=int, default=2_000, help="real steps between evaluations")
    parser.add_argument("--options", type=json.loads, default={})
    parser.add_argument("--online", type=json.loads, default={})
    parser.add_argument("--name", default="", help="of the variant")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    ray.init("local", num_cpus=1, include_dashboard=False, log_to_driver=False)
    for seed in args.seeds:
        found = json.loads(args.out.read_text()) if args.out.exists() else []
        known = [(row["algorithm"], row["name"], row["seed"]) for row in found]
        if (args.algorithm, args.name, seed) not in known:
            row = run(args, seed)
            print(json.dumps(row), flush=True)
            found = json.loads(args.out.read_text()) if args.out.exists() else []
            args.out.write_text(json.dumps([*found, row], indent=1) + "\n")


if __name__ == "__main__":
    main()
