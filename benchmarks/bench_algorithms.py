"""One gradient step of every algorithm at Hopper's sizes under its default options, with readable networks and fast.

    python benchmarks/bench_algorithms.py
    python benchmarks/bench_algorithms.py --only MOPO TD3BC --options '{"critic_layer_norm": true}'

They take turns in one process, and seconds are CPU time: of one thread, other processes disturb that least. Prints one
JSON line for each algorithm: the median round's steps a second by readable and by fast networks (null where it has
none), the median over rounds of the ratio, and the multiply-adds (twice) of the matrix products of a step, counted.
"""

import argparse
import json
import time
from statistics import median
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from bench_rollouts import ACT_DIM, OBS_DIM
from score_settings import add_options
from torch.utils.flop_counter import FlopCounterMode

from rllib_damo import ALGORITHMS
from rllib_damo.baselines.rebrac import HAS_NEXT_ACTION, NEXT_ACTIONS
from rllib_damo.command.inputs import apply_config
from rllib_damo.core.update import DatasetFacts, StepBatch, Update
from rllib_damo.damo.fast_update import fastest_update
from rllib_damo.dynamics.ensemble import DynamicsEnsemble
from rllib_damo.nn.adam import FusedAdam
from rllib_damo.nn.batched_matmul import PRODUCT_DTYPES
from rllib_damo.nn.flat_parameters import flatten
from rllib_damo.utils.batch import Layout

STEP = 1_000_000  # past all warm-ups
NUM_BATCHES = 10


def make_config(name: str, options: dict[str, Any]) -> Any:
    config = ALGORITHMS[name].get_default_config().environment("Hopper-v5").offline_data(input_="hopper-medium")
    return apply_config(config, options, "--options")


def make(config: Any, is_fast: bool) -> Update:
    """An update of fresh networks."""
    torch.manual_seed(0)
    module = config.default_module_class(
        observation_space=gym.spaces.Box(-np.inf, np.inf, (OBS_DIM,)),
        action_space=gym.spaces.Box(-1, 1, (ACT_DIM,)),
        inference_only=False,
        model_config={name: getattr(config, name) for name in config.network_options},
    )
    optimizers = {name: FusedAdam([flatten(params)], lr=3e-4) for name, params in module.trainable().items()}
    kind: Any = config.default_learner_class.update_class
    if is_fast and config.algo_class.__name__ == "DAMO":
        kind = fastest_update
    elif is_fast:
        module.use_fast_networks(PRODUCT_DTYPES[config.precision])
    update: Update = kind(module, config, optimizers=optimizers, generator=torch.Generator().manual_seed(0))
    update.fit(DatasetFacts())
    if update.uses_dynamics:
        dims, num, num_elites = config.dynamics_hidden_dims, config.num_ensemble, config.num_elites
        update.set_dynamics(
            DynamicsEnsemble(OBS_DIM, ACT_DIM, hidden_dims=dims, num_ensemble=num, num_elites=num_elites)
        )
    return update


def make_batch(update: Update, seed: int) -> StepBatch:
    generator, layout, groups = torch.Generator().manual_seed(seed), Layout(OBS_DIM, ACT_DIM), {}
    for name, group in update.row_groups().items():
        rows = torch.randn(group.num_real + group.num_model, layout.width, generator=generator)
        rows[:, -1] = 0  # no terminals
        groups[name] = layout.unpack(rows)
        groups[name].actions.clamp_(-1, 1)
    num = len(groups["update"].obs)
    extra = {NEXT_ACTIONS: torch.zeros(num, ACT_DIM), HAS_NEXT_ACTION: torch.ones(num, 1)}
    return StepBatch(groups, update.row_groups()["update"].num_real, extra)


def steps(update: Update, batches: list[StepBatch]) -> float:
    """CPU seconds of a step."""
    start = time.process_time()
    for i, batch in enumerate(batches):
        update.step(batch, STEP + i, measure=True)
    return (time.process_time() - start) / len(batches)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--only", nargs="+", choices=tuple(ALGORITHMS), default=tuple(ALGORITHMS))
    add_options(parser)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    updates: dict[tuple[str, bool], tuple[Update, list[StepBatch]]] = {}
    seconds: dict[tuple[str, bool], list[float]] = {}
    flop, configs = {}, {}
    for name in args.only:
        config = configs[name] = make_config(name, args.options)
        for is_fast in (False, True) if hasattr(config, "precision") else (False,):
            update = make(config, is_fast)
            updates[name, is_fast] = update, [make_batch(update, seed) for seed in range(NUM_BATCHES)]
            with FlopCounterMode(display=False) as counter:
                steps(*updates[name, is_fast])  # and all buffers are made
            flop[name] = counter.get_total_flops() / NUM_BATCHES  # of the fast form, where there is one
            seconds[name, is_fast] = []
    for _ in range(args.rounds):
        for key, parts in updates.items():
            seconds[key].append(steps(*parts))
    for name in args.only:
        readable, fast = seconds[name, False], seconds.get((name, True))
        print(
            json.dumps(
                {
                    "benchmark": "algorithms",
                    "algorithm": name,
                    "hidden_dims": configs[name].hidden_dims,
                    "steps_per_second": round(1 / median(readable), 1),
                    "fast_steps_per_second": round(1 / median(fast), 1) if fast else None,
                    "speed_to_readable": round(median(r / f for r, f in zip(readable, fast, strict=True)), 2)
                    if fast
                    else None,
                    "gflop_per_step": round(flop[name] / 1e9, 3),
                    "threads": args.threads,
                    "options": args.options,
                }
            )
        )


if __name__ == "__main__":
    main()
