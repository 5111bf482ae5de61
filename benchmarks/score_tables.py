"""From the evaluations of trials to a table, a JSON file and curves. Pure functions, but for the writing of files."""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
from score_statistics import bootstrap_interval, difference_interval, interquartile_mean

Row = Mapping[str, Any]
#: The evaluations at the end of a run whose mean is the run's result.
LAST = 3
#: Characters of a line of text.
WIDTH = 118
BEGIN, END = "<!-- scores: begin -->", "<!-- scores: end -->"


@dataclass(frozen=True)
class Dataset:
    """What a table says of a task's dataset."""

    name: str
    transitions: int
    episodes: int
    fingerprint: str
    behavior_return: float
    behavior_score: float | None


@dataclass(frozen=True)
class Summary:
    """One task and method over its finished seeds; scores are normalised, x 100.

    Attributes:
        score, score_std: mean and sample standard deviation over seeds of `last_mean` (std None for a single seed).
        worst: the smallest of the seeds.
        best: mean over seeds of the best single evaluation, which no one could have chosen without the environment.
        value, discounted_return: the critics' estimate at the start states, and the real discounted return, of the
            last evaluations; None for a method without critics.
        missing: seeds that have not finished.
        scores: of each finished seed.
    """

    task: str
    method: str
    seeds: int
    missing: int
    score: float | None
    score_std: float | None
    worst: float | None
    best: float | None
    value: float | None
    discounted_return: float | None
    scores: tuple[float, ...] = ()


def last_mean(rows: Sequence[Row], key: str = "score", last: int = LAST) -> float | None:
    """Mean of the last evaluations of one trial (all of them, if there are fewer); None where a row has no number."""
    values = [row[key] for row in rows[-last:]]
    return fmean(values) if values and all(value is not None for value in values) else None


def best_so_far(rows: Sequence[Row]) -> float:
    """The largest score of any evaluation of one trial."""
    return max(row["score"] for row in rows)


def summarise(task: str, method: str, trials: Sequence[Sequence[Row]], steps: int) -> Summary:
    """One line of the table.

    Args:
        task, method: its names.
        trials: the evaluations of each seed, in order of steps; of a seed that has not run, none.
        steps: gradient steps of a finished trial; others are counted as missing and have no part in the figures.
    """
    done = [rows for rows in trials if rows and rows[-1]["steps"] >= steps]
    missing = len(trials) - len(done)
    if not done:
        return Summary(task, method, 0, missing, None, None, None, None, None, None)
    scores = [fmean(row["score"] for row in rows[-LAST:]) for rows in done]
    values = [value for rows in done if (value := last_mean(rows, "value_estimate")) is not None]
    return Summary(
        task=task,
        method=method,
        seeds=len(done),
        missing=missing,
        score=fmean(scores),
        score_std=stdev(scores) if len(scores) > 1 else None,
        worst=min(scores),
        best=fmean(map(best_so_far, done)),
        value=fmean(values) if values else None,
        discounted_return=fmean(fmean(row["discounted_return"] for row in rows[-LAST:]) for rows in done),
        scores=tuple(scores),
    )


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _score(summary: Summary) -> str:
    return _figure(summary.score) + ("" if summary.score_std is None else f" ± {summary.score_std:.1f}")


def _at_a_glance(summaries: Sequence[Summary], datasets: Mapping[str, Dataset]) -> list[str]:
    """A line for each task, of those methods that have a seed on all tasks; none if there are none."""
    methods = dict.fromkeys(s.method for s in summaries)
    complete = [m for m in methods if all(s.seeds for s in summaries if s.method == m)]
    if not complete:
        return []
    cells = {(s.task, s.method): _score(s) for s in summaries}
    lines = [
        f"| score | behaviour | {' | '.join(complete)} |",
        f"| --- | --- |{' --- |' * len(complete)}",
    ]
    for task, dataset in datasets.items():
        scores = " | ".join(cells[task, method] for method in complete)
        lines.append(f"| {task} | {_figure(dataset.behavior_score)} | {scores} |")
    return [*lines, "", *(_over_all_tasks(summaries, complete) if len(datasets) > 1 else [])]


def _over_all_tasks(summaries: Sequence[Summary], methods: Sequence[str]) -> list[str]:
    """The interquartile mean of each method over all tasks and seeds, the highest first."""
    rows = []
    for method in methods:
        scores = {s.task: s.scores for s in summaries if s.method == method}
        width = max(map(len, scores.values()))
        # tasks weigh the same, whatever their number of seeds
        mean = interquartile_mean(np.concatenate([np.resize(own, width) for own in scores.values()]))
        rows.append((float(mean), method, *bootstrap_interval(scores)))
    return [
        "Interquartile mean over tasks and seeds, with the 95 % interval of a bootstrap over both:",
        "",
        "| method | interquartile mean | interval |",
        "| --- | --- | --- |",
        *(f"| {method} | {mean:.1f} | {low:.1f} to {high:.1f} |" for mean, method, low, high in sorted(rows)[::-1]),
        "",
    ]


def _differences(summaries: Sequence[Summary]) -> list[str]:
    """The first method's score less each other's, where both have several seeds; none if there are none."""
    of = {(s.task, s.method): s.scores for s in summaries if len(s.scores) > 1}
    tasks, methods = (dict.fromkeys(getattr(s, key) for s in summaries) for key in ("task", "method"))
    first = next(iter(methods))
    others = [m for m in methods if m != first and any((task, m) in of for task in tasks)]
    if not others or not any((task, first) in of for task in tasks):
        return []
    lines = [
        f"`{first}` less the others, where both have several seeds, with Welch's 95 % interval over the seeds:",
        "",
        f"| task | {' | '.join(others)} |",
        f"| --- |{' --- |' * len(others)}",
    ]
    for task in tasks:
        cells = []
        for other in others:
            pair = of.get((task, first)), of.get((task, other))
            found = difference_interval(*pair) if all(pair) else None  # type: ignore[arg-type]
            cells.append("-" if found is None else "{:.1f} ({:.1f} to {:.1f})".format(*found))
        lines.append(f"| {task} | {' | '.join(cells)} |")
    return [*lines, ""]


def _folded(command: str) -> str:
    """The command line over several lines, as a shell reads it."""
    words = re.findall(r"(?:'[^']*'|\(at [^)]*\)|\S)+", command)
    line = " ".join(word.replace(" ", "\0") for word in words)
    lines = textwrap.wrap(line, WIDTH - 6, break_long_words=False, break_on_hyphens=False)
    return " \\\n    ".join(lines).replace("\0", " ")


def markdown(
    summaries: Sequence[Summary],
    datasets: Mapping[str, Dataset],
    steps: int,
    episodes: int,
    command: str,
    details: bool = True,
) -> str:
    """The table, with what its columns mean and the datasets above it; without ``details`` the scores alone."""
    lines = [
        "```console",
        _folded(command),
        "```",
        "",
        f"Normalised scores x 100 after {steps:,} gradient steps. A seed's score is the mean of its",
        f"last {LAST} evaluations of {episodes} episodes. A score is mean ± sample standard deviation over the seeds;",
        "without ± it is of one seed.",
    ]
    explained = [
        "`worst seed` is their minimum.",
        "`best so far` is the mean over seeds of the best single evaluation. It is not a result, since only the real",
        "environment can choose it. `estimated` and `real value` are the critics' value at the dataset's episode",
        "starts and the real discounted return, of the same evaluations.",
    ]
    lines += [
        *(explained if details else []),
        "",
        "| dataset | transitions | episodes | fingerprint | behaviour's mean return | its score |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, d in datasets.items():
        lines.append(
            f"| {name} | {d.transitions:,} | {d.episodes:,} | `{d.fingerprint[:12]}` | {d.behavior_return:.1f} | "
            f"{_figure(d.behavior_score)} |"
        )
    lines += ["", *_at_a_glance(summaries, datasets)]
    if not details:
        return "\n".join([*lines, "Worst seeds, values and unfinished methods: [scores](scores/scores.md)."])
    lines += [
        *_differences(summaries),
        "| task | method | score | worst seed | behaviour | estimated value | real value | seeds | best so far |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    finished = [s for s in summaries if s.seeds]
    for s in finished:
        seeds = f"{s.seeds}" + (f" ({s.missing} missing)" if s.missing else "")
        lines.append(
            f"| {s.task} | {s.method} | {_score(s)} | {_figure(s.worst)} | "
            f"{_figure(datasets[s.task].behavior_score)} | {_figure(s.value)} | {_figure(s.discounted_return)} | "
            f"{seeds} | {_figure(s.best)} |"
        )
    unfinished = [f"{s.method} on {s.task}" for s in summaries if not s.seeds]
    if unfinished:
        lines += [
            "",
            *textwrap.wrap(f"Without a finished seed: {', '.join(unfinished)}.", WIDTH, break_on_hyphens=False),
        ]
    return "\n".join(lines)


def replace_block(document: str, table: str) -> str:
    """The document with ``table`` between the markers.

    Raises:
        ValueError: the document has no markers, or more than one pair.
    """
    if document.count(BEGIN) != 1 or document.count(END) != 1 or document.index(BEGIN) > document.index(END):
        raise ValueError(f"The document needs one line {BEGIN} and, below it, one line {END}.")
    head, tail = document.split(BEGIN)[0], document.split(END)[1]
    return f"{head}{BEGIN}\n{table}\n{END}{tail}"


def curve(trials: Sequence[Sequence[Row]], key: str = "score") -> list[tuple[int, float, float]]:
    """(steps, mean, sample standard deviation) of a column, at the steps that all begun trials have reached."""
    begun = [{row["steps"]: row[key] for row in rows} for rows in trials if rows]
    if not begun:
        return []
    points = []
    for steps in sorted(set.intersection(*(set(scores) for scores in begun))):
        values = [scores[steps] for scores in begun]
        points.append((steps, fmean(values), stdev(values) if len(values) > 1 else 0.0))
    return points


def plot(
    results: Mapping[str, Mapping[str, Sequence[Sequence[Row]]]], datasets: Mapping[str, Dataset], path: Path
) -> None:
    """Score against steps, a panel for each task: mean and standard deviation over seeds, the behaviour dashed.

    A method has the same colour in all panels.
    """
    from matplotlib import colormaps
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(3, len(results))
    rows = math.ceil(len(results) / columns)
    figure = Figure(figsize=(5 * columns, 3.6 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flat
    methods = dict.fromkeys(method for trials in results.values() for method in trials)
    colors = {method: colormaps["tab20" if len(methods) > 10 else "tab10"](i) for i, method in enumerate(methods)}
    handles: dict[str, Any] = {}
    for axis, (task, trials_of) in zip(axes, results.items(), strict=False):
        for method, trials in trials_of.items():
            points = curve(trials)
            if points:
                steps, mean, std = zip(*points, strict=True)
                (handles[method],) = axis.plot(steps, mean, color=colors[method], marker=".")
                low, high = ([m + sign * s for m, s in zip(mean, std, strict=True)] for sign in (-1, 1))
                axis.fill_between(steps, low, high, color=colors[method], alpha=0.2, linewidth=0)
        if (behavior := datasets[task].behavior_score) is not None:
            handles["behaviour"] = axis.axhline(behavior, color="grey", linestyle="--", linewidth=1)
        axis.set(title=task, xlabel="gradient steps", ylabel="normalised score")
    for axis in list(axes)[len(results) :]:
        axis.remove()
    ordered = [name for name in (*methods, "behaviour") if name in handles]
    figure.legend(
        [handles[name] for name in ordered], ordered, loc="outside lower center", ncols=min(len(ordered), 3 * columns)
    )
    FigureCanvasAgg(figure).print_png(str(path))
