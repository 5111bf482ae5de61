"""Two learners of one thread each against one: samples a second of full DAMO's gradient steps at Hopper's sizes.

    python benchmarks/bench_learners.py

Learners are Ray actors that average their gradients through gloo. The two groups take turns in one run. Prints one JSON
line; ``scaling`` is the median over rounds of the ratio of samples a second, at best 2.
"""

import argparse
import json
import statistics
import time

import ray
import torch
from bench_rollouts import sgemm_gflops
from bench_steps import flop_per_step, hopper_sized


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=100, help="gradient steps of a round")
    args = parser.parse_args()
    torch.set_num_threads(1)
    ray.init(num_cpus=3, include_dashboard=False, log_to_driver=False)
    groups = {}
    for num in (1, 2):  # Ray gives each actor as many threads as it has CPUs: one
        config = hopper_sized(5000).learners(num_learners=num)
        algo = config.training(rollout_freq=10, rollout_batch_size=2000).build_algo()
        while algo.train()["phase"] != "policy":
            pass
        groups[num] = algo
    rates: dict[int, list[float]] = {num: [] for num in groups}
    peak = 0.0
    for _ in range(args.rounds):
        peak = max(peak, sgemm_gflops(0.5))
        for num, algo in groups.items():
            samples = num * args.steps * algo.config.train_batch_size_per_learner
            start = time.perf_counter()
            algo._foreach_learner("update_many", args.steps)
            rates[num].append(samples / (time.perf_counter() - start))
    per_sample = flop_per_step() / 256 / 1e9
    print(
        json.dumps(
            {
                "benchmark": "learners",
                "samples_per_second": {num: round(max(rounds)) for num, rounds in rates.items()},
                "scaling": round(statistics.median(two / one for one, two in zip(*rates.values(), strict=True)), 2),
                "gflops_peak": round(peak, 1),
                "peak_fraction": round(max(rates[1]) * per_sample / peak, 3),
                "threads": 1,
            }
        )
    )
    for algo in groups.values():
        algo.stop()
    ray.shutdown()


if __name__ == "__main__":
    main()
