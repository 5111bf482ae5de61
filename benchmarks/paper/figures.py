"""Table 1, Fig. 4 and Fig. 5 of the paper, from the evaluations of `runs.py`: a picture, and its numbers beside it.

    python benchmarks/paper/figures.py table1 hopper-medium-expert halfcheetah-medium-expert walker2d-medium-expert
    python benchmarks/paper/figures.py ablations hopper-medium-expert
    python benchmarks/paper/figures.py eta hopper-medium-expert

`table1`: the critics' value at the start states against the real discounted return, both of the policy that they
follow, with the consistent policy improvement and with the other one. `ablations`: score, and the value of actions
that are not in the data, over training. `eta`: the score for each η, with `actor_eta` fixed at 1 and free (η), and
MOPO's for each penalty beside it. A number is the mean over seeds of the means of a run's last ten evaluations, or of
the later half of fewer than twenty.
All runs of a task are cut to the steps that each of them has reached, or to ``--steps``, which leaves out those that
have not reached them; a line below the table says which.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parent.parent))

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from runs import DATASET, ETAS, FOLDER, GROUPS, NEWEST, PENALTIES
from score_tables import Row, curve

#: Evaluations at the end of a run, whose mean is its result; of a run of fewer than twice as many, its later half.
LAST = 10
#: Variant -> the evaluations of each seed.
Trials = dict[str, list[list[Row]]]
#: Variant -> its numbers; task -> the behaviour's score and the variants.
Variants = dict[str, dict[str, Any]]
Content = Mapping[str, Mapping[str, Any]]
KEYS = (
    "score", "value_estimate", "discounted_return", "value_random", "value_data", "density_ratio_mean", "path_falls",
    "path_excess",
)  # fmt: skip
#: What Table 1 compares.
COMPARED = ("value_estimate", "discounted_return")
#: What is known along the policy's own path (`along_the_path`), and digits of it.
PATH = {"path_falls": 2, "path_excess": 1}
#: Variant -> its policy improvement.
IMPROVEMENTS = {"full": "consistent", "inconsistent": "inconsistent"}
#: η -> its variants; "full" has η = `actor_eta` = 1.
FIXED, FREE = (dict(sorted([(1.0, "full"), *zip(ETAS, GROUPS[name], strict=True)])) for name in ("eta", "free"))
#: MOPO's penalty -> its variant; "mopo" has that of public code, which differs between tasks.
PENALTY = dict(zip(PENALTIES, GROUPS["penalty"], strict=True))


def load(runs: Path, task: str, labels: Sequence[str], steps: int | None = None) -> Trials:
    """The evaluations of a task's variants, all up to the same step.

    Args:
        runs: folder of `runs.py`.
        task: its name.
        labels: variants; those without evaluations are left out.
        steps: up to which; runs that have not reached them are left out. None: those that all runs have reached.

    Raises:
        FileNotFoundError: nothing is left.
    """
    files = {label: sorted((runs / task / label).glob("seed*/evaluations.json")) for label in labels}
    read = {label: [rows for file in files[label] if (rows := json.loads(file.read_text()))] for label in files}
    ends = [rows[-1]["steps"] for trials in read.values() for rows in trials]
    end = min(ends, default=0) if steps is None else steps
    found: Trials = {}
    for label, trials in read.items():
        reached = [[row for row in rows if row["steps"] <= end] for rows in trials if rows[-1]["steps"] >= end]
        if reached:
            found[label] = reached
    if not found:
        length = "" if steps is None else f" of {steps} steps"
        raise FileNotFoundError(f"{runs / task} has no run of {', '.join(files)}{length}: run runs.py {task}.")
    return found


def last(rows: Sequence[Row]) -> Sequence[Row]:
    """The evaluations whose mean is a run's result."""
    return rows[-min(LAST, (len(rows) + 1) // 2) :]


def results(trials: Sequence[Sequence[Row]]) -> dict[str, Any]:
    """Of one variant: steps, seeds, and each column's result, over all seeds and by seed."""
    columns = [key for key in KEYS if all(row.get(key) is not None for rows in trials for row in rows)]
    by_seed = {key: [fmean(row[key] for row in last(rows)) for rows in trials] for key in columns}
    means = {key: fmean(values) for key, values in by_seed.items()}
    length = {"steps": trials[0][-1]["steps"], "seeds": len(trials), "evaluations": len(last(trials[0]))}
    return {**length, **means, "by_seed": by_seed}


def curves(trials: Sequence[Sequence[Row]], keys: Sequence[str]) -> dict[str, list[float]]:
    """Steps, and each column's mean over seeds."""
    found: dict[str, list[float]] = {"steps": [step for step, *_ in curve(trials, keys[0])]}
    return found | {key: [mean for _, mean, _ in curve(trials, key)] for key in keys}


def table1(trials: Trials) -> Variants:
    """Whether values are below what the policy really gets; at how many of the last evaluations, too.

    Both are of the policy of the gradient step, which the critics follow. Runs of before these were recorded have only
    those of the policy that is evaluated, and a table with one of them is of that policy throughout.
    """
    found = {}
    rows_of_all = [row for seeds in trials.values() for rows in seeds for row in rows]
    has_newest = all(NEWEST + key in row for row in rows_of_all for key in COMPARED)
    for label, seeds in trials.items():
        rows = seeds
        if has_newest:
            rows = [[{**row, **{key: row[NEWEST + key] for key in COMPARED}} for row in seed] for seed in seeds]
        one = results(rows) | {"curve": curves(rows, (*COMPARED, "score"))}
        one["policy"] = "gradient step" if has_newest else "evaluated"
        ends = [row for seed in rows for row in last(seed)]
        one["is_conservative"] = one["value_estimate"] < one["discounted_return"]
        one["conservative_evaluations"] = sum(row["value_estimate"] < row["discounted_return"] for row in ends)
        one["last_evaluations"] = len(ends)
        found[label] = one
    return found


def table1_rows(found: Variants) -> list[str]:
    """Cells of the Markdown table."""
    return [
        f"{IMPROVEMENTS[label]} | {one.get('policy', 'evaluated')} | "
        f"{one['value_estimate']:.1f} | {one['discounted_return']:.1f} | "
        f"{'yes' if one['is_conservative'] else 'no'} | {one['conservative_evaluations']} of {one['last_evaluations']}"
        for label, one in found.items()
    ]


def ablations(trials: Trials) -> Variants:
    """Score, and values of actions that are not in the data and of those that are."""
    keys = "score", "value_random", "value_data"
    return {label: results(rows) | {"curve": curves(rows, keys)} for label, rows in trials.items()}


def ablations_rows(found: Variants) -> list[str]:
    """Cells of the Markdown table."""
    return [
        f"{label} | {one['score']:.1f} | {one['value_random']:.1f} | {one['value_data']:.1f} | "
        + " | ".join(f"{one[key]:.{digits}f}" if key in one else "-" for key, digits in PATH.items())
        for label, one in found.items()
    ]


def eta(trials: Trials) -> Variants:
    """Score and mean weight for each η; MOPO's score for each penalty."""
    return {label: results(rows) | {"curve": curves(rows, ("score",))} for label, rows in trials.items()}


def eta_rows(found: Variants) -> list[str]:
    """Cells of the Markdown table: fixed and free side by side; then MOPO."""

    def cells(names: Sequence[str]) -> str:
        pair = [found.get(name, {}) for name in names]
        columns = ("score", ".1f"), ("density_ratio_mean", ".2f")
        return " | ".join(f"{one[key]:{form}}" if key in one else "-" for key, form in columns for one in pair)

    free = ""  # MOPO has none
    rows = {f"η = {value:g}": (FIXED[value], FREE[value]) for value in FIXED}
    rows |= {f"MOPO, penalty {value:g}": (label, free) for value, label in PENALTY.items()}
    rows |= {"MOPO, public code's": ("mopo", free)}
    return [f"{name} | {cells(names)}" for name, names in rows.items() if any(label in found for label in names)]


# -- pictures --------------------------------------------------------------------------------------------------------


def panels(rows: int, columns: int) -> tuple[Figure, Any]:
    """A figure of panels, ``(rows, columns)``."""
    figure = Figure(figsize=(4.6 * columns, 3.4 * rows), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def draw_table1(content: Content) -> Figure:
    """A panel a task: estimates (solid) and real discounted returns (dashed) over training."""
    figure, axes = panels(1, len(content))
    for axis, (task, facts) in zip(axes[0], content.items(), strict=True):
        for i, (label, one) in enumerate(facts["variants"].items()):
            name, points = IMPROVEMENTS[label], one["curve"]
            axis.plot(points["steps"], points["value_estimate"], color=f"C{i}", label=f"{name}, estimate")
            axis.plot(points["steps"], points["discounted_return"], "--", color=f"C{i}", label=f"{name}, real")
        axis.set(title=task, xlabel="gradient steps", ylabel="discounted value of an episode")
        axis.legend(fontsize="small")
    return figure


def draw_ablations(content: Content) -> Figure:
    """A row a task: score, and values of random actions and of the data's."""
    titles = {"score": "normalised score", "value_random": "Q of random actions", "value_data": "Q of the data's"}
    figure, axes = panels(len(content), len(titles))
    for row, (task, facts) in zip(axes, content.items(), strict=True):
        for axis, (key, title) in zip(row, titles.items(), strict=True):
            for label, one in facts["variants"].items():
                axis.plot(one["curve"]["steps"], one["curve"][key], label=label)
            axis.set(title=task, xlabel="gradient steps", ylabel=title)
        draw_behavior(row[0], facts)
        row[0].legend(fontsize="small")
    return figure


def draw_eta(content: Content) -> Figure:
    """A row a task: score over training for each η; result and mean weight against η, `actor_eta` fixed and free."""
    titles = {"score": "normalised score", "density_ratio_mean": "mean weight w"}
    figure, axes = panels(len(content), 1 + len(titles))
    for row, (task, facts) in zip(axes, content.items(), strict=True):
        found = facts["variants"]
        for value, label in FIXED.items():
            if label in found:
                row[0].plot(found[label]["curve"]["steps"], found[label]["curve"]["score"], label=f"η = {value:g}")
        row[0].set(title=task, xlabel="gradient steps", ylabel="normalised score")
        for axis, (key, title) in zip(row[1:], titles.items(), strict=True):
            lines = {"actor_eta fixed (1)": FIXED, "actor_eta free (η)": FREE, "MOPO, penalty": PENALTY}
            for name, labels in lines.items():
                points = {value: found[label][key] for value, label in labels.items() if key in found.get(label, {})}
                if points:
                    axis.plot(points.keys(), points.values(), marker="o", label=name)
            ticks = sorted({*FIXED, *(value for value, label in PENALTY.items() if label in found)})
            axis.set(title=task, xlabel="η, penalty", ylabel=title, xscale="log")
            axis.set_xticks(ticks, [f"{value:g}" for value in ticks], minor=False)
            axis.minorticks_off()
        for axis in row[:2]:
            draw_behavior(axis, facts)
        for axis in row:
            axis.legend(fontsize="small")
    return figure


def draw_behavior(axis: Any, facts: Mapping[str, Any]) -> None:
    """The data's own score, dashed."""
    if facts["behavior_score"] is not None:
        axis.axhline(facts["behavior_score"], color="grey", linestyle="--", linewidth=1, label="behaviour")


def save(path: Path, figure: Figure, content: Any) -> None:
    """``path``.png, and its numbers as ``path``.json."""
    path.parent.mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(figure).print_png(f"{path}.png")
    Path(f"{path}.json").write_text(json.dumps(content, indent=1) + "\n")
    print(f"Written: {path}.png, {path}.json")


class Kind(NamedTuple):
    """A figure: its variants, the numbers of a task, the picture of all tasks, and a table."""

    variants: list[str]
    numbers: Callable[[Trials], Variants]
    draw: Callable[[Content], Figure]
    columns: str
    rows: Callable[[Variants], list[str]]


FIGURES = {
    "table1": Kind(
        [*IMPROVEMENTS], table1, draw_table1,
        "policy improvement | policy | estimate | real | conservative | evaluations below", table1_rows,
    ),
    "ablations": Kind(
        GROUPS["ablations"], ablations, draw_ablations,
        "variant | score | Q of random actions | Q of the data's | falls | too high", ablations_rows,
    ),
    "eta": Kind(
        [*FIXED.values(), *FREE.values(), *PENALTY.values(), "mopo"], eta, draw_eta,
        "setting | score, fixed | score, free | w, fixed | w, free", eta_rows,
    ),
}  # fmt: skip


def table(kind: Kind, content: Content) -> str:
    """In Markdown."""
    lines = [f"| task | {kind.columns} |", "| --- |" + " --- |" * (kind.columns.count("|") + 1)]
    lines += [f"| {task} | {row} |" for task, facts in content.items() for row in kind.rows(facts["variants"])]
    return "\n".join([*lines, "", *(f"- {task}: {length(facts['variants'])}." for task, facts in content.items())])


def length(found: Variants) -> str:
    """Up to which step, of how many seeds, and of how many evaluations the numbers are."""
    some = next(iter(found.values()))
    by_seeds: dict[int, list[str]] = {}
    for label, one in found.items():
        by_seeds.setdefault(one["seeds"], []).append(label)
    seeds = "; ".join(f"{', '.join(labels)}: {num}" for num, labels in by_seeds.items())
    return f"{some['steps']:,} steps, means of the last {some['evaluations']} evaluations; seeds: {seeds}"


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("figure", choices=[*FIGURES])
    parser.add_argument("tasks", nargs="+")
    parser.add_argument("--runs", type=Path, default=FOLDER, help="folder of runs.py")
    parser.add_argument("--steps", type=int, default=None, help="of a run; else those that all have reached")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    parser.add_argument("--add", action="store_true", help="keep the other tasks that the figure's JSON has")
    return parser.parse_args(arguments)


def main() -> int:
    """Exit code 0; 2 if there is nothing to draw."""
    args = parse()
    kind, content = FIGURES[args.figure], {}
    try:
        if args.add:
            content = json.loads((args.out / f"{args.figure}.json").read_text())
        for task in args.tasks:
            variants = kind.numbers(load(args.runs, task, kind.variants, args.steps))
            dataset = json.loads((args.runs / task / DATASET).read_text())
            content[task] = {"behavior_score": dataset["behavior_score"], "variants": variants}
    except FileNotFoundError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    save(args.out / args.figure, kind.draw(content), content)
    print(f"\n{table(kind, content)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
