"""A process that plays work units (``units.py`` starts it): one JSON request a line on standard input.

A request is what `units.Stream.request` gives; the answer is a line ``DONE {"path": ..., "transitions": n}``.
Separate programs instead of ``multiprocessing``: they need no ``if __name__ == "__main__"`` in the caller's script,
and their BLAS can be held to one thread, without which results would depend on the number of workers.
"""

import json
import sys
from typing import Any

import numpy as np

from rllib_damo.data.generate import collect, policies
from rllib_damo.utils.paths import atomic_write

ANSWER = "DONE "


def run_unit(
    env_id: str, policy: str, stream: str, seed: int, start: int, stop: int, path: str, num_envs: int = 32
) -> int:
    """Plays the episodes ``start``..``stop`` of a stream and writes them to ``path``, which appears when complete.

    Returns:
        The number of transitions.
    """
    behavior = policies.resolve_policy(env_id, policy)
    rows = collect.play(env_id, behavior, collect.episode_seeds(seed, stream, start, stop), num_envs)
    with atomic_write(path) as file:
        np.savez(file, **rows)  # type: ignore[arg-type]
    return len(rows["rewards"])


def main() -> None:
    for line in sys.stdin:
        request: dict[str, Any] = json.loads(line)
        transitions = run_unit(**request)
        print(ANSWER + json.dumps({"path": request["path"], "transitions": transitions}), flush=True)
