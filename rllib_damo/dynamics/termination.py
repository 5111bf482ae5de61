"""When a model-generated transition ends its episode: the rule of the user, or the known one of an environment id."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import gymnasium as gym
from gymnasium.envs.registration import load_env_creator

from rllib_damo.errors import UserError
from rllib_damo.tasks import TERMINATION_RULES, TerminationFn
from rllib_damo.utils.environments import is_registered


def resolve_termination(
    env_id: Any, termination_fn: TerminationFn | None = None, env_config: Mapping[str, Any] | None = None
) -> TerminationFn | None:
    """The rule to roll out with: the user's, or the known one of the environment.

    Args:
        env_id: as in ``config.env``: a gymnasium id, an environment class, or None.
        termination_fn: the user's callable; wins when given.
        env_config: the environment's constructor arguments; the known rules follow them.

    Returns:
        The rule, taking actions in the environment's units; None if it has to be learned from the dataset.

    Raises:
        UserError: ``env_config`` holds what the known rule cannot follow.
    """
    if termination_fn is not None:
        return termination_fn
    if not isinstance(env_id, str) or env_id not in TERMINATION_RULES or is_registered(env_id):
        return None
    given = dict(env_config or {})
    if given.get("xml_file") is not None:
        raise UserError(
            f"env_config['xml_file']={given['xml_file']!r} replaces the body that the known termination rule of "
            f"{env_id} describes. Give .dynamics(termination_fn=...) as well."
        )
    spec = gym.spec(env_id)
    parameters = inspect.signature(load_env_creator(spec.entry_point)).parameters  # type: ignore[arg-type]
    defaults = {name: p.default for name, p in parameters.items() if p.default is not p.empty}
    unknown = [key for key in given if key.startswith(("healthy_", "terminate_", "exclude_")) and key not in defaults]
    if unknown:
        raise UserError(
            f"env_config has {', '.join(map(repr, unknown))}, which {env_id} does not take. It takes: "
            f"{', '.join(sorted(defaults))}."
        )
    return TERMINATION_RULES[env_id](defaults | (spec.kwargs or {}) | given)
