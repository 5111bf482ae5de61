"""One line of a table per result, for any RLlib algorithm; columns appear when results have their numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ray.tune import Callback
from rich.console import Console

from rllib_damo.utils.names import flatten

Result = Mapping[str, Any]
_HEADER_EVERY = 30


@dataclass(frozen=True)
class Column:
    """A column: the first of `keys` that a (flattened) result has, printed by `show` in `width` characters."""

    title: str
    keys: tuple[str, ...]
    show: Callable[[Any], str]
    width: int


def _number(digits: int) -> Callable[[Any], str]:
    return lambda value: f"{float(value):.{digits}f}"


def _count(value: Any) -> str:
    value = float(value)
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if value >= size:
            return f"{value / (1e3 if unit == 'k' else size):.{0 if unit == 'k' else 2}f}{unit}"
    return f"{value:.0f}"


def _duration(seconds: Any) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"


_LEARNER = "learners/default_policy"
COLUMNS = (
    Column("iter", ("training_iteration",), str, 5),
    Column("steps", ("num_gradient_steps_lifetime", "num_env_steps_sampled_lifetime"), _count, 7),
    Column("real steps", ("num_online_steps_lifetime",), _count, 10),
    Column("phase", ("phase",), str, 8),
    Column("epoch", ("dynamics/epoch",), _count, 5),
    Column("holdout loss", ("dynamics/holdout_loss",), _number(3), 12),
    Column("return", ("env_runners/episode_return_mean",), _number(1), 9),
    Column("online return", ("online/episode_return_mean",), _number(1), 13),
    Column("eval return", ("evaluation/env_runners/episode_return_mean",), _number(1), 11),
    Column("score", ("evaluation/env_runners/normalized_score",), _number(1), 6),
    Column("Q", (f"{_LEARNER}/qf_mean",), _number(1), 8),
    Column("classifier", (f"{_LEARNER}/classifier_accuracy",), _number(3), 10),
    Column("time", ("time_total_s",), _duration, 8),
)


def cell(column: Column, flat: Result) -> str:
    """The text of a column for a flattened result; "-" where the result has no such number."""
    value = next((flat[key] for key in column.keys if flat.get(key) is not None), None)
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    return column.show(value)


class ProgressTable(Callback):
    """Prints a row at each result; the header at first, every 30 rows, and when a column is added."""

    def __init__(self) -> None:
        self.many_trials = False
        self.columns: list[Column] = []
        self.rows = 0

    def lines(self, trial: str, result: Result) -> list[str]:
        """The lines to print for one result: header (if due) and row."""
        flat = flatten(result)
        shown = [column for column in COLUMNS if column in self.columns or cell(column, flat) != "-"]
        lines = []
        if shown != self.columns or self.rows % _HEADER_EVERY == 0:
            self.columns, self.rows = shown, 0
            lines.append(self._line("trial", [column.title.rjust(column.width) for column in shown]))
        self.rows += 1
        lines.append(self._line(trial, [cell(column, flat).rjust(column.width) for column in shown]))
        return lines

    def _line(self, trial: str, cells: list[str]) -> str:
        return "  ".join([trial[-11:].ljust(11), *cells] if self.many_trials else cells)

    def on_trial_result(self, iteration: int, trials: list, trial: Any, result: dict, **info: Any) -> None:
        self.many_trials = self.many_trials or len(trials) > 1
        *header, row = self.lines(trial.trial_id, result)
        console = Console(soft_wrap=True)
        for line in header:
            console.print(line, style="bold", highlight=False)
        console.print(row, highlight=False)
