"""Many iterations: memory, file descriptors, threads and shared memory of all processes stay as they are.

``FAULT_ITERATIONS=300 pytest -m slow -s tests/faults/test_soak.py`` takes 300 iterations and prints the figures.
"""

from __future__ import annotations

import os
import shutil
from typing import Any

import numpy as np
import psutil
import pytest

from tests.small_runs import train_policy

NUM_ITERATIONS = int(os.environ.get("FAULT_ITERATIONS", "40"))
#: What may be added from the first third to the last, by memory allocators and caches.
LIMITS = {"memory, MB": 25.0, "shared memory, MB": 25.0, "descriptors": 3.0, "threads": 3.0}


def usage(*_: Any) -> dict[str, float]:
    """Of the process that calls it."""
    process = psutil.Process()
    memory = process.memory_info()
    return {
        "memory, MB": (memory.rss - memory.shared) / 1e6,
        "shared memory, MB": memory.shared / 1e6,
        "descriptors": process.num_fds(),
        "threads": process.num_threads(),
    }


@pytest.mark.slow
def test_a_long_run_does_not_grow(ray_cluster, config, tmp_path):
    """With a rollout runner in another process, an evaluation in each iteration, and a checkpoint in every fifth."""
    algo = config.env_runners(num_env_runners=1).build_algo()
    train_policy(algo, 1)
    usages: dict[str, list[dict[str, float]]] = {"algorithm": [], "rollout runner": []}
    for iteration in range(NUM_ITERATIONS):
        algo.train()
        if iteration % 5 == 0:
            shutil.rmtree(algo.save_to_path(tmp_path / "checkpoint"))
        usages["algorithm"].append(usage())
        (of_runner,) = algo.env_runner_group.foreach_env_runner(usage, local_env_runner=False)
        usages["rollout runner"].append(of_runner)
    algo.stop()
    grown = []
    for process, samples in usages.items():
        for name, limit in LIMITS.items():
            values = np.array([sample[name] for sample in samples])
            third = len(values) // 3
            first, last = np.median(values[:third]), np.median(values[-third:])
            print(
                f"{process}: {name} {first:.1f} in the first third, {last:.1f} in the last, at most {values.max():.1f}"
            )
            if last - first > limit:
                grown.append((process, name, first, last))
    assert not grown
