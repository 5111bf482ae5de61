"""Fitted Q evaluation as `rllib-damo select` runs it: time of a step and memory, at HalfCheetah's sizes.

    OMP_NUM_THREADS=1 python benchmarks/bench_select.py

Beside the candidates, a selection evaluates a clone, the logged behaviour, and clones of three thirds of the episodes.
Prints a JSON line: CPU seconds of a step on all threads, with its arithmetic as a share of the sgemm that takes turns
with it; and resident memory in MB, after the imports, with the data and the policies' actions, and at most.
"""

import argparse
import json
import resource
import statistics
import time
from pathlib import Path

import torch

import rllib_damo.selection  # noqa: F401  # all that `select` imports
from rllib_damo.nn.standardize import input_scales
from rllib_damo.selection.critic import BATCH, NetworkCritic
from rllib_damo.selection.fqe import FQE, Bounds, episode_weights
from rllib_damo.selection.rows import Rows

OBS_DIM, ACT_DIM, HEADS, WIDTH, LENGTH, GAMMA = 17, 6, 4, 128, 1000, 0.997
OWN = 5  # policies beside the candidates


def resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return round(pages * resource.getpagesize() / 1e6)


def make_rows(num: int, generator: torch.Generator) -> Rows:
    """Episodes of noise that end by truncation."""

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    stops = torch.arange(LENGTH, num + 1, LENGTH)
    return Rows(
        noise(num, OBS_DIM), noise(num, ACT_DIM).clamp_(-1, 1), noise(num), noise(num, OBS_DIM),
        torch.zeros(num, dtype=torch.bool), torch.arange(num) // LENGTH, stops - LENGTH, stops,
    )  # fmt: skip


def sgemm_seconds(flop: float) -> float:
    """CPU seconds of products 512 x 512 x 512 with so many operations."""
    a, b = torch.randn(2, 512, 512)
    times = round(flop / (2 * 512**3))
    start = time.process_time()
    for _ in range(times):
        a @ b
    return (time.process_time() - start) * flop / (times * 2 * 512**3)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--candidates", type=int, default=20)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--steps", type=int, default=30)
    args = parser.parse_args()
    memory = {"imports": resident()}
    generator, num = torch.Generator().manual_seed(0), args.candidates + OWN
    rows = make_rows(args.rows, generator)
    actions = torch.empty(num, len(rows), ACT_DIM).uniform_(-1, 1, generator=generator)
    memory["with data and actions"] = resident()
    signals = rows.rewards[:, None]
    bounds, weights = Bounds.of(rows, signals, GAMMA), episode_weights(HEADS, rows.num_episodes, 0)
    critic = NetworkCritic(num, HEADS, input_scales(rows.obs), ACT_DIM, bounds.center, bounds.scale, 3e-4, 0)
    fqe = FQE(
        rows, actions, actions[:, rows.starts], critic, gamma=GAMMA, signals=signals, bounds=bounds, weights=weights
    )
    weights_of_one = (OBS_DIM + ACT_DIM) * WIDTH + WIDTH * WIDTH + WIDTH
    flop = num * HEADS * BATCH * 2 * weights_of_one * 4  # forward twice, and backward for inputs and for weights
    fqe.train(2, lambda step: 0.02)
    steps, shares, wall = [], [], []
    for _ in range(args.steps):
        start, clock = time.process_time(), time.perf_counter()
        fqe.train(1, lambda step: 0.02)
        steps.append(time.process_time() - start)
        wall.append(time.perf_counter() - clock)
        shares.append(sgemm_seconds(flop) / steps[-1])
    memory["at most"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6)
    result = {
        "seconds": round(statistics.median(wall), 4),
        "cpu_seconds": round(statistics.median(steps), 4),
        "gflop": round(flop / 1e9, 2),
    }
    result["share_of_sgemm"] = round(statistics.median(shares), 2)
    print(json.dumps({"benchmark": "select", "policies": num, "rows": len(rows), **result, "memory": memory}))


if __name__ == "__main__":
    main()
