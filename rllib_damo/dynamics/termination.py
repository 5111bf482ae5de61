"""When a model-generated transition ends its episode: the user's rule, or the known one of an environment id."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import gymnasium as gym
import torch
from gymnasium.envs.registration import load_env_creator
from torch import Tensor

from rllib_damo.utils.environments import is_registered

#: ``(obs (B, obs), actions (B, act), next_obs (B, obs)) -> terminated (B,) bool``; actions in the environment's units.
TerminationFn = Callable[[Tensor, Tensor, Tensor], Tensor]

#: The environment's constructor arguments (its own defaults, overridden by ``env_config``) → its rule.
Rule = Callable[[Mapping[str, Any]], TerminationFn]


def never_terminates(obs: Tensor, actions: Tensor, next_obs: Tensor) -> Tensor:
    """For environments whose episodes end by time limit alone."""
    return torch.zeros(len(next_obs), dtype=torch.bool, device=next_obs.device)


def _never(options: Mapping[str, Any]) -> TerminationFn:
    """HalfCheetah, Swimmer, Reacher, Pusher, HumanoidStandup, Pendulum: no terminal states."""
    return never_terminates


def _hopper(options: Mapping[str, Any]) -> TerminationFn:
    """Healthy: z and angle inside their open ranges, and so all else but x and z (angle, joints, velocities).

    Velocities are clipped to ±10 in the observation, so only the part of `healthy_state_range` within ±10 shows.
    """
    if not options["terminate_when_unhealthy"]:
        return never_terminates
    first = 0 if options["exclude_current_positions_from_observation"] else 1
    z_range, angle_range, state_range = (
        _pair(options, key) for key in ("healthy_z_range", "healthy_angle_range", "healthy_state_range")
    )

    def terminated(obs: Tensor, actions: Tensor, next_obs: Tensor) -> Tensor:
        z, angle, state = next_obs[:, first], next_obs[:, first + 1], next_obs[:, first + 1 :]
        return ~(_between(z, z_range) & _between(angle, angle_range) & _between(state, state_range).all(-1))

    return terminated


def _walker2d(options: Mapping[str, Any]) -> TerminationFn:
    """Healthy: z and angle inside their open ranges."""
    if not options["terminate_when_unhealthy"]:
        return never_terminates
    first = 0 if options["exclude_current_positions_from_observation"] else 1
    z_range, angle_range = _pair(options, "healthy_z_range"), _pair(options, "healthy_angle_range")

    def terminated(obs: Tensor, actions: Tensor, next_obs: Tensor) -> Tensor:
        return ~(_between(next_obs[:, first], z_range) & _between(next_obs[:, first + 1], angle_range))

    return terminated


def _ant(options: Mapping[str, Any]) -> TerminationFn:
    """Healthy: positions and velocities are finite, and z lies inside its closed range."""
    if not options["terminate_when_unhealthy"]:
        return never_terminates
    z_index = 0 if options["exclude_current_positions_from_observation"] else 2
    low, high = _pair(options, "healthy_z_range")

    def terminated(obs: Tensor, actions: Tensor, next_obs: Tensor) -> Tensor:
        z = next_obs[:, z_index]
        return ~((z >= low) & (z <= high) & next_obs.isfinite().all(-1))

    return terminated


def _humanoid(options: Mapping[str, Any]) -> TerminationFn:
    """Healthy: z inside its open range."""
    if not options["terminate_when_unhealthy"]:
        return never_terminates
    z_index = 0 if options["exclude_current_positions_from_observation"] else 2
    z_range = _pair(options, "healthy_z_range")

    def terminated(obs: Tensor, actions: Tensor, next_obs: Tensor) -> Tensor:
        return ~_between(next_obs[:, z_index], z_range)

    return terminated


def _inverted_pendulum(options: Mapping[str, Any]) -> TerminationFn:
    """Healthy: a finite observation, and the pole within 0.2 rad of upright."""

    def terminated(obs: Tensor, actions: Tensor, next_obs: Tensor) -> Tensor:
        return ~((next_obs[:, 1].abs() <= 0.2) & next_obs.isfinite().all(-1))

    return terminated


def _inverted_double_pendulum(options: Mapping[str, Any]) -> TerminationFn:
    """Healthy: the tip of the second pole is above 1 m. Both poles are 0.6 m long.

    The environment reads the tip from the simulator's last integration stage, a millimetre or less from the tip of the
    observed angles.
    """

    def terminated(obs: Tensor, actions: Tensor, next_obs: Tensor) -> Tensor:
        sin1, sin2, cos1, cos2 = next_obs[:, 1:5].unbind(-1)
        return 0.6 * (cos1 + cos1 * cos2 - sin1 * sin2) <= 1

    return terminated


def _mountain_car(options: Mapping[str, Any]) -> TerminationFn:
    """Ends at the goal: position at least 0.45 with at least the goal's velocity."""
    goal_velocity = float(options["goal_velocity"])

    def terminated(obs: Tensor, actions: Tensor, next_obs: Tensor) -> Tensor:
        return (next_obs[:, 0] >= 0.45) & (next_obs[:, 1] >= goal_velocity)

    return terminated


#: Environment id → rule. Ids are exact; nothing is guessed from a part of a name.
KNOWN: dict[str, Rule] = {
    f"{name}-{version}": rule
    for name, rule in {
        "Hopper": _hopper,
        "Walker2d": _walker2d,
        "Ant": _ant,
        "Humanoid": _humanoid,
        "InvertedPendulum": _inverted_pendulum,
        "InvertedDoublePendulum": _inverted_double_pendulum,
        "HalfCheetah": _never,
        "Swimmer": _never,
        "Reacher": _never,
        "Pusher": _never,
        "HumanoidStandup": _never,
    }.items()
    for version in ("v4", "v5")
} | {"Pendulum-v1": _never, "MountainCarContinuous-v0": _mountain_car}


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
        ValueError: ``env_config`` holds what the known rule cannot follow.
    """
    if termination_fn is not None:
        return termination_fn
    if not isinstance(env_id, str) or env_id not in KNOWN or is_registered(env_id):
        return None
    given = dict(env_config or {})
    if given.get("xml_file") is not None:
        raise ValueError(
            f"env_config['xml_file']={given['xml_file']!r} replaces the body that the known termination rule of "
            f"{env_id} describes. Give .dynamics(termination_fn=...) as well."
        )
    spec = gym.spec(env_id)
    parameters = inspect.signature(load_env_creator(spec.entry_point)).parameters  # type: ignore[arg-type]
    defaults = {name: p.default for name, p in parameters.items() if p.default is not p.empty}
    unknown = [key for key in given if key.startswith(("healthy_", "terminate_", "exclude_")) and key not in defaults]
    if unknown:
        raise ValueError(
            f"env_config has {', '.join(map(repr, unknown))}, which {env_id} does not take. It takes: "
            f"{', '.join(sorted(defaults))}."
        )
    return KNOWN[env_id](defaults | (spec.kwargs or {}) | given)


def _between(x: Tensor, bounds: tuple[float, float]) -> Tensor:
    return (bounds[0] < x) & (x < bounds[1])


def _pair(options: Mapping[str, Any], key: str) -> tuple[float, float]:
    try:
        low, high = options[key]
        return float(low), float(high)
    except (TypeError, ValueError):
        raise ValueError(f"env_config[{key!r}] must be a pair (low, high), but found {options[key]!r}.") from None
