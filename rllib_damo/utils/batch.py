"""Transition stores: each row one transition, all columns side by side in one float32 matrix on the learner's device.

A minibatch is then a single gather, whatever the number of columns, and its cost does not depend on the store's size.
"""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor


class Batch(NamedTuple):
    """Views of the columns of ``(B, width)`` rows; actions are unit actions, ``terminated`` is 0 or 1."""

    obs: Tensor  # (B, obs_dim)
    actions: Tensor  # (B, act_dim)
    next_obs: Tensor  # (B, obs_dim)
    rewards: Tensor  # (B,)
    terminated: Tensor  # (B,)


def unknown_successors(obs: Tensor, next_obs: Tensor, terminated: Tensor) -> Tensor:
    """``(B,)`` bool: terminals whose successor the source did not record; the reader repeats the observation there."""
    return (terminated > 0) & (next_obs == obs).all(-1)


class Layout(NamedTuple):
    """Where the columns of a row [s | a | s' | r | terminated] lie."""

    obs_dim: int
    act_dim: int

    @property
    def width(self) -> int:
        return 2 * self.obs_dim + self.act_dim + 2

    def pack(self, obs: Any, actions: Any, next_obs: Any, rewards: Any, terminated: Any) -> Any:
        """Rows ``(N, width)`` float32 from separate columns, all tensors or all NumPy arrays, as such."""
        shape = len(obs), self.width
        rows = obs.new_empty(shape, dtype=torch.float32) if isinstance(obs, Tensor) else np.empty(shape, np.float32)
        o, a = self.obs_dim, self.act_dim
        rows[:, :o], rows[:, o : o + a], rows[:, o + a : 2 * o + a] = obs, actions, next_obs
        rows[:, -2], rows[:, -1] = rewards, terminated
        return rows

    def unpack(self, rows: Any) -> Batch:
        """Views of the columns of ``rows (N, width)``, a tensor or a NumPy array."""
        o, a = self.obs_dim, self.act_dim
        return Batch(rows[:, :o], rows[:, o : o + a], rows[:, o + a : 2 * o + a], rows[:, -2], rows[:, -1])


def as_constant(array: np.ndarray | Tensor) -> Tensor:
    """A tensor on the array's own memory, for reading only: what Ray's object store hands out is not writable."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.as_tensor(array)


class RingBuffer:
    """Keeps the newest ``capacity`` rows.

    Args:
        layout: the columns.
        capacity: rows that are kept; older ones are overwritten.
        device: where the rows live.
    """

    def __init__(self, layout: Layout, capacity: int, device: torch.device):
        self.layout, self.capacity = layout, capacity
        self.rows = torch.zeros((capacity, layout.width), device=device)
        self.size = 0
        self._next = 0

    def __len__(self) -> int:
        return self.size

    def add(self, rows: Tensor) -> None:
        """Appends ``(N, width)`` rows; of more than ``capacity`` rows, the last ones stay."""
        rows = rows[-self.capacity :]
        head = min(len(rows), self.capacity - self._next)
        self.rows[self._next : self._next + head].copy_(rows[:head])
        self.rows[: len(rows) - head].copy_(rows[head:])
        self._next = (self._next + len(rows)) % self.capacity
        self.size = min(self.size + len(rows), self.capacity)

    def get_state(self) -> dict[str, Any]:
        return {"rows": np.array(self.rows[: self.size].cpu()), "next": self._next, "capacity": self.capacity}

    def set_state(self, state: dict[str, Any]) -> None:
        """Takes the rows of a buffer of this capacity as they lay; of one of another capacity the newest."""
        rows, self._next = np.array(state["rows"]), state["next"]
        if state["capacity"] != self.capacity:
            rows = oldest_first(state)[-self.capacity :]
            self._next = len(rows) % self.capacity
        self.size = len(rows)
        self.rows[: self.size].copy_(torch.from_numpy(rows))


def oldest_first(state: dict[str, Any]) -> np.ndarray:
    """The rows ``(N, width)`` of a buffer's state, in the order in which they came."""
    rows = np.array(state["rows"])
    return np.roll(rows, -state["next"], 0) if len(rows) == state["capacity"] else rows


def deal_buffers(states: list[dict[str, Any]], num: int) -> list[dict[str, Any]]:
    """The states of ``num`` buffers with the rows of others, so that a row is in one of them, and each has all ages.

    Args:
        states: of the buffers of several learners, which were filled with equal parts of each round.
        num: how many learners there are now; as many get the same states.
    """
    if len(states) == num:
        return states
    parts = [oldest_first(state) for state in states]
    longest = max(map(len, parts))
    ages = np.concatenate([np.arange(longest - len(part), longest) for part in parts])
    rows = np.concatenate(parts)[np.argsort(ages, kind="stable")]
    return [{"rows": rows[i::num], "next": 0, "capacity": None} for i in range(num)]
