"""What the `rllib` command does for offline algorithms: it reads their dataset, and gives ours the idle CPUs."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import ray

from rllib_damo.command.checks import has_search_space
from rllib_damo.command.report import console
from rllib_damo.core.algorithm import COMPONENT_TRAINING
from rllib_damo.core.config import OfflineConfig
from rllib_damo.core.going_on import Start
from rllib_damo.data.rllib_input import RLlibOfflineData, read_transitions

if TYPE_CHECKING:
    from ray.rllib.algorithms.algorithm_config import AlgorithmConfig

#: Matrices of the usual sizes keep no more threads busy.
MAX_THREADS = 4


def read_datasets(configs: Iterable[AlgorithmConfig]) -> None:
    """Reads each dataset once and prints its size, so that errors of the data appear before Ray starts.

    A dataset with a short name is made here, where the user sees the progress.

    Raises:
        DataError: for a dataset that cannot be used.
    """
    seen: list[Any] = []
    for config in configs:
        is_own = isinstance(config, OfflineConfig)
        if not (is_own or config.offline_data_class is RLlibOfflineData) or config.input_ in seen:
            continue
        seen.append(config.input_)
        reading = config.offline_data_class(config) if is_own else None
        data = reading.transitions if reading is not None else read_transitions(config)
        returns = data.episode_returns()
        held_out = f"; {reading.holdout['episodes']:,} more are held out" if reading and reading.holdout else ""
        console.print(
            f"Dataset {data.name}: {len(data):,} transitions, {len(returns):,} episodes of mean return "
            f"{returns.mean():.1f}{held_out}"
        )


def check_starts(configs: Iterable[AlgorithmConfig]) -> None:
    """Reads the checkpoints that runs go on from.

    Raises:
        CheckpointError: one is missing, damaged, or of another package.
    """
    starts = {config.start_from for config in configs if isinstance(config, OfflineConfig)}
    for start in starts - {None}:
        Start.read(start, COMPONENT_TRAINING)


def with_idle_cpus(config: AlgorithmConfig) -> AlgorithmConfig:
    """Gives a single trial the CPUs of the machine, as torch threads: Ray grants one thread for each CPU of a process.

    A config that sets `num_cpus_for_main_process`, learners or runners is returned as it is.
    """
    processes = config.num_learners + config.num_env_runners + config.evaluation_num_env_runners
    untouched = config.num_cpus_for_main_process == 1 and not processes
    if not (isinstance(config, OfflineConfig) and untouched) or has_search_space(config):
        return config
    cpus = min(MAX_THREADS, int(ray.available_resources().get("CPU", 1)), os.cpu_count() or 1)
    return config.copy(copy_frozen=False).resources(num_cpus_for_main_process=max(1, cpus))
