"""Are two samples of one distribution? A classifier on rows that it has not seen, the MMD, rows outside, and a plane.

Rows come in groups: the states of one episode, say, are not independent of each other. Group i of the one sample and
group i of the other are a pair (episodes from one start state). If the distributions are the same, nothing changes
where both groups of a pair are exchanged; so permutations exchange whole groups, and a pair is never divided between
the rows that the classifier learns and those that it is asked about. Independent rows are groups of one, paired at
random.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

#: Divisions of the rows into two samples, the real one among them; share of the others within the interval.
DIVISIONS, INTERVAL = 500, 0.95
#: Of a distribution, the share of rows that are not outside of it.
INSIDE = 0.99
_RIDGE = 1.0


class Sample(NamedTuple):
    """``rows (N, D)``, standardised, and the group of each, ``(N,)`` integers."""

    rows: np.ndarray
    groups: np.ndarray

    @classmethod
    def independent(cls, rows: np.ndarray) -> Sample:
        return cls(rows, np.arange(len(rows)))


class Found(NamedTuple):
    """A measure of two samples, and what it is where pairs of groups are exchanged at random.

    Attributes:
        value: of the samples as they are.
        low, high: the central interval of the exchanged ones.
        p_value: the share of all, the samples as they are among them, that is not below ``value``.
    """

    value: float
    low: float
    high: float
    p_value: float


def compare(x: Sample, y: Sample, seed: int = 0) -> dict[str, Found]:
    """``accuracy`` of a classifier (0.5: it cannot tell the samples apart, 1: always) and ``mmd2``.

    Both have a Gaussian kernel whose width is the median distance of two rows. MMD² is the unbiased estimate (Gretton
    et al. 2012, "A Kernel Two-Sample Test"), below 0 by chance where the distributions are the same. The classifier is
    a ridge regression on the labels, which learns from one half of the pairs and is asked about the other, and the
    other way round; its accuracy is the mean over the two samples.

    Args:
        x, y: at least two rows each.
        seed: of the exchanges, and of the halves.
    """
    rng = np.random.default_rng(seed)
    rows = torch.from_numpy(np.concatenate((x.rows, y.rows)).astype(np.float64))
    pairs, groups = np.unique(np.concatenate((x.groups, y.groups)), return_inverse=True)
    exchanges = rng.integers(2, size=(len(pairs), DIVISIONS))
    exchanges[:, 0] = 0  # the samples as they are
    is_second = torch.cat((torch.zeros(len(x.rows)), torch.ones(len(y.rows)))).double()
    divisions = (is_second[:, None] - torch.from_numpy(exchanges[groups])).abs()
    half = torch.from_numpy((rng.permutation(len(pairs)) < len(pairs) / 2)[groups])
    kernel = _kernel(rows)
    found = {"accuracy": _accuracy(kernel, divisions, half), "mmd2": _mmd2(kernel.fill_diagonal_(0), divisions)}
    return {name: _found(values) for name, values in found.items()}


def _found(values: Tensor) -> Found:
    ends = torch.quantile(values[1:], torch.tensor([(1 - INTERVAL) / 2, (1 + INTERVAL) / 2]).double())
    p_value = (values >= values[0]).double().mean()
    return Found(float(values[0]), float(ends[0]), float(ends[1]), float(p_value))


def _kernel(rows: Tensor) -> Tensor:
    squared = torch.cdist(rows, rows).square()
    above = squared[tuple(torch.triu_indices(len(rows), len(rows), 1))]
    return torch.exp(-squared / (2 * above.median().clamp(min=1e-12)))


def _mmd2(kernel: Tensor, is_second: Tensor) -> Tensor:
    """Of each of P divisions ``(N, P)`` of the rows, from their kernel ``(N, N)`` with a diagonal of 0."""
    is_first = 1 - is_second
    m, n = is_first.sum(0), is_second.sum(0)
    with_second = kernel @ is_second
    within_second, between = (is_second * with_second).sum(0), (is_first * with_second).sum(0)
    within_first = kernel.sum() - within_second - 2 * between
    return within_first / (m * (m - 1)) + within_second / (n * (n - 1)) - 2 * between / (m * n)


def _accuracy(kernel: Tensor, is_second: Tensor, half: Tensor) -> Tensor:
    """Of each of P divisions ``(N, P)``; ``half (N,)`` bool is what is learned first."""
    is_right = torch.empty_like(is_second)
    for learned in (half, ~half):
        known, ridge = kernel[learned][:, learned], _RIDGE * torch.eye(int(learned.sum())).double()
        labels = is_second[learned]
        answers = kernel[~learned][:, learned] @ torch.linalg.solve(known + ridge, labels - labels.mean(0))
        is_right[~learned] = ((answers > 0) == (is_second[~learned] > 0)).double()
    shares = [(is_right * own).sum(0) / own.sum(0) for own in (1 - is_second, is_second)]
    return (shares[0] + shares[1]) / 2


def outside(reference: np.ndarray, own: np.ndarray, rows: np.ndarray) -> float:
    """The share of ``rows (M, D)`` that lie outside of the reference ``(N, D)``.

    These are farther from its nearest row than `INSIDE` of ``own (K, D)``, which are of the reference's distribution
    and not among its rows.
    """
    points = torch.from_numpy(reference)
    usual, found = (torch.cdist(torch.from_numpy(some).to(points), points).amin(1) for some in (own, rows))
    return float((found > torch.quantile(usual, INSIDE)).float().mean())


def plane(rows: np.ndarray) -> np.ndarray:
    """The two directions in which ``rows (N, D)``, standardised, vary most: ``rows @ plane`` is ``(N, 2)``.

    The largest coordinate of each is positive, so that pictures of equal data are equal.
    """
    directions = np.linalg.svd(rows - rows.mean(0), full_matrices=False)[2][:2]
    largest = np.abs(directions).argmax(1)
    return (directions * np.sign(directions[np.arange(len(directions)), largest])[:, None]).T
