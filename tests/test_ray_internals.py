"""Each private part of Ray that the package uses, by name: what breaks here broke in Ray. Ray is not started."""

from __future__ import annotations

import functools
import importlib
import inspect
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import pyarrow as pa
import pytest
import ray
from ray import tune
from ray._private.node import Node
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayActorError, RayError
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.bc import BCConfig
from ray.rllib.core.learner.learner_group import LearnerGroup
from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner
from ray.rllib.utils.actor_manager import FaultTolerantActorManager
from ray.train._internal.session import _TrainingResult
from ray.train._internal.storage import StorageContext
from ray.tune import Trainable
from ray.tune.execution.tune_controller import TuneController
from ray.tune.experiment import Trial

from rllib_damo.utils import ray_internals
from rllib_damo.utils.ray_internals import INHERITED, OVERRIDDEN

BOX = gym.spaces.Box(-1.0, 1.0, (3,), np.float32)


def make_config() -> BCConfig:
    return BCConfig().environment(observation_space=BOX, action_space=BOX).training(lr=[[0, 0.1], [10, 0.2]])


@functools.cache
def make_group() -> Any:
    """RLlib's own learner, in this process."""
    return make_config().build_learner_group(spaces={"default_policy": (BOX, BOX)})


def make_learner() -> Any:
    return ray_internals.local_learner(make_group())


class SeededEnv(gym.Env):
    """Remembers with what it was reset."""

    observation_space = action_space = BOX
    seeds: list[int | None] = []  # noqa: RUF012

    def __init__(self, config: Any = None) -> None:
        pass

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.seeds.append(seed)
        return np.zeros(3, np.float32), {}

    def step(self, action: Any) -> Any:
        return np.zeros(3, np.float32), 0.0, False, False, {}


@functools.cache
def make_runner() -> SingleAgentEnvRunner:
    return SingleAgentEnvRunner(config=BCConfig().environment(SeededEnv), worker_index=0)


# -- one check a name ------------------------------------------------------------------------------------------------


def local_learner() -> None:
    learner = make_learner()
    assert isinstance(learner, make_config().learner_class)
    assert ray_internals.local_learner(SimpleNamespace(_learner=None)) is None
    assert "self._learner" in inspect.getsource(LearnerGroup.__init__)


def learner_actors() -> None:
    assert ray_internals.learner_actors(make_group()) == []
    assert "self._workers = [" in inspect.getsource(LearnerGroup.__init__)


def num_lost_learners() -> None:
    assert ray_internals.num_lost_learners(make_group()) == 0
    manager = SimpleNamespace(num_actors=lambda: 2, num_healthy_actors=lambda: 1)
    assert ray_internals.num_lost_learners(SimpleNamespace(_worker_manager=manager)) == 1
    assert hasattr(FaultTolerantActorManager, "num_actors")
    assert hasattr(FaultTolerantActorManager, "num_healthy_actors")


def why_died() -> None:
    assert ray_internals.why_died(ActorDiedError()) == "The actor died unexpectedly before finishing this task."


def was_lost() -> None:
    assert ray_internals.was_lost(ActorDiedError())
    assert ray_internals.was_lost(ActorUnavailableError("Socket closed", b"0" * 16))
    assert not ray_internals.was_lost(ValueError("diverged"))
    assert not ray_internals.was_lost(RayActorError(error_msg="an error raised in its creation task, ray::DAMO"))


def started_ray() -> None:
    assert ray_internals.started_ray() == ray.is_initialized()  # no test joins another one
    assert callable(Node.is_head)


def learner_index() -> None:
    assert ray_internals.learner_index(make_learner()) == 0


def count_new_weights() -> None:
    learner = make_learner()
    before = learner.get_state("rl_module")["weights_seq_no"]
    ray_internals.count_new_weights(learner)
    assert learner.get_state("rl_module")["weights_seq_no"] == before + 1


def accept_any_weights() -> None:
    runner = make_runner()
    state = runner.get_state("rl_module")
    runner.set_state(state | {"weights_seq_no": 7})
    changed = {name: array + 1 for name, array in runner.module.get_state().items()}
    runner.set_state({"rl_module": changed, "weights_seq_no": 3})
    unchanged = runner.module.get_state()
    assert all((unchanged[name] == array).all() for name, array in state["rl_module"].items())
    ray_internals.accept_any_weights(runner)
    runner.set_state({"rl_module": changed, "weights_seq_no": 3})
    assert all((runner.module.get_state()[name] == array).all() for name, array in changed.items())


def log_trainable_parameters() -> None:
    learner = make_learner()
    ray_internals.log_trainable_parameters(learner)
    assert "num_trainable_parameters" in str(learner.metrics.reduce())


def schedule_learning_rates() -> None:
    learner = make_learner()
    ray_internals.schedule_learning_rates(learner, 5)
    (optimizer,) = (found for _, found in learner.get_optimizers_for_module("default_policy"))
    assert float(optimizer.param_groups[0]["lr"]) == pytest.approx(0.15)


def wants_component() -> None:
    wants = functools.partial(ray_internals.wants_component, make_learner(), "own")
    assert wants(None, None)
    assert wants("own", None)
    assert not wants("other", None)
    assert not wants(None, ["own"])


def subcomponents() -> None:
    parts = functools.partial(ray_internals.subcomponents, make_learner(), "own")
    assert parts(["own/a", "other/b"]) == ["a"]
    assert parts(None) is None


def refuse() -> None:
    with pytest.raises(ValueError, match="found 3"):
        ray_internals.refuse(make_config(), "found 3")
    ray_internals.refuse(make_config().experimental(_validate_config=False), "found 3")


def without_advice() -> None:
    with pytest.raises(ValueError, match="_validate_config") as caught:
        ray_internals.refuse(make_config(), "found 3.")
    assert ray_internals.without_advice(caught.value) == "found 3."


def is_frozen() -> None:
    config = make_config()
    assert not ray_internals.is_frozen(config)
    config.freeze()
    assert ray_internals.is_frozen(config)


def given_model_config() -> None:
    assert not ray_internals.given_model_config(make_config())
    assert ray_internals.given_model_config(make_config().rl_module(model_config={"a": 1})) == {"a": 1}


def given_module_spec() -> None:
    spec = make_config().get_default_rl_module_spec()
    assert ray_internals.given_module_spec(make_config()) is None
    assert ray_internals.given_module_spec(make_config().rl_module(rl_module_spec=spec)) is spec


def given_connector() -> None:
    assert ray_internals.given_connector(make_config()) is None
    connector: Any = lambda env, spaces, device: None  # noqa: E731
    given = make_config().env_runners(env_to_module_connector=connector)
    assert ray_internals.given_connector(given) is connector


def attribute_of() -> None:
    """`test_rllib_options.py` finds every refused option by it."""
    config = vars(make_config())
    for option in ("framework", "learner_connector", "on_episode_end", "num_gpus", "custom_stats_cls_lookup"):
        assert ray_internals.attribute_of(option) in config


def keep_runner_states() -> None:
    config = make_config()
    before = vars(config).copy()
    ray_internals.keep_runner_states(config)
    (name,) = (name for name, value in vars(config).items() if value is not before[name])
    assert f"not self.config.{name}" in inspect.getsource(inspect.getmodule(Algorithm))


def setting_name() -> None:
    assert ray_internals.setting_name(make_config(), "callbacks") == "callbacks_class"
    assert ray_internals.setting_name(make_config(), "gamma") == "gamma"


def set_env_seed() -> None:
    runner = make_runner()
    ray_internals.set_env_seed(runner, 31)
    ray_internals.require_reset(runner)
    runner.sample(num_timesteps=1, random_actions=True)
    assert SeededEnv.seeds[-1] == 31


def require_reset() -> None:
    runner = make_runner()
    runner.sample(num_timesteps=1, random_actions=True)
    resets = len(SeededEnv.seeds)
    runner.sample(num_timesteps=1, random_actions=True)
    assert len(SeededEnv.seeds) == resets
    ray_internals.require_reset(runner)
    runner.sample(num_timesteps=1, random_actions=True)
    assert len(SeededEnv.seeds) > resets


def env_to_module() -> None:
    assert (
        ray_internals.env_to_module(make_runner()).get_state() == make_runner().get_state()["env_to_module_connector"]
    )


def evaluate_now() -> None:
    inspect.signature(Algorithm._run_one_evaluation).bind(None)
    assert ray_internals.evaluate_now(SimpleNamespace(_run_one_evaluation=lambda: {"a": 1})) == {"a": 1}


def forget_skipped_evaluations() -> None:
    algorithm = SimpleNamespace(_counters={})
    ray_internals.forget_skipped_evaluations(algorithm)
    ((name, count),) = algorithm._counters.items()
    assert count < 0
    source = inspect.getsource(Algorithm.evaluate)
    assert name in source or "consecutive" not in source  # a version that does not count


def runner_errors() -> None:
    died = ray.exceptions.ActorDiedError(ray.exceptions.RayTaskError("f", "Traceback\nOSError: no port", OSError()))
    lost = ray.exceptions.ActorUnavailableError("it is gone", None)
    answers = [SimpleNamespace(ok=False, get=lambda: died), SimpleNamespace(ok=False, get=lambda: lost),
               SimpleNamespace(ok=True)]  # fmt: skip
    manager = SimpleNamespace(foreach_actor=lambda *args, **kwargs: answers)
    (error,), (loss,) = ray_internals.runner_errors(SimpleNamespace(_worker_manager=manager))
    assert "OSError: no port" in error
    assert "it is gone" in loss
    group = importlib.import_module("ray.rllib.env.env_runner_group").EnvRunnerGroup
    assert "self._worker_manager = FaultTolerantActorManager(" in inspect.getsource(group.__init__)
    actors = importlib.import_module("ray.rllib.utils.actor_manager").FaultTolerantActorManager
    inspect.signature(actors.foreach_actor).bind(None, "ping", healthy_only=False, timeout_seconds=1.0)
    assert hasattr(SingleAgentEnvRunner, "ping")


class Registered(Algorithm):
    @classmethod
    def get_default_config(cls) -> BCConfig:
        return BCConfig(cls)


def register() -> None:
    ray_internals.register("Registered", Registered)
    tune.registry._unregister_trainables()  # as `ray.shutdown()` does
    assert tune.registry.get_trainable_cls("Registered") is Registered


def algorithm_names() -> None:
    assert {"PPO", "BC", "DAMO"} <= set(ray_internals.algorithm_names())


def is_trainable() -> None:
    assert not ray_internals.is_trainable("of nobody")
    tune.register_trainable("of-the-user", Registered)
    assert ray_internals.is_trainable("of-the-user")


def is_env() -> None:
    assert not ray_internals.is_env("of nobody")
    tune.register_env("Seeded", SeededEnv)
    assert ray_internals.is_env("Seeded")


def env_creator() -> None:
    tune.register_env("Seeded", SeededEnv)
    assert isinstance(ray_internals.env_creator("Seeded")({}), gym.Env)


def run_config() -> None:
    inner = SimpleNamespace(get_run_config=lambda: tune.RunConfig(stop={"a": 1}))
    assert ray_internals.run_config(SimpleNamespace(_local_tuner=inner)).stop == {"a": 1}
    tuner_internal = importlib.import_module("ray.tune.impl.tuner_internal").TunerInternal
    assert "return self._run_config" in inspect.getsource(tuner_internal.get_run_config)
    assert "self._local_tuner = TunerInternal(" in inspect.getsource(tune.Tuner.__init__)


def add_callback() -> None:
    class Mine(tune.Callback):
        pass

    other, run_config = tune.Callback(), tune.RunConfig(callbacks=[Mine()])
    run_config.callbacks.append(other)
    inner = SimpleNamespace(get_run_config=lambda: run_config)
    mine = Mine()
    ray_internals.add_callback(SimpleNamespace(_local_tuner=inner), mine)
    assert run_config.callbacks == [other, mine]


def make_trial() -> Any:
    """A trial that knows checkpoints 1 and 2, the latter as the latest."""
    tune.register_trainable("of-the-user", Registered)
    storage = StorageContext("/nowhere", "run", trial_dir_name="trial", current_checkpoint_index=2)
    trial = Trial("of-the-user", stub=True, storage=storage)
    manager = trial.run_metadata.checkpoint_manager
    for number in (1, 2):
        checkpoint = tune.Checkpoint(f"/nowhere/run/trial/{number}", filesystem=storage.storage_filesystem)
        manager.register_checkpoint(_TrainingResult(checkpoint, {"training_iteration": number}))
    return trial


def forget_decisions() -> None:
    record = {"runner_data": {"_cached_trial_decisions": {"a": "STOP"}, "other": 1}}
    assert ray_internals.forget_decisions(record)
    assert record == {"runner_data": {"_cached_trial_decisions": {}, "other": 1}}
    assert not ray_internals.forget_decisions(record)
    assert "self._cached_trial_decisions[trial.trial_id] = " in inspect.getsource(TuneController)


def first_trial() -> None:
    trial = make_trial()
    assert ray_internals.first_trial({"trial_data": [trial.get_json_state()]}) == (
        trial.trainable_name, trial.relative_logdir,
    )  # fmt: skip
    assert '"trial_data": list(self._get_trial_checkpoints().values())' in inspect.getsource(TuneController)


def trial_folder() -> None:
    filesystem, folder = ray_internals.trial_folder(make_trial())
    assert (filesystem.type_name, folder) == ("local", "/nowhere/run/trial")


def trial_places() -> None:
    trainable = Trainable.__new__(Trainable)
    trainable._storage = None
    assert ray_internals.trial_places(trainable) is None
    trainable._storage = make_trial().storage
    places = ray_internals.trial_places(trainable)
    assert places.filesystem.type_name == "local"
    assert places.folder == "/nowhere/run/trial"
    trainable._storage.current_checkpoint_index = 7
    assert ray_internals.trial_places(trainable).checkpoint == "/nowhere/run/trial/checkpoint_000007"


def latest_checkpoint() -> None:
    assert ray_internals.latest_checkpoint(make_trial()) == "/nowhere/run/trial/2"


def forget_other_checkpoints() -> None:
    trial = make_trial()
    ray_internals.forget_other_checkpoints(trial, ["/nowhere/run/trial/2"])
    kept = trial.run_metadata.checkpoint_manager.best_checkpoint_results
    assert [result.checkpoint.path for result in kept] == ["/nowhere/run/trial/2"]


def number_checkpoints_after() -> None:
    trial = make_trial()
    for number, expected in ((1, "checkpoint_000002"), (7, "checkpoint_000007")):
        ray_internals.number_checkpoints_after(trial, number)
        assert trial.storage.checkpoint_dir_name == expected


def start_from() -> None:
    trial = make_trial()
    for path, iteration in (("/nowhere/run/trial/1", 1), ("/nowhere/run/trial/5", 5)):
        ray_internals.start_from(trial, path, {"training_iteration": 5})
        assert trial.checkpoint.path == path
        assert trial.latest_checkpoint_result.metrics["training_iteration"] == iteration
    ray_internals.start_from(trial, None, {})
    assert trial.checkpoint is None


def tensor_column() -> None:
    array = np.arange(6, dtype=np.float32).reshape(3, 2)
    column = pa.table({"a": ray_internals.tensor_column(array)}).column("a").combine_chunks()
    np.testing.assert_array_equal(column.to_numpy(zero_copy_only=False), array)


def read_task() -> None:
    table = pa.table({"a": [1, 2]})
    task = ray_internals.read_task(lambda: [table], None)
    assert task.metadata.num_rows is None
    assert list(task()) == [table]


def read_error() -> None:
    class Error(RayError):
        cause = OSError("no such\nbucket.\nFailed to read. Set DataContext.x")

    assert ray_internals.read_error(Error()) == "no such bucket."


CHECKS = {check.__name__: check for check in (
    local_learner, learner_actors, num_lost_learners, why_died, was_lost, started_ray,
    learner_index, count_new_weights, accept_any_weights, log_trainable_parameters,
    schedule_learning_rates, wants_component, subcomponents, refuse, without_advice, is_frozen, given_model_config,
    given_module_spec, given_connector, attribute_of, keep_runner_states, setting_name, set_env_seed, require_reset,
    env_to_module, evaluate_now, forget_skipped_evaluations,
    runner_errors, register, algorithm_names, is_trainable, is_env, env_creator,
    run_config, add_callback, forget_decisions, first_trial, trial_folder, trial_places, latest_checkpoint,
    forget_other_checkpoints, number_checkpoints_after,
    start_from, tensor_column, read_task, read_error,
)}  # fmt: skip


@pytest.mark.parametrize("name", CHECKS)
def test_ray_still_has_what_is_used(name):
    CHECKS[name]()


@pytest.mark.parametrize("private", OVERRIDDEN + INHERITED, ids=lambda private: private.name)
def test_ray_still_has_what_subclasses_override_or_inherit(private):
    base, subclass = (_find(path) for path in (private.base, private.subclass))
    assert issubclass(subclass, base)
    if private in OVERRIDDEN:
        assert hasattr(base, private.name)
        assert private.name in vars(subclass)
    else:
        assert hasattr(make_learner(), private.name)


def _find(path: str) -> Any:
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def test_no_function_goes_unchecked():
    functions = inspect.getmembers(ray_internals, inspect.isfunction)
    own = {name for name, function in functions if function.__module__ == ray_internals.__name__}
    assert own == set(CHECKS)
