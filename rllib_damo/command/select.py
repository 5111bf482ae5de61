"""``rllib-damo select``: chooses among trained policies by their dataset, without a simulator.

Exit codes: 0 a choice, or none; 1 it failed, or there is no choice and --require-choice; 2 the command was wrong or the
data cannot be used; 130 interrupted.
"""

from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from rllib_damo.command import inputs
from rllib_damo.command.run import quieten
from rllib_damo.deploy.export import write_clone
from rllib_damo.errors import UsageError
from rllib_damo.selection import Selection
from rllib_damo.selection import select as select_
from rllib_damo.selection.budget import by_hand, in_environment, sequential_halving
from rllib_damo.utils.paths import check_new_file, new_file

_PICTURES = (".png", ".svg")
_FEW_EPISODES = 5


def select(
    places: Annotated[
        list[str],
        typer.Argument(metavar="RUN_DIR|CHECKPOINT...", help="Runs, checkpoints, or their addresses (s3://...)."),
    ],
    input_: Annotated[
        str | None, typer.Option("--input", "-i", help="Their dataset. [default: as in the first checkpoint's config]")
    ] = None,
    env: Annotated[
        str | None,
        typer.Option("--env", "-e", help="Environment, for spaces and termination; it is stepped by --budget alone."),
    ] = None,
    termination: Annotated[
        str | None, typer.Option(help="Termination rule for the model, as module:function.", metavar="MODULE:FUNCTION")
    ] = None,
    checkpoints: Annotated[str, typer.Option(help="Of each trial: last, all, or every:N.")] = "last",
    default: Annotated[
        str | None,
        typer.Option(help="Checkpoint to be used otherwise. [default: that of default options, or a clone]"),
    ] = None,
    gamma: Annotated[
        float | None, typer.Option(help="Discount. [default: by the episodes' length, up to 0.997]")
    ] = None,
    steps: Annotated[int, typer.Option(help="Gradient steps of the evaluation, at most.")] = 30_000,
    heads: Annotated[int, typer.Option(help="Bootstraps of the episodes, 2 to 16.")] = 4,
    judge_model: Annotated[
        str, typer.Option(help="Second opinion: train a dynamics model, none, or the path of one.")
    ] = "train",
    budget: Annotated[
        int | None, typer.Option(min=2, help="Then play so many real episodes, and choose by them.")
    ] = None,
    ask: Annotated[bool, typer.Option("--ask", help="Ask for the returns of --budget instead of playing.")] = False,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for result, picture, clone and state; the same command then goes on."),
    ] = None,
    json_: Annotated[Path | None, typer.Option("--json", help="File for the result as JSON.")] = None,
    plot: Annotated[Path | None, typer.Option(help="File for a picture, .png or .svg.")] = None,
    file: Annotated[
        Path | None, typer.Option("--file", "-f", help="Python file to run first, which registers the environment.")
    ] = None,
    require_choice: Annotated[
        bool, typer.Option("--require-choice", help="Exit code 1 where nothing is chosen, by the data or by --budget.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Of all that is random.")] = 0,
) -> None:
    """Choose among trained policies by their dataset alone: fitted Q evaluation, a judge's model, and vetoes.

    The answer is a policy that is credibly better than a clone of the data's behaviour (or than --default); or no
    choice. Loading a checkpoint executes its pickles: give only those that you trust.
    """
    quieten()
    if file is not None:
        inputs.run_file(file)
    if ask and (budget is None or out is None):
        raise UsageError("--ask needs --budget, and --out, where each return that you enter is kept.")
    if plot is not None and plot.suffix not in _PICTURES:
        raise UsageError(f"--plot {plot}: the name must end in {' or '.join(_PICTURES)}.")
    for place in filter(None, (json_, plot, out / "selection.json" if out else None)):
        check_new_file(place)
    try:
        found = select_(
            places, input_, env=env, termination_fn=_function(termination), which=checkpoints, default=default,
            gamma=gamma, heads=heads, steps=steps, judge_model=judge_model, seed=seed, out=out,
            progress=lambda text: typer.echo(text, err=True),
        )  # fmt: skip
        _write(found, out, json_)
        for place in filter(None, [plot, *([out / "selection.png"] if out else [])]):
            found.plot(place)
        typer.echo("\n".join(found.lines()))
        if out is not None:
            write_clone(found, out / "clone.npz")
            typer.echo(f"The clone itself is {out / 'clone.npz'}, for NumpyPolicy.")
        if budget is not None:
            played = _play(found, budget, ask, env, out)
            _write(replace(found, facts=found.facts | {"real_episodes": played}), out, json_)
            typer.echo("\n".join(_told(played)))
    except KeyboardInterrupt:
        typer.echo("Stopped." + (" The same command goes on." if out else ""), err=True)
        raise typer.Exit(130) from None
    if require_choice and found.choice is None and budget is None:  # the real episodes have chosen
        raise typer.Exit(1)


def _function(name: str | None) -> Any:
    """What ``module:function`` names."""
    if name is None:
        return None
    module, colon, function = name.partition(":")
    if not (module and colon and function):
        raise UsageError(f"--termination {name}: write module:function.")
    try:
        found = getattr(importlib.import_module(module), function)
    except Exception as error:  # the module's own code may raise any
        raise UsageError(f"--termination {name}: there is no such function ({error}).") from error
    if not callable(found):
        raise UsageError(f"--termination {name}: {found!r} is no function.")
    return found


def _write(found: Selection, out: Path | None, json_: Path | None) -> None:
    for place in filter(None, [json_, *([out / "selection.json"] if out else [])]):
        with new_file(place) as scratch:
            scratch.write_text(found.to_json() + "\n")


def _play(found: Selection, budget: int, ask: bool, env: str | None, out: Path | None) -> dict[str, Any]:
    """Spends the budget on those that are not ruled out, and the reference; returns what the episodes say, as JSON.

    Where it is too small for an episode of each, on the reference and the first ones of the table. A person is asked
    about policies that have a file.
    """
    rows = [one for one in found.table if (not one.vetoes or one.is_reference) and (one.path or not ask)]
    if not rows:
        raise UsageError("--ask: no candidate that is left has a checkpoint, so there is nothing to play.")
    rows = sorted(rows, key=lambda one: not one.is_reference)[:budget]  # else as in the table
    names, paths = [one.name for one in rows], [one.path for one in rows]
    if ask:
        play = by_hand(names, paths)
    else:
        known = env or found.facts["env"]
        if known is None:
            raise UsageError("--budget needs an environment: give --env, or enter returns by --ask.")
        play = in_environment([found.policies[name] for name in names], known, found.facts["env_config"])
    values = np.array([one.value for one in rows])
    halves = np.array([one.high - one.value for one in rows])
    played = sequential_halving(play, values, halves, budget, names, out / "budget.jsonl" if out else None)
    return {
        "best": names[played.best], "path": paths[played.best],
        "candidates": [
            {
                "name": names[i], "returns": played.returns[i], "mean_with_prior": float(played.means[i]),
                "standard_error": float(played.errors[i]),
            }
            for i in np.argsort(-played.means)
        ],
    }  # fmt: skip


def _told(played: dict[str, Any]) -> list[str]:
    """Lines on the real episodes."""
    returns = {one["name"]: one["returns"] for one in played["candidates"]}
    lines = [f"\nReal episodes: {sum(map(len, returns.values()))}. Mean returns, best first by these and the values:"]
    for one in played["candidates"]:
        own = one["returns"]
        lines.append(
            f"  {one['name']}: {np.mean(own):.4g} in {len(own)} episode{'s' * (len(own) != 1)}; with the values "
            f"{one['mean_with_prior']:.4g} ± {one['standard_error']:.3g}"
        )
    lines.append(f"Best: {played['best']}. {played['path']}".rstrip())
    if len(returns[played["best"]]) < _FEW_EPISODES:
        lines.append("That is of few episodes, and may be chance: a larger --budget tells more.")
    return lines
