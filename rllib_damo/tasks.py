"""What is known of an environment id: its reference returns, the normalised score, and its termination rule.

Ids are exact here. Nothing is guessed from a part of a name, since another environment's return has another meaning.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, overload

import torch
from torch import Tensor

from rllib_damo.errors import UserError

if TYPE_CHECKING:
    import numpy as np

#: ``(obs (B, obs), actions (B, act), next_obs (B, obs)) -> terminated (B,) bool``; actions in the environment's units.
TerminationFn = Callable[[Tensor, Tensor, Tensor], Tensor]

#: The environment's constructor arguments (its own defaults, overridden by ``env_config``) → its rule.
Rule = Callable[[Mapping[str, Any]], TerminationFn]

# -- scores ------------------------------------------------------------------------------------------------------------

# Task -> (return of a uniform random policy, return of an expert), which score 0 and 100.
# MuJoCo: D4RL's `infos.py`, measured there on the v2 environments.
# Pendulum: measured on Pendulum-v1. Low: uniform random actions, 1000 episodes, mean -1230.7 (standard error 9). High:
# an energy swing-up law with a PD catch near the top, 500 episodes, mean -149.1 (standard error 4), which well trained
# policies equal.
REFERENCE_RETURNS: dict[str, tuple[float, float]] = {
    "hopper": (-20.272305, 3234.3),
    "halfcheetah": (-280.178953, 12135.0),
    "walker2d": (1.629008, 4592.3),
    "pendulum": (-1230.7, -149.1),
}

_MUJOCO_VERSIONS = ("v2", "v3", "v4", "v5")
# Environment id -> task.
TASKS: dict[str, str] = {
    **{f"Hopper-{version}": "hopper" for version in _MUJOCO_VERSIONS},
    **{f"HalfCheetah-{version}": "halfcheetah" for version in _MUJOCO_VERSIONS},
    **{f"Walker2d-{version}": "walker2d" for version in _MUJOCO_VERSIONS},
    "Pendulum-v1": "pendulum",
}


def reference_returns(env_id: object) -> tuple[float, float] | None:
    """(random, expert) return of a task ("hopper") or Gymnasium id ("Hopper-v5"); None where no reference is known."""
    if not isinstance(env_id, str):
        return None
    return REFERENCE_RETURNS.get(TASKS.get(env_id.rsplit(":", 1)[-1], env_id))


@overload
def normalized_score(env_id: object, returns: float) -> float | None: ...
@overload
def normalized_score(env_id: object, returns: np.ndarray) -> np.ndarray | None: ...
def normalized_score(env_id: object, returns: float | np.ndarray) -> float | np.ndarray | None:
    """D4RL's score 100 * (return - random) / (expert - random): 0 is a random policy, 100 an expert.

    Args:
        env_id: Gymnasium id ("Hopper-v5") or task ("hopper").
        returns: undiscounted episode return(s), any shape.

    Returns:
        The score(s), same shape; None if the environment has no reference returns (see `REFERENCE_RETURNS`).
    """
    reference = reference_returns(env_id)
    if reference is None:
        return None
    low, high = reference
    return 100.0 * (returns - low) / (high - low)


def normalized_std(env_id: object, std: float) -> float | None:
    """Standard deviation of the score, from that of the returns: scaled by the range, and not shifted."""
    reference = reference_returns(env_id)
    return None if reference is None else 100.0 * std / (reference[1] - reference[0])


# -- termination rules -------------------------------------------------------------------------------------------------


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


#: Environment id → termination rule.
TERMINATION_RULES: dict[str, Rule] = {
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


def _between(x: Tensor, bounds: tuple[float, float]) -> Tensor:
    return (bounds[0] < x) & (x < bounds[1])


def _pair(options: Mapping[str, Any], key: str) -> tuple[float, float]:
    try:
        low, high = options[key]
        return float(low), float(high)
    except (TypeError, ValueError):
        raise UserError(f"env_config[{key!r}] must be a pair (low, high), but found {options[key]!r}.") from None
