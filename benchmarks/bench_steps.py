"""Gradient steps a second at Hopper's sizes, of full DAMO or another algorithm, through ``algo.train()`` end to end.

    python benchmarks/bench_steps.py --threads 2
    python benchmarks/bench_steps.py --options '{"critic_layer_norm": false}'
    python benchmarks/bench_steps.py --gpu graphs --iterations 20
    python benchmarks/bench_steps.py --algorithm TD3BC

Prints one JSON line: ``steps_per_second`` counts whole iterations (rollouts, hand-over, gradient steps, metrics),
``learner_steps_per_second`` the gradient steps alone, ``overhead`` the share of an iteration that is neither rollouts
nor gradient steps. ``gflops_peak`` is the median of 256x256x256 sgemm, measured before each iteration;
``peak_fraction`` is the median share that the gradient steps have of it, ``whole_fraction`` that of whole iterations;
both are of the CPU's peak, on a GPU too, and of DAMO alone.
"""

import argparse
import json
import time
from statistics import median
from typing import Any

import numpy as np
import ray
import torch
from bench_rollouts import ACT_DIM, OBS_DIM, sgemm_gflops
from score_settings import add_options

from rllib_damo import ALGORITHMS
from rllib_damo.command.inputs import apply_config
from rllib_damo.core.config import ModelBasedConfig
from rllib_damo.data.schema import Transitions


def flop_per_step(batch: int = 256, width: int = 256) -> float:
    """Multiply-adds, twice, of one step that computes nothing twice."""

    def mlp(inputs: int, outputs: int) -> int:
        return 2 * batch * (inputs * width + width * width + width * outputs)

    critic, actor = 2 * mlp(OBS_DIM + ACT_DIM, 1), mlp(OBS_DIM, 2 * ACT_DIM)
    classifier = mlp(2 * OBS_DIM + ACT_DIM, 1)
    # critics: 3 groups forward and the targets, 2 groups back to the parameters, 2 back to the actions
    # actor: s' and s0 forward and back; classifier: 3 groups forward, 2 back
    return critic * (4 + 2 * 2 + 2) + actor * 2 * 3 + classifier * (3 + 2 * 2)


def hopper_sized(rows: int, algorithm: str = "DAMO") -> Any:
    """The config of an algorithm on a dataset of noise with Hopper's widths; one epoch of the dynamics model."""
    rng = np.random.default_rng(0)
    observations = rng.normal(size=(rows, OBS_DIM)).astype(np.float32)
    actions = rng.uniform(-1, 1, size=(rows, ACT_DIM)).astype(np.float32)
    dataset = Transitions(
        observations=observations,
        actions=actions,
        rewards=observations[:, 0],
        next_observations=observations + 0.1 * actions.mean(1, keepdims=True),
        terminations=np.zeros(rows, bool),
        truncations=np.arange(rows) % 100 == 99,
    )
    config: Any = ALGORITHMS[algorithm].get_default_config()
    config.environment("Hopper-v5").offline_data(input_=dataset).evaluation(evaluation_interval=None)
    config.debugging(seed=0, log_level="ERROR")
    if isinstance(config, ModelBasedConfig):
        config.training(rollout_length=5).dynamics(dynamics_max_epochs=1)
    return config.training(actor_warmup_steps=0) if algorithm == "DAMO" else config  # warm-up steps take less


def ready(config: Any) -> Any:
    """An algorithm whose dynamics model is trained and whose first round is done."""
    algo = config.build_algo()
    while algo.train()["phase"] != "policy":
        pass
    return algo


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--iterations", type=int, default=5)
    parser.add_argument("--rows", type=int, default=20_000, help="of the dataset")
    parser.add_argument("--gpu", choices=("none", "plain", "graphs"), default="none", help="where the learner runs")
    parser.add_argument("--algorithm", choices=tuple(ALGORITHMS), default="DAMO")
    add_options(parser)
    args = parser.parse_args()
    has_gpu = args.gpu != "none"
    if has_gpu and not torch.cuda.is_available():
        parser.error(f"--gpu {args.gpu}: no CUDA device here.")
    ray.init("local", num_cpus=2, num_gpus=int(has_gpu), include_dashboard=False, log_to_driver=False)
    config = hopper_sized(args.rows, args.algorithm).learners(num_gpus_per_learner=int(has_gpu))
    if args.gpu == "graphs":
        config.training(cuda_graphs=True)
    algo = ready(apply_config(config, args.options, "--options"))
    torch.set_num_threads(args.threads)
    learner, spent = algo.learner_group._learner, {"update_many": 0.0, "rollouts": 0.0}
    timed(learner, "update_many", spent, "update_many")
    has_rollouts = isinstance(config, ModelBasedConfig)
    if has_rollouts:
        timed(algo.env_runner, "sample", spent, "rollouts")
    work = algo.config.rollout_freq * flop_per_step() / 1e9
    peaks, fractions, whole_fractions, total = [], [], [], 0.0
    for _ in range(args.iterations):
        peaks.append(sgemm_gflops())
        before, start = spent["update_many"], time.perf_counter()
        result = algo.train()
        seconds = time.perf_counter() - start
        fractions.append(work / (spent["update_many"] - before) / peaks[-1])
        whole_fractions.append(work / seconds / peaks[-1])
        total += seconds
    steps = args.iterations * algo.config.rollout_freq
    rollouts, peak = {}, {}
    if has_rollouts:
        transitions = result["env_runners"]["rollout"]["num_transitions"] * args.iterations
        rollouts = {"rollout_transitions_per_second": round(transitions / spent["rollouts"])}
    if args.algorithm == "DAMO":
        peak = {
            "gflop_per_step": round(flop_per_step() / 1e9, 3), "peak_fraction": round(median(fractions), 3),
            "whole_fraction": round(median(whole_fractions), 3),
        }  # fmt: skip
    print(
        json.dumps(
            {
                "benchmark": "steps",
                "algorithm": args.algorithm,
                "steps_per_second": round(steps / total, 1),
                "learner_steps_per_second": round(steps / spent["update_many"], 1),
                **rollouts,
                "overhead": round(1 - sum(spent.values()) / total, 4),
                "gflops_peak": round(median(peaks), 1),
                **peak,
                "threads": args.threads,
                "options": args.options,
                "gpu": torch.cuda.get_device_name() if has_gpu else None,
                "gpu_peak_mb": round(torch.cuda.max_memory_allocated() / 2**20) if has_gpu else None,
                "cuda_graphs": args.gpu == "graphs",
            }
        )
    )
    algo.stop()
    ray.shutdown()


def timed(owner: object, method: str, spent: dict[str, float], key: str) -> None:
    """Replaces a method by one that adds its seconds to ``spent[key]``."""
    inner = getattr(owner, method)

    def wrapper(*args: object, **kwargs: object) -> object:
        start = time.perf_counter()
        try:
            return inner(*args, **kwargs)
        finally:
            spent[key] += time.perf_counter() - start

    setattr(owner, method, wrapper)


if __name__ == "__main__":
    main()
