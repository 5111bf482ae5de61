"""Raw columns made into `Transitions`: types, episode ends, missing next observations."""

from __future__ import annotations

import logging

import numpy as np

from rllib_damo.data.formats.columns import FLAGS, warn_once
from rllib_damo.data.schema import Transitions
from rllib_damo.errors import DataError

logger = logging.getLogger(__name__)


def as_float_matrix(name: str, key: str, values: np.ndarray, dims: int) -> np.ndarray:
    """A column as float32 of 1 (rewards) or 2 (observations, actions) dimensions; (N, 1) and (N,) are the same thing.

    Raises:
        DataError: if the values are no numbers, or have other dimensions.
    """
    if key == "actions" and values.dtype.kind in "biu":
        raise DataError(f"{name}: actions have type {values.dtype}; they must be continuous (a Box), as floats.")
    if values.dtype.kind not in "fiu":
        fix = " Write them with .astype(float)." if values.dtype.kind == "b" else ""
        raise DataError(f"{name}: {key} have type {values.dtype}; they must be floating point numbers.{fix}")
    if dims == 2 and values.ndim == 1:
        values = values[:, None]
    elif dims == 1 and values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.ndim != dims:
        shape = "one vector" if dims == 2 else "one number"
        raise DataError(f"{name}: {key} have shape {values.shape}; every row must be {shape}. Flatten them first.")
    with np.errstate(over="ignore"):  # values beyond float32 become infinite, which the schema's check reports
        return np.ascontiguousarray(values, dtype=np.float32)


def as_flags(name: str, key: str, values: np.ndarray) -> np.ndarray:
    """A column of flags as (N,) bool.

    Raises:
        DataError: if it holds anything but true and false (0 and 1).
    """
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.ndim != 1 or values.dtype.kind not in "biuf":
        raise DataError(
            f"{name}: {key} have shape {values.shape} and type {values.dtype}; they must be one flag a row."
        )
    if values.dtype.kind != "b" and not np.isin(values, (0, 1)).all():
        raise DataError(f"{name}: {key} hold values other than 0 and 1; they must be flags.")
    return values.astype(bool)


def as_ids(name: str, values: np.ndarray) -> np.ndarray:
    """A column of episode ids as (N,); numbers in the widest type of their kind, so that files may differ in it.

    Raises:
        DataError: if a row has more than one.
    """
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.ndim != 1:
        raise DataError(f"{name}: episode ids have shape {values.shape}; they must be one number or text a row.")
    return values.astype(f"{values.dtype.kind}8") if values.dtype.kind in "iuf" else values


def as_column(name: str, key: str, values: np.ndarray) -> np.ndarray:
    """A raw column in the type and dimensions that its part of the schema has, by `as_float_matrix` and the others."""
    if key == "episode_ids":
        return as_ids(name, values)
    if key in FLAGS:
        return as_flags(name, key, values)
    return as_float_matrix(name, key, values, 1 if key == "rewards" else 2)


def assemble(
    name: str, columns: dict[str, np.ndarray], *, lookahead: bool = False, partial: bool = False
) -> Transitions:
    """Make `Transitions` of raw columns by schema name (`match_names`); `terminations` or `truncations` may be missing.

    With next observations, a row whose next observation is not the next row's observation ends an episode, flagged or
    not, so that unmarked cuts are not stitched together. Without them, the next observation is the next row's
    observation inside the episode; the last row of a truncated or unfinished episode is dropped (its successor is
    unknown) and the row before becomes the truncated one; a terminated row is kept and repeats its own observation.

    Args:
        name: for messages.
        columns: raw arrays of N rows.
        lookahead: the last row only serves as the successor of the row before it, and is dropped.
        partial: the rows are a window of a larger dataset, so a window without any end is no error.

    Raises:
        DataError: for lengths that differ, types or shapes that do not fit, or when nothing tells where episodes end.
    """
    check_lengths(name, {key: len(values) for key, values in columns.items()})
    observations = as_float_matrix(name, "observations", columns["observations"], 2)
    actions = as_float_matrix(name, "actions", columns["actions"], 2)
    rewards = as_float_matrix(name, "rewards", columns["rewards"], 1)
    terminations = _flags_or_false(name, columns, "terminations", len(rewards))
    truncations = _flags_or_false(name, columns, "truncations", len(rewards))
    if "episode_ids" in columns:
        ids = as_ids(name, columns["episode_ids"])
        ends = _last_of_ids(ids)
        truncations |= ends & ~terminations
        runs, episodes = int(ends.sum()), len(set(ids[ends].tolist()))
        if runs > episodes:
            warn_once(
                "%s: %d episode ids occur in %d runs of rows, and each run is taken as an episode. If episodes are "
                "interleaved, sort the rows by episode.",
                name, episodes, runs,
            )  # fmt: skip
    if "next_observations" in columns:
        next_observations = as_float_matrix(name, "next_observations", columns["next_observations"], 2)
        if next_observations.shape[1] != observations.shape[1]:
            raise DataError(
                f"{name}: observations have width {observations.shape[1]}, but next_observations "
                f"{next_observations.shape[1]}."
            )
        _mark_seams(name, observations, next_observations, terminations, truncations)
        keep = np.ones(len(rewards), bool)
    else:
        if not partial and len(rewards) and not (terminations | truncations).any():
            raise DataError(
                f"{name}: none of the {len(rewards)} rows is a termination or a truncation, and there are no next "
                "observations, so episodes have no end. Mark the last row of each episode in `timeouts` (or "
                "`truncations`)."
            )
        next_observations, keep = _next_from_rows(observations, terminations, truncations)
    if lookahead:
        keep[-1:] = False
    if not keep.all():
        last_kept = np.flatnonzero(keep[:-1] & ~keep[1:])
        truncations[last_kept] |= ~terminations[last_kept]
        if not keep.any() and not partial:
            raise DataError(f"{name}: no transition is left: every episode is a single row without a next observation.")
        observations, actions, rewards, next_observations, terminations, truncations = (
            array[keep] for array in (observations, actions, rewards, next_observations, terminations, truncations)
        )
    if len(rewards):
        truncations[-1] |= not terminations[-1]
    return Transitions(observations, actions, rewards, next_observations, terminations, truncations, name)


def episode_ends(marks: dict[str, np.ndarray], rows: int) -> np.ndarray:
    """Where episodes end by the raw columns of `END_COLUMNS` that there are: (rows,) bool."""
    ends = np.zeros(rows, bool)
    for key, values in marks.items():
        flat = values.reshape(-1)[:rows]
        ends[: len(flat)] |= _last_of_ids(flat) if key == "episode_ids" else flat.astype(bool)
    return ends


def _last_of_ids(ids: np.ndarray) -> np.ndarray:
    """The rows after which the id changes, and the last one: (N,) bool."""
    return np.append(ids[1:] != ids[:-1], True)[: len(ids)]


def check_lengths(name: str, lengths: dict[str, int]) -> None:
    """Refuse columns that don't all have the same number of rows."""
    if len(set(lengths.values())) > 1:
        listing = ", ".join(f"{key} {length}" for key, length in lengths.items())
        raise DataError(f"{name}: the columns have different lengths ({listing}); every transition needs all of them.")


def _flags_or_false(name: str, columns: dict[str, np.ndarray], key: str, length: int) -> np.ndarray:
    return as_flags(name, key, columns[key]) if key in columns else np.zeros(length, bool)


def _mark_seams(
    name: str,
    observations: np.ndarray,
    next_observations: np.ndarray,
    terminations: np.ndarray,
    truncations: np.ndarray,
) -> None:
    seams = (next_observations[:-1] != observations[1:]).any(axis=1) & ~(terminations | truncations)[:-1]
    if seams.any():
        logger.warning(
            "%s: %d of %d rows lead to an observation that is not the next row's and carry no end flag; "
            "an episode is taken to end (truncated) at each, first row %d.",
            name, int(seams.sum()), len(observations), int(np.flatnonzero(seams)[0]),
        )  # fmt: skip
        truncations[:-1] |= seams


def _next_from_rows(
    observations: np.ndarray, terminations: np.ndarray, truncations: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    next_observations = np.empty_like(observations)
    next_observations[:-1] = observations[1:]
    next_observations[terminations] = observations[terminations]
    keep = terminations | ~truncations
    if len(keep):
        keep[-1] = terminations[-1]
    return next_observations, keep
