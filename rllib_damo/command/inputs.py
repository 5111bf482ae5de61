"""Turns what users type at the `rllib` command into checked objects; every mistake is a `UsageError`."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import json
import math
import sys
import traceback
from collections.abc import Mapping
from functools import partial
from numbers import Real
from pathlib import Path
from types import ModuleType, NoneType
from typing import Any

import gymnasium as gym
from gymnasium.envs.registration import EnvSpec
from ray import cloudpickle, tune
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.tune.registry import get_trainable_cls

from rllib_damo.errors import UsageError
from rllib_damo.utils import ray_internals
from rllib_damo.utils.environments import is_registered
from rllib_damo.utils.names import flatten, near, near_any_case

_GYM_IDS_AT_START = frozenset(gym.registry)


def parse_json(option: str, text: str | None) -> dict[str, Any] | None:
    """The JSON object given to `option`; None if the option was not given."""
    if text is None:
        return None
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise UsageError(
            f"{option} is not valid JSON ({error}): {text!r}. Quote it for the shell, with double quotes inside: "
            f"""{option} '{{"training_iteration": 100}}'"""
        ) from error
    if not isinstance(value, dict):
        raise UsageError(f'{option} must be a JSON object ({{"key": value}}), but is {type(value).__name__}: {text!r}.')
    return value


def check_stop(stop: Any, name: str = "stop") -> Any:
    """A stop condition, checked: a mapping becomes {"a/b": number}; Tune's Stoppers and callables pass.

    Args:
        stop: mapping (nested or with "/"), Stopper, callable, or None.
        name: where it comes from, for the message.
    """
    if stop is None or (callable(stop) and not isinstance(stop, Mapping)):
        return stop
    if not isinstance(stop, Mapping):
        raise UsageError(f"{name} must be a dict of metric: number (or a Tune Stopper), but is {type(stop).__name__}.")
    flat = flatten(stop)
    if not flat:
        raise UsageError(f"{name} is empty: name a metric, or leave it out to train until Ctrl-C.")
    for key, value in flat.items():
        if not isinstance(value, Real) or isinstance(value, bool) or math.isnan(float(value)):
            raise UsageError(f"{name}: the value of {key!r} must be a number, but is {value!r}.")
    return flat


def load_file(path: Path) -> tuple[AlgorithmConfig, Any]:
    """Module-level `config` and optional `stop` of an experiment file (which is run)."""
    module = run_file(path)
    if not hasattr(module, "config"):
        raise UsageError(f"{path} defines no `config`; it needs a module-level `config = SomeConfig()...`.")
    config = module.config
    if not isinstance(config, AlgorithmConfig):
        hint = " (without .build_algo() at its end)" if hasattr(config, "train") else ""
        raise UsageError(
            f"`config` in {path} must be an RLlib AlgorithmConfig{hint}, such as DAMOConfig() or PPOConfig(), but is "
            f"{type(config).__name__}."
        )
    if config.algo_class is None:
        raise UsageError(f"`config` in {path} is of no algorithm; use an algorithm's own, such as DAMOConfig().")
    return config, check_stop(getattr(module, "stop", None), f"`stop` in {path}")


def run_file(path: Path) -> ModuleType:
    """Runs a Python file as a module; what it registers with Tune stays registered."""
    if not path.is_file():
        there = [str(entry) for entry in path.parent.glob("*.py")]
        raise UsageError(f"no file {str(path)!r}.{near(path.name, there)}")
    name = f"rllib_experiment_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UsageError(f"{path} is no Python file; its name must end in .py.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    # Workers cannot import the file by name: its functions and classes must be sent by value.
    cloudpickle.register_pickle_by_value(module)
    sys.path.insert(0, str(path.parent.absolute()))
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        raise UsageError(f"{error.filename}, line {error.lineno}: {error.msg}.") from error
    except Exception as error:
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        line = f", line {frames[-1].lineno}" if frames else ""
        raise UsageError(f"{path}{line}: {type(error).__name__}: {error}") from error
    finally:
        sys.path.remove(str(path.parent.absolute()))
    return module


def default_config(algo: str) -> AlgorithmConfig:
    """The default config of an algorithm by name: one of this package, of RLlib, or registered with Tune."""
    known = ray_internals.algorithm_names()
    if algo not in known and not ray_internals.is_trainable(algo):
        raise UsageError(f"unknown algorithm {algo!r}.{near_any_case(algo, known) or f' Known: {sorted(known)}.'}")
    trainable = get_trainable_cls(algo)
    if not hasattr(trainable, "get_default_config"):
        raise UsageError(f"{algo!r} is registered with Tune, but is no RLlib algorithm.")
    return trainable.get_default_config()


def check_env(env: Any) -> Any:
    """The environment, if Gymnasium or Tune's registry knows it (ids with a module, "module:Id-v0", are imported)."""
    if not isinstance(env, (str, type, NoneType)):
        raise UsageError(f"env (--env) must be the name of an environment or a class, but is {env!r}.")
    if not isinstance(env, str) or is_registered(env) or env.startswith("ale_py:"):
        return env
    module, _, name = env.rpartition(":")
    try:
        if module:
            importlib.import_module(module)
        gym.spec(name)
    except ImportError as error:
        raise UsageError(f"environment {env!r}: {error}") from error
    except gym.error.Error as error:
        raise UsageError(
            f"unknown environment {env!r}.{near_any_case(env, gym.registry)} One of your own: write 'module:Id-v0', or "
            "give the file that registers it (`rllib train file X.py`, `rllib evaluate --file X.py`)."
        ) from error
    return env


def share_env(env: Any) -> None:
    """Registers an environment with Tune if the user's file registered it with Gymnasium.

    Trials run in other processes, which do not run the file.
    """
    if not isinstance(env, str) or env in _GYM_IDS_AT_START or is_registered(env) or env not in gym.registry:
        return
    tune.register_env(env, partial(_make, gym.spec(env)))


def _make(spec: EnvSpec, context: Mapping[str, Any]) -> gym.Env:
    return gym.make(spec, **context)


def apply_config(config: AlgorithmConfig, changes: Mapping[str, Any], option: str = "--config") -> AlgorithmConfig:
    """A copy of `config` with `changes` (setting: value) made; unknown settings are errors with near matches."""
    config = config.copy(copy_frozen=False)
    properties = {name for name, member in inspect.getmembers(type(config)) if getattr(member, "fset", None)}
    known = {key for key in vars(config) if not key.startswith("_")} | set(config.to_dict()) | properties
    for key, value in changes.items():
        if key == "algo_class":
            raise UsageError(f"{option} cannot set 'algo_class': name the algorithm with --algo, or in the file.")
        _check_grids(value, f"{option}: {key!r}")
        if key not in known and ray_internals.setting_name(config, key) not in known:
            raise UsageError(f"{option}: {type(config).__name__} has no setting {key!r}.{near(key, known)}")
    for key, value in changes.items():
        try:
            config.copy().update_from_dict({key: value})
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise UsageError(f"{option}: {key!r} cannot be {value!r}: {error}") from error
    return config.update_from_dict(dict(changes))


def _check_grids(value: Any, where: str) -> None:
    """Refuses a grid search, at any depth, that is not over a list of values."""
    if not isinstance(value, Mapping):
        return
    for key, inner in value.items():
        if key == "grid_search" and not (isinstance(inner, list) and inner):
            raise UsageError(f'{where}: "grid_search" must be a list of values, such as [1, 2], but is {inner!r}.')
        _check_grids(inner, where)
