"""One number for a method over all tasks, and how sure it is (Agarwal et al., 2021, arXiv 2108.13264)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from scipy.stats import ttest_ind

#: Draws of the bootstrap.
DRAWS = 10_000


def interquartile_mean(scores: np.ndarray) -> np.ndarray:
    """The mean of the middle half along the last axis; a score at a quarter's edge counts by its part.

    Args:
        scores: ``(..., N)``.
    """
    ordered, n = np.sort(scores, axis=-1), scores.shape[-1]
    edges = np.arange(n + 1)
    inside = np.clip(np.minimum(edges[1:], 0.75 * n) - np.maximum(edges[:-1], 0.25 * n), 0, None)
    return (ordered * inside).sum(-1) / inside.sum()


def bootstrap_interval(
    scores: Mapping[str, Sequence[float]], share: float = 0.95, draws: int = DRAWS, seed: int = 0
) -> tuple[float, float]:
    """The percentile interval of the interquartile mean, over tasks and, within a task, over seeds.

    Args:
        scores: task -> a score for each seed.
        share: of the draws that lie inside.
        draws: of tasks and seeds, with replacement.
        seed: of the draws.
    """
    rng = np.random.default_rng(seed)
    tasks = [np.asarray(own, float) for own in scores.values()]
    width = max(map(len, tasks))
    # every task with as many draws of its seeds, so that tasks weigh the same
    drawn = np.stack([own[rng.integers(len(own), size=(draws, len(tasks), width))] for own in tasks])
    chosen = rng.integers(len(tasks), size=(draws, len(tasks)))
    picked = drawn[chosen, np.arange(draws)[:, None], np.arange(len(tasks))]
    low, high = np.quantile(interquartile_mean(picked.reshape(draws, -1)), [(1 - share) / 2, (1 + share) / 2])
    return float(low), float(high)


def difference_interval(
    first: Sequence[float], second: Sequence[float], share: float = 0.95
) -> tuple[float, float, float]:
    """The difference of two means over seeds, and Welch's interval of it: variances are not taken to be equal.

    Args:
        first, second: a score for each seed, of at least two seeds.
        share: of intervals made so that hold the true difference, if scores are normally distributed.

    Returns:
        mean(first) - mean(second), and the interval's two ends.
    """
    interval = ttest_ind(first, second, equal_var=False).confidence_interval(share)
    return float(np.mean(first) - np.mean(second)), float(interval.low), float(interval.high)
