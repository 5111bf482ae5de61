"""Runs fitted Q evaluation until the ranking settles; it can be interrupted, and tells how far it is."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rllib_damo.selection import state_files
from rllib_damo.selection.fqe import FQE, settling_steps
from rllib_damo.selection.rule import has_settled

TAU, LAST_TAU = 0.02, 0.005  # of the first two thirds, and of the last
_FORMAT = "rllib_damo.fqe/1"
_CHECKS = 12


@dataclass
class Fit:
    """A finished evaluation.

    Attributes:
        history: ``(checks, K, E, M)`` values.
        steps: at each check.
        settled: whether the ranking stood still.
        diverged: ``(K,)`` bool.
    """

    history: np.ndarray
    steps: list[int]
    settled: bool
    diverged: np.ndarray


def fit(
    fqe: FQE, steps: int, *, reference: int, counted: np.ndarray, names: Sequence[str], state_file: Path | None = None,
    key: str = "", progress: Callable[[str], None] = lambda text: None,
) -> Fit:  # fmt: skip
    """Trains for ``steps``, or until `rule.has_settled`, and at least until the first networks are forgotten.

    Args:
        fqe: the evaluation.
        steps: at most.
        reference: the policy that the others are compared with.
        counted: ``(K,)`` bool, the policies whose ranking counts.
        names: of the policies, for ``progress``.
        state_file: where the state is kept at each check; if it is there, the evaluation goes on from it.
        key: of all that the state depends on.
        progress: gets a line a check.

    Raises:
        UsageError: ``state_file`` is of other policies, data or settings, or damaged.
    """
    every = max(1, min(2_500, -(-steps // _CHECKS)))
    history: list[np.ndarray] = []
    at: list[int] = []
    state = state_files.load(state_file, _FORMAT, key)
    if state is not None:
        fqe.set_state(state["fqe"])
        history, at = [part.numpy() for part in state["history"]], list(state["at"])
    start, first = time.perf_counter(), fqe.step_number

    def settled() -> bool:
        values = np.stack(history)[..., 0] if history else np.zeros((0, 1, 1))
        enough = fqe.step_number >= settling_steps(fqe.gamma, TAU)
        return enough and has_settled(values, reference, counted & ~fqe.diverged.numpy())

    while fqe.step_number < steps and not settled():
        fqe.train(min(every, steps - fqe.step_number), lambda step: TAU if step < 2 * steps // 3 else LAST_TAU)
        values = fqe.values().numpy()
        history.append(values)
        at.append(fqe.step_number)
        if state_file is not None:
            content = {"fqe": fqe.state(), "at": at, "history": torch.from_numpy(np.stack(history))}
            state_files.save(state_file, _FORMAT, key, content)
        rate = (fqe.step_number - first) / (time.perf_counter() - start)
        best = [names[i] for i in np.argsort(-values[..., 0].mean(-1)) if counted[i]][:3]
        progress(
            f"step {fqe.step_number:,} of {steps:,}, {rate:.0f} steps/s, "
            f"{(steps - fqe.step_number) / rate / 60:.0f} min left; highest: {'; '.join(best)}"
        )
    return Fit(np.stack(history), at, settled(), fqe.diverged.numpy())


def key_of(facts: Mapping[str, Any], *arrays: torch.Tensor) -> str:
    """A hash of plain values and of tensors' contents."""
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode())
    for array in arrays:
        digest.update(array.contiguous().numpy().data)
    return digest.hexdigest()
