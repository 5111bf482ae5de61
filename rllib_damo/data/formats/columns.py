"""Which columns of a file hold which part of the schema: their usual names, and those that the user gives."""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias

from rllib_damo.errors import DataError
from rllib_damo.utils.names import near

logger = logging.getLogger(__name__)

# The schema's name, then the names that D4RL, RLlib and others give the same column.
ALIASES: dict[str, tuple[str, ...]] = {
    "observations": ("observations", "obs", "observation"),
    "actions": ("actions", "action"),
    "rewards": ("rewards", "reward"),
    "next_observations": ("next_observations", "next_obs", "new_obs", "next_observation"),
    "terminations": ("terminations", "terminals", "terminateds", "terminated"),
    "truncations": ("truncations", "timeouts", "truncateds", "truncated", "episode_terminals"),  # the last: d3rlpy's
    "episode_ids": ("episode_id", "eps_id"),
}
_KEYS = {alias: key for key, aliases in ALIASES.items() for alias in aliases}
#: RLlib's names of columns that this package does not need.
_OTHERS = frozenset(
    ("infos", "t", "agent_id", "agent_index", "env_id", "module_id", "unroll_id", "type", "prev_actions",
     "prev_rewards", "seq_lens", "loss_mask", "weights", "action_prob", "action_logp", "action_dist_inputs",
     "actions_for_env", "vf_preds", "advantages", "value_targets", "state_in", "state_out", "weights_seq_no",
     "extra_model_outputs")
)  # fmt: skip
VECTORS = ("observations", "actions", "next_observations")
FLAGS = ("terminations", "truncations")
END_COLUMNS = (*FLAGS, "episode_ids")
_REQUIRED = ("observations", "actions", "rewards")
warn_once = functools.cache(logger.warning)  # a file is opened more than once

# {schema name: the file's column, or the columns that make up its vectors}
Names: TypeAlias = dict[str, "str | tuple[str, ...]"]


def check_given(given: Mapping[str, str | Sequence[str]]) -> None:
    """Refuses a name in `input_read_schema` that is none of the schema's or RLlib's, and two names of one thing.

    Raises:
        DataError: as said.
    """
    named: dict[str, str] = {}
    for alias in given:
        key = _KEYS.get(alias)
        if key is None and alias not in _OTHERS:
            raise DataError(
                f"input_read_schema (--column): there is no {alias!r}.{near(str(alias), _KEYS)} Known are "
                f"{', '.join(_KEYS)}."
            )
        if key in named:
            raise DataError(
                f"input_read_schema (--column) has both {named[key]!r} and {alias!r}, which are the {key}: give one."
            )
        if key is not None:
            named[key] = alias


def without_given(own: Mapping[str, str], given: Mapping[str, str | Sequence[str]]) -> dict[str, str]:
    """The names of a format's own that the user does not give."""
    taken = {_KEYS.get(alias) for alias in given}
    return {alias: column for alias, column in own.items() if _KEYS[alias] not in taken}


def find_names(name: str, present: Sequence[str], given: Mapping[str, str | Sequence[str]] | None = None) -> Names:
    """The columns of a file that the schema knows, as `match_names` tells them, whether or not they are enough.

    Raises:
        DataError: if a column that is given is not there, one is there twice, or one of `obs_0, obs_1, …` is missing.
    """
    names = set(present)
    found: Names = {}
    for key, aliases in ALIASES.items():
        if names & set(aliases):
            found[key] = next(alias for alias in aliases if alias in names)
        elif key in VECTORS and (numbered := _numbered(name, present, aliases)):
            found[key] = numbered
    for alias, column in (given or {}).items():
        if alias in _KEYS:
            found[_KEYS[alias]] = _given(name, names, alias, column)
    twice = [column for part in found.values() for column in each_column(part) if present.count(column) > 1]
    if twice:
        raise DataError(f"{name}: there is more than one column {twice[0]!r}; leave one of this name.")
    return found


def _numbered(name: str, present: Sequence[str], aliases: tuple[str, ...]) -> tuple[str, ...]:
    """The columns `obs_0, obs_1, …` (or from 1 on) in the order of their numbers, of the first alias that has any."""
    for alias in aliases:
        found = [column for column in present if re.fullmatch(rf"{alias}_[0-9]+", column)]
        found.sort(key=lambda column: int(column.rpartition("_")[2]))
        numbers = [int(column.rpartition("_")[2]) for column in found]
        if not found:
            continue
        if numbers[0] > 1 or numbers != list(range(numbers[0], numbers[0] + len(found))):
            raise DataError(
                f"{name}: columns {', '.join(found)} are one vector, whose numbers must go on by 1, from 0 or 1. Add "
                f'what is missing, or name the columns in their order, input_read_schema={{"{alias}": [...]}} '
                f"(--column {alias}=A,B)."
            )
        return tuple(found)
    return ()


def _given(name: str, present: set[str], alias: str, column: str | Sequence[str]) -> str | tuple[str, ...]:
    columns = (column,) if isinstance(column, str) else tuple(column)
    if not columns:
        raise DataError(f"{name}: input_read_schema has an empty list for {alias!r}; name its columns.")
    for each in columns:
        if each not in present:
            raise DataError(
                f"{name}: no column {each!r}, which input_read_schema has for {alias!r}; found "
                f"{sorted(present) or 'none'}."
            )
    if len(columns) > 1 and _KEYS[alias] not in VECTORS:
        raise DataError(
            f"{name}: input_read_schema has {len(columns)} columns for {alias!r}, which is one value a row; name one."
        )
    return columns[0] if isinstance(column, str) else columns


def each_column(column: str | tuple[str, ...]) -> tuple[str, ...]:
    """The columns of one part of the schema."""
    return (column,) if isinstance(column, str) else column


def match_names(name: str, present: Iterable[str], given: Mapping[str, str | Sequence[str]] | None = None) -> Names:
    """Which column of a file holds which part of the schema: {schema name: column name}, absent ones left out.

    A vector may have one column a dimension, `obs_0, obs_1, …`; its value is a tuple of their names then.

    Args:
        name: of the dataset, for messages.
        present: the file's columns.
        given: the user's {alias: column name, or a list of names}, RLlib's `input_read_schema`; what it names of
            columns that the schema does not know is left alone.

    Raises:
        DataError: as `find_names` does, if a required one is missing, or all of those that tell where episodes end
            (next observations do, too).
    """
    names = list(present)
    found = find_names(name, names, given)
    missing = [key for key in _REQUIRED if key not in found]
    if missing:
        raise DataError(f"{name}: no column for {', '.join(missing)}; found {_shown(names)}. " + _naming(missing))
    if not {*END_COLUMNS, "next_observations"} & set(found):
        raise DataError(
            f"{name}: there are neither terminations nor truncations nor episode ids, so episodes have no end (nor "
            f"next observations, which tell it); found {_shown(names)}. " + _naming([*END_COLUMNS])
        )
    if "terminations" not in found:
        warn_once(
            "%s: no column for terminations, so no transition is taken to be terminal; found %s. %s",
            name, ", ".join(sorted(names)), _naming(["terminations"]),
        )  # fmt: skip
    if not {"truncations", "next_observations", "episode_ids"} & set(found):
        warn_once(
            "%s: without truncations, next observations or episode ids, an episode that was cut can't be told from the "
            "one after it; found %s. If any was cut, add one of these. %s",
            name, ", ".join(sorted(names)), _naming(["truncations", "next_observations", "episode_ids"]),
        )  # fmt: skip
    return found


def _shown(names: list[str]) -> str:
    return str(sorted(names) or "none")


def _naming(keys: list[str]) -> str:
    names = "; ".join(f"{key}: {' or '.join(ALIASES[key])}" for key in keys)
    numbered = " A vector may have one column a dimension, obs_0, obs_1, ...;" if set(keys) & set(VECTORS) else ""
    return f"Name them {names};{numbered} or say what they are in input_read_schema (--column)."
