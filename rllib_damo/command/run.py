"""Runs one AlgorithmConfig with Tune: checks it first, prints a table while it runs, and the checkpoints at its end."""

from __future__ import annotations

import logging
import os
import shlex
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from ray import tune
from ray.rllib.utils.metrics import ENV_RUNNER_RESULTS, EPISODE_RETURN_MEAN, EVALUATION_RESULTS
from ray.tune import TuneError
from ray.tune.schedulers import SCHEDULER_IMPORT, create_scheduler

from rllib_damo.command.checks import check_config, check_resources, search_space
from rllib_damo.command.offline import check_starts, read_datasets, with_idle_cpus
from rllib_damo.command.progress import ProgressTable
from rllib_damo.command.report import INTERRUPTED, TERMINATED, USAGE, console, err, report, varied
from rllib_damo.command.resume import RecordCopy, restored_tuner
from rllib_damo.command.room import with_room_check
from rllib_damo.command.signals import sigterm_as_interrupt
from rllib_damo.command.stopping import (
    CheckedStopper,
    add_to_results,
    check_metrics,
    late_metrics,
    with_last_evaluation,
)
from rllib_damo.core.config import OfflineConfig
from rllib_damo.data.rllib_input import with_package_readers
from rllib_damo.errors import UsageError
from rllib_damo.evaluation import storage
from rllib_damo.evaluation.play import evaluated_env
from rllib_damo.evaluation.scores import add_flat_copy
from rllib_damo.utils import ray_internals
from rllib_damo.utils.disk import disk_full, free_bytes, is_full
from rllib_damo.utils.environments import is_registered
from rllib_damo.utils.names import near
from rllib_damo.utils.uris import without_password

if TYPE_CHECKING:
    from ray.rllib.algorithms.algorithm_config import AlgorithmConfig

#: Checkpoints of a trial that are kept by default, where there is a score.
_KEPT = 2
#: Bytes below which a file system counts as full.
_LEAST_ROOM = 1_000_000
_LONGEST_NAME = 150
EVALUATION_RETURN = f"{EVALUATION_RESULTS}/{ENV_RUNNER_RESULTS}/{EPISODE_RETURN_MEAN}"


@dataclass
class RunOptions:
    """How to run, as given on the command line; `rllib train --help` explains each option."""

    name: str = "rllib"
    file: Path | None = None
    storage_path: str | None = None
    resume: bool = False
    checkpoint_freq: int | None = None
    checkpoint_at_end: bool = True
    keep_checkpoints_num: int | None = None
    checkpoint_score_attr: str | None = None
    max_failures: int = 0
    scheduler: str | None = None
    scheduler_config: dict[str, Any] = field(default_factory=dict)
    wandb_key: str | None = None
    wandb_project: str | None = None
    wandb_run_name: str | None = None
    ray_address: str | None = None
    ray_num_cpus: int | None = None
    ray_num_gpus: int | None = None
    verbosity: int = 0


def run(config: AlgorithmConfig, stop: Any, options: RunOptions) -> int:
    """Trains until `stop`, and returns the exit code (see `rllib_damo.command.report`).

    Args:
        config: of any RLlib algorithm; may hold Tune search spaces.
        stop: flat dict metric: number, a Tune Stopper or callable, or None (runs until interrupted).
        options: how to run.

    Raises:
        UserError: for mistakes that can be seen before training.
    """
    _check_name(options.name)
    place = storage.check(options.storage_path)
    callbacks = [ProgressTable(), RecordCopy(), *_wandb(options)]
    scheduler = _scheduler(options, config)
    _set_up_output(options.verbosity)
    to_resume = storage.latest_run(place, options.name) if options.resume else None
    config = with_package_readers(config)
    check_metrics(config, {"stop (--stop)": stop if isinstance(stop, dict) else (), **_other_metrics(options)})
    configs = check_config(config)
    if to_resume is None:
        check_starts(configs)
    read_datasets(configs)
    own_ray = not ray.is_initialized()
    if own_ray:
        _init_ray(options)
    try:
        config = with_last_evaluation(with_idle_cpus(config), stop)
        config = with_room_check(with_flat_score(config, _score_attr(config, options)))
        check_resources(config)
        if to_resume is not None:
            console.print(f"Resuming {without_password(to_resume)}, with its own config, stop and checkpoint options")
            tuner = restored_tuner(to_resume, config.algo_class)
        else:
            tuner = _new_tuner(config, stop, options, place, callbacks, scheduler)
        with sigterm_as_interrupt() as termination:
            results = _fit(tuner, place)
        settings = ray_internals.run_config(tuner)  # of a resumed run, its own
        if isinstance(settings.stop, CheckedStopper) and settings.stop.error:
            err.print(f"[red]Error:[/red] {settings.stop.error}")
            return USAGE
        searched = search_space(config) or varied([results[index].config for index in range(len(results))])
        code = report(
            results, metric=settings.checkpoint_config.checkpoint_score_attribute, searched=searched, place=place,
            options=_file_option(config, options), evaluated=_has_score(config),
            verbose=options.verbosity > 0,
        )  # fmt: skip
        return TERMINATED if termination.received and code == INTERRUPTED else code
    finally:
        if own_ray:
            ray.shutdown()


def _check_name(name: str) -> None:
    """Raises UsageError for a name that is no name of a folder."""
    if not name or len(name) > _LONGEST_NAME or name != Path(name).name or name.startswith("."):
        raise UsageError(
            f"--name {name[:_LONGEST_NAME]!r}: give a name of a folder, of at most {_LONGEST_NAME} characters, without "
            "'/'. Where the folder is made is said by --storage-path."
        )


def _fit(tuner: tune.Tuner, place: str) -> tune.ResultGrid:
    """Runs all trials.

    Raises:
        DiskFullError: Tune's own files have no room.
    """
    try:
        return tuner.fit()
    except (OSError, EOFError) as error:  # the second where a file that Tune reads again is empty
        if "://" not in place and (is_full(error) or free_bytes(place) < _LEAST_ROOM):
            raise disk_full("The results", place, "give the same command with --resume") from error
        raise


def _new_tuner(
    config: AlgorithmConfig,
    stop: Any,
    options: RunOptions,
    place: str,
    callbacks: list[tune.Callback],
    scheduler: Any,
) -> tune.Tuner:
    name = storage.new_run(place, options.name)
    console.print(f"Results go to {name} in {without_password(place)}")
    if stop is None:
        console.print("No stop condition: the run continues until Ctrl-C.")
    return tune.Tuner(
        config.algo_class,
        param_space=config,
        tune_config=tune.TuneConfig(scheduler=scheduler),
        run_config=tune.RunConfig(
            name=name,
            storage_path=place,
            stop=stop if callable(stop) else _stopper(stop, config, options),
            checkpoint_config=_checkpoint_config(config, options),
            failure_config=tune.FailureConfig(max_failures=options.max_failures),
            callbacks=callbacks,
            verbose=0 if options.verbosity < 2 else 2,
        ),
    )


def _stopper(stop: dict[str, float] | None, config: AlgorithmConfig, options: RunOptions) -> CheckedStopper:
    """Stops by metrics, and ends the run where one that any option names does not exist."""
    return CheckedStopper(stop or {}, late_metrics(config), _other_metrics(options))


def _other_metrics(options: RunOptions) -> dict[str, list[str]]:
    """The metrics that options other than --stop name."""
    of_scheduler = [options.scheduler_config.get(name) for name in ("metric", "time_attr")]
    others = {"--checkpoint-score-attr": [options.checkpoint_score_attr], "--scheduler-config": of_scheduler}
    return {option: [key for key in keys if isinstance(key, str) and key] for option, keys in others.items()}


def _file_option(config: AlgorithmConfig, options: RunOptions) -> str:
    """The option of `rllib evaluate` that runs the file which registered the environment, or ""."""
    is_needed = options.file is not None and is_registered(evaluated_env(config))
    return f" --file {shlex.quote(str(options.file))}" if is_needed else ""


def with_flat_score(config: AlgorithmConfig, metric: str) -> AlgorithmConfig:
    """Puts a nested metric into each result under its whole name, too: Tune finds the best checkpoints only so."""
    return add_to_results(config, partial(_flatten_score, metric))


def _flatten_score(metric: str, *, result: dict[str, Any], **kwargs: Any) -> None:
    add_flat_copy(result, metric)


def _wandb(options: RunOptions) -> list[tune.Callback]:
    if not (options.wandb_key or options.wandb_project or options.wandb_run_name):
        return []
    try:
        import wandb  # noqa: F401
        from ray.air.integrations.wandb import WandbLoggerCallback
    except ImportError as error:
        raise UsageError(f"the --wandb-... options need the package wandb: pip install wandb ({error})") from error
    extra: dict[str, Any] = {"name": options.wandb_run_name} if options.wandb_run_name else {}
    return [WandbLoggerCallback(api_key=options.wandb_key, project=options.wandb_project or options.name, **extra)]


def _scheduler(options: RunOptions, config: AlgorithmConfig) -> Any:
    if options.scheduler is None:
        if options.scheduler_config:
            raise UsageError("--scheduler-config needs --scheduler.")
        return None
    if options.scheduler not in SCHEDULER_IMPORT:
        raise UsageError(
            f"--scheduler: unknown {options.scheduler!r}.{near(options.scheduler, SCHEDULER_IMPORT)} "
            f"Known: {', '.join(sorted(SCHEDULER_IMPORT))}."
        )
    # Otherwise Tune ends the whole search at the first result that did not evaluate.
    os.environ.setdefault("TUNE_DISABLE_STRICT_METRIC_CHECKING", "1")
    goal = {} if options.scheduler == "fifo" else {"metric": _score_attr(config, options), "mode": "max"}
    try:
        return create_scheduler(options.scheduler, **{**goal, **options.scheduler_config})
    except (TypeError, ValueError, ImportError, TuneError) as error:
        raise UsageError(f"--scheduler {options.scheduler}: {error}") from error


def _score_attr(config: AlgorithmConfig, options: RunOptions) -> str:
    evaluated = bool(config.evaluation_interval)
    return options.checkpoint_score_attr or (
        EVALUATION_RETURN if evaluated else f"{ENV_RUNNER_RESULTS}/{EPISODE_RETURN_MEAN}"
    )


def _has_score(config: AlgorithmConfig) -> bool:
    """Whether episodes in the environment tell which checkpoint is the best."""
    return bool(config.evaluation_interval) or not (isinstance(config, OfflineConfig) or config.is_offline)


def _checkpoint_config(config: AlgorithmConfig, options: RunOptions) -> tune.CheckpointConfig:
    """By default a checkpoint at each evaluation; the best ones and the last one are kept.

    Offline and without evaluations no score tells which ones are the best, so all are kept.
    """
    frequency, number = options.checkpoint_freq, options.keep_checkpoints_num
    if frequency is None:
        frequency = int(config.evaluation_interval or 0)
    if number is None:
        number = _KEPT if _has_score(config) else 0
    return tune.CheckpointConfig(
        checkpoint_frequency=frequency,
        checkpoint_at_end=options.checkpoint_at_end,
        num_to_keep=number or None,
        checkpoint_score_attribute=_score_attr(config, options),
    )


def _set_up_output(verbosity: int) -> None:
    quieten(verbosity)
    if verbosity < 2:
        # Tune's newer output prints a header even where it is silent, with a folder that does not outlive Ray.
        os.environ["RAY_AIR_NEW_OUTPUT"] = "0"
    # Relative paths in a config mean what they mean here, not in the trial's own folder.
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")


def quieten(verbosity: int = 0) -> None:
    """Hides Ray's own messages, which would bury the table; -v shows warnings, -vv everything."""
    if verbosity == 0:
        logging.getLogger("ray").setLevel(logging.ERROR)
        for name in ("ray.rllib", "ray.tune", "ray.train", "ray.air"):
            # CRITICAL: Tune logs a failed trial's traceback as an error; `report` prints it in short.
            logging.getLogger(name).setLevel(logging.CRITICAL)


def _init_ray(options: RunOptions) -> None:
    is_new = options.ray_address in (None, "local")
    local: dict[str, Any] = {"num_cpus": options.ray_num_cpus, "num_gpus": options.ray_num_gpus} if is_new else {}
    try:
        context = ray.init(
            address=options.ray_address,
            log_to_driver=options.verbosity > 0,
            logging_level=logging.ERROR if options.verbosity == 0 else logging.WARNING,
            include_dashboard=False if is_new else None,
            **local,
        )
    except (ConnectionError, ValueError) as error:
        if is_new and any(value is not None for value in local.values()):
            raise UsageError(
                "--ray-num-cpus and --ray-num-gpus are those of a new Ray, but one runs on this machine or is named by "
                f"RAY_ADDRESS: leave them out to join it, or start another by --ray-address local. ({error})"
            ) from error
        given = options.ray_address or f"(none), RAY_ADDRESS={os.environ.get('RAY_ADDRESS', '')!r}"
        raise UsageError(f"--ray-address {given}: {error}") from error
    except OSError as error:
        raise UsageError(
            f"Ray cannot be started: {error}. It needs a home folder (HOME) that can be written."
        ) from error
    if options.ray_address is None and not ray_internals.started_ray():
        address = context.address_info["gcs_address"]
        console.print(f"Runs on the Ray cluster at {address}, which was there already (--ray-address local: a new one)")
