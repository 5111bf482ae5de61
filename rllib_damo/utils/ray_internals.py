"""Everything that the package uses of Ray's private parts: read, called or set here, and nowhere else.

What a subclass must override, or inherits and reads, can't stand here: `OVERRIDDEN` and `INHERITED` list it.
``tests/test_ray_internals.py`` checks each name of this file, so that a new version of Ray fails by name.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import ray
from pyarrow import fs
from ray.data import ReadTask
from ray.data.block import BlockMetadata
from ray.data.extensions import ArrowTensorArray
from ray.exceptions import RayActorError, RayError
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.algorithms.registry import ALGORITHMS
from ray.rllib.core.learner.learner import Learner
from ray.rllib.core.learner.learner_group import LearnerGroup
from ray.rllib.env.env_runner_group import EnvRunnerGroup
from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner
from ray.rllib.utils.checkpoints import Checkpointable
from ray.train._internal.session import _TrainingResult
from ray.tune import Callback, Checkpoint, RunConfig, Trainable, Tuner
from ray.tune.experiment import Trial
from ray.tune.registry import ENV_CREATOR, TRAINABLE_CLASS, _global_registry, register_trainable

#: In the text of Ray's ActorDiedError if the actor's constructor raised.
_RAISED_AT_START = "error raised in its creation task"

# -- learners --------------------------------------------------------------------------------------------------------


def local_learner(group: LearnerGroup) -> Any:
    """The Learner in this process, whose methods may be called; None where learners are actors."""
    return group._learner


def learner_actors(group: LearnerGroup) -> list[Any]:
    """The actors of remote learners, in order; empty where the learner is in this process."""
    return list(group._workers or ())


def num_lost_learners(group: LearnerGroup) -> int:
    """How many learner actors died or raised an error, and are no longer called; as far as is known by now."""
    manager = group._worker_manager
    return 0 if manager is None else manager.num_actors() - manager.num_healthy_actors()


def why_died(error: RayActorError) -> str:
    """The first and the last line of what Ray says of an actor that died; between them is its address."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(dict.fromkeys((lines[0], lines[-1])))


def was_lost(error: BaseException | None) -> bool:
    """Whether an error of a trial is the loss of its process or machine, and not what its constructor raised."""
    return isinstance(error, RayActorError) and _RAISED_AT_START not in str(error)


def learner_index(learner: Learner) -> int:
    """The learner's place among all learners, from 0."""
    return learner._learner_index


def count_new_weights(learner: Learner) -> None:
    """Marks the weights as newer: runners and learners ignore a state that is not newer than their own."""
    learner._weights_seq_no += 1


def accept_any_weights(holder: Any) -> None:
    """Lets a learner or runner take the next state even if its weights are older than the present ones."""
    holder._weights_seq_no = 0


def log_trainable_parameters(learner: Learner) -> None:
    """Logs the number of parameters again, which RLlib logs once and which is NaN in later results."""
    learner._log_trainable_parameters()


def schedule_learning_rates(learner: Learner, num_steps: int) -> None:
    """Sets the scheduled learning rates to their values after so many steps."""
    for optimizer, schedule in learner._optimizer_lr_schedules.items():
        learner._set_optimizer_lr(optimizer, lr=schedule.update(timestep=num_steps))


# -- states ----------------------------------------------------------------------------------------------------------


def wants_component(owner: Checkpointable, name: str, components: Any, not_components: Any) -> bool:
    """Whether ``get_state(components, not_components=...)`` asks for this component."""
    return owner._check_component(name, components, not_components)


def subcomponents(owner: Checkpointable, name: str, components: Any) -> list[str] | None:
    """The parts of this component that are asked for or left out; None: there are none such."""
    return owner._get_subcomponents(name, components)


# -- configurations --------------------------------------------------------------------------------------------------

#: Options whose attribute has another name.
_ATTRIBUTES = {
    "framework": "framework_str",
    "custom_stats_cls_lookup": "stats_cls_lookup",
    "dataset_num_iters_per_offline_eval_runner": "dataset_num_iters_per_eval_runner",
    **{name: f"_{name}" for name in ("is_atari", "learner_connector", "model_config", "rl_module_spec")},
    **{name: f"_{name}" for name in ("env_to_module_connector", "module_to_env_connector")},
}


def attribute_of(option: str) -> str:
    """The attribute of a configuration that an option is kept in."""
    return f"callbacks_{option}" if option.startswith("on_") else _ATTRIBUTES.get(option, option)


def refuse(config: AlgorithmConfig, message: str) -> None:
    """Raises ValueError; or warns, where the user switched RLlib's checks off."""
    config._value_error(message)


def without_advice(error: BaseException) -> str:
    """The text of what `refuse` raises, without RLlib's last line, which advises to switch the checks off."""
    return str(error).split("To suppress all validation errors")[0].strip()


def is_frozen(config: AlgorithmConfig) -> bool:
    """Whether the configuration can't be changed any more."""
    return config._is_frozen


def given_model_config(config: AlgorithmConfig) -> Any:
    """What the user gave as ``rl_module(model_config=...)``; empty if nothing."""
    return config._model_config


def given_module_spec(config: AlgorithmConfig) -> Any:
    """What the user gave as ``rl_module(rl_module_spec=...)``, or None."""
    return config._rl_module_spec


def given_connector(config: AlgorithmConfig) -> Any:
    """What the user gave as ``env_runners(env_to_module_connector=...)``, or None."""
    return config._env_to_module_connector


def keep_runner_states(config: AlgorithmConfig) -> None:
    """Keeps RLlib from merging the states of evaluation runners with those of the training runners."""
    config._dont_auto_sync_env_runner_states = True


def setting_name(config: AlgorithmConfig, key: str) -> str:
    """The name that an option has as an attribute, such as ``callbacks_class`` for "callbacks"."""
    return config._translate_special_keys(key, warn_deprecated=False)


# -- evaluation ------------------------------------------------------------------------------------------------------


def set_env_seed(runner: SingleAgentEnvRunner, seed: int) -> None:
    """The seed of the environments' first reset; copy i gets this plus i."""
    runner._seed = seed


def require_reset(runner: SingleAgentEnvRunner) -> None:
    """Makes the next ``sample`` begin with a reset, with the seed."""
    runner._needs_initial_reset = True


def env_to_module(runner: SingleAgentEnvRunner) -> Any:
    """The pipeline from the environment's observations to the module's inputs."""
    return runner._env_to_module


def evaluate_now(algorithm: Algorithm) -> dict[str, Any]:
    """Evaluates as ``train`` does when an evaluation is due: beside its result, with callbacks and metrics."""
    return algorithm._run_one_evaluation()


def runner_errors(group: EnvRunnerGroup) -> tuple[list[str], list[str]]:
    """Why runners of a group do not answer: the exceptions of those that could not start, and what is known of others.

    Those of the first kind stay dead, and would raise again.
    """
    results = group._worker_manager.foreach_actor("ping", healthy_only=False, timeout_seconds=1.0)
    texts = [str(result.get()) for result in results if not result.ok]
    return [text for text in texts if _RAISED_AT_START in text], [
        text for text in texts if _RAISED_AT_START not in text
    ]


def forget_skipped_evaluations(algorithm: Algorithm) -> None:
    """Keeps RLlib's count of evaluations without a healthy runner below every limit: it ends a run at one."""
    algorithm._counters["num_consecutive_eval_no_workers_iterations"] = -1_000_000


# -- names, runs -----------------------------------------------------------------------------------------------------


def register(name: str, algorithm: type[Algorithm]) -> None:
    """Makes an algorithm known to Tune and to RLlib's table, to which Tune turns once ``ray.shutdown()`` forgot it."""
    register_trainable(name, algorithm)
    ALGORITHMS[name] = lambda: (algorithm, algorithm.get_default_config())


def algorithm_names() -> Collection[str]:
    """The names in RLlib's table: its own algorithms, and those of `register`."""
    return ALGORITHMS.keys()


def is_trainable(name: str) -> bool:
    """Whether Tune knows a trainable of this name: the user's own."""
    return _global_registry.contains(TRAINABLE_CLASS, name)


def is_env(name: str) -> bool:
    """Whether the user registered an environment under this name with ``tune.register_env``."""
    return _global_registry.contains(ENV_CREATOR, name)


def env_creator(name: str) -> Callable[..., Any]:
    """What the user registered under this name: makes an environment from an ``EnvContext``."""
    return _global_registry.get(ENV_CREATOR, name)


def started_ray() -> bool:
    """Whether ``ray.init`` started a Ray in this process; False: it joined one."""
    node = ray._private.worker._global_node
    return node is not None and node.is_head()


def run_config(tuner: Tuner) -> RunConfig:
    """The stop condition and other settings of a run that was restored, or those that it was given."""
    return tuner._local_tuner.get_run_config()


def add_callback(tuner: Tuner, callback: Callback) -> None:
    """Adds a callback to a run that was restored, in place of those of its class."""
    settings = run_config(tuner)
    others = [given for given in settings.callbacks or [] if type(given) is not type(callback)]
    settings.callbacks = [*others, callback]


def forget_decisions(record: dict[str, Any]) -> bool:
    """Removes from Tune's record what it would do with trials after their next checkpoint; whether there was any.

    Where a checkpoint could not be written, Tune notes that it stops the trial after that, and does so once resumed.
    """
    decisions = record.get("runner_data", {}).get("_cached_trial_decisions")
    if not decisions:
        return False
    decisions.clear()
    return True


def first_trial(record: dict[str, Any]) -> tuple[str, str]:
    """The algorithm's name and the folder of the first trial in Tune's record of a run."""
    trial = json.loads(record["trial_data"][0][0])
    return trial["trainable_name"], trial["relative_logdir"]


def trial_folder(trial: Trial) -> tuple[fs.FileSystem, str]:
    """The filesystem of a trial's results, and their folder on it."""
    return trial.storage.storage_filesystem, trial.storage.trial_fs_path


class TrialPlaces(NamedTuple):
    """Where a trial writes."""

    filesystem: fs.FileSystem
    folder: str  #: of its results
    checkpoint: str  #: the folder of the checkpoint that it wrote, or tried to write, last


def trial_places(trainable: Trainable) -> TrialPlaces | None:
    """Where the trial of a trainable writes; None outside of Tune."""
    storage = trainable._storage
    if storage is None:
        return None
    return TrialPlaces(storage.storage_filesystem, storage.trial_fs_path, storage.checkpoint_fs_path)


def latest_checkpoint(trial: Trial) -> str | None:
    """The folder of the checkpoint that a trial starts from, or None."""
    latest = trial.run_metadata.checkpoint_manager.latest_checkpoint_result
    return None if latest is None else latest.checkpoint.path


def forget_other_checkpoints(trial: Trial, paths: Collection[str]) -> None:
    """Lets Tune know of no kept checkpoints but these."""
    manager = trial.run_metadata.checkpoint_manager
    manager._checkpoint_results = [kept for kept in manager._checkpoint_results if kept.checkpoint.path in paths]
    trial.run_metadata.invalidate_cache()


def number_checkpoints_after(trial: Trial, number: int) -> None:
    """Numbers a trial's next checkpoints above this, and above those that Tune knows."""
    trial.storage.current_checkpoint_index = max(trial.storage.current_checkpoint_index, number)


def start_from(trial: Trial, path: str | None, metrics: dict[str, Any]) -> None:
    """Sets the checkpoint that a trial starts from; None: from its beginning.

    Args:
        trial: which has not started.
        path: folder of the checkpoint on the trial's filesystem.
        metrics: the result that belongs to it, if Tune does not know the checkpoint.
    """
    manager = trial.run_metadata.checkpoint_manager
    known = [kept for kept in manager._checkpoint_results if kept.checkpoint.path == path]
    if path is None or known:
        manager._latest_checkpoint_result = known[0] if known else None
    else:
        checkpoint = Checkpoint(path, filesystem=trial.storage.storage_filesystem)
        manager.register_checkpoint(_TrainingResult(checkpoint, metrics))
    trial.run_metadata.invalidate_cache()


# -- Ray Data --------------------------------------------------------------------------------------------------------


def tensor_column(array: np.ndarray) -> pa.Array:
    """Vectors ``(N, width)`` as an Arrow column of Ray's tensor type."""
    return ArrowTensorArray.from_numpy(array)


def read_task(read: Callable[[], Iterable[pa.Table]], per_task_row_limit: int | None) -> ReadTask:
    """A task of a Datasource that gives the tables of ``read()``, of which nothing is known before."""
    metadata = BlockMetadata(num_rows=None, size_bytes=None, exec_stats=None, input_files=None)
    return ReadTask(read, metadata, per_task_row_limit=per_task_row_limit)


def read_error(error: RayError) -> str:
    """The cause of a failed read in one line: without the remote traceback, and Ray Data's advice on its settings."""
    return " ".join(str(getattr(error, "cause", error)).partition("\nFailed to ")[0].split())


# -- what stands in subclasses ---------------------------------------------------------------------------------------


class Private(NamedTuple):
    """A private name of Ray in a subclass of this package."""

    name: str
    base: str  #: Ray's class
    subclass: str  #: where it is overridden, or read
    why: str


_CORE = "rllib_damo.core"

#: Methods of Ray's that are not public, and are overridden.
OVERRIDDEN = (
    Private(
        "_run_one_evaluation", "ray.rllib.algorithms.algorithm.Algorithm",
        f"{_CORE}.evaluated_algorithm.EvaluatedAlgorithm",
        "no evaluation of an untrained policy; none repeated when all evaluation runners died",
    ),
    Private(
        "_evaluate_with_fixed_duration", "ray.rllib.algorithms.algorithm.Algorithm",
        f"{_CORE}.evaluated_algorithm.EvaluatedAlgorithm", "each episode is played once, whichever runners die",
    ),
    Private(
        "_model_config_auto_includes", "ray.rllib.algorithms.algorithm_config.AlgorithmConfig",
        f"{_CORE}.config.OfflineConfig", "the networks' options reach the module",
    ),
    Private(
        "_make_modules_ddp_if_necessary", "ray.rllib.core.learner.torch.torch_learner.TorchLearner",
        f"{_CORE}.learner.OfflineTorchLearner", "gradients are averaged by hand: losses pass DDP by",
    ),
    Private(
        "_set_optimizer_state", "ray.rllib.core.learner.torch.torch_learner.TorchLearner",
        f"{_CORE}.learner.OfflineTorchLearner", "copies the state; an error that says what to do",
    ),
)  # fmt: skip

#: Attributes that Ray sets and that are read, or that Ray reads and that are set.
INHERITED = (
    Private(
        "_device", "ray.rllib.core.learner.torch.torch_learner.TorchLearner", f"{_CORE}.learner.OfflineTorchLearner",
        "where the stores and generators are",
    ),
)  # fmt: skip
