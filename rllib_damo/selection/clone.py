"""Clones of the data's behaviour: the policy nearest to the logged actions in the mean square."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rllib_damo.nn.adam import FusedAdam
from rllib_damo.nn.flat_parameters import flatten
from rllib_damo.nn.stacked_mlp import FastMLP, StackedMLP
from rllib_damo.nn.standardize import input_scales
from rllib_damo.selection import state_files
from rllib_damo.selection.rows import Rows

#: ``obs (B, obs) -> unit actions (B, act)``
Policy = Callable[[Tensor], Tensor]
CHUNK = 16_384  # rows that pass through a policy together: all of a dataset's would need much memory
_HIDDEN, _BATCH, _LR = (128, 128), 256, 1e-3
_FORMAT = "rllib_damo.clones/1"


def default_steps(num_rows: int) -> int:
    """Thirty passes over the data, 2,000 to 20,000 steps."""
    return min(20_000, max(2_000, 30 * num_rows // _BATCH))


@torch.no_grad()
def clone(
    rows: Rows, parts: Sequence[Tensor], *, steps: int, seed: int, state_file: Path | None = None, key: str = ""
) -> list[Clone]:
    """Trains a clone of each part of the data, side by side; the learning rate falls linearly to 0.

    Args:
        rows: the data.
        parts: indices of the rows that each clone learns from.
        steps: gradient steps.
        seed: of the first weights, which all clones share, and of the batches.
        state_file: where the clones are kept; if it is there, they are taken from it.
        key: of the rows and the parts.

    Returns:
        The clones.

    Raises:
        UsageError: ``state_file`` is of other rows or settings, or damaged.
    """
    scales = input_scales(rows.obs)
    dims = (rows.obs.shape[1], *_HIDDEN, rows.actions.shape[1])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        first = StackedMLP(1, dims)
    net = StackedMLP(len(parts), dims)
    for own, source in zip(net.parameters(), first.parameters(), strict=True):
        own.copy_(source.expand_as(own))
    params = flatten(list(net.parameters()))
    key = f"{key} {len(parts)} {steps} {seed}"
    known = state_files.load(state_file, _FORMAT, key)
    if known is not None:
        params.copy_(known["params"])
        return [_single(net, i, scales) for i in range(len(parts))]
    optimizer, fast, rng = FusedAdam([params], lr=_LR), FastMLP(net), np.random.default_rng((seed, 3))
    for step in range(steps):
        share = rng.random(_BATCH)
        index = torch.stack([part[torch.from_numpy((share * len(part)).astype(np.int64))] for part in parts])
        found = fast.forward((rows.obs[index] - scales[0]) / scales[1]).tanh()
        delta = 2 * (found - rows.actions[index]) * (1 - found.square()) / found[0].numel()
        fast.backward(delta)
        fast.parameter_gradients(delta)
        optimizer.param_groups[0]["lr"] = _LR * (1 - step / steps)
        optimizer.step()
    if state_file is not None:
        state_files.save(state_file, _FORMAT, key, {"params": params.detach()})
    return [_single(net, i, scales) for i in range(len(parts))]


class Clone:
    """A trained clone: ``raw observations (B, obs) -> unit actions (B, act)``.

    Args:
        net: the network, one of a stack of one; its outputs go through a tanh.
        mean, std: of the observations, ``(obs,)`` each.
    """

    def __init__(self, net: StackedMLP, mean: Tensor, std: Tensor):
        self.net, self.mean, self.std = net, mean, std

    @torch.no_grad()
    def __call__(self, obs: Tensor) -> Tensor:
        return in_chunks(lambda part: self.net((part - self.mean) / self.std)[0].tanh(), obs)


def in_chunks(policy: Policy, obs: Tensor) -> Tensor:
    """The policy's actions at ``obs (B, obs)``, `CHUNK` rows at a time."""
    return torch.cat([policy(part) for part in obs.split(CHUNK)])


def _single(net: StackedMLP, i: int, scales: tuple[Tensor, Tensor]) -> Clone:
    single = StackedMLP(1, [net.weights[0].shape[1], *(w.shape[2] for w in net.weights)])
    for own, source in zip(single.parameters(), net.parameters(), strict=True):
        own.data.copy_(source.data[i : i + 1])
    return Clone(single, *scales)
