"""The ``rllib-damo`` command; its group ``data`` lists, makes, converts and checks datasets.

Exit codes: 0 success, 1 `check` found problems or making a dataset failed, 2 the command was wrong or the other
commands cannot use the data, 130 interrupted.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import gymnasium as gym
import typer
from minari.serialization import deserialize_space

from rllib_damo.command.export import export
from rllib_damo.command.run_report import report
from rllib_damo.command.select import select
from rllib_damo.data import info as info_
from rllib_damo.data import sources
from rllib_damo.data.convert import convert as convert_
from rllib_damo.data.formats import minari_files, registry
from rllib_damo.data.formats.columns import ALIASES
from rllib_damo.data.formats.reader import Conventions
from rllib_damo.data.generate import datasets
from rllib_damo.errors import DataError, UserError
from rllib_damo.utils.environments import make_env

app = typer.Typer(
    name="rllib-damo",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Tools of rllib_damo besides training (`rllib train` trains).",
)
data = typer.Typer(no_args_is_help=True, help="Make, look at, convert and check datasets.")
app.add_typer(data, name="data")
app.command()(export)
app.command()(report)
app.command()(select)

_BAR_WIDTH = 40
_MOST = 5  # columns in a line
Dataset = Annotated[str, typer.Argument(help=f"Short name, Minari id, or path: {', '.join(registry.suffixes())}.")]
Env = Annotated[str | None, typer.Option("--env", "-e", help="Gymnasium id, if the dataset does not name it.")]
Columns = Annotated[
    list[str] | None,
    typer.Option(
        "--column",
        help="obs=NAME: how a column is called in the files; obs=A,B: columns that make one vector; repeatable.",
    ),
]
Keys = Annotated[
    list[str] | None,
    typer.Option("--observation-key", help="An entry of observations that are dictionaries; repeatable."),
]
SkipBad = Annotated[
    bool, typer.Option("--skip-bad-episodes", help="Leave out episodes that are damaged or not finite (Minari).")
]
Normalized = Annotated[
    bool | None,
    typer.Option(
        "--normalized-actions/--plain-actions",
        help="Whether actions lie in -1 to 1, or are in the environment's units. [default: in its units, except in "
        "RLlib's own recordings]",
    ),
]


@app.callback()
def _root() -> None:
    """Shown by `rllib-damo --help`."""


@data.command("list")
def list_() -> None:
    """The datasets that can be made, with the mean return to expect, and those on this machine."""
    there = set(minari_files.local_ids())
    rows = [("NAME", "ENVIRONMENT", "RETURN", "DEFAULT SIZE", "STATE")]
    sized = filter(None, map(datasets.of_dataset_id, sorted(there)))
    specs = [*datasets.NAMES.values(), *sized]
    for spec in specs:
        shipped = spec.is_shipped()
        expected = spec.recorded_return() if shipped else None
        state = "not made" if shipped else "its policies are not shipped yet"
        if spec.dataset_id in there:
            steps = _minari_metadata(spec.dataset_id)["total_steps"]
            state = f"made: {steps:,} transitions, {spec.dataset_id}"
        text = "" if expected is None else f"{expected:.0f}"
        rows.append((spec.name, spec.env_id, text, f"{spec.default_transitions:,}", state))
    _table(rows)
    others = sorted(there - {spec.dataset_id for spec in specs})
    if others:
        typer.echo("\nOther Minari datasets here: " + ", ".join(others))


@data.command("formats")
def formats_() -> None:
    """The kinds of files that can be read, and those that `convert` writes."""
    rows = [("FORMAT", "FILES", "WRITTEN", "")]
    for form in registry.formats():
        files = ", ".join(form.suffixes) or form.scheme or "-"
        rows.append((form.name, files, "yes" if form.write else "no", form.help))
    _table(rows)


@data.command()
def make(
    name: Annotated[str, typer.Argument(help="A name of `rllib-damo data list`: hopper-medium, or hopper-medium@1M.")],
    transitions: Annotated[
        int | None, typer.Option(min=1, help="Rows; D4RL's sets have up to 1000000. [default: see list]")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the episodes.")] = 0,
    workers: Annotated[int | None, typer.Option(min=0, help="Processes. [default: one a core]")] = None,
    progress: Annotated[bool, typer.Option(help="Show a progress bar.")] = True,
) -> None:
    """Make a dataset with the shipped behaviour policies, as a local Minari dataset.

    The result depends on the seed alone, not on the number of workers. After an interruption the same command
    continues where it stopped. A dataset of the same name but another size or seed is replaced.
    """
    try:
        dataset_id = datasets.make(name, transitions=transitions, seed=seed, progress=progress, workers=workers)
    except KeyboardInterrupt:
        typer.echo("Stopped. The same command continues where it stopped.", err=True)
        raise typer.Exit(130) from None
    metadata = _minari_metadata(dataset_id)
    returns = metadata["statistics"]["episode_returns"]
    typer.echo(
        f"{dataset_id}: {metadata['total_steps']:,} transitions, {metadata['total_episodes']:,} episodes, "
        f"return {returns['mean']:.1f} ± {returns['std']:.1f}"
    )
    if metadata["total_episodes"] == 1:
        typer.echo("Its only episode may be cut at its end: ask for more transitions.")


@data.command()
def info(
    name: Dataset,
    png: Annotated[Path | None, typer.Option(help="Draw returns, lengths, states and actions into this file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="All figures, as JSON.")] = False,
    env: Env = None,
    column: Columns = None,
    normalized_actions: Normalized = None,
    observation_key: Keys = None,
    skip_bad_episodes: SkipBad = False,
) -> None:
    """Sizes, returns, lengths, coverage and clipped columns of a dataset."""
    _refuse_unmade(name)
    observation_space, action_space = _spaces(env)
    conventions = _conventions(action_space, column, normalized_actions, observation_key, skip_bad_episodes)
    transitions = sources.load(name, observation_space=observation_space, conventions=conventions)
    figures = info_.describe(transitions)
    typer.echo(json.dumps(figures, indent=1) if as_json else _readable(figures))
    if png is not None:
        info_.plot(transitions, png)
        typer.echo(f"Written: {png}", err=as_json)


@data.command()
def convert(
    src: Dataset,
    dst: Annotated[
        str,
        typer.Argument(help=f"Path in {', '.join(registry.written_suffixes())}, or Minari id (minari://name-v0)."),
    ],
    env: Env = None,
    column: Columns = None,
    normalized_actions: Normalized = None,
    observation_key: Keys = None,
    skip_bad_episodes: SkipBad = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is at DST.")] = False,
) -> None:
    """Convert between the formats; numbers are kept as float32, as they are read for training.

    The result has the usual column names, and actions in the environment's units.
    """
    conventions = _conventions(None, column, normalized_actions, observation_key, skip_bad_episodes)
    typer.echo(f"Written: {convert_(src, dst, env_id=env, overwrite=overwrite, conventions=conventions)}")


@data.command()
def check(
    file: Dataset,
    env: Annotated[str | None, typer.Option("--env", "-e", help="Check against this environment's spaces.")] = None,
    column: Columns = None,
    normalized_actions: Normalized = None,
    observation_key: Keys = None,
    skip_bad_episodes: SkipBad = False,
) -> None:
    """Run every check on a dataset; exit code 1 if one fails."""
    _refuse_unmade(file)
    observation_space, action_space = _spaces(env)
    conventions = _conventions(action_space, column, normalized_actions, observation_key, skip_bad_episodes)
    try:
        reader = sources.resolve(file, conventions=conventions)
    except DataError:
        if not Path(file).expanduser().exists():  # a mistake in the command, not in the data
            raise
    else:
        if not env:
            observation_space, action_space = _stored_spaces(reader)
    conventions = dataclasses.replace(conventions, action_space=action_space)
    lines = info_.report(file, observation_space=observation_space, conventions=conventions)
    typer.echo("\n".join(lines))
    if any(line.startswith("FAIL") for line in lines):
        raise typer.Exit(1)


def _minari_metadata(dataset_id: str) -> dict[str, Any]:
    folder = minari_files.local_path(dataset_id)
    assert folder is not None
    return json.loads((folder / minari_files.METADATA_FILE).read_text())


def _refuse_unmade(name: str) -> None:
    """Looking at a dataset must not start to make it."""
    if Path(name).expanduser().exists():
        return
    spec = datasets.find_spec(name)
    if spec is not None and minari_files.local_path(spec.dataset_id) is None:
        raise DataError(f"{name} is not on this machine yet: `rllib-damo data make {name}` makes it.")


def _conventions(
    action_space: gym.Space | None,
    columns: list[str] | None,
    normalized: bool | None,
    observation_keys: list[str] | None,
    skip_bad_episodes: bool,
) -> Conventions:
    schema: dict[str, str | list[str]] = {}
    known = [alias for aliases in ALIASES.values() for alias in aliases]
    for text in columns or ():
        alias, equals, name = text.partition("=")
        if not (alias in known and equals and name):
            raise DataError(f"--column {text}: write obs=NAME, with one of {', '.join(known)} before the sign.")
        if alias in schema:
            raise DataError(f"--column {text}: {alias} has been given before; several columns are obs=A,B.")
        columns_of = name.split(",")
        schema[alias] = name if len(columns_of) == 1 else columns_of
    return Conventions(action_space, normalized, schema, observation_keys or (), skip_bad_episodes)


def _spaces(env_id: str | None) -> tuple[Any, Any]:
    """The spaces of an environment; None without one."""
    if env_id is None:
        return None, None
    env = make_env(env_id)
    env.close()
    return env.observation_space, env.action_space


def _stored_spaces(reader: Any) -> tuple[Any, Any]:
    """The spaces that a dataset stores, None for those that it does not."""
    try:
        facts = reader.metadata()
    except DataError:  # the report prints it
        return None, None
    first, second = (
        deserialize_space(facts[key]) if facts.get(key) else None for key in ("observation_space", "action_space")
    )
    return first, second


def _table(rows: Sequence[tuple[str, ...]]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _clipped(columns: Sequence[dict[str, Any]]) -> str:
    """Those of most rows first."""
    ranked = sorted(columns, key=lambda one: -one["share"])
    parts = [f"{one['column']} ({_limits(one['low'], one['high'])}: {one['share']:.1%})" for one in ranked[:_MOST]]
    more = f" and {len(ranked) - _MOST} more" if len(ranked) > _MOST else ""
    return f"rows at the limits of observation columns, from 0: {', '.join(parts)}{more}"


def _limits(low: float | None, high: float | None) -> str:
    if low is None:
        return f"at most {high:g}"
    return f"at least {low:g}" if high is None else f"{low:g} to {high:g}"


def _readable(figures: dict[str, Any]) -> str:
    returns, lengths, coverage = figures["episode_returns"], figures["episode_lengths"], figures["coverage"]
    lines = [
        f"{figures['name']}",
        f"  transitions   {figures['num_transitions']:,} ({figures['size_mb']} MB)",
        f"  episodes      {figures['num_episodes']:,}: {figures['num_terminations']:,} terminated, "
        f"{figures['num_truncations']:,} truncated",
        f"  widths        observations {len(figures['observations']['mean'])}, "
        f"actions {len(figures['actions']['mean'])}",
        f"  rewards       {figures['rewards']['mean']:.4g} ± {figures['rewards']['std']:.4g}",
        f"  returns       {returns['mean']:.1f} ± {returns['std']:.1f}, {returns['min']:.1f} to {returns['max']:.1f}",
        f"  lengths       {lengths['mean']:.1f} ± {lengths['std']:.1f}, {lengths['min']} to {lengths['max']}",
        f"  coverage      {coverage['cells']:.0%} of the cells of the two main directions "
        f"({coverage['explained']:.0%} of the variance)",
        f"  saturation    {figures['action_saturation']:.0%} of action values at their extremes",
        *([f"  clipped       {_clipped(figures['clipped_columns'])}"] if figures["clipped_columns"] else []),
        f"  fingerprint   {figures['fingerprint']}",
    ]
    for title, key in (("episode returns", "return_histogram"), ("episode lengths", "length_histogram")):
        counts, edges = figures[key]["counts"], figures[key]["edges"]
        lines.append(f"\n  {title}")
        for low, high, count in zip(edges[:-1], edges[1:], counts, strict=True):
            bar = "█" * round(_BAR_WIDTH * count / max(counts))
            lines.append(f"  {low:>10.1f} to {high:>10.1f} {count:>7} {bar}")
    return "\n".join(lines)


def invoke(arguments: list[str]) -> int:
    """Runs the command and returns its exit code; mistakes give one message, without a traceback."""
    try:
        app(arguments, prog_name="rllib-damo")
    except SystemExit as end:  # typer prints wrong options itself
        return int(end.code or 0)
    except (UserError, RuntimeError, OSError) as error:
        typer.echo(f"Error: {error}", err=True)
        return 2 if isinstance(error, UserError) else 1
    return 0


def main() -> None:
    """Entry point of the ``rllib-damo`` command."""
    sys.exit(invoke(sys.argv[1:]))


if __name__ == "__main__":
    main()
