"""Training of the dynamics ensemble at Hopper's sizes: rows a second, each row through all seven members.

    python benchmarks/bench_dynamics.py --threads 2

Prints one JSON line; ``gflops_peak`` is this run's 256x256x256 sgemm, ``peak_fraction`` the networks' share of it.
"""

import argparse
import json
import time

import numpy as np
import torch
from bench_rollouts import ACT_DIM, OBS_DIM, sgemm_gflops

from rllib_damo import DAMOConfig
from rllib_damo.dynamics import DynamicsEnsemble, DynamicsTrainer

#: Multiply-adds of one row through seven members, twice: forward, weight gradients, input gradients (not of layer 1).
FLOP = 2 * 7 * (2 * 14 * 200 + 3 * (3 * 200 * 200 + 200 * 24))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rows", type=int, default=20_000, help="of the dataset, and so of an epoch")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    obs, actions = (rng.normal(size=(args.rows, d)).astype(np.float32) for d in (OBS_DIM, ACT_DIM))
    next_obs = obs + np.sin(obs) * actions.mean(1, keepdims=True)
    defaults = DAMOConfig()
    trainer = DynamicsTrainer(
        DynamicsEnsemble(OBS_DIM, ACT_DIM), obs, actions, next_obs, obs.sum(1), np.zeros(args.rows, bool),
        lr=defaults.dynamics_lr, weight_decay=defaults.dynamics_weight_decay, max_epochs_since_update=100,
        batch_size=args.batch_size, precision=args.precision, device=args.device,
    )  # fmt: skip
    num_train = args.rows - min(1000, args.rows // 5)
    rates, peaks = [], []
    for _ in range(args.epochs + 1):
        peaks.append(sgemm_gflops())
        start = time.perf_counter()
        trainer.train_epoch()
        rates.append(num_train / (time.perf_counter() - start))
    rate, peak = max(rates[1:]), max(peaks)
    result = {
        "benchmark": "dynamics",
        "samples_per_second": round(rate),
        "batch_size": args.batch_size,
        "precision": args.precision,
        "gflops_peak": round(peak, 1),
        "peak_fraction": round(rate * FLOP / 1e9 / peak, 3),
        "threads": args.threads,
        "device": args.device,
        "gpu_peak_mb": round(torch.cuda.max_memory_allocated() / 2**20) if torch.cuda.is_available() else None,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
