"""Runs one AlgorithmConfig with Tune: checks before, a table while it runs, and the checkpoints' paths at its end."""

from __future__ import annotations

import itertools
import logging
import os
import shlex
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from ray import tune
from ray.rllib.utils.metrics import ENV_RUNNER_RESULTS, EPISODE_RETURN_MEAN, EVALUATION_RESULTS
from ray.tune.schedulers import SCHEDULER_IMPORT, create_scheduler
from ray.tune.search.variant_generator import generate_variants, parse_spec_vars

from rllib_damo.command.progress import ProgressTable
from rllib_damo.command.report import USAGE, console, err, report
from rllib_damo.command.results import with_flat_score, with_last_evaluation
from rllib_damo.command.stopping import CheckedStopper
from rllib_damo.core.config import DAMOConfig
from rllib_damo.data.offline_data import DAMOOfflineData
from rllib_damo.errors import UsageError
from rllib_damo.evaluation import storage
from rllib_damo.utils.environments import is_registered
from rllib_damo.utils.names import near
from rllib_damo.utils.ray_internals import stop_condition, without_advice
from rllib_damo.utils.uris import without_password

if TYPE_CHECKING:
    from ray.rllib.algorithms.algorithm_config import AlgorithmConfig

EVALUATION_RETURN = f"{EVALUATION_RESULTS}/{ENV_RUNNER_RESULTS}/{EPISODE_RETURN_MEAN}"
#: Matrices of DAMO's size keep no more threads busy.
MAX_THREADS = 4


@dataclass
class RunOptions:
    """How to run, as the command line gives it; `rllib train --help` explains each."""

    name: str = "rllib"
    file: Path | None = None
    storage_path: str | None = None
    resume: bool = False
    checkpoint_freq: int | None = None
    checkpoint_at_end: bool = True
    keep_checkpoints_num: int | None = 2
    checkpoint_score_attr: str | None = None
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
    """Trains until `stop`, and returns the exit code (`OK`, `FAILED`, `USAGE` or `INTERRUPTED`).

    Args:
        config: of any RLlib algorithm; may hold Tune search spaces.
        stop: flat dict metric: number, a Tune Stopper or callable, or None (runs until interrupted).
        options: see there.

    Raises:
        UsageError: for what can be seen to be wrong before training.
    """
    place = storage.check(options.storage_path)
    callbacks = [ProgressTable(), *_wandb(options)]
    scheduler = _scheduler(options, config)
    quieten(options.verbosity)
    if options.verbosity < 2:
        # Tune's newer output prints a header even where it is silent, with a folder that does not outlive Ray.
        os.environ["RAY_AIR_NEW_OUTPUT"] = "0"
    # Relative paths in a config mean what they mean here, not in the trial's own folder.
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
    to_resume = storage.latest_run(place, options.name) if options.resume else None
    _check_before(config, stop)
    own_ray = not ray.is_initialized()
    if own_ray:
        _init_ray(options)
    try:
        config = with_last_evaluation(_use_idle_cpus(config), stop)
        config = with_flat_score(config, _score_attr(config, options))
        _check_resources(config)
        if to_resume is not None:
            console.print(f"Resuming {to_resume}, with its own config, stop and checkpoint options")
            algorithm: Any = config.algo_class
            tuner = tune.Tuner.restore(to_resume, trainable=algorithm, resume_errored=True)
        else:
            name = f"{options.name}_{time.strftime('%Y-%m-%d_%H-%M-%S')}"
            console.print(f"Results go to {name} in {without_password(place)}")
            tuner = tune.Tuner(
                config.algo_class,
                param_space=config,
                tune_config=tune.TuneConfig(scheduler=scheduler),
                run_config=tune.RunConfig(
                    name=name,
                    storage_path=place,
                    stop=CheckedStopper(stop, bool(config.evaluation_interval)) if isinstance(stop, dict) else stop,
                    checkpoint_config=_checkpoint_config(config, options),
                    callbacks=callbacks,
                    verbose=0 if options.verbosity < 2 else 2,
                ),
            )
        if stop is None and not options.resume:
            console.print("No stop condition: the run goes on until Ctrl-C.")
        results = tuner.fit()
        stopper = stop_condition(tuner)
        if isinstance(stopper, CheckedStopper) and stopper.error:
            err.print(f"[red]Error:[/red] {stopper.error}")
            return USAGE
        # The environment is known in a new process if the file that registered it is run there.
        named = options.file is not None and is_registered(config.env)
        file = f" --file {shlex.quote(str(options.file))}" if named else ""
        return report(
            results, metric=_score_attr(config, options), searched=_search_space(config), place=place, options=file,
            verbose=options.verbosity > 0,
        )  # fmt: skip
    finally:
        if own_ray:
            ray.shutdown()


def _use_idle_cpus(config: AlgorithmConfig) -> AlgorithmConfig:
    """Gives a lone DAMO trial the machine's CPUs, as torch threads: Ray grants one thread for each CPU of a process.

    The config's own `num_cpus_for_main_process`, learners or runners are left as they are.
    """
    processes = config.num_learners + config.num_env_runners + config.evaluation_num_env_runners
    untouched = config.num_cpus_for_main_process == 1 and not processes
    if not (isinstance(config, DAMOConfig) and untouched) or has_search_space(config):
        return config
    cpus = min(MAX_THREADS, int(ray.available_resources().get("CPU", 1)), os.cpu_count() or 1)
    return config.copy(copy_frozen=False).resources(num_cpus_for_main_process=max(1, cpus))


def has_search_space(config: AlgorithmConfig) -> bool:
    """Whether a setting is a Tune search space (grid_search, uniform, ...)."""
    return bool(_search_space(config))


def _search_space(config: AlgorithmConfig) -> list[tuple[str, ...]]:
    """Paths of the settings that are search spaces."""
    _, domains, grids = parse_spec_vars(config.to_dict())
    return [path for path, _ in [*grids, *domains]]


def _check_before(config: AlgorithmConfig, stop: Any) -> None:
    """Finds in this process, and before Ray starts, the mistakes that would else come up in a worker."""
    if isinstance(stop, dict) and not config.evaluation_interval:
        lost = [key for key in stop if key.startswith(f"{EVALUATION_RESULTS}/")]
        if lost:
            raise UsageError(
                f"stop: {lost[0]!r} never comes up, since the config has no evaluation; add "
                ".evaluation(evaluation_interval=...)."
            )
    variants = list(_variants(config))
    try:
        for variant in variants:
            variant.validate()
    except (ValueError, TypeError, KeyError, ImportError) as error:
        raise UsageError(f"the config is not valid: {without_advice(error)}") from error
    inputs: list[Any] = []
    for variant in variants:
        data_class = variant.offline_data_class
        if isinstance(data_class, type) and issubclass(data_class, DAMOOfflineData) and variant.input_ not in inputs:
            # Makes a dataset that is asked for by its short name, where the user sees its progress.
            inputs.append(variant.input_)
            data = data_class(variant).transitions
            returns = data.episode_returns()
            console.print(
                f"Dataset {data.name}: {len(data):,} transitions, {len(returns):,} episodes of mean return "
                f"{returns.mean():.1f}"
            )


def _variants(config: AlgorithmConfig) -> Iterator[AlgorithmConfig]:
    """A config for each point of a search's grids, random values drawn, but few of many; without a search itself."""
    if not has_search_space(config):
        yield config.copy(copy_frozen=False)
        return
    for _, values in itertools.islice(generate_variants(config.to_dict()), 100):
        yield config.copy(copy_frozen=False).update_from_dict(values)


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
    # Else Tune ends the whole search at the first result that did not evaluate.
    os.environ.setdefault("TUNE_DISABLE_STRICT_METRIC_CHECKING", "1")
    goal = {} if options.scheduler == "fifo" else {"metric": _score_attr(config, options), "mode": "max"}
    try:
        return create_scheduler(options.scheduler, **{**goal, **options.scheduler_config})
    except (TypeError, ValueError, ImportError) as error:
        raise UsageError(f"--scheduler {options.scheduler}: {error}") from error


def _score_attr(config: AlgorithmConfig, options: RunOptions) -> str:
    evaluated = bool(config.evaluation_interval)
    return options.checkpoint_score_attr or (
        EVALUATION_RETURN if evaluated else f"{ENV_RUNNER_RESULTS}/{EPISODE_RETURN_MEAN}"
    )


def _checkpoint_config(config: AlgorithmConfig, options: RunOptions) -> tune.CheckpointConfig:
    """By default a checkpoint at each evaluation, of which the best and the last are kept."""
    frequency = options.checkpoint_freq
    if frequency is None:
        frequency = int(config.evaluation_interval or 0)
    return tune.CheckpointConfig(
        checkpoint_frequency=frequency,
        checkpoint_at_end=options.checkpoint_at_end,
        num_to_keep=options.keep_checkpoints_num,
        checkpoint_score_attribute=_score_attr(config, options),
    )


def quieten(verbosity: int = 0) -> None:
    """Keeps Ray's own notices from drowning the table; -v shows warnings, -vv everything."""
    if verbosity == 0:
        logging.getLogger("ray").setLevel(logging.ERROR)
        for name in ("ray.rllib", "ray.tune", "ray.train", "ray.air"):
            # CRITICAL: Tune logs a failed trial's traceback as an error; `outcome.report` tells of it in short.
            logging.getLogger(name).setLevel(logging.CRITICAL)


def _init_ray(options: RunOptions) -> None:
    local: dict[str, Any] = (
        {} if options.ray_address else {"num_cpus": options.ray_num_cpus, "num_gpus": options.ray_num_gpus}
    )
    try:
        ray.init(
            address=options.ray_address,
            log_to_driver=options.verbosity > 0,
            logging_level=logging.ERROR if options.verbosity == 0 else logging.WARNING,
            include_dashboard=False if not options.ray_address else None,
            **local,
        )
    except (ConnectionError, ValueError) as error:
        raise UsageError(f"--ray-address {options.ray_address}: {error}") from error
    except OSError as error:
        raise UsageError(
            f"Ray cannot be started: {error}. It needs a home folder (HOME) that can be written."
        ) from error


def _check_resources(config: AlgorithmConfig) -> None:
    """One trial must fit: Tune would wait for resources for ever."""
    if has_search_space(config) or config.algo_class is None:
        return
    algorithm: Any = config.algo_class
    needed = algorithm.default_resource_request(config).required_resources
    there = ray.cluster_resources()
    for resource, amount in needed.items():
        if amount > there.get(resource, 0):
            flag = {"CPU": " Raise --ray-num-cpus", "GPU": " Raise --ray-num-gpus"}.get(resource, " Add nodes")
            raise UsageError(
                f"the config asks for {amount:g} {resource}, but Ray has {there.get(resource, 0):g}.{flag}, or lower "
                "num_env_runners, evaluation_num_env_runners, num_learners or their shares."
            )
