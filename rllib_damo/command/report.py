"""What the `rllib` command prints when a run has ended: errors, the trials of a search in order, the checkpoints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from shlex import quote
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape

from rllib_damo.command.causes import what_failed
from rllib_damo.core.changed_options import is_shown
from rllib_damo.errors import CheckpointError
from rllib_damo.evaluation.checkpoints import verify
from rllib_damo.utils.names import flatten, nested
from rllib_damo.utils.ray_internals import was_lost
from rllib_damo.utils.uris import address, without_password

if TYPE_CHECKING:
    from ray.tune import Checkpoint, Result, ResultGrid

#: Exit codes; the last two are those of shells for SIGINT (Ctrl-C) and SIGTERM.
OK, FAILED, USAGE, INTERRUPTED, TERMINATED = 0, 1, 2, 130, 143

console = Console(soft_wrap=True, highlight=False)
err = Console(soft_wrap=True, highlight=False, stderr=True)


def report(
    results: ResultGrid,
    *,
    metric: str,
    searched: Sequence[tuple[str, ...]] = (),
    place: str,
    options: str = "",
    evaluated: bool = True,
    verbose: bool = False,
) -> int:
    """Prints the outcome of all trials, and the checkpoints of the best one.

    Args:
        results: of Tune.
        metric: the metric "a/b" by which checkpoints were kept; higher is better.
        searched: paths of the settings in a trial's config that a search varies.
        place: folder or URI of the results.
        options: more options for the commands that are printed.
        evaluated: whether episodes give a score; without one, the command that chooses by the dataset is named.
        verbose: print complete errors.

    Returns:
        The exit code.
    """
    code, place = OK, without_password(place)
    trials = [results[index] for index in range(len(results))]
    for trial in trials:
        if trial.error is not None:
            code = FAILED
            _print_error(trial, place, verbose)
        elif not (trial.metrics or {}).get("done"):
            code = code or INTERRUPTED
    if code == INTERRUPTED:
        console.print(f"\nInterrupted. To continue, give the same command with --resume (it looks in {place}).")
    ranked = sorted(trials, key=lambda trial: _best(trial, metric)[0], reverse=True)
    if len(trials) > 1:
        _print_ranking(ranked, metric, searched)
    if ranked:
        _print_checkpoints(ranked[0], metric, place, options)
    along = len(trials) == 1 and len(trials[0].best_checkpoints or []) > 1
    if not evaluated and (len(trials) > 1 or along):
        run = quote(address(trials[0].path.rsplit("/", 1)[0], place))
        what, which = ("checkpoints", " --checkpoints all") if along else ("trials", "")
        console.print(f"\nChoose among the {what} by their dataset: rllib-damo select {run}{which}{options}")
    return code


def varied(configs: Sequence[Mapping[str, Any] | None]) -> list[tuple[str, ...]]:
    """Paths of the settings that differ between trials: of a resumed search no search space is at hand."""
    flat = [flatten(config) for config in configs if config]
    texts = {name: {repr(config.get(name)) for config in flat} for name in sorted(set().union(*flat))}
    return [
        tuple(name.split("/"))
        for name, values in texts.items()
        if len(values) > 1 and all(is_shown(name, value) for value in values)
    ]


def _print_error(trial: Result, place: str, verbose: bool) -> None:
    text = str(trial.error).strip()
    failure = what_failed(text)
    err.print(f"\n[red]Failed:[/red] {escape(failure.message or type(trial.error).__name__)}", markup=True)
    if failure.cause:
        err.print(f"Cause: {failure.cause}", markup=False)
    if failure.place:
        err.print(f"At: {failure.place}", markup=False)
    err.print(f"The complete error: {address(f'{trial.path}/error.txt', place)}", markup=False)
    if was_lost(trial.error):
        err.print(
            "The trial's process or machine was lost. The same command with --resume goes on from the last checkpoint; "
            "with --max-failures 3, trials do so by themselves.",
            markup=False,
        )
    if verbose:
        err.print(text, markup=False)


def _print_ranking(ranked: list[Result], metric: str, searched: Sequence[tuple[str, ...]]) -> None:
    """A table: the settings that vary, and the scores, if there are any, of the best kept checkpoint and the last."""
    has_scores = any(_scores(trial, metric) for trial in ranked)
    console.print(
        f"\nTrials by {metric} of their best kept checkpoint, and of the last:" if has_scores else "\nTrials:"
    )
    rows = [[*(path[-1] for path in searched), *(["best", "last"] if has_scores else []), "trial"]]
    for trial in ranked:
        values = [_show(nested(trial.config, path)) for path in searched]
        end = _last_score(trial, metric)
        best, _ = _best(trial, metric)
        scores = [_show(best if best > -float("inf") else None), _show(end)] if has_scores else []
        rows.append([*values, *scores, trial.path.rsplit("/", 1)[-1]])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [cell.rjust(width) for cell, width in zip(row[:-1], widths[:-1], strict=True)]
        console.print("  ".join([*cells, row[-1]]), markup=False)


def _print_checkpoints(trial: Result, metric: str, place: str, options: str) -> None:
    console.print(f"\nResults: {address(trial.path, place)}")
    if trial.checkpoint is None:
        return
    score, best = _best(trial, metric)
    if best is not None:
        console.print(f"Best checkpoint: {address(best.path, place)} ({metric} {score:.1f})")
    console.print(f"Last checkpoint: {address(trial.checkpoint.path, place)}")
    played = quote(address((best or trial.checkpoint).path, place))
    console.print(f"Evaluate it:     rllib evaluate {played} --episodes 10{options}")


def _best(trial: Result, metric: str) -> tuple[float, Checkpoint | None]:
    """The best kept checkpoint and its score; minus infinity if no checkpoint has a score."""
    return max(_scores(trial, metric), key=lambda pair: pair[0], default=(-float("inf"), None))


def _last_score(trial: Result, metric: str) -> float | None:
    """The score of the last checkpoint. Tune lists it only if it is among the best; its own manifest has it, too."""
    last = trial.checkpoint
    if last is None:
        return None
    listed = {found.path: score for score, found in _scores(trial, metric)}
    if last.path in listed:
        return listed[last.path]
    try:
        return nested(verify(last.path, last.filesystem, contents=False), metric.split("/"))
    except CheckpointError:
        return None


def _scores(trial: Result, metric: str) -> list[tuple[float, Checkpoint]]:
    found = [(nested(metrics, metric.split("/")), kept) for kept, metrics in trial.best_checkpoints or []]
    return [(float(score), kept) for score, kept in found if score is not None]


def _show(value: Any) -> str:
    return "-" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)
