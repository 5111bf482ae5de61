"""Refuses RLlib's options that are set and would change nothing in the package's algorithms, or not what they say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ray.rllib.models import MODEL_DEFAULTS

from rllib_damo.core.rllib_options import RLLIB_OPTIONS, Refused
from rllib_damo.utils import ray_internals
from rllib_damo.utils.names import near

if TYPE_CHECKING:
    from rllib_damo.core.config import OfflineConfig

#: What an evaluation runner reads of ``evaluation_config``: the options of these methods.
_OF_EVALUATION = ("environment", "env_runners", "callbacks", "reporting", "debugging", "fault_tolerance")

#: Attribute of a config -> (option, what to do instead), for all options that are refused.
_REFUSED = {
    ray_internals.attribute_of(option): (option, fate.instead)
    for options in RLLIB_OPTIONS.values()
    for option, fate in options.items()
    if isinstance(fate, Refused)
}


def check_unused(config: OfflineConfig, defaults: Mapping[str, Any]) -> None:
    """Raises ValueError for an option that is set, in `config` or its ``evaluation_config``, and would change nothing.

    Args:
        config: an algorithm's.
        defaults: the attributes of such a config in which nothing is set.
    """
    for name in _REFUSED:
        if name in defaults and not _same(getattr(config, name), defaults[name]):
            config.refuse(_message(config, name, getattr(config, name), defaults[name]))
    _check_networks(config)
    _check_evaluation_config(config, defaults)


def _message(config: OfflineConfig, name: str, value: Any, default: Any) -> str:
    option, instead = _REFUSED[name]
    return f"`{option}`={value!r} is not for {config.algorithm_name}: leave it {default!r}; {instead}."


def _same(value: Any, default: Any) -> bool:
    try:
        return value is default or bool(value == default)
    except (TypeError, ValueError):  # arrays and the like
        return False


def _check_networks(config: OfflineConfig) -> None:
    """The options of RLlib's own networks, which count for a module of the user's alone."""
    model = {name: value for name, value in config.model.items() if value != MODEL_DEFAULTS.get(name)}
    for given, found in (
        ("rl_module(model_config", ray_internals.given_model_config(config)),
        ("training(model", model),
    ):
        if found and ray_internals.given_module_spec(config) is None:
            networks = ", ".join(f"`{name}`" for name in config.network_options)
            config.refuse(
                f"`.{given}={found!r})` is not for {config.algorithm_name}'s own networks: set {networks} in "
                "`.training()`."
            )


def _check_evaluation_config(config: OfflineConfig, defaults: Mapping[str, Any]) -> None:
    given: Any = config.evaluation_config or {}
    if not isinstance(given, Mapping):
        config.refuse(
            f"`evaluation_config` must be a dict of options, such as {{'num_envs_per_env_runner': 10}}; found "
            f"{type(given).__name__}."
        )
        return
    methods = {
        ray_internals.attribute_of(option): method for method, names in config.methods().items() for option in names
    }
    forced = {
        "explore": (False, "evaluation takes the mean action"),
        "num_env_runners": (config.evaluation_num_env_runners, "set `evaluation_num_env_runners`"),
        "env_runner_cls": (None, "evaluation has a runner of its own"),
        "num_gpus_per_env_runner": (0, "evaluation runs on CPUs"),
    }
    for key, value in given.items():
        name = ray_internals.setting_name(config, key)
        where = f"`evaluation_config`: `{key}`={value!r}"
        if name in forced:
            only, why = forced[name]
            if not _same(value, only):
                config.refuse(f"{where} would change nothing: {why}.")
        elif name in _REFUSED and name in defaults:
            if not _same(value, defaults[name]):
                config.refuse(f"`evaluation_config`: {_message(config, name, value, defaults[name])}")
        elif name not in defaults and name not in methods:
            known = {*defaults, *methods}
            config.refuse(f"`evaluation_config`: {type(config).__name__} has no option {key!r}.{near(key, known)}")
        elif name in methods and methods[name] not in _OF_EVALUATION and not _same(value, getattr(config, name)):
            config.refuse(f"{where} would change nothing: set it in `.{methods[name]}()`, for all of the run.")
