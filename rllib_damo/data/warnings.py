"""Signs that a dataset that breaks no rule is still not what its owner meant."""

from __future__ import annotations

import gymnasium as gym
import numpy as np

from rllib_damo.data.schema import Transitions, moments, outside

# A column whose neighbouring float32 values lie further apart than this share of its standard deviation is coarse.
_COARSE = 0.01
# The same for the typical change from an observation to the next; a counter at a million, in steps of 1, has 0.06.
_COARSE_CHANGE = 0.1
_FEW = 1000
# More than this share of the rows are episodes of one row: almost all.
_ALMOST_ALL = 0.9
# A value is far off where its distance from the median is this many times that between the 1 % and 99 % quantiles.
_FAR = 300
# Rewards of goals and falls may be far off, but are smaller.
_HUGE_REWARD = 5000
# More than this share of the observations lie outside of the environment's space: not by rounding.
_OUTSIDE = 0.01
# Means of rewards that differ by less than this share of their standard deviation are alike.
_CLEARLY = 0.1


def dataset_warnings(transitions: Transitions) -> list[str]:
    """What to look at before training on sound data (`schema.problems` finds none), one sentence each.

    Looks for: a few rows only, episodes of one row, rewards that say nothing, states that never change, values far off
    the rest, and columns whose offset is so large that float32 rounds their variation, or their changes, away.
    """
    found = []
    if len(transitions) < _FEW:
        found.append(f"there are {len(transitions)} transitions, which are few; record more")
    found += _episodes_of_one_row(transitions)
    first = transitions.rewards[0]
    if (transitions.rewards == first).all() and (first == 0 or not transitions.terminations.any()):
        found.append(f"every reward is {first:g}, so no behaviour is better than another")
    unfinished = ~transitions.terminations  # terminated rows may repeat their observation
    changes = (transitions.observations != transitions.next_observations).any(axis=1)
    if unfinished.any() and not (changes & unfinished).any():
        found.append("every next observation equals the observation; is it the observation after the step?")
    keys = ("observations", "next_observations", "rewards")
    outliers = [warning for key in keys for warning in _outliers(key, getattr(transitions, key))]
    return found + (outliers or _coarse_columns(transitions))  # one outlier has coarse neighbours


def space_warnings(
    transitions: Transitions, observation_space: gym.Space | None, action_space: gym.Space | None
) -> list[str]:
    """What to look at where the data have the widths of the environment's spaces, one sentence each.

    Looks for observations outside of the space, and for actions that seem to be in other units.
    """
    found = []
    if isinstance(observation_space, gym.spaces.Box):
        share = float(outside(transitions.observations, observation_space).mean())
        if share > _OUTSIDE:
            found.append(
                f"{share:.0%} of the observations lie outside of the environment's space: are they scaled, or of "
                "another environment?"
            )
    is_wider = isinstance(action_space, gym.spaces.Box) and ((action_space.low < -1) & (action_space.high > 1)).all()
    if is_wider and len(transitions) >= _FEW and (np.abs(transitions.actions) <= 1).all():
        found.append(
            "all actions lie in [-1, 1], and the environment's bounds are wider: if they are unit actions, set "
            "actions_in_input_normalized=True (--normalized-actions)"
        )
    return found


def selection_warnings(transitions: Transitions, used: np.ndarray) -> list[str]:
    """What to look at where a policy learns from the rows `used` alone (`Transitions.best_rows`), one sentence each.

    Where rewards are costs, an episode that was cut early has a high return for its shortness.
    """
    is_used = np.zeros(len(transitions), bool)
    is_used[used] = True
    if is_used.all():
        return []
    chosen, others = (float(transitions.rewards[rows].mean(dtype=np.float64)) for rows in (is_used, ~is_used))
    margin = _CLEARLY * float(transitions.rewards.std(dtype=np.float64))
    terminated = transitions.terminations[is_used]
    mostly_cut = 2 * terminated.sum() < (terminated | transitions.truncations[is_used]).sum()
    if not mostly_cut or chosen >= min(0.0, others - margin):
        return []
    return [
        f"the rows that data_fraction chooses have a mean reward of {chosen:.3g}, below the {others:.3g} of those it "
        "leaves out: rewards are costs, and it took episodes that were cut early for good ones; set data_fraction=1, "
        "or leave short episodes out of the dataset"
    ]


def _episodes_of_one_row(transitions: Transitions) -> list[str]:
    starts, stops = transitions.episode_bounds().T
    alone = int(((stops - starts == 1) & ~transitions.terminations[starts]).sum())  # one step may end a task
    if alone <= _ALMOST_ALL * len(transitions):
        return []
    return [
        f"{alone} of {len(transitions)} rows are episodes of one row: their next observation is not the next row's "
        "observation, or each row is marked as truncated; so returns of episodes, their lengths and first states mean "
        "nothing; write the rows in the order of time, the next row's observation as next observation, and an end at "
        "the last row of each episode"
    ]


def _coarse_columns(transitions: Transitions) -> list[str]:
    found = moments(transitions.observations)
    spread, change = np.array(found["std"]), _typical_changes(transitions)
    step = np.spacing(np.abs(np.array([found["min"], found["max"]], np.float32)).max(axis=0)).astype(np.float64)
    # A column that is constant, or is in every episode, has nothing to lose.
    is_coarse = (spread > 0) & (step > _COARSE * spread) | (change > 0) & (step > _COARSE_CHANGE * change)
    coarse = np.flatnonzero(is_coarse)
    if not len(coarse):
        return []
    column = coarse[0]
    return [
        f"observations have {len(coarse)} column(s) whose values float32 can't tell apart well, first column {column}: "
        f"steps of {step[column]:.3g} at a standard deviation of {spread[column]:.3g} and a typical change of "
        f"{change[column]:.3g} to the next observation; subtract a constant, or the episode's first value, before "
        "writing the data, here and in the environment"
    ]


def _outliers(key: str, values: np.ndarray) -> list[str]:
    """Values far off the rest, with none between: a heavy tail has some.

    In a column that is mostly one value, such as the force of a contact, others are events.
    """
    columns = values.reshape(len(values), -1)
    sample, shares = columns[_sample(len(values))].astype(np.float64), (0.01, 0.25, 0.5, 0.75, 0.99)
    low, quarter, median, three_quarters, high = np.quantile(sample, shares, axis=0)
    farthest = np.maximum(columns.max(axis=0) - median, median - columns.min(axis=0))
    for column in np.flatnonzero((three_quarters > quarter) & (farthest > _FAR * (high - low))):
        limit, distance = farthest[column], np.abs(columns[:, column] - median[column])
        is_far = distance > limit / 10
        if (distance[~is_far] > limit / 100).any() or (key == "rewards" and limit < _HUGE_REWARD):
            continue
        row = int(distance.argmax())
        where = key if values.ndim == 1 else f"{key}, column {column}"
        return [
            f"{where}: {is_far.sum()} value(s) far off the rest, of which 98 % lie between {low[column]:.3g} and "
            f"{high[column]:.3g}; the farthest is {columns[row, column]:.3g} in row {row}; if it marks a missing "
            "value, or is an error, remove or replace such rows"
        ]
    return []


def _typical_changes(transitions: Transitions) -> np.ndarray:
    """Root mean square of s' - s (a clock's changes have no standard deviation), in float64; of a sample of rows."""
    rows = _sample(len(transitions))
    rows = rows[~transitions.terminations[rows]]
    changes = transitions.next_observations[rows].astype(np.float64) - transitions.observations[rows]
    return np.sqrt((changes**2).sum(axis=0) / max(1, len(rows)))


def _sample(rows: int) -> np.ndarray:
    """Indices of some 20,000 rows at even distances, or of all."""
    return np.arange(0, rows, -(-rows // 20_000))
