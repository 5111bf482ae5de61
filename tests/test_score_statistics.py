"""benchmarks/score_statistics.py against numbers that are known."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

from score_statistics import bootstrap_interval, difference_interval, interquartile_mean


def test_the_middle_half_counts() -> None:
    assert interquartile_mean(np.array([-100.0, 1.0, 3.0, 1000.0])) == 2
    # of five, 1.25 are cut at each end: 0.75 of the second and fourth stay
    assert interquartile_mean(np.array([5.0, 1.0, 2.0, 3.0, 100.0])) == pytest.approx((0.75 * 2 + 3 + 0.75 * 5) / 2.5)
    assert interquartile_mean(np.array([[7.0], [8.0]])).tolist() == [7, 8]


def test_equal_scores_have_no_width() -> None:
    assert bootstrap_interval({"a": [4.0, 4.0], "b": [4.0]}) == (4, 4)


def test_the_interval_of_one_task_covers_the_truth() -> None:
    samples = np.random.default_rng(1).normal(50, 10, (200, 40))
    bounds = [bootstrap_interval({"a": own.tolist()}, draws=400) for own in samples]
    assert 0.88 < np.mean([low < 50 < high for low, high in bounds]) < 0.99


def test_tasks_count_in_the_interval() -> None:
    narrow = bootstrap_interval({name: [50.0] for name in "abcdef"})
    wide = bootstrap_interval({name: [20.0 * i] for i, name in enumerate("abcdef")})
    assert narrow == (50, 50)
    assert wide[1] - wide[0] > 30


def test_welchs_interval_of_a_difference() -> None:
    difference, low, high = difference_interval([1.0, 2.0, 3.0], [11.0, 12.0, 13.0])
    half = 2.7764 * (1 / 3 + 1 / 3) ** 0.5  # variances of 1, four degrees of freedom
    assert (difference, low, high) == pytest.approx((-10, -10 - half, -10 + half), abs=1e-3)
    rng = np.random.default_rng(1)
    pairs = [(rng.normal(5, 1, 3), rng.normal(3, 20, 3)) for _ in range(500)]
    bounds = [difference_interval(*pair)[1:] for pair in pairs]
    assert 0.92 < np.mean([low < 2 < high for low, high in bounds]) < 0.99
