"""Which metrics the report draws, and how: one colour a trial, or a metric where there is one trial."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from rllib_damo.report import svg
from rllib_damo.report.runs import Run, evaluations, shown
from rllib_damo.report.svg import Series

LEARNER = "learners/default_policy"
EVALUATION = "evaluation/env_runners"
OFFLINE = "evaluation/offline_eval_runners"
_COLOURS = 8
_RANGES = 5
_MAX_CELLS, _GROUPS = 12, 5  # of a setting in the heat map; groups where it has more values
_X_LABELS = {
    "num_gradient_steps_lifetime": "gradient steps",
    "num_env_steps_sampled_lifetime": "environment steps",
    "training_iteration": "iterations",
    "dynamics/epoch": "epochs",
    "*": "steps in the model",
}
_NAMES = {
    "num_transitions": "Rows of a round",
    "reward_mean": "Mean reward",
    "terminated_frac": "Share of terminal rows",
    "holdout_mse": "Squared error on held-out rows",
}


@dataclass(frozen=True)
class Chart:
    """One chart.

    Attributes:
        title: above it.
        metrics: (key, label) of each line; a key with a * as in `Trial.points`.
        references: (key or number, label) of each horizontal line.
        note: a sentence below the title.
        std: key of the standard deviation around the first metric.
        x: key of the horizontal axis; None: the trial's steps.
    """

    title: str
    metrics: Sequence[tuple[str, str]]
    references: Sequence[tuple[str | float, str]] = ()
    note: str = ""
    std: str | None = None
    x: str | None = None


LEARNING = (
    Chart(
        "Return in the environment",
        [(f"{EVALUATION}/episode_return_mean", "return")],
        [("dataset/episode_return_mean", "data")],
        "Mean over the episodes of an evaluation. Data: the episodes that the policy learns from.",
        f"{EVALUATION}/episode_return_std",
    ),
    Chart(
        "Normalised score",
        [(f"{EVALUATION}/normalized_score", "score")],
        note="0 is a random policy, 100 an expert.",
        std=f"{EVALUATION}/normalized_score_std",
    ),
    Chart("Return while training", [("env_runners/episode_return_mean", "return")]),
)
VALUES = (
    Chart(
        "Value: estimated and real",
        [(f"{LEARNER}/initial_value_mean", "critics' estimate"), (f"{EVALUATION}/discounted_return_mean", "real")],
        [("dataset/discounted_return_mean", "data")],
        "Discounted, from the first states. Data: the episodes that the policy learns from. An estimate that passes "
        "their value and rises on runs away.",
    ),
    Chart("Q of the batch", [(f"{LEARNER}/qf_mean", "Q(s, a)"), (f"{LEARNER}/qf_initial_mean", "Q at first states")]),
    Chart("Bellman residual", [(f"{LEARNER}/td_error_abs", "mean absolute value")]),
    Chart(
        "Value without a simulator",
        [(f"{OFFLINE}/fqe_value", "policy")],
        note="By fitted Q evaluation. Its discount may be longer than the training's.",
    ),
    Chart(
        "Value against a clone",
        [(f"{OFFLINE}/fqe_against_clone", "policy less clone")],
        [(0.0, "clone")],
        "By fitted Q evaluation, of the policy less that of a clone of the data's behaviour.",
    ),
    Chart(
        "Implausible value",
        [(f"{OFFLINE}/implausible", "implausible")],
        note="1 where the value by fitted Q evaluation is beyond what the data make credible.",
    ),
)
CLASSIFIER = (
    Chart(
        "Classifier's accuracy",
        [(f"{LEARNER}/classifier_accuracy", "accuracy")],
        [(0.5, "chance")],
        "Near 1, the classifier is saturated.",
    ),
    Chart(
        "Classifier's logits",
        [(f"{LEARNER}/logit_offline_mean", "real rows"), (f"{LEARNER}/logit_synthetic_mean", "the model's rows")],
    ),
    Chart(
        "Density ratio", [(f"{LEARNER}/density_ratio_mean", "mean weight")], [(1.0, "ideal")], "It should stay near 1."
    ),
)
MODEL = (
    Chart(
        "Loss of the dynamics model",
        [("dynamics/holdout_loss", "held out"), ("dynamics/train_loss", "training")],
        note="Negative log-likelihood. If the held-out loss still falls at the end, the model is not done.",
        x="dynamics/epoch",
    ),
    Chart(
        "Calibration of the dynamics model",
        [("dynamics/holdout_calibration", "held out")],
        [(1.0, "right")],
        "Squared error on held-out rows in units of the predicted variance. Above 1, the model is too sure.",
        x="dynamics/epoch",
    ),
    Chart(
        "Error of the model along real episodes",
        [("model_error/*/error", "real"), ("model_error/*/predicted_std", "predicted")],
        note="In standard deviations of the states. Predicted: the standard deviation of the model's draws.",
        x="*",
    ),
    Chart(
        "Errors within the predicted range",
        [("model_error/*/within_1_std", "1 std"), ("model_error/*/within_2_std", "2 std")],
        [(0.68, "right for 1"), (0.95, "right for 2")],
        "Share of the errors within once and twice the predicted standard deviation. Below, the model is too sure.",
        x="*",
    ),
)


def colours(run: Run) -> dict[str, str]:
    """The colour class of each trial, by name: the best ones have their own."""
    return {t.name: f"c{i + 1}" if i < _COLOURS else "other" for i, t in enumerate(run.trials)}


def model_charts(run: Run) -> list[Chart]:
    """The dynamics model's loss and calibration, and whatever else its training reports."""
    known = {key for chart in MODEL for key, _ in chart.metrics} | {"dynamics/epoch", "dynamics/epoch_seconds"}
    names = [key for key in _keys(run, "dynamics/") if key not in known]
    return [*MODEL, *(Chart(_words(key), [(key, _words(key))], x="dynamics/epoch") for key in names)]


def rollout_charts(run: Run) -> list[Chart]:
    """All that rollouts report."""
    data = {"terminated_frac": [("dataset/terminated_frac", "data")]}
    names = _keys(run, "env_runners/rollout/")
    return [Chart(_words(key), [(key, _words(key))], data.get(key.rsplit("/", 1)[-1], ())) for key in names]


def other_charts(run: Run, drawn: Sequence[Chart]) -> list[Chart]:
    """The learner's metrics that no other chart has."""
    known = {key for chart in drawn for key, _ in chart.metrics}
    names = [key for key in _keys(run, f"{LEARNER}/") if key not in known and "/num_" not in key]
    return [Chart(_words(key), [(key, _words(key))]) for key in names if "_learning_rate" not in key]


def _keys(run: Run, prefix: str) -> list[str]:
    rows = (row for trial in run.trials for row in trial.results[-1:] + trial.results[:1])
    return sorted({key for row in rows for key in row if key.startswith(prefix)})


def _words(key: str) -> str:
    name = key.rsplit("/", 1)[-1]
    return _NAMES.get(name, name.replace("_", " ").capitalize())


def draw(run: Run, charts: Sequence[Chart]) -> Iterator[str]:
    """A figure for each chart that the results have numbers for."""
    for chart in charts:
        series = list(_series(run, chart))
        if series:
            x_label = _X_LABELS[chart.x or run.trials[0].steps]
            picture = svg.line_chart(chart.title, series, x_label, list(_references(run, chart)))
            yield figure(chart.title, picture, chart.note, _legend(run, chart, series))


def _series(run: Run, chart: Chart) -> Iterator[Series]:
    """The lines, those of trials without a colour of their own first.

    In a chart of several metrics these are left out, unless no other trial has the metrics.
    """
    own = colours(run)
    trials = [trial for trial in run.trials if any(trial.points(key, chart.x) for key, _ in chart.metrics)]
    named = [trial for trial in trials if own[trial.name] != "other"]
    for trial in reversed(trials if len(chart.metrics) == 1 or not named else named):
        for index, (key, label) in enumerate(chart.metrics):
            points = trial.points(key, chart.x)
            if not points:
                continue
            if len(run.trials) > 1:
                yield Series(f"{run.label(trial)}: {label}", points, own[trial.name], dashed=index > 0)
            else:
                deviations = [half for _, half in trial.points(chart.std)] if chart.std and index == 0 else []
                band = deviations if len(deviations) == len(points) else None
                yield Series(label, points, f"c{index + 1}", band=band)


def _references(run: Run, chart: Chart) -> Iterator[tuple[str, float]]:
    for key, label in chart.references:
        found = [key] if isinstance(key, float) else [trial.last(key) for trial in run.trials]
        value = next((value for value in found if value is not None), None)
        if value is not None:
            yield label, value


def _legend(run: Run, chart: Chart, series: Sequence[Series]) -> str:
    if len(run.trials) > 1:
        if len(chart.metrics) == 1:
            return ""
        styles = ("solid", "dashed")
        entries = [
            f'<span class="key {styles[i]}"></span>{escape(label)}' for i, (_, label) in enumerate(chart.metrics)
        ]
    elif len(series) > 1:
        entries = [f'<span class="key {line.colour}"></span>{escape(line.label)}' for line in series]
    else:
        return ""
    return "".join(f"<span>{entry}</span>" for entry in entries)


def figure(title: str, picture: str, note: str = "", legend: str = "", wide: bool = False) -> str:
    """A picture with its title, in a card."""
    below = f'<p class="note">{escape(note)}</p>' if note else ""
    keys = f'<p class="keys">{legend}</p>' if legend else ""
    return (
        f'<figure class="card{" wide" * wide}"><figcaption>{escape(title)}</figcaption>{below}{keys}'
        f'<div class="scroll">{picture}</div></figure>'
    )


def returns_chart(run: Run) -> str:
    """The returns of the data's episodes, and of the best policies' last evaluations; "" if neither is known."""
    rows: list[tuple[str, str, list[float]]] = []
    names = [f"dataset/episode_return_{end}" for end in ("mean", "std", "min", "max")]
    data = next((v for trial in run.trials if None not in (v := [trial.last(name) for name in names])), None)
    if data:
        rows.append(("data", "ink", [value for value in data if value is not None]))
    own = colours(run)
    metric, best = f"{EVALUATION}/episode_return_mean", run.trials[:_RANGES]
    for rank, trial in enumerate(best, 1):
        mean = trial.score(metric)
        if mean is not None:
            deviation = trial.score(f"{EVALUATION}/episode_return_std") or 0.0
            rows.append(("policy" if len(run.trials) == 1 else f"trial {rank}", own[trial.name], [mean, deviation]))
    if not rows:
        return ""
    note = "Mean and standard deviation."
    if data:
        note += " Data: the episodes that the policy learns from, with their range."
    if any(trial.score(metric) is not None for trial in best):
        note += f" Policies: {evaluations(best, metric)}."
    return figure("Returns", svg.ranges("Returns", rows, "return of an episode"), note)


def search_charts(run: Run) -> Iterator[str]:
    """Parallel coordinates of a search's settings and scores, and a heat map of two of them."""
    scores = _scores(run)
    if not scores or not run.varied:
        return
    pair = _pair(run)
    if pair:
        yield _heat_map(run, *pair)
    names = [*run.varied[:6], "score"]
    columns = [_column([trial.settings.get(name) for trial in run.trials]) for name in names[:-1]]
    columns.append(_column([scores.get(trial.name) for trial in run.trials]))
    own = colours(run)
    lines = [
        Series(
            f"{run.label(trial)}: {svg.number(scores[trial.name])}",
            [(index, heights[number]) for index, (heights, _) in enumerate(columns)],
            own[trial.name],
        )
        for number, trial in reversed(list(enumerate(run.trials)))
        if trial.name in scores
    ]
    picture = svg.parallel_coordinates("Settings and score", names, lines, [ticks for _, ticks in columns])
    yield figure("Settings and score", picture, "A line is a trial; its score is the last axis.", wide=True)


def _scores(run: Run) -> dict[str, float]:
    if run.metric is None:
        return {}
    found = {trial.name: trial.score(run.metric) for trial in run.trials}
    return {name: score for name, score in found.items() if score is not None}


def _pair(run: Run) -> tuple[str, str] | None:
    """The two settings of the heat map: eta and rollout_length, or else the first two; seeds are no setting."""
    names = [name for name in run.varied if name != "seed"]
    if {"eta", "rollout_length"} <= set(names):
        return "eta", "rollout_length"
    return (names[0], names[1]) if len(names) > 1 else None


def _groups(run: Run, name: str) -> list[tuple[str, set[str]]]:
    """The trials by a setting's values, in order: (label, names of trials); many numbers in groups of equal size."""
    values = {trial.name: trial.settings.get(name) for trial in run.trials}
    found: dict[str, set[str]] = {}
    for trial, value in sorted(values.items(), key=lambda item: _order(item[1])):
        found.setdefault(shown(value), set()).add(trial)
    numbers = sorted((value, trial) for trial, value in values.items() if isinstance(value, (int, float)))
    if len(found) <= _MAX_CELLS or len(numbers) < len(values):
        return list(found.items())
    bounds = [len(numbers) * i // _GROUPS for i in range(_GROUPS + 1)]
    groups = [numbers[start:end] for start, end in itertools.pairwise(bounds)]
    return [(f"{group[0][0]:.2g}–{group[-1][0]:.2g}", {trial for _, trial in group}) for group in groups]


def _order(value: Any) -> tuple[int, float, str]:
    is_number = isinstance(value, (int, float))
    return (0, float(value), "") if is_number else (1, 0.0, shown(value))


def _heat_map(run: Run, x: str, y: str) -> str:
    columns, rows, scores = _groups(run, x), _groups(run, y)[::-1], _scores(run)
    cells = []
    for _, in_row in rows:
        cells.append([_cell(in_row & in_column, scores) for _, in_column in columns])
    title = f"Score by {x} and {y}"
    picture = svg.heat_map(title, x, [label for label, _ in columns], y, [label for label, _ in rows], cells)
    return figure(title, picture, "Mean over the trials of a cell.")


def _cell(trials: set[str], scores: dict[str, float]) -> float | str:
    """The mean score of some trials, or why there is none."""
    values = [scores[name] for name in trials if name in scores]
    return sum(values) / len(values) if values else "no score yet" if trials else "no trial"


def _column(values: Sequence[Any]) -> tuple[list[float], list[str]]:
    """An axis of parallel coordinates: heights in [0, 1] and ticks; few values or texts are evenly spaced."""
    distinct = sorted({shown(value): value for value in values}.values(), key=_order)
    numbers = [value for value in values if isinstance(value, (int, float))]
    if len(distinct) <= 6 or len(numbers) < len([value for value in values if value is not None]):
        places = {
            shown(value): i / max(len(distinct) - 1, 1) if len(distinct) > 1 else 0.5
            for i, value in enumerate(distinct)
        }
        return [places[shown(value)] for value in values], [shown(value) for value in distinct]
    low, high = min(numbers), max(numbers)
    is_log = low > 0 and high / low > 50
    scale = math.log if is_log else float
    heights = [
        (scale(value) - scale(low)) / (scale(high) - scale(low)) if value is not None else 0.0 for value in values
    ]
    ends = [low * (high / low) ** (i / 4) if is_log else low + (high - low) * i / 4 for i in range(5)]
    return heights, [svg.number(end) for end in ends]
