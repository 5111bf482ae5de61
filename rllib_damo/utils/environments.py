"""Environments as ``config.env`` names them: registered with Ray, of Gymnasium, or classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium as gym
from ray.rllib.env.env_context import EnvContext
from ray.tune.registry import ENV_CREATOR, _global_registry

from rllib_damo.errors import UserError


def is_registered(env: Any) -> bool:
    """Whether the user registered an environment with Ray under this id; RLlib then prefers it to Gymnasium's."""
    return isinstance(env, str) and _global_registry.contains(ENV_CREATOR, env)


def make_env(env: Any, env_config: Mapping[str, Any] | None = None) -> gym.Env:
    """Makes an environment.

    Args:
        env: a name registered with Ray, a Gymnasium id, or a class.
        env_config: the constructor's arguments.

    Raises:
        UserError: if Gymnasium makes no such environment.
    """
    env_config = dict(env_config or {})
    if is_registered(env):
        return _global_registry.get(ENV_CREATOR, env)(EnvContext(env_config, worker_index=0))
    if not isinstance(env, str):
        return env(EnvContext(env_config, worker_index=0))
    try:
        return gym.make(env, **env_config)
    except (gym.error.Error, ImportError, TypeError) as error:
        given = f", env_config={env_config!r}" if env_config else ""
        raise UserError(f"env={env!r}{given} (--env): no such environment can be made ({error}).") from error
