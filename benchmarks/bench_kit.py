"""One gradient step of MOPO, MOBILE, COMBO, TD3+BC and IQL with published settings, beside the same by OfflineRL-Kit.

    python benchmarks/bench_kit.py --kit OfflineRL-Kit

They take turns in one process, at Hopper's sizes on random rows, and seconds are CPU time. A step is all that follows
the drawing of rows; the kit's gives its metrics as numbers in every step, this package's in every tenth. Prints one
JSON line for each: the medians of steps a second, the median over rounds of the ratio, and the multiply-adds (twice)
of both steps' matrix products.
"""

import argparse
import contextlib
import json
import os
import runpy
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from bench_algorithms import NUM_BATCHES, STEP, make, make_batch
from bench_rollouts import ACT_DIM, OBS_DIM
from offlinerl_kit import replace_modules
from torch.utils.flop_counter import FlopCounterMode

from rllib_damo import ALGORITHMS
from rllib_damo.core.learner import METRICS_INTERVAL

NAMES = {"mopo": "MOPO", "mobile": "MOBILE", "combo": "COMBO", "td3bc": "TD3BC", "iql": "OfflineIQL"}
STEPS = 3 * NUM_BATCHES
Step = Callable[[int], Any]


def kit_step(name: str, kit: Path) -> Step:
    """A step of the example's policy, with its own settings."""
    import offlinerlkit.policy_trainer as trainers

    made: list[Any] = []

    def stop(*_: Any, policy: Any, **__: Any) -> None:
        made.append(policy)
        sys.exit()

    trainers.MBPolicyTrainer = trainers.MFPolicyTrainer = stop
    sys.argv = [name, "--task", "hopper-medium", "--device", "cpu"]
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        with contextlib.suppress(SystemExit):
            runpy.run_path(str(kit / "run_example" / f"run_{name}.py"))["train"]()
        os.chdir("/")
    policy = made[0]
    if hasattr(policy, "dynamics"):
        scaler = policy.dynamics.scaler
        scaler.mu, scaler.std = np.zeros((1, OBS_DIM + ACT_DIM)), np.ones((1, OBS_DIM + ACT_DIM))
    policy.train()
    num_real = {"mopo": 12, "mobile": 12, "combo": 128}.get(name)
    batches = [_kit_batch(seed, num_real) for seed in range(NUM_BATCHES)]
    return lambda step: policy.learn(batches[step % NUM_BATCHES])


def _kit_batch(seed: int, num_real: int | None) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    widths = {"observations": OBS_DIM, "actions": ACT_DIM, "next_observations": OBS_DIM, "rewards": 1}
    batch = {name: torch.randn(256, width, generator=generator).clamp(-1, 1) for name, width in widths.items()}
    batch["terminals"] = torch.zeros(256, 1)
    if num_real is None:
        return batch
    real, fake = {}, {}
    for name, rows in batch.items():
        real[name], fake[name] = rows[:num_real], rows[num_real:]
    return {"real": real, "fake": fake}


def own_step(name: str) -> Step:
    """A step of this package's, with the published settings."""
    config = type(ALGORITHMS[name].get_default_config()).paper()
    config.environment("Hopper-v5").offline_data(input_="hopper-medium")
    update = make(config, hasattr(config, "precision"))
    batches = [make_batch(update, seed) for seed in range(NUM_BATCHES)]
    return lambda step: update.step(batches[step % NUM_BATCHES], STEP + step, measure=step % METRICS_INTERVAL == 0)


def seconds(step: Step) -> float:
    """CPU seconds of one."""
    start = time.process_time()
    for i in range(STEPS):
        step(i)
    return (time.process_time() - start) / STEPS


def gflop(step: Step) -> float:
    """The multiply-adds (twice) of its matrix products, counted; all buffers are made then."""
    with FlopCounterMode(display=False) as counter:
        seconds(step)
    return counter.get_total_flops() / STEPS / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kit", type=Path, required=True, help="a checkout of OfflineRL-Kit")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--only", nargs="+", choices=NAMES, default=[*NAMES])
    args = parser.parse_args()
    kit = args.kit.absolute()
    torch.set_num_threads(1)
    replace_modules("hopper-medium", kit)
    for name in args.only:
        ours, theirs = own_step(NAMES[name]), kit_step(name, kit)
        products = gflop(ours), gflop(theirs)
        times = [(seconds(ours), seconds(theirs)) for _ in range(args.rounds)]
        line = {
            "benchmark": "kit",
            "algorithm": NAMES[name],
            "steps_per_second": round(1 / median(own for own, _ in times), 1),
            "kit_steps_per_second": round(1 / median(other for _, other in times), 1),
            "ratio": round(median(other / own for own, other in times), 2),
            "gflop_per_step": round(products[0], 3),
            "kit_gflop_per_step": round(products[1], 3),
        }
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
