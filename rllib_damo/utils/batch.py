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
        rows = torch.from_numpy(np.array(state["rows"]))
        self.size, self._next = len(rows), state["next"]
        if state["capacity"] != self.capacity:
            oldest_first = rows.roll(-self._next, 0) if self.size == state["capacity"] else rows
            rows = oldest_first[-self.capacity :]
            self.size = len(rows)
            self._next = self.size % self.capacity
        self.rows[: self.size].copy_(rows)
