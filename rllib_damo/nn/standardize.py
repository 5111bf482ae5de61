"""Inputs in units of the dataset's spread."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

#: Of unit actions, as inputs: a policy tries out more than data shows in which an action hardly moves.
ACTION_STD_MIN = 0.1


def mean_and_std(x: Tensor) -> tuple[Tensor, Tensor]:
    """Of each column of ``x (N, dim)``, ``(dim,)`` each; a column that varies no more than float32 rounds has std 0."""
    std, mean = torch.std_mean(x, dim=0)
    largest = torch.linalg.vector_norm(x, math.inf, dim=0)  # without a copy of x
    return mean, torch.where(std > 1e-6 * largest, std, 0.0)


def input_scales(x: Tensor, actions: slice = slice(0)) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of inputs ``(N, dim)``, 1 for those that are constant.

    Args:
        x: the inputs.
        actions: the columns of unit actions, whose standard deviation is ``ACTION_STD_MIN`` at least.
    """
    mean, std = mean_and_std(x)
    std = torch.where(std > 0, std, 1.0)
    std[actions].clamp_(min=ACTION_STD_MIN)
    return mean, std


class Standardize(nn.Module):
    """(x - mean) / std with statistics that are set once from the dataset; the identity until then."""

    mean: Tensor
    std: Tensor

    def __init__(self, dim: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("std", torch.ones(dim))

    def fit(self, x: Tensor, actions: slice = slice(0)) -> None:
        """Takes the `input_scales` of the rows of ``x (N, dim)``."""
        mean, std = input_scales(x, actions)
        self.mean.copy_(mean)
        self.std.copy_(std)

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std
