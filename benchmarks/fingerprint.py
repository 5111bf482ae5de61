"""What every algorithm computes, as numbers to compare before and after a change of form.

    python benchmarks/fingerprint.py before.json            # on one commit
    python benchmarks/fingerprint.py after.json --against before.json

For each algorithm on ``pendulum-mixed`` (fixed seed, small networks, one thread): a hash of a round of rollouts, all
learner metrics and a hash of all weights after 300 gradient steps, and the returns of an evaluation. Equal numbers
need the same machine, torch and thread count.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch

from rllib_damo import BehaviorCloningConfig, DAMOConfig, MOPOConfig, TD3BCConfig

STEPS = 300


def configs(cache_dir: str) -> dict[str, Any]:
    found = {
        "damo": DAMOConfig().training(eta=0.5, actor_warmup_steps=50),
        "damo-bf16": DAMOConfig().training(eta=0.5, actor_warmup_steps=50, precision="bf16"),
        "damo-no-targets": DAMOConfig().training(eta=0.5, target_networks=False, f_divergence="chi_squared"),
        "damo-penalty": DAMOConfig().training(eta=0.5, classifier_gradient_penalty=1.0, classifier_noise=0.1),
        "damo-plain": DAMOConfig().training(data_alignment=False, behavior_alignment=False),
        "paper": DAMOConfig.paper().training(eta=0.5),
        "mopo": MOPOConfig().training(penalty_coef=0.5),
        "td3bc": TD3BCConfig(),
        "bc": BehaviorCloningConfig(),
    }
    for name, config in found.items():
        config.environment("Pendulum-v1").offline_data(input_="pendulum-mixed").debugging(seed=7)
        config.training(hidden_dims=(64, 64), rollout_freq=STEPS // 3, train_batch_size_per_learner=64)
        config.evaluation(evaluation_interval=1, evaluation_duration=2)
        if name not in ("td3bc", "bc"):
            config.training(rollout_batch_size=1000, rollout_length=3)
            config.dynamics(
                num_ensemble=3, num_elites=2, dynamics_hidden_dims=(32, 32, 32), dynamics_max_epochs=2,
                dynamics_weight_decay=(1e-5, 1e-5, 1e-5, 1e-5), dynamics_cache_dir=cache_dir,
            )  # fmt: skip
    return found


def digest(tensors: Any) -> str:
    """Of a collection of arrays, whatever their names and order."""
    parts = sorted(hashlib.sha256(np.ascontiguousarray(t).tobytes()).hexdigest() for t in tensors)
    return hashlib.sha256("".join(parts).encode()).hexdigest()[:16]


def measure(config: Any) -> dict[str, Any]:
    algo = config.build_algo()
    result: dict[str, Any] = {}
    steps = 0
    rounds = []
    while steps < STEPS:
        result = algo.train()
        steps = result["num_gradient_steps_lifetime"]
        rounds.append(result.get("env_runners", {}).get("rollout"))
    learner = algo.learner_group._learner
    module = learner.module["default_policy"]
    found = {
        "metrics": {k: v for k, v in result["learners"]["default_policy"].items() if isinstance(v, (int, float))},
        "weights": digest(t.detach().cpu().numpy() for t in module.state_dict().values()),
        "rounds": rounds,
        "evaluation": result["evaluation"]["env_runners"]["episode_return_mean"],
    }
    buffer = getattr(learner, "_synthetic", None) or getattr(learner, "model_buffer", None)
    if buffer is not None and len(buffer):
        found["model_buffer"] = digest([buffer.rows[: len(buffer)].cpu().numpy()])
    algo.stop()
    return found


def differences(before: Any, after: Any, path: str = "") -> list[str]:
    if isinstance(before, dict) and isinstance(after, dict):
        return [
            line
            for k in sorted(before.keys() | after.keys())
            for line in differences(before.get(k), after.get(k), f"{path}/{k}")
        ]
    if isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        return [
            line
            for i, (a, b) in enumerate(zip(before, after, strict=True))
            for line in differences(a, b, f"{path}/{i}")
        ]
    both_nan = all(isinstance(x, float) and math.isnan(x) for x in (before, after))
    return [] if before == after or both_nan else [f"{path}: {before!r} -> {after!r}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--against", type=Path)
    parser.add_argument("--only", nargs="*")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as cache_dir:
        found = {
            name: measure(config) for name, config in configs(cache_dir).items() if not args.only or name in args.only
        }
    args.out.write_text(json.dumps(found, indent=1))
    if args.against:
        before = {k: v for k, v in json.loads(args.against.read_text()).items() if k in found}
        lines = differences(before, json.loads(args.out.read_text()))
        print("\n".join(lines) or "equal")


if __name__ == "__main__":
    main()
