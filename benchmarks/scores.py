"""Scores of (task x method x seed) through Ray Tune, each trial on one thread; goes on where it was interrupted.

    python benchmarks/scores.py --tasks hopper-medium hopper-medium-expert --methods damo mopo td3bc bc --seeds 0 1 2 \
        --steps 100000 --eval-every 10000 --episodes 10 --out DIR --concurrent 2

Finished trials of DIR are not run again, interrupted ones go on from their checkpoints, and more --steps continue those
that had finished. Writes DIR/scores.json, DIR/scores.md and DIR/curves.png, and with --record the table in RESULTS.md;
--report-only does that for what is there. DIR is benchmarks/scores by default, which keeps the recorded evaluations.
Settings: `score_settings.py`; other settings of a method under a name of their own:
--variant 'no-anchor=damo:{"bc_weight": 0.0}', and then --methods damo no-anchor.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ray
from ray import tune
from score_settings import METHODS, make_config, steps_per_iteration
from score_tables import Dataset, markdown, plot, replace_block, summarise
from score_trials import Trial, is_finished, read_rows, run_trial

from rllib_damo.command.inputs import parse_json
from rllib_damo.data.offline_data import BulkOfflineData
from rllib_damo.errors import UsageError
from rllib_damo.tasks import normalized_score
from rllib_damo.utils.names import near

RESULTS = Path(__file__).parent / "RESULTS.md"
SCORES = Path(__file__).parent / "scores"


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line, its numbers and variants checked."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tasks", nargs="+", required=True, help="datasets by short name: hopper-medium ...")
    parser.add_argument(
        "--methods", nargs="+", default=["damo", "mopo", "td3bc", "bc"], help=f"of {', '.join(METHODS)}, and variants"
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=100_000, help="gradient steps of a trial")
    parser.add_argument("--eval-every", type=int, default=10_000, help="gradient steps between evaluations")
    parser.add_argument("--episodes", type=int, default=10, help="of an evaluation")
    parser.add_argument("--out", type=Path, default=SCORES, help="folder of results and checkpoints")
    parser.add_argument("--concurrent", type=int, default=1, help="trials side by side, of one thread each")
    parser.add_argument("--input", nargs="+", default=[], metavar="TASK=DATA", help="another dataset for a task")
    parser.add_argument("--variant", nargs="+", default=[], metavar="NAME=METHOD:JSON", help="a method, set otherwise")
    parser.add_argument("--report-only", action="store_true", help="run nothing; the table of what is there")
    parser.add_argument("--record", action="store_true", help="write the table into benchmarks/RESULTS.md")
    args = parser.parse_args(arguments)
    for name in ("steps", "eval_every", "episodes", "concurrent"):
        if getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1; found {getattr(args, name)}.")
    if args.steps % args.eval_every:
        parser.error(f"--steps ({args.steps}) must be a multiple of --eval-every ({args.eval_every}).")
    args.input = dict(_split(parser, "--input", given, "=") for given in args.input)
    variants: dict[str, tuple[str, dict[str, Any]]] = {method: (method, {}) for method in METHODS}
    for given in args.variant:
        name, rest = _split(parser, "--variant", given, "=")
        method, overrides = _split(parser, "--variant", rest, ":")
        variants[name] = (method, parse_json("--variant", overrides) or {})
    args.variants = variants
    for method in args.methods:
        if method not in variants:
            parser.error(f"--methods: unknown {method!r}.{near(method, variants)} Known: {', '.join(variants)}.")
    return args


def _split(parser: argparse.ArgumentParser, option: str, text: str, by: str) -> tuple[str, str]:
    head, found, tail = text.partition(by)
    if not (head and found and tail):
        parser.error(f"{option}: {text!r} has no '{by}' between two parts.")
    return head, tail


def make_trials(args: argparse.Namespace, datasets: dict[str, Dataset]) -> list[Trial]:
    """All trials that the command line names, the seeds innermost: neighbours then train different models."""
    trials = [
        Trial(
            task=task, label=label, method=args.variants[label][0], seed=seed, input_=args.input.get(task, task),
            fingerprint=datasets[task].fingerprint, overrides=args.variants[label][1], eval_every=args.eval_every,
            episodes=args.episodes, steps=args.steps, out=str(args.out.absolute()),
        )
        for task in args.tasks for label in args.methods for seed in args.seeds
    ]  # fmt: skip
    for trial in trials:
        config = trial.config()
        steps = steps_per_iteration(config)
        if args.eval_every % steps:
            raise UsageError(
                f"--eval-every ({args.eval_every}) must be a multiple of an iteration's gradient steps, {steps} for "
                f"{trial.label} on {trial.task}."
            )
    return trials


def describe(task: str, input_: str) -> Dataset:
    """Makes or reads the dataset, before trials that run side by side would."""
    config = make_config(task, "bc", 0, input_, {}, 1)
    config.validate()
    data = BulkOfflineData(config).transitions
    returns = data.episode_returns()
    mean = float(returns.mean())
    return Dataset(data.name, len(data), len(returns), data.fingerprint(), mean, normalized_score(config.env, mean))


def _name(trial: Any) -> str:
    named = Trial(**trial.config["trial"])
    return f"{named.task}_{named.label}_seed{named.seed}"


class Progress(tune.Callback):
    """A line for each evaluation."""

    def on_trial_result(self, iteration: int, trials: list, trial: Any, result: dict, **info: Any) -> None:
        if "score" in result:
            print(
                f"{_name(trial):40} {result['steps']:>9,} steps  return {result['return']:8.1f}  "
                f"score {result['score']:6.1f}",
                flush=True,
            )

    def on_trial_error(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        print(f"FAILED: {_name(trial)}; see {trial.local_path}/error.txt", flush=True)


def run(trials: Sequence[Trial], out: Path, concurrent: int) -> None:
    """Runs what isn't finished."""
    waiting = [asdict(trial) for trial in trials if not is_finished(trial)]
    print(f"{len(trials)} trials, of which {len(trials) - len(waiting)} are finished.", flush=True)
    if not waiting:
        return
    # Relative paths, of datasets for one, mean what they mean here.
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
    ray.init("local", num_cpus=concurrent, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    try:
        tune.Tuner(
            tune.with_resources(run_trial, {"cpu": 1}),
            param_space={"trial": tune.grid_search(waiting)},
            tune_config=tune.TuneConfig(
                max_concurrent_trials=concurrent, trial_name_creator=_name, trial_dirname_creator=_name
            ),
            run_config=tune.RunConfig(
                name="tune", storage_path=str(out.absolute()), callbacks=[Progress()], verbose=0,
                failure_config=tune.FailureConfig(max_failures=1),  # goes on from the checkpoint
            ),
        ).fit()  # fmt: skip
    finally:
        ray.shutdown()


def report(args: argparse.Namespace, trials: Sequence[Trial], datasets: dict[str, Dataset]) -> bool:
    """Writes JSON, table and curves of what there is; returns whether all trials are finished."""
    rows: dict[str, dict[str, list[Any]]] = {task: {method: [] for method in args.methods} for task in args.tasks}
    for trial in trials:
        rows[trial.task][trial.label].append(read_rows(trial))
    summaries = [summarise(task, label, rows[task][label], args.steps) for task in args.tasks for label in args.methods]
    command = _command()  # before the files below change
    table = markdown(summaries, datasets, args.steps, args.episodes, command)
    content = {
        "command": command,
        "steps": args.steps,
        "datasets": {task: asdict(dataset) for task, dataset in datasets.items()},
        "summaries": [asdict(summary) for summary in summaries],
        "evaluations": {t: {m: dict(zip(args.seeds, r, strict=True)) for m, r in rows[t].items()} for t in rows},
    }
    (args.out / "scores.json").write_text(json.dumps(content, indent=1))
    (args.out / "scores.md").write_text(table + "\n")
    plot(rows, datasets, args.out / "curves.png")
    print(f"\n{table}\n\nWritten: {args.out}/scores.json, scores.md, curves.png")
    if args.record:
        short = markdown(summaries, datasets, args.steps, args.episodes, command, details=False)
        RESULTS.write_text(replace_block(RESULTS.read_text(), short))
        print(f"Recorded in {RESULTS}")
    return not any(summary.missing for summary in summaries)


def _command() -> str:
    """The command line, and the commit it ran at."""
    command = ["git", "-C", str(RESULTS.parent), "describe", "--always", "--dirty"]
    commit = subprocess.run(command, capture_output=True, text=True).stdout.strip()
    return f"python benchmarks/scores.py {shlex.join(sys.argv[1:])}" + (f" (at {commit})" if commit else "")


def main() -> int:
    """Exit code 0; 1 if trials failed or were interrupted; 2 if the command was wrong."""
    args = parse()
    for name in ("ray", "ray.rllib", "ray.tune", "ray.train"):
        logging.getLogger(name).setLevel(logging.ERROR)
    args.out.mkdir(parents=True, exist_ok=True)
    try:
        datasets = {task: describe(task, args.input.get(task, task)) for task in args.tasks}
        trials = make_trials(args, datasets)
        if not args.report_only:
            run(trials, args.out, args.concurrent)
    except ValueError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    return 0 if report(args, trials, datasets) else 1


if __name__ == "__main__":
    sys.exit(main())
