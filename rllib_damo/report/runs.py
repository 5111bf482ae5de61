"""Reads what Tune wrote of a run: results, settings and errors of its trials, finished or not."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeGuard

from pyarrow import fs

from rllib_damo.core.changed_options import is_shown
from rllib_damo.errors import UsageError
from rllib_damo.utils.names import flatten
from rllib_damo.utils.uris import connect, why, without_password

RESULTS, SETTINGS, ERROR = "result.json", "params.json", "error.txt"
SCORES = ("evaluation/env_runners/normalized_score", "evaluation/env_runners/episode_return_mean")
STEPS = ("num_gradient_steps_lifetime", "num_env_steps_sampled_lifetime", "training_iteration")
_MAX_RESULTS = 2000  # a trial; of longer ones every n-th result is read, and all that evaluated
_THREADS = 8
_EVALUATED = ('"episode_len_mean"', '"fqe_value"')  # in results that evaluated
_CONFIG = '"config": '
_EVALUATIONS = 3  # the last ones, whose mean is a trial's score

Points = list[tuple[float, float]]


@dataclass(frozen=True)
class Trial:
    """One trial of a run.

    Attributes:
        name: of its folder.
        config: the settings, as params.json has them.
        results: one dictionary an iteration, {"learners/default_policy/qf_loss": 1.0}, without the config.
        error: the text of error.txt, or ""; Tune leaves that of a trial that recovered.
        num_damaged: lines of result.json that could not be read, such as one that is just being written.
    """

    name: str
    config: dict[str, Any]
    results: list[dict[str, Any]]
    error: str
    num_damaged: int

    @property
    def state(self) -> str:
        """Whether the trial has ended, as far as its files tell."""
        if self.results and self.results[-1].get("done"):
            return "finished"
        return "failed" if self.error else "not finished"

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The config with the options of dictionaries as "a/b"."""
        return flatten(self.config)

    @cached_property
    def steps(self) -> str:
        """The metric that counts the trial's progress."""
        return next((key for key in STEPS if any(row.get(key) for row in self.results)), STEPS[-1])

    def points(self, metric: str, x: str | None = None) -> Points:
        """The finite values of a metric over another one, by default over the steps.

        Of a metric with a *, such as "model_error/*/error", the last result's values over the numbers in its place.
        """
        if "*" in metric:
            return self._last_values(*metric.split("*"))
        x = x or self.steps
        pairs = ((row.get(x), row.get(metric)) for row in self.results)
        return [(float(a), float(b)) for a, b in pairs if _is_finite(a) and _is_finite(b)]

    def _last_values(self, start: str, end: str) -> Points:
        row = self.results[-1] if self.results else {}
        places = {key: key[len(start) : -len(end)] for key in row if key.startswith(start) and key.endswith(end)}
        return sorted(
            (float(place), float(row[key])) for key, place in places.items() if place.isdigit() and _is_finite(row[key])
        )

    def last(self, metric: str, count: int = 1) -> float | None:
        """The mean of a metric's last values; None if there are none."""
        values = [value for _, value in self.points(metric, "training_iteration")[-count:]]
        return sum(values) / len(values) if values else None

    def fact(self, name: str) -> Any:
        """What the last result that has this entry says."""
        return next((row[name] for row in reversed(self.results) if name in row), None)

    def score(self, metric: str) -> float | None:
        """The mean of the last three evaluations, or of all where there are fewer."""
        return self.last(metric, _EVALUATIONS)


@dataclass(frozen=True)
class Run:
    """A run: its trials, the best first.

    Attributes:
        name: of its folder.
        place: where it was read.
        trials: by their score; those without one at the end.
    """

    name: str
    place: str
    trials: list[Trial]

    @cached_property
    def metric(self) -> str | None:
        """What trials are compared by; None if no result has been evaluated."""
        return _metric(self.trials)

    @cached_property
    def varied(self) -> list[str]:
        """The settings that differ between trials."""
        configs = [trial.settings for trial in self.trials if trial.config]
        names = sorted({name for config in configs for name in config})
        found = []
        for name in names:
            values = {json.dumps(config.get(name)) for config in configs}
            if len(values) > 1 and all(is_shown(name, value) for value in values):
                found.append(name)
        return found

    def label(self, trial: Trial) -> str:
        """What tells a trial from the others."""
        return ", ".join(f"{name}={shown(trial.settings.get(name))}" for name in self.varied) or trial.name


def evaluations(trials: Sequence[Trial], metric: str) -> str:
    """How many evaluations are in the trials' scores: "one evaluation", "last 3 evaluations", ..."""
    found = [trial.points(metric, "training_iteration")[-_EVALUATIONS:] for trial in trials]
    counts = sorted({len(points) for points in found if points})
    if counts == [1]:
        return "one evaluation"
    return f"last {' to '.join(map(str, dict.fromkeys([counts[0], counts[-1]])))} evaluations"


def shown(value: Any) -> str:
    """A setting as short text."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def read_run(place: str | Path) -> Run:
    """Reads the folder or address of a run, or of one trial.

    Raises:
        UsageError: there are no results, or the place cannot be read.
    """
    given = str(place) if "://" in str(place) else str(Path(place).expanduser().absolute())
    given, address = given.rstrip("/"), without_password(given.rstrip("/"))
    try:
        filesystem, path = connect(given)
        entries = sorted(filesystem.get_file_info(fs.FileSelector(path)), key=lambda entry: entry.base_name)
        folders = [path] if _is_trial(entries) else [entry.path for entry in entries if not entry.is_file]
        with ThreadPoolExecutor(_THREADS) as pool:
            files = list(pool.map(lambda folder: _read_files(filesystem, folder), folders))
    except FileNotFoundError as error:
        raise UsageError(f"no run at {address}: there is no such folder.") from error
    except Exception as error:
        raise UsageError(f"{address} cannot be read: {why(error)}") from error
    trials = [_trial(folder, *texts) for folder, texts in zip(folders, files, strict=True) if any(texts)]
    if not trials:
        raise UsageError(
            f"{address} holds no run: neither it nor a folder in it has a {RESULTS}. Pass a run's folder, as "
            "`rllib train` prints it, or a trial's folder in it."
        )
    metric = _metric(trials)
    trials.sort(key=lambda trial: -_number(trial.score(metric) if metric else None))
    return Run(path.rsplit("/", 1)[-1], address, trials)


def _metric(trials: Sequence[Trial]) -> str | None:
    return next((key for key in SCORES if any(trial.score(key) is not None for trial in trials)), None)


def _number(score: float | None) -> float:
    return -math.inf if score is None else score


def _is_trial(entries: Sequence[fs.FileInfo]) -> bool:
    return any(entry.base_name in (RESULTS, SETTINGS, ERROR) for entry in entries)


def _read_files(filesystem: fs.FileSystem, folder: str) -> list[str]:
    """The texts of a trial's results, settings and error; "" for those that are not there."""
    return [_read(filesystem, f"{folder}/{name}") for name in (RESULTS, SETTINGS, ERROR)]


def _read(filesystem: fs.FileSystem, file: str) -> str:
    try:
        with filesystem.open_input_stream(file) as stream:
            return stream.read().decode(errors="replace")
    except FileNotFoundError:
        return ""


def _trial(folder: str, results: str, settings: str, error: str) -> Trial:
    rows, num_damaged = _parse(results.splitlines())
    try:
        config = dict(json.loads(settings))
    except (ValueError, TypeError):
        config = {}  # being written
    kept: list[dict[str, Any]] = []
    for row in rows:
        row.pop("config", None)
        # A trial that was restored has written some iterations before.
        while kept and kept[-1].get("training_iteration", 0) >= row.get("training_iteration", math.inf):
            kept.pop()
        kept.append(flatten(row))
    return Trial(folder.rsplit("/", 1)[-1], config, kept, error.strip(), num_damaged)


def _parse(lines: list[str]) -> tuple[list[dict[str, Any]], int]:
    """The results in the lines, and the number of lines that hold none."""
    stride = -(-len(lines) // _MAX_RESULTS)
    rows, num_damaged, config = [], 0, ""
    for number, line in enumerate(lines):
        if number % stride and number < len(lines) - 1 and not any(key in line for key in _EVALUATED):
            continue
        try:
            if not config or config not in line:
                config = _config(line)
            row = json.loads(line.replace(config, "null", 1) if config else line)
        except ValueError:
            num_damaged += 1
            continue
        if isinstance(row, dict) and _is_finite(row.get("training_iteration", 0)):
            rows.append(row)
        else:
            num_damaged += 1
    return rows, num_damaged


def _config(line: str) -> str:
    """The text of the config in a result: nine tenths of it, and the same in the next one."""
    start = line.find(_CONFIG) + len(_CONFIG)
    if start < len(_CONFIG):
        return ""
    _, end = json.JSONDecoder().raw_decode(line, start)
    return line[start:end]


def _is_finite(value: Any) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and math.isfinite(value)
