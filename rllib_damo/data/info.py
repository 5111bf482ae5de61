"""What is in a dataset: figures (`describe`), a picture (`plot`), and a readable list of the checks (`report`)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch

from rllib_damo.data.formats.reader import DEFAULT_CONVENTIONS, Conventions
from rllib_damo.data.schema import Transitions, problems
from rllib_damo.data.sources import resolve
from rllib_damo.data.warnings import dataset_warnings, space_warnings
from rllib_damo.errors import DataError
from rllib_damo.utils.batch import unknown_successors
from rllib_damo.utils.limits import clipping_limits

_CELLS_PER_AXIS = 32
_HISTOGRAM_BINS = 20


def describe(transitions: Transitions) -> dict[str, Any]:
    """The statistics of a dataset and what they leave out; plain Python values, ready for JSON.

    Besides `Transitions.statistics`: `fingerprint`; `size_mb`; `return_histogram` and `length_histogram` ({"counts",
    "edges"}); `return_quantiles` (0, 25, 50, 75, 100 %); `coverage` (see `state_coverage`); `action_saturation`
    (the fraction of action values within 1 % of their column's extremes); `clipped_columns` (see there).
    """
    returns = transitions.episode_returns()
    bounds = transitions.episode_bounds()
    return {
        "name": transitions.name,
        **transitions.statistics(),
        "fingerprint": transitions.fingerprint(),
        "size_mb": round(transitions.nbytes / 1e6, 1),
        "return_quantiles": np.quantile(returns, [0, 0.25, 0.5, 0.75, 1]).tolist() if len(returns) else [],
        "return_histogram": _histogram(returns),
        "length_histogram": _histogram(bounds[:, 1] - bounds[:, 0]),
        "coverage": state_coverage(transitions),
        "action_saturation": _saturation(transitions.actions),
        "clipped_columns": clipped_columns(transitions),
    }


def state_coverage(transitions: Transitions) -> dict[str, float]:
    """How much of the state space the data spreads over, in its two main directions (principal components).

    `explained`: variance share of the two directions; `cells`: of a 32 x 32 grid over the data's range in them, the
    share that any state falls into; `effective_cells`: exponential of the entropy over the cells, over their number.
    """
    points, explained = _principal_plane(transitions.observations)
    counts, _, _ = np.histogram2d(points[:, 0], points[:, 1], bins=_CELLS_PER_AXIS)
    shares = counts[counts > 0] / max(counts.sum(), 1)
    return {
        "explained": explained,
        "cells": float((counts > 0).mean()),
        "effective_cells": float(np.exp(-(shares * np.log(shares)).sum()) / counts.size),
    }


def clipped_columns(transitions: Transitions) -> list[dict[str, Any]]:
    """Columns of the observations that many rows have at their limit exactly, as far as the data show it.

    Where an environment clips what it shows and not its own state, what lies beyond the limit is in no column: neither
    a model nor a policy can know it. Columns of two values are left out.

    Returns:
        For each such column its index `column`, its limits `low` and `high` (None: none), as the dynamics model finds
        them (`clipping_limits`), and the `share` of next observations that lie at one.
    """
    obs, states, terminated = (
        torch.from_numpy(rows)
        for rows in (transitions.observations, transitions.next_observations, transitions.terminations)
    )
    known = ~unknown_successors(obs, states, terminated)
    obs, states = obs[known], states[known]
    if not len(states):
        return []
    low, high = clipping_limits(states, obs)
    shares = ((states == low) | (states == high)).float().mean(0)
    is_clipped = (low.isfinite() | high.isfinite()) & ((states > states.amin(0)) & (states < states.amax(0))).any(0)
    return [
        {"column": i, "low": _finite(low[i]), "high": _finite(high[i]), "share": round(float(shares[i]), 6)}
        for i in is_clipped.nonzero().flatten().tolist()
    ]


def _finite(limit: torch.Tensor) -> float | None:
    return float(limit) if limit.isfinite() else None


def plot(transitions: Transitions, png_path: str | os.PathLike[str]) -> Path:
    """Draw returns, lengths, state coverage and actions into one PNG; returns its path."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    bounds = transitions.episode_bounds()
    figure = Figure(figsize=(10, 7), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, 2)
    figure.suptitle(f"{transitions.name}: {len(transitions):,} transitions, {len(bounds):,} episodes")
    axes[0, 0].hist(transitions.episode_returns(), bins=40)
    axes[0, 0].set(title="Episode returns", xlabel="undiscounted return", ylabel="episodes")
    axes[0, 1].hist(bounds[:, 1] - bounds[:, 0], bins=40, color="tab:orange")
    axes[0, 1].set(title="Episode lengths", xlabel="steps", ylabel="episodes")
    axes[0, 1].ticklabel_format(useOffset=False)
    points, explained = _principal_plane(transitions.observations)
    picture = axes[1, 0].hist2d(points[:, 0], points[:, 1], bins=80, cmin=1, norm="log")
    figure.colorbar(picture[3], ax=axes[1, 0], label="states")
    axes[1, 0].set(title=f"States, two main directions ({explained:.0%} of variance)", xlabel="first", ylabel="second")
    for column in range(min(transitions.actions.shape[1], 8)):
        axes[1, 1].hist(
            transitions.actions[:, column], bins=60, histtype="step", density=True, label=f"action {column}"
        )
    axes[1, 1].set(title="Actions", xlabel="value in the environment's units", ylabel="density")
    axes[1, 1].locator_params(axis="x", nbins=6)
    axes[1, 1].legend(fontsize="small")
    path = Path(png_path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    return path


def report(
    path: str | os.PathLike[str],
    *,
    observation_space: gym.Space | None = None,
    conventions: Conventions = DEFAULT_CONVENTIONS,
) -> list[str]:
    """Check a dataset and tell each result in a line: `ok`, `warn` or `FAIL` first; never raises for bad data.

    Args:
        path: any name that `sources.resolve` knows.
        observation_space: the environment's, where the width is to be checked.
        conventions: the action space, where width and bounds are to be checked, and what else the files do not say.
    """
    action_space = conventions.action_space
    try:
        reader = resolve(path, conventions=conventions)
        transitions = reader.read()
    except DataError as error:
        return [f"FAIL  readable: {error}"]
    found = problems(transitions, observation_space, action_space)
    lines = [f"ok    readable: {len(transitions)} transitions of width {_widths(transitions)}"]
    if reader.skipped:
        numbers = ", ".join(map(str, reader.skipped[:10])) + (", ..." if len(reader.skipped) > 10 else "")
        lines.append(f"warn  {len(reader.skipped)} bad episode(s) left out: {numbers}")
    lines += [f"FAIL  {problem}" for problem in found]
    if found:
        return lines
    statistics = transitions.statistics()
    returns, lengths = statistics["episode_returns"], statistics["episode_lengths"]
    lines += [
        "ok    dtypes, shapes and lengths agree",
        "ok    every value is finite",
        f"ok    {statistics['num_episodes']} episodes, each with an end: {statistics['num_terminations']} terminated, "
        f"{statistics['num_truncations']} truncated",
        "ok    actions lie within the environment's bounds" if action_space is not None
        else "ok    action bounds not checked (no environment named); values "
        f"{float(transitions.actions.min()):.4g} to {float(transitions.actions.max()):.4g}",
        f"ok    episode return {returns['mean']:.1f} ± {returns['std']:.1f}, length {lengths['mean']:.1f}",
        f"ok    fingerprint {transitions.fingerprint()}",
    ]  # fmt: skip
    warnings = dataset_warnings(transitions) + space_warnings(transitions, observation_space, action_space)
    return lines + [f"warn  {warning}" for warning in warnings]


def _widths(transitions: Transitions) -> str:
    return " + ".join(str(np.shape(array)[-1]) for array in (transitions.observations, transitions.actions))


def _histogram(values: np.ndarray) -> dict[str, list[float]]:
    if not len(values):
        return {"counts": [], "edges": []}
    counts, edges = np.histogram(values, bins=1 if np.ptp(values) == 0 else _HISTOGRAM_BINS)
    return {"counts": counts.tolist(), "edges": edges.tolist()}


def _saturation(actions: np.ndarray) -> float:
    low, high = actions.min(axis=0), actions.max(axis=0)
    margin = 0.01 * (high - low)
    return float(((actions <= low + margin) | (actions >= high - margin)).mean())


def _principal_plane(observations: np.ndarray, max_rows: int = 100_000) -> tuple[np.ndarray, float]:
    """Standardised observations (every n-th, at most `max_rows`) in their two main directions (M, 2), and a share."""
    sample = observations[:: -(-len(observations) // max_rows)].astype(np.float64)
    scaled = (sample - sample.mean(axis=0)) / np.maximum(sample.std(axis=0), 1e-8)
    variances, directions = np.linalg.eigh(scaled.T @ scaled / len(scaled))
    plane = np.zeros((len(scaled), 2))
    main = directions[:, ::-1][:, :2]
    plane[:, : main.shape[1]] = scaled @ main
    return plane, float(variances[::-1][:2].sum() / max(variances.sum(), 1e-12))
