"""The `rllib` command: `rllib train file X.py`, `rllib train --algo A --env E`, `rllib evaluate CHECKPOINT`.

Ray had a command of this name until 2.41; this one works with every RLlib algorithm.
Exit codes: 0 success, 1 the run failed, 2 the command was wrong, 130 interrupted (Ctrl-C), 143
terminated (SIGTERM); `--resume` continues a run after the last two.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from gymnasium.error import DependencyNotInstalled
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig

from rllib_damo.command import episodes as playback
from rllib_damo.command import inputs
from rllib_damo.command.report import FAILED, OK, USAGE
from rllib_damo.command.resume import config_of
from rllib_damo.command.run import RunOptions, quieten, run
from rllib_damo.core.config import OfflineConfig
from rllib_damo.errors import CheckpointError, DiskFullError, UsageError, UserError
from rllib_damo.evaluation.checkpoints import load_config
from rllib_damo.evaluation.play import evaluated_env, play
from rllib_damo.evaluation.storage import check, latest_run, local_copy

app = typer.Typer(
    name="rllib",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Train and evaluate RLlib algorithms, and those of rllib_damo.",
)
_RUN, _CHECKPOINTS, _RAY, _TRACK = "Run", "Checkpoints", "Ray", "Search and tracking"


@app.command()
def train(
    context: typer.Context,
    what: Annotated[
        list[str] | None, typer.Argument(metavar="[file X.py]", help="A file with `config` and, optionally, `stop`.")
    ] = None,
    algo: Annotated[str | None, typer.Option("--algo", "-a", help="Algorithm, if no file is given.")] = None,
    env: Annotated[
        str | None, typer.Option("--env", "-e", help="Environment: a Gymnasium id, or one registered with Tune.")
    ] = None,
    input_: Annotated[str | None, typer.Option("--input", "-i", help="Offline dataset (`input_`).")] = None,
    from_: Annotated[
        str | None,
        typer.Option(
            "--from", help="Checkpoint to go on from, with the dataset of --input. Its config is used if none is given."
        ),
    ] = None,
    config: Annotated[
        str | None, typer.Option("--config", "-c", help="""JSON of settings to change: '{"eta": 1.0, "seed": 1}'.""")
    ] = None,
    stop: Annotated[
        str | None,
        typer.Option("--stop", "-s", help="""JSON: '{"training_iteration": 100}'. Replaces the file's `stop`."""),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Name of the run's folder; the time is added.", rich_help_panel=_RUN)
    ] = None,
    storage_path: Annotated[
        str | None, typer.Option(help="Folder or URI of results. [default: ~/ray_results]", rich_help_panel=_RUN)
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Continue the latest run of that name, with its own config and stop. "
            "With --name nothing else is needed, unless a file registers what it uses.",
            rich_help_panel=_RUN,
        ),
    ] = False,
    verbose: Annotated[
        int,
        typer.Option(
            "--verbose", "-v", count=True, help="Warnings and complete errors; -vv: everything.", rich_help_panel=_RUN
        ),
    ] = 0,
    checkpoint_freq: Annotated[
        int | None,
        typer.Option(
            min=0, help="Iterations between checkpoints. [default: at evaluations]", rich_help_panel=_CHECKPOINTS
        ),
    ] = None,
    checkpoint_at_end: Annotated[bool, typer.Option(rich_help_panel=_CHECKPOINTS)] = True,
    keep_checkpoints_num: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Number of checkpoints to keep, the best ones; 0 keeps all. [default: 2; all without evaluations]",
            rich_help_panel=_CHECKPOINTS,
        ),
    ] = None,
    checkpoint_score_attr: Annotated[
        str | None,
        typer.Option(help="Metric of the best one. [default: evaluation return]", rich_help_panel=_CHECKPOINTS),
    ] = None,
    max_failures: Annotated[
        int,
        typer.Option(
            min=0,
            help="Times that a trial goes on from its last checkpoint after an error or the loss of its machine; also "
            "after errors that come again, such as a full disk, divergence or a wrong option.",
            rich_help_panel=_CHECKPOINTS,
        ),
    ] = 0,
    ray_address: Annotated[
        str | None,
        typer.Option(
            help="Cluster to use; local: a new Ray. [default: one of this machine, or else a new one]",
            rich_help_panel=_RAY,
        ),
    ] = None,
    ray_num_cpus: Annotated[
        int | None, typer.Option(min=1, help="CPUs of a local Ray. [default: all]", rich_help_panel=_RAY)
    ] = None,
    ray_num_gpus: Annotated[
        int | None, typer.Option(min=0, help="GPUs of a local Ray. [default: all]", rich_help_panel=_RAY)
    ] = None,
    scheduler: Annotated[
        str | None, typer.Option(help="Tune scheduler, such as asynchyperband.", rich_help_panel=_TRACK)
    ] = None,
    scheduler_config: Annotated[str | None, typer.Option(help="JSON of its options.", rich_help_panel=_TRACK)] = None,
    wandb_key: Annotated[str | None, typer.Option(help="Weights & Biases API key.", rich_help_panel=_TRACK)] = None,
    wandb_project: Annotated[str | None, typer.Option(rich_help_panel=_TRACK)] = None,
    wandb_run_name: Annotated[str | None, typer.Option(rich_help_panel=_TRACK)] = None,
) -> None:
    """Train with Tune: `rllib train file X.py`, or `rllib train --algo DAMO --env Hopper-v5 --input hopper-medium`.

    Prints a line per result, and the checkpoints' paths at the end. Exit codes: 0 success, 1 the run failed, 2
    the command or the config was wrong, 130 interrupted (Ctrl-C), 143 terminated (SIGTERM). After the last two, and
    after a crash, the same command with --resume continues.
    """
    given_stop = inputs.check_stop(inputs.parse_json("--stop", stop), "--stop")
    changes = inputs.parse_json("--config", config) or {}
    options = RunOptions(
        storage_path=storage_path,
        resume=resume,
        checkpoint_freq=checkpoint_freq,
        checkpoint_at_end=checkpoint_at_end,
        keep_checkpoints_num=keep_checkpoints_num,
        checkpoint_score_attr=checkpoint_score_attr,
        max_failures=max_failures,
        scheduler=scheduler,
        scheduler_config=inputs.parse_json("--scheduler-config", scheduler_config) or {},
        wandb_key=wandb_key,
        wandb_project=wandb_project,
        wandb_run_name=wandb_run_name,
        ray_address=ray_address,
        ray_num_cpus=ray_num_cpus,
        ray_num_gpus=ray_num_gpus,
        verbosity=verbose,
    )
    if resume and name is not None and not what and algo is None and context.obj is None:
        experiment, file_stop, source, from_ = config_of(latest_run(check(storage_path), name)), None, Path(name), None
    else:
        experiment, file_stop, source = _experiment(what or [], algo, from_, context.obj, resume)
    options.name = source.stem if name is None else name
    options.file = source if source.suffix == ".py" else None
    if input_ is not None:
        changes = {**changes, "input_": input_}
    if from_ is not None:
        changes = {**changes, "start_from": from_}
        typer.echo(
            f"Goes on from {from_}: networks, optimisers and the count of gradient steps are kept, the dynamics model "
            "is trained further where the data are others, and rollouts, iterations and metrics start anew."
        )
    if env is not None:
        changes = {**changes, "env": env}
    experiment = inputs.apply_config(experiment, changes)
    envs = [name for name in (experiment.env, evaluated_env(experiment)) if name is not None]
    # Offline, an environment for evaluation is enough, or spaces without any.
    is_enough = isinstance(experiment, OfflineConfig) and (envs or experiment.observation_space is not None)
    if experiment.env is None and not is_enough:
        raise UsageError("no environment: give one with --env.")
    for name in envs:
        inputs.check_env(name)
        inputs.share_env(name)
    raise typer.Exit(run(experiment, given_stop if given_stop is not None else file_stop, options))


def _experiment(
    what: list[str], algo: str | None, from_: str | None, preset: Any, resume: bool
) -> tuple[AlgorithmConfig, Any, Path]:
    """(config, stop, file or algorithm) of what `rllib train` was asked for; `preset` is what `run_config` passes."""
    if preset is not None:
        if what or algo is not None:
            raise UsageError("this script has its own config: give it only options, and no --algo.")
        config, stop = preset
        return config, inputs.check_stop(stop), Path(sys.argv[0])
    if what:
        if what[0] != "file" or len(what) != 2:
            example = what[0] if len(what) == 1 and what[0].endswith(".py") else "X.py"
            raise UsageError(f"`rllib train {' '.join(what)}`: write `rllib train file {example}`.")
        if algo is not None:
            raise UsageError("--algo and a file exclude each other: the file's `config` says the algorithm.")
        config, stop = inputs.load_file(Path(what[1]))
        return config, stop, Path(what[1])
    if algo is None and from_ is not None:
        try:
            with local_copy(from_) as folder:
                config = load_config(folder).copy(copy_frozen=False)
        except CheckpointError as error:
            hint = " To resume a run that went on from it, name the run: --name NAME --resume." if resume else ""
            raise UsageError(f"{error}{hint}") from error
        return config, None, Path(config.algo_class.__name__)
    if algo is None and resume:
        raise UsageError("--resume: name the run by --name, or give the file or --algo, as when it began.")
    if algo is None:
        raise UsageError("nothing to train: `rllib train file X.py`, or `rllib train --algo A --env E`.")
    return inputs.default_config(algo), None, Path(algo)


@app.command()
def evaluate(
    checkpoint: Annotated[
        str, typer.Argument(help="Checkpoint folder, or its address (s3://...), as `rllib train` prints it.")
    ],
    episodes: Annotated[int, typer.Option(min=1, help="Episodes to play.")] = 10,
    steps: Annotated[int | None, typer.Option(min=1, help="Environment steps to play; replaces --episodes.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="File for the episodes: .jsonl (one a line) or .npz (all steps).")
    ] = None,
    render: Annotated[bool, typer.Option("--render", help="Show the environment in a window.")] = False,
    env: Annotated[str | None, typer.Option("--env", "-e", help="Environment; replaces the checkpoint's.")] = None,
    algo: Annotated[str | None, typer.Option("--algo", "-a", help="Algorithm; replaces the checkpoint's.")] = None,
    file: Annotated[
        Path | None, typer.Option("--file", "-f", help="Python file to run first, which registers the environment.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Seed of the environment.")] = 0,
    explore: Annotated[bool, typer.Option("--explore", help="Sample actions instead of taking the mean.")] = False,
) -> None:
    """Play a checkpoint's policy: mean and standard deviation of its returns, and the normalised score if it is known.

    Loading a checkpoint executes its pickles: play only checkpoints that you trust.
    """
    quieten()
    playback.check_out(out)
    if render:
        playback.check_display()
    if file is not None:
        inputs.run_file(file)
    algorithm = inputs.default_config(algo).algo_class if algo is not None else None
    with local_copy(checkpoint) as folder:
        played_env = inputs.check_env(env or evaluated_env(load_config(folder, algorithm)))
        if played_env is None:
            raise UsageError(f"{checkpoint} was trained without an environment: name one with --env.")
        try:
            played = play(
                folder,
                episodes=episodes,
                steps=steps,
                env=env,
                seed=seed,
                render=render,
                explore=explore,
                algorithm=algorithm,
            )
        except DependencyNotInstalled as error:
            raise UsageError(f"environment {played_env}{' with --render' * render}: {error}") from error
    for line in playback.summary(played, played_env):
        typer.echo(line)
    if out is not None:
        playback.write(played, out)
        typer.echo(f"Written: {out}")


def run_config(config: AlgorithmConfig, stop: Any = None) -> None:
    """Makes a script of an experiment file: `python X.py [options]` does what `rllib train file X.py [options]` does.

    Put `if __name__ == "__main__": run_config(config, stop)` at the end of the file. Does not return.
    """
    sys.exit(invoke(["train", *sys.argv[1:]], preset=(config, stop)))


def invoke(arguments: list[str], preset: Any = None) -> int:
    """Runs the command and returns its exit code. A mistake of the user gives one message, without a traceback."""
    try:
        app(arguments, obj=preset, prog_name="rllib")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(bool(end.code))
    except (UserError, DiskFullError) as error:
        typer.echo(f"Error: {error}", err=True)
        return USAGE if isinstance(error, UserError) else FAILED
    return OK


def main() -> None:
    """Entry point of the `rllib` command."""
    sys.exit(invoke(sys.argv[1:]))


if __name__ == "__main__":
    main()
