"""Model rollouts of Hopper's sizes with the default networks, from start states to Arrow tables.

    python benchmarks/bench_rollouts.py --threads 2

Prints one JSON line; ``gflops_peak`` is this run's 256x256x256 sgemm, ``peak_fraction`` the networks' share of it.
"""

import argparse
import json
import time

import torch

from rllib_damo.core.networks import Actor
from rllib_damo.dynamics.ensemble import DynamicsEnsemble
from rllib_damo.dynamics.rollout import rollout
from rllib_damo.dynamics.termination import resolve_termination
from rllib_damo.utils.arrow import to_arrow

OBS_DIM, ACT_DIM = 11, 3
#: Multiply-adds of one transition, twice: the policy (2 x 256) and one elite (4 x 200).
FLOP = 2 * (11 * 256 + 256 * 256 + 256 * 6) + 2 * (14 * 200 + 3 * 200 * 200 + 200 * 24)


def sgemm_gflops(seconds: float = 0.3) -> float:
    """The best rate of a 256x256x256 float32 matmul within ``seconds``, at the present thread count."""
    a, b, c = (torch.randn(256, 256) for _ in range(3))
    best, stop = 0.0, time.perf_counter() + seconds
    while time.perf_counter() < stop:
        start = time.perf_counter()
        for _ in range(20):
            torch.mm(a, b, out=c)
        best = max(best, 20 * 2 * 256**3 / (time.perf_counter() - start) / 1e9)
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--starts", type=int, default=50_000)
    parser.add_argument("--length", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    device = torch.device(args.device)
    dynamics = DynamicsEnsemble(OBS_DIM, ACT_DIM).to(device)
    dynamics.target_std.fill_(0.01)
    actor = Actor(OBS_DIM, ACT_DIM, (256, 256)).to(device)
    healthy = resolve_termination("Hopper-v5")
    assert healthy is not None
    starts = 0.01 * torch.randn(args.starts, OBS_DIM, device=device)
    starts[:, 0] += 1.2
    generator = torch.Generator(device).manual_seed(0)

    def policy(obs: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        return actor.sample(obs, torch.randn(len(obs), ACT_DIM, generator=generator, device=device))[0]

    rates, peaks, num = [], [], 0
    for _ in range(args.rounds + 1):
        peaks.append(sgemm_gflops())
        start = time.perf_counter()
        table = to_arrow(rollout(policy, dynamics, healthy, starts, args.length, generator))
        rates.append(len(table) / (time.perf_counter() - start))
        num = len(table)
    rate, peak = max(rates[1:]), max(peaks)
    result = {
        "benchmark": "rollouts",
        "transitions_per_second": round(rate),
        "transitions_per_round": num,
        "gflops_peak": round(peak, 1),
        "peak_fraction": round(rate * FLOP / 1e9 / peak, 3),
        "threads": args.threads,
        "device": args.device,
        "gpu_peak_mb": round(torch.cuda.max_memory_allocated() / 2**20) if torch.cuda.is_available() else None,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
