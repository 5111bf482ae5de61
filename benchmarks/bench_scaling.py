"""Two learners, and two rollout runners, of one thread each against one: full DAMO at Hopper's sizes.

    python benchmarks/bench_scaling.py

Learners are Ray actors that average their gradients through gloo; runners are Ray actors that split a round. Ray gives
an actor one thread. One and two take turns in one run. Prints a JSON line for each: samples or transitions a second,
and ``scaling``, the median over rounds of the ratio of these, at best 2.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable

import ray
import torch
from bench_steps import hopper_sized, ready

from rllib_damo import DAMO


def learners(num: int, steps: int, batch_size: int) -> tuple[DAMO, Callable[[], float]]:
    """Takes ``steps`` gradient steps of ``batch_size`` rows a learner in each call; returns the samples."""
    config = hopper_sized(5000).learners(num_learners=num).training(rollout_freq=10, rollout_batch_size=2000)
    algo = ready(config.training(train_batch_size_per_learner=batch_size))

    def work() -> float:
        algo._foreach_learner("update_many", steps)
        return num * steps * batch_size

    return algo, work


def runners(num: int, starts: int) -> tuple[DAMO, Callable[[], float]]:
    """Rolls out a round a call; returns its transitions."""
    algo = ready(
        hopper_sized(5000).env_runners(num_env_runners=num).training(rollout_freq=1, rollout_batch_size=starts)
    )
    return algo, lambda: sum(len(table) for table in algo._roll_out())


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=100, help="gradient steps of a round")
    parser.add_argument("--batch-size", type=int, default=256, help="of each learner")
    # About as many transitions as a round of the defaults: from noise, a rollout ends at its first steps.
    parser.add_argument("--starts", type=int, default=250_000, help="start states of a round of rollouts")
    args = parser.parse_args()
    torch.set_num_threads(1)
    ray.init("local", num_cpus=3, include_dashboard=False, log_to_driver=False)
    for name, make, sizes in (
        ("learners", learners, (args.steps, args.batch_size)),
        ("runners", runners, (args.starts,)),
    ):
        made = {num: make(num, *sizes) for num in (1, 2)}
        rates: dict[int, list[float]] = {num: [] for num in made}
        for _ in range(args.rounds):
            for num, (_, work) in made.items():
                start = time.perf_counter()
                rates[num].append(work() / (time.perf_counter() - start))
        scaling = statistics.median(two / one for one, two in zip(*rates.values(), strict=True))
        per_second = {num: round(statistics.median(rounds)) for num, rounds in rates.items()}
        print(json.dumps({"benchmark": name, "per_second": per_second, "scaling": round(scaling, 2)}), flush=True)
        for algo, _ in made.values():
            algo.stop()
    ray.shutdown()


if __name__ == "__main__":
    main()
