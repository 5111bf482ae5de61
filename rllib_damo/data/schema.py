"""The one schema of offline data: `Transitions`, and the checks that every source passes before any work is done."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import gymnasium as gym
import numpy as np

from rllib_damo.errors import DataError

# Actions stored as float32 may lie this fraction of the Box's side outside it through rounding alone.
_BOUND_TOLERANCE = 1e-4


@dataclass(frozen=True, eq=False)
class Transitions:
    """N transitions (s, a, r, s', terminated, truncated), episode after episode, as plain numpy arrays.

    The last row of every episode has `terminations` or `truncations` set, so that episode bounds follow from the flags.
    A reader sets `truncations` on the last row of an unfinished episode.

    Attributes:
        observations: (N, obs) float32.
        actions: (N, act) float32, in the environment's own units.
        rewards: (N,) float32.
        next_observations: (N, obs) float32. Means nothing on terminated rows of sources that do not store it
            (it then repeats the observation); nothing may bootstrap from those.
        terminations: (N,) bool; true terminals (no bootstrap).
        truncations: (N,) bool; episodes cut by a time limit or by the end of the recording (bootstrap through them).
        name: where the data comes from, for messages.
    """

    observations: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    next_observations: np.ndarray
    terminations: np.ndarray
    truncations: np.ndarray
    name: str = "transitions"

    def __len__(self) -> int:
        return len(self.rewards)

    def __deepcopy__(self, memo: dict[int, Any]) -> Transitions:
        """Itself, since nothing changes the arrays: RLlib copies a config many times, and its ``input_`` with it."""
        return self

    @property
    def nbytes(self) -> int:
        """Size of the arrays in bytes."""
        return sum(array.nbytes for array in self.arrays().values())

    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays by name, in the order of the schema."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "name"}

    def slice(self, start: int, stop: int, *, mark_cut: bool = True) -> Transitions:
        """Rows [start, stop) as views; a cut through an episode makes the slice's last row truncated, if `mark_cut`."""
        part = Transitions(**{key: array[start:stop] for key, array in self.arrays().items()}, name=self.name)
        if mark_cut and len(part) and not (part.terminations[-1] or part.truncations[-1]):
            truncations = part.truncations.copy()
            truncations[-1] = True
            part = replace(part, truncations=truncations)
        return part

    def rows(self, index: np.ndarray) -> Transitions:
        """A copy of some rows, in the order of their indices ``(M,)``; give whole episodes."""
        return Transitions(**{key: array[index] for key, array in self.arrays().items()}, name=self.name)

    def episode_bounds(self) -> np.ndarray:
        """First and one-past-last row of every episode: (E, 2) int64."""
        stops = np.flatnonzero(self.terminations | self.truncations).astype(np.int64) + 1
        return np.stack([np.concatenate([[0], stops[:-1]]).astype(np.int64)[: len(stops)], stops], axis=1)

    def episode_returns(self, gamma: float = 1.0) -> np.ndarray:
        """Return of every episode, the sum over t of gamma^t r_t: (E,) float64. A cut one counts as far as it goes."""
        bounds = self.episode_bounds()
        if not len(bounds):
            return np.zeros(0)
        rewards, (starts, stops) = self.rewards.astype(np.float64), bounds.T
        if gamma != 1.0:
            rewards *= gamma ** (np.arange(len(rewards)) - np.repeat(starts, stops - starts))
        return np.add.reduceat(rewards, starts)

    def reward_size(self) -> float:
        """Mean |r|."""
        return float(np.abs(self.rewards).mean(dtype=np.float64))

    def best_rows(self, fraction: float) -> np.ndarray:
        """Indices of the rows of the episodes with the highest returns, in order: (M,) int64, M >= fraction * N.

        The last episode that is needed is taken whole.
        """
        bounds = self.episode_bounds()
        lengths = bounds[:, 1] - bounds[:, 0]
        order = np.argsort(-self.episode_returns(), kind="stable")
        before = np.cumsum(lengths[order]) - lengths[order]
        chosen = np.zeros(len(bounds), bool)
        chosen[order[before < fraction * len(self)]] = True
        return np.flatnonzero(np.repeat(chosen, lengths))

    def fingerprint(self) -> str:
        """SHA-256 over the content (not the name), as 64 hex digits."""
        digest = hashlib.sha256()
        for key, array in self.arrays().items():
            digest.update(f"{key}:{array.dtype.str}:{array.shape};".encode())
            digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        return digest.hexdigest()

    def statistics(self) -> dict[str, Any]:
        """Facts of the data that do not depend on the discount, as plain Python numbers and lists.

        Counts, and the mean, standard deviation, minimum and maximum of observations and actions (lists, a value a
        column), of rewards, episode returns and episode lengths.
        """
        bounds = self.episode_bounds()
        lengths = bounds[:, 1] - bounds[:, 0]
        return {
            "num_transitions": len(self),
            "num_episodes": len(bounds),
            "num_terminations": int(self.terminations.sum()),
            "num_truncations": int((self.truncations & ~self.terminations).sum()),
            "observations": moments(self.observations),
            "actions": moments(self.actions),
            "rewards": moments(self.rewards),
            "episode_returns": moments(self.episode_returns()),
            "episode_lengths": moments(lengths),
        }


def concatenate(parts: Sequence[Transitions], name: str | None = None) -> Transitions:
    """Join datasets row after row.

    Raises:
        DataError: if there are none, or their observation or action widths differ.
    """
    if not parts:
        raise DataError("There is no dataset to join: the list of inputs is empty.")
    if len(parts) == 1:
        return parts[0] if name is None else replace(parts[0], name=name)
    for part in parts[1:]:
        for key in ("observations", "actions"):
            first, other = getattr(parts[0], key).shape[1], getattr(part, key).shape[1]
            if first != other:
                raise DataError(
                    f"{part.name}: {key} have width {other}, but those of {parts[0].name} have width {first}. "
                    "Join only datasets of one environment."
                )
    arrays = {key: np.concatenate([getattr(part, key) for part in parts]) for key in parts[0].arrays()}
    return Transitions(**arrays, name=name or " + ".join(part.name for part in parts))


def check(
    transitions: Transitions, observation_space: gym.Space | None = None, action_space: gym.Space | None = None
) -> None:
    """Refuse data that breaks the schema or does not fit the environment's spaces.

    Raises:
        DataError: listing every problem that `problems` finds.
    """
    found = problems(transitions, observation_space, action_space)
    if found:
        listing = "\n".join(f"  - {problem}" for problem in found)
        raise DataError(f"{transitions.name}: {len(found)} problem(s) in the data:\n{listing}")


def problems(
    transitions: Transitions, observation_space: gym.Space | None = None, action_space: gym.Space | None = None
) -> list[str]:
    """Every way in which the data breaks the schema, one sentence each; empty if it is sound."""
    found = _shape_problems(transitions)
    if found:  # what follows relies on the shapes
        return found
    if len(transitions) == 0:
        return ["there are no transitions; record at least one episode"]
    found += _dtype_problems(transitions)
    if found:
        return found
    for key in ("observations", "actions", "rewards", "next_observations"):
        found += _finite_problems(key, getattr(transitions, key))
    ends = transitions.terminations | transitions.truncations
    if not ends.any():
        found.append("no row is a termination or a truncation, so episodes have no end; mark the last row of each")
    elif not ends[-1]:
        found.append("the last row is neither a termination nor a truncation; mark it as truncated")
    found += _width_problems("observations", transitions.observations, observation_space)
    width_problems = _width_problems("actions", transitions.actions, action_space)
    found += width_problems
    if not width_problems and isinstance(action_space, gym.spaces.Box):
        found += _bound_problems(transitions.actions, action_space)
    return found


def _shape_problems(transitions: Transitions) -> list[str]:
    found = []
    for key, array in transitions.arrays().items():
        dims = 2 if key in ("observations", "actions", "next_observations") else 1
        if not isinstance(array, np.ndarray) or array.ndim != dims:
            found.append(f"{key} must be a numpy array of {dims} dimension(s), but found shape {np.shape(array)}")
    if found:
        return found
    lengths = {key: len(array) for key, array in transitions.arrays().items()}
    if len(set(lengths.values())) > 1:
        listing = ", ".join(f"{key} {length}" for key, length in lengths.items())
        found.append(f"the columns have different lengths ({listing}); every transition needs all of them")
    if transitions.observations.shape[1] != transitions.next_observations.shape[1]:
        found.append(
            f"observations have width {transitions.observations.shape[1]}, "
            f"but next_observations {transitions.next_observations.shape[1]}"
        )
    found += [f"{key} have width 0" for key in ("observations", "actions") if not getattr(transitions, key).shape[1]]
    return found


def _dtype_problems(transitions: Transitions) -> list[str]:
    expected = {"terminations": np.bool_, "truncations": np.bool_}
    return [
        f"{key} must be {np.dtype(expected.get(key, np.float32))}, but found {array.dtype}"
        for key, array in transitions.arrays().items()
        if array.dtype != expected.get(key, np.float32)
    ]


def _finite_problems(key: str, array: np.ndarray) -> list[str]:
    finite = np.isfinite(array)
    if finite.all():
        return []
    rows = np.flatnonzero(~finite.reshape(len(array), -1).all(axis=1))
    values = array[rows[0]].reshape(-1)
    value = values[~np.isfinite(values)][0]
    return [
        f"{key} hold values that are not finite in {len(rows)} row(s), first {value} in row {rows[0]}; "
        "remove these episodes"
    ]


def _width_problems(key: str, array: np.ndarray, space: gym.Space | None) -> list[str]:
    if space is None:
        return []
    if not isinstance(space, gym.spaces.Box) or len(space.shape) != 1:
        return [f"the environment's space for {key} is {space!r}; it must be a one-dimensional Box"]
    if array.shape[1] != space.shape[0]:
        return [
            f"{key} have width {array.shape[1]}, but the environment's space has {space.shape[0]}; "
            "this data is of another environment"
        ]
    return []


def outside(values: np.ndarray, space: gym.spaces.Box) -> np.ndarray:
    """Which rows ``(N,)`` of values ``(N, width)`` lie outside of a space by more than rounding."""
    low, high = space.low.astype(np.float32), space.high.astype(np.float32)
    with np.errstate(over="ignore"):  # some bounds are float32's largest numbers
        slack = np.where(np.isfinite(low) & np.isfinite(high), _BOUND_TOLERANCE * (high - low), 0.0).astype(np.float32)
        return np.asarray(((values < low - slack) | (values > high + slack)).any(axis=1))


def _bound_problems(actions: np.ndarray, space: gym.spaces.Box) -> list[str]:
    bad = outside(actions, space)
    if not bad.any():
        return []
    low, high = space.low.astype(np.float32), space.high.astype(np.float32)
    row = int(np.flatnonzero(bad)[0])
    return [
        f"actions lie outside the action space in {int(bad.sum())} row(s), first {actions[row].tolist()} in row {row} "
        f"(bounds {low.tolist()} to {high.tolist()}); clip them, or give actions in the environment's own units"
    ]


def moments(values: np.ndarray) -> dict[str, Any]:
    """Mean, standard deviation, minimum and maximum over the rows, as numbers or lists; {} without rows."""
    if not len(values):
        return {}
    mean = values.mean(axis=0, dtype=np.float64)
    squares = np.zeros_like(mean)
    for start in range(0, len(values), 65536):  # in pieces, so that no float64 copy of the data is made
        squares += ((values[start : start + 65536] - mean) ** 2).sum(axis=0)
    return {
        "mean": mean.tolist(),
        "std": np.sqrt(squares / len(values)).tolist(),
        "min": values.min(axis=0).tolist(),
        "max": values.max(axis=0).tolist(),
    }
