"""The report of a run: one HTML page that needs nothing else."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any

from ray.tune.registry import get_trainable_cls

from rllib_damo.core.changed_options import changed_options, plain
from rllib_damo.errors import UsageError
from rllib_damo.report import charts
from rllib_damo.report.runs import SCORES, Run, Trial, evaluations, read_run, shown
from rllib_damo.report.signs import SIGNS
from rllib_damo.report.svg import number
from rllib_damo.utils.paths import check_new_file, new_file
from rllib_damo.version import __version__

_TITLES = {SCORES[0]: "score", SCORES[1]: "return"}
_STYLE = Path(__file__).with_name("style.css")
_MAX_ERROR = 6000  # characters that are shown


def write_report(run_dir: str | Path, out: str | Path | None = None) -> Path:
    """Writes the report of a run, or of one trial, as one HTML file that needs no network.

    Args:
        run_dir: folder or address of a run of Tune, or of a trial in it; it may still be running, or have failed.
        out: the file, which is replaced if it exists; None: the run's name in the present folder.

    Returns:
        The file's path.

    Raises:
        UsageError: there are no results at `run_dir`, or `out` does not end in .html or cannot be written.
    """
    if out is not None and Path(out).suffix != ".html":
        raise UsageError(f"--out {out}: the report is an HTML page; give a name that ends in .html.")
    if out is not None:
        check_new_file(out)
    run = read_run(run_dir)
    path = Path(f"{run.name}.html" if out is None else out).expanduser()
    check_new_file(path)
    with new_file(path) as scratch:
        scratch.write_text(page(run), encoding="utf-8")
    return path


def page(run: Run) -> str:
    """The page's text."""
    drawn = [*charts.LEARNING, *charts.VALUES, *charts.CLASSIFIER]
    sections = {
        "Trials": _search(run) if len(run.trials) > 1 else "",
        "What to look at": _signs(run),
        "Failures": _failures(run),
        "Learning": _grid(charts.draw(run, charts.LEARNING), charts.returns_chart(run)),
        "Values": _grid(charts.draw(run, charts.VALUES)),
        "Classifier and density ratio": _grid(charts.draw(run, charts.CLASSIFIER)),
        "Dynamics model": _grid(charts.draw(run, charts.model_charts(run))),
        "Rollouts in the model": _grid(charts.draw(run, charts.rollout_charts(run))),
        "Other metrics of the learner": _folded(_grid(charts.draw(run, charts.other_charts(run, drawn)))),
        "Dataset": _dataset(run),
        "Configuration": _configuration(run),
        "Versions": _versions(run),
    }
    sections = {title: body for title, body in sections.items() if body}
    links = "".join(f'<a href="#{_anchor(title)}">{title}</a>' for title in sections)
    body = "".join(
        f'<section id="{_anchor(title)}"><h2>{title}</h2>{text}</section>' for title, text in sections.items()
    )
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{escape(run.name)}</title><style>{_STYLE.read_text()}</style></head><body><main>"
        f"{_head(run)}<nav>{links}</nav>{_trial_legend(run)}{body}"
        f"<footer>Written by rllib-damo {__version__}, {time.strftime('%Y-%m-%d %H:%M')}.</footer>"
        "</main></body></html>\n"
    )


def _head(run: Run) -> str:
    best = run.trials[0]
    algorithm = best.name.split("_")[0]
    env = best.config.get("env") or (best.config.get("evaluation_config") or {}).get("env") or ""
    about = [algorithm, str(env), str(best.fact("dataset/name") or best.config.get("input", ""))]
    tiles = list(_tiles(run))
    return (
        f'<header><h1>{escape(run.name)}</h1><p class="about">{escape(" · ".join(filter(None, about)))}</p>'
        f'<p class="place">{escape(run.place)}</p><dl class="tiles">'
        + "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in tiles)
        + "</dl></header>"
    )


def _tiles(run: Run) -> Iterator[tuple[str, str]]:
    best = run.trials[0]
    of_best = " of the best trial" if len(run.trials) > 1 else ""
    if len(run.trials) > 1:
        states = [trial.state for trial in run.trials]
        counts = {state: states.count(state) for state in dict.fromkeys(states)}
        yield "Trials", ", ".join(f"{count} {state}" for state, count in counts.items())
    else:
        yield "State", best.state
    for metric, title in zip(SCORES, ("Score", "Return"), strict=True):
        score = best.score(metric)
        if score is not None:
            yield f"{title}{of_best}, {evaluations([best], metric)}", number(score)
    data = best.last("dataset/episode_return_mean")
    if data is not None:
        yield "Mean return of the episodes it learns from", number(data)
    yield (
        best.steps.removesuffix("_lifetime").removeprefix("num_").replace("_", " ").capitalize(),
        number(max((trial.last(trial.steps) or 0 for trial in run.trials), default=0)),
    )
    yield (
        "Time" + (", all trials" if len(run.trials) > 1 else ""),
        _duration(sum(trial.last("time_total_s") or 0 for trial in run.trials)),
    )


def _trial_legend(run: Run) -> str:
    """The colours of a search's best trials, which all charts share."""
    if len(run.trials) == 1:
        return ""
    own = charts.colours(run)
    named = [trial for trial in run.trials if own[trial.name] != "other"]
    entries = [
        f'<span><span class="key {own[trial.name]}"></span>{rank}: {escape(run.label(trial))}</span>'
        for rank, trial in enumerate(named, 1)
    ]
    if len(named) < len(run.trials):
        entries.append('<span><span class="key other"></span>the others</span>')
    return f'<div class="trials">{"".join(entries)}</div>'


def _search(run: Run) -> str:
    """A table of the trials, the best first, and charts of their settings."""
    own = charts.colours(run)
    metrics = [metric for metric in SCORES if any(trial.score(metric) is not None for trial in run.trials)]
    steps = run.trials[0].steps
    head = [
        "",
        *run.varied,
        *(f"{_TITLES[metric]}{end}" for metric in metrics for end in ("", ", best")),
        "steps",
        "state",
    ]
    rows = []
    for rank, trial in enumerate(run.trials, 1):
        row = [f'<span class="key {own[trial.name]}"></span>{rank}']
        row += [escape(shown(trial.settings.get(name))) for name in run.varied]
        for metric in metrics:
            values = [value for _, value in trial.points(metric)]
            row += [_number(trial.score(metric)), _number(max(values, default=None))]
        row += [_number(trial.last(steps)), escape(trial.state)]
        rows.append(row)
    note = (
        f"By the mean of each trial's {evaluations(run.trials, run.metric)}. The best single evaluation is too high: "
        "chance chose it."
        if run.metric
        else "No result was evaluated in the environment, so there is no score to sort by."
    )
    return f'<p class="note">{note}</p>{_table(head, rows, "numbers")}{_grid(charts.search_charts(run))}'


def _signs(run: Run) -> str:
    """Signs of troubles, and the warnings that the results hold."""
    rows = []
    for sign in SIGNS:
        hits = [(rank, text) for rank, trial in enumerate(run.trials, 1) if (text := sign.found(trial))]
        if hits:
            where = [] if len(run.trials) == 1 else [_some([str(rank) for rank, _ in hits])]
            more = f" (trial {hits[0][0]})" if len(hits) > 1 else ""
            rows.append([_code(hits[0][1] + more), _code(sign.meaning), _code(sign.fix), *where])
    head = ["found", "meaning", "what to do", *(["trials"] if len(run.trials) > 1 else [])]
    texts = [line for trial in run.trials for line in str(trial.fact("warnings") or "").splitlines()]
    damaged = [trial.name for trial in run.trials if trial.num_damaged]
    if damaged:
        texts.append(f"Results of {_some(damaged)} have a line that cannot be read; it may just be being written.")
    warnings = "".join(f"<li>{_code(text)}</li>" for text in dict.fromkeys(texts))
    body = _table(head, rows) if rows else ""
    body += f"<h3>Warnings</h3><ul>{warnings}</ul>" if warnings else ""
    return body or '<p class="note">No sign of trouble in the metrics, and no warning.</p>'


def _failures(run: Run) -> str:
    """The last line of each error, with the trials that it ended; a trial that recovered has an error.txt, too."""
    ended: dict[str, list[Trial]] = {}
    for trial in run.trials:
        if trial.state == "failed":
            ended.setdefault(trial.error.splitlines()[-1], []).append(trial)
    return "".join(
        f"<h3>{escape(last)}</h3><p>{escape(_some([run.label(trial) for trial in trials], 4, '; '))}</p>"
        f"<details><summary>The end of error.txt</summary><pre>{escape(trials[0].error[-_MAX_ERROR:])}</pre></details>"
        for last, trials in ended.items()
    )


def _dataset(run: Run) -> str:
    best = run.trials[0]
    names = {
        "name": best.fact("dataset/name") or best.config.get("input"),
        "fingerprint": best.fact("dataset/fingerprint"),
        "share of its rows that the policy learns from (data_fraction)": best.config.get("data_fraction"),
        "episodes that the policy learns from": best.last("dataset/num_episodes"),
        "their mean return": best.last("dataset/episode_return_mean"),
        "standard deviation": best.last("dataset/episode_return_std"),
        "lowest": best.last("dataset/episode_return_min"),
        "highest": best.last("dataset/episode_return_max"),
        "their mean discounted return": best.last("dataset/discounted_return_mean"),
        "share of terminal rows": best.last("dataset/terminated_frac"),
    }
    rows = [
        [escape(name), _number(value) if isinstance(value, float) else escape(str(value))]
        for name, value in names.items()
        if value is not None
    ]
    return _table(["fact", "value"], rows)


def _configuration(run: Run) -> str:
    """The options that differ from the defaults, and behind a fold all of them."""
    best = run.trials[0]
    if not best.config:
        return ""
    config = json.dumps(best.config, indent=1, sort_keys=True)
    of_best = " of the best trial" if len(run.trials) > 1 else ""
    everything = f"<details><summary>All options{of_best}</summary><pre>{escape(config)}</pre></details>"
    defaults = _defaults(best)
    if defaults is None:
        return everything
    changed = {name: value for name, value in changed_options(best.config, defaults).items() if name not in run.varied}
    rows = [[escape(name), _value(value), _value(defaults.get(name))] for name, value in changed.items()]
    return _table(["option", "value", "default"], rows) + everything


def _defaults(trial: Trial) -> dict[str, Any] | None:
    """The options' defaults of the trial's algorithm; None if it is not known here."""
    try:
        return plain(get_trainable_cls(trial.name.split("_")[0]).get_default_config().to_dict())
    except Exception:  # a user's own algorithm: Ray raises one of its own for an unknown name
        return None


def _versions(run: Run) -> str:
    names = sorted(
        {key for trial in run.trials for row in trial.results[-1:] for key in row if key.startswith("versions/")}
    )
    rows = [[escape(name.split("/")[1]), escape(str(run.trials[0].fact(name)))] for name in names]
    return _table(["package", "version"], rows) if rows else ""


def _grid(figures: Iterator[str], *more: str) -> str:
    found = "".join([*figures, *more])
    return f'<div class="grid">{found}</div>' if found else ""


def _folded(text: str) -> str:
    return f"<details><summary>Show them</summary>{text}</details>" if text else ""


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], style: str = "words") -> str:
    """A table of HTML cells, which scrolls within the page where it is too wide or too long."""
    titles = "".join(f"<th>{escape(name)}</th>" for name in head)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    table = f'<table class="{style}"><thead><tr>{titles}</tr></thead><tbody>{body}</tbody></table>'
    return f'<div class="scroll rows">{table}</div>'


def _number(value: float | None) -> str:
    return "–" if value is None else number(value)


def _value(value: Any) -> str:
    return f"<code>{escape(str(value))}</code>"


def _code(text: str) -> str:
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text, quote=False))


def _some(names: Sequence[str], count: int = 8, between: str = ", ") -> str:
    return between.join(names[:count]) + (f" and {len(names) - count} more" if len(names) > count else "")


def _duration(seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours} h {rest // 60:02d} min" if hours else f"{rest // 60} min {rest % 60:02d} s"


def _anchor(title: str) -> str:
    return title.lower().replace(" ", "-")
