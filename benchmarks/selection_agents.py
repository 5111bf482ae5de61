"""Trains the agents that `selection.py checkpoints` chooses among: ten settings of a task, two checkpoints each.

    python benchmarks/selection_agents.py hopper-medium-expert --out agents
    python benchmarks/selection.py checkpoints agents/hopper-medium-expert --input hopper-medium-expert \
        --env Hopper-v5 --out selection.json

All have the same held-out episodes (a tenth), the same dynamics model and one thread, in one process; the settings
are over the defaults, and networks have 128 units. An agent that is there is not trained again.
"""

from __future__ import annotations

import argparse
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import ray
import torch
from score_settings import NO_ANCHOR, environment
from score_trials import gradient_steps

from rllib_damo import ALGORITHMS
from rllib_damo.core.config import ModelBasedConfig, OfflineConfig
from rllib_damo.evaluation.checkpoints import MANIFEST

NETWORKS = {"hidden_dims": (128, 128)}
AGENTS: dict[str, tuple[str, dict[str, Any]]] = {
    "damo": ("DAMO", {}),
    "damo-eta3": ("DAMO", {"eta": 3.0}),
    "damo-all-rows": ("DAMO", {"data_fraction": 1.0}),
    "damo-weak-anchor": ("DAMO", {"bc_weight": 0.5}),
    "damo-no-anchor": ("DAMO", NO_ANCHOR),
    "td3bc": ("TD3BC", {}),
    "td3bc-alpha10": ("TD3BC", {"bc_alpha": 10.0}),
    "mopo-0.5": ("MOPO", {"penalty_coef": 0.5}),
    "mopo-5": ("MOPO", {"penalty_coef": 5.0}),
    "iql": ("OfflineIQL", {}),
}


def make_config(task: str, algorithm: str, options: dict[str, Any]) -> OfflineConfig:
    """The config of one agent."""
    config = ALGORITHMS[algorithm].get_default_config()
    config.environment(environment(task)).debugging(seed=0)
    config.offline_data(input_=task, holdout_episodes=0.1).training(**NETWORKS | options)
    if isinstance(config, ModelBasedConfig):
        config.training(rollout_batch_size=20_000).dynamics(dynamics_max_epochs=8)
    config.evaluation(evaluation_interval=None).resources(num_cpus_for_main_process=1)
    assert isinstance(config, OfflineConfig)
    return config


def wanted(folder: Path, steps: list[int]) -> Iterator[tuple[str, Path]]:
    """The agents that are not there yet."""
    for name in AGENTS:
        if not (folder / name / str(steps[-1]) / MANIFEST).exists():  # the last file of a checkpoint
            yield name, folder / name


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("task", help="the dataset by its short name: hopper-medium ...")
    parser.add_argument("--steps", type=int, nargs="+", default=[10_000, 25_000], help="gradient steps of checkpoints")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    ray.init("local", num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    for name, folder in wanted(args.out / args.task, args.steps):
        start = time.monotonic()
        algo = make_config(args.task, *AGENTS[name]).build_algo()
        for steps in args.steps:
            while gradient_steps(algo, algo.train()) < steps:
                pass
            algo.save_to_path(str(folder / str(steps)))
        algo.stop()
        print(time.strftime("%T"), args.task, name, round(time.monotonic() - start), "s", flush=True)


if __name__ == "__main__":
    main()
