"""One gradient step of DAMO at Hopper's sizes: readable, fast, fast without layer normalisation, fast in bfloat16.

    python benchmarks/bench_update.py --threads 2

They take turns in one process. Prints one JSON line for each: the fastest round's steps a second, its share of
this run's best 256x256x256 sgemm, and the median over rounds of its speed against the readable update's.
"""

import argparse
import json
import statistics
import time

import gymnasium as gym
import numpy as np
import torch
from bench_rollouts import ACT_DIM, OBS_DIM, sgemm_gflops
from bench_steps import flop_per_step

from rllib_damo import DAMOConfig
from rllib_damo.core.update import StepBatch
from rllib_damo.damo.fast_update import FastUpdate
from rllib_damo.damo.rl_module import DAMOTorchRLModule
from rllib_damo.damo.update import DAMOUpdate
from rllib_damo.nn.adam import FusedAdam
from rllib_damo.nn.flat_parameters import flatten
from rllib_damo.utils.batch import Batch, Layout

ROWS = 256


def make(precision: str | None, width: int, layer_norm: bool = True) -> DAMOUpdate:
    """An update of fresh networks under the default options; None for the readable one."""
    config = DAMOConfig().training(actor_warmup_steps=0, precision=precision or "fp32")
    torch.manual_seed(0)
    module = DAMOTorchRLModule(
        observation_space=gym.spaces.Box(-np.inf, np.inf, (OBS_DIM,)),
        action_space=gym.spaces.Box(-1, 1, (ACT_DIM,)),
        model_config={
            "hidden_dims": (width, width), "twin_q": True, "critic_layer_norm": layer_norm,
            "classifier_spectral_norm": False, "initial_alpha": 0.05,
        },
    )  # fmt: skip
    flat = {name: flatten(params) for name, params in module.trainable().items()}
    optimizers = {name: FusedAdam([param], lr=3e-4) for name, param in flat.items()}
    update_class = DAMOUpdate if precision is None else FastUpdate
    return update_class(module, config, optimizers=optimizers, generator=torch.Generator().manual_seed(0))


def make_batch(seed: int) -> StepBatch:
    generator, layout = torch.Generator().manual_seed(seed), Layout(OBS_DIM, ACT_DIM)

    def rows() -> Batch:
        columns = torch.randn(ROWS, layout.width, generator=generator)
        columns[:, -1] = 0  # no terminals
        batch = layout.unpack(columns)
        batch.actions.clamp_(-1, 1)
        return batch

    return StepBatch({name: rows() for name in ("update", "initial", "classifier_offline", "classifier_synthetic")})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--width", type=int, default=256, help="units of each of the two hidden layers")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    updates = {
        "readable": make(None, args.width),
        "fp32": make("fp32", args.width),
        "fp32, no layer normalisation": make("fp32", args.width, layer_norm=False),
        "bf16": make("bf16", args.width),
    }
    batches = [make_batch(seed) for seed in range(10)]
    seconds: dict[str, list[float]] = {name: [] for name in updates}
    peak = 0.0
    for _ in range(args.rounds + 1):  # the first round warms up
        peak = max(peak, sgemm_gflops(0.1))
        for name, update in updates.items():
            start = time.perf_counter()
            for batch in batches:
                update.step(batch, 0, measure=True)
            seconds[name].append((time.perf_counter() - start) / len(batches))
    for name, rounds in seconds.items():
        rate = 1 / min(rounds[1:])
        ratios = [slow / fast for slow, fast in zip(seconds["readable"][1:], rounds[1:], strict=True)]
        print(
            json.dumps(
                {
                    "benchmark": "update",
                    "update": name,
                    "steps_per_second": round(rate, 1),
                    "speed_to_readable": round(statistics.median(ratios), 2),
                    "gflop_per_step": round(flop_per_step(width=args.width) / 1e9, 3),
                    "gflops_peak": round(peak, 1),
                    "peak_fraction": round(rate * flop_per_step(width=args.width) / 1e9 / peak, 3),
                    "threads": args.threads,
                }
            )
        )


if __name__ == "__main__":
    main()
