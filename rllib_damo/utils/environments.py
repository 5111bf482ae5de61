"""Environments as ``config.env`` names them: registered with Ray, of Gymnasium, or classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium as gym
from ray.rllib.env.env_context import EnvContext

from rllib_damo.errors import UserError
from rllib_damo.utils.ray_internals import env_creator, is_env


def is_registered(env: Any) -> bool:
    """Whether the user registered an environment with Ray under this id; RLlib then prefers it to Gymnasium's."""
    return isinstance(env, str) and is_env(env)


def make_env(env: Any, env_config: Mapping[str, Any] | None = None) -> gym.Env:
    """Makes an environment.

    Args:
        env: a name registered with Ray, a Gymnasium id, or a class.
        env_config: the constructor's arguments.

    Raises:
        UserError: if Gymnasium makes no such environment.
    """
    env_config = dict(env_config or {})
    if isinstance(env, gym.Env):
        raise UserError(f"env={env!r}: give the environment's id, its class or a registered name, not an instance.")
    if not isinstance(env, str) or is_env(env):
        create = env_creator(env) if isinstance(env, str) else env
        return create(EnvContext(env_config, worker_index=0))
    try:
        return gym.make(env, **env_config)
    except (gym.error.Error, ImportError, TypeError) as error:
        given = f", env_config={env_config!r}" if env_config else ""
        own = ""
        if isinstance(error, gym.error.UnregisteredEnv) and ":" not in env:
            own = (
                " One of your own must be known to every process: register it with ray.tune.register_env, or write "
                "'module:Id-v0'."
            )
        raise UserError(f"env={env!r}{given} (--env): no such environment can be made ({error}).{own}") from error
