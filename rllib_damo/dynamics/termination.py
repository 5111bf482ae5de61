"""When a model-generated transition ends its episode: the rule of the user, or the known one of an environment id."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import torch
from gymnasium.envs.registration import load_env_creator

from rllib_damo.errors import UserError
from rllib_damo.tasks import TERMINATION_RULES, TerminationFn
from rllib_damo.utils.environments import is_registered
from rllib_damo.utils.spaces import action_bounds, from_unit_between

if TYPE_CHECKING:
    from rllib_damo.dynamics.ensemble import DynamicsEnsemble


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


def rule_of_model(
    config: Any, dynamics: DynamicsEnsemble, action_space: gym.Space, device: torch.device
) -> TerminationFn:
    """The rule for transitions of a model, over unit actions: `resolve_termination`'s, or the one that it learned.

    Args:
        config: reads ``env``, ``env_config`` and ``termination_fn``.
        dynamics: the model.
        action_space: of the environment.
        device: of the tensors that the rule is called with.

    Raises:
        UserError: there is neither.
    """
    rule = resolve_termination(config.env, config.termination_fn, config.env_config)
    if rule is not None:
        given = rule
        # Here once: taken from the space at each step, they would be copied to a GPU then, and waited for.
        low, high = (torch.as_tensor(bound, device=device) for bound in action_bounds(action_space))
        return lambda obs, actions, next_obs: given(obs, from_unit_between(actions, low, high), next_obs)
    if dynamics.termination is None:
        raise UserError(
            f"There is no known termination rule for env={config.env!r}, and the dynamics were trained without a "
            "learned one. Set .dynamics(termination_fn=...), or train them for this env."
        )
    return dynamics.termination.terminated
