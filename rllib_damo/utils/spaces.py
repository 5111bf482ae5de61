"""Box spaces: what the algorithms accept, and the map between a space's own units and "unit actions" in [-1, 1].

Unit actions are what the networks see; files, `Transitions` and environments hold the space's own units. The map is the
one RLlib applies with `normalize_actions=True` (an affine map of the Box onto [-1, 1]).
"""

from __future__ import annotations

from typing import TypeVar

import gymnasium as gym
import numpy as np
import torch

from rllib_damo.errors import UserError

Array = TypeVar("Array", np.ndarray, torch.Tensor)


def check_spaces(observation_space: gym.Space | None, action_space: gym.Space | None) -> None:
    """Refuses spaces that no algorithm here can train on.

    Observations may be whole numbers or bools; they become floats.

    Raises:
        UserError: for a missing or non-Box space, observations or actions that are not one-dimensional,
            or an action Box with an infinite or empty side, or of a type other than float32 and float64.
    """
    flatten = {"observation": " (gymnasium.wrappers.FlattenObservation)", "action": ""}
    for name, space in (("observation", observation_space), ("action", action_space)):
        if not isinstance(space, gym.spaces.Box):
            raise UserError(
                f"the {name} space must be a one-dimensional Box, but is {space!r}. "
                f"Wrap the environment so that its {name}s are flat vectors{flatten[name] or ' of floats'}."
            )
        if len(space.shape) != 1 or space.shape[0] < 1:
            raise UserError(
                f"the {name} space must be a one-dimensional Box, but has shape {space.shape}. "
                f"Flatten it to a vector with a wrapper{flatten[name]}."
            )
    assert action_space is not None
    if action_space.dtype not in (np.float32, np.float64):  # RLlib maps no others
        raise UserError(f"actions must be float32 or float64, but the action space has dtype {action_space.dtype}.")
    action_bounds(action_space)


def action_bounds(space: gym.Space | None) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper bounds of an action Box, each (act,) float32.

    Raises:
        UserError: if the space is no Box, or a side of it is infinite in float32 or empty.
    """
    if not isinstance(space, gym.spaces.Box):
        raise UserError(f"the action space must be a Box, but is {space!r}.")
    with np.errstate(over="ignore", invalid="ignore"):
        low, high = space.low.astype(np.float32), space.high.astype(np.float32)
        is_bounded = np.isfinite(2 * (high - low)).all()  # RLlib's map takes the side twice
    if not is_bounded:
        raise UserError(
            f"the action space {space!r} is unbounded or too large, so actions cannot be mapped to [-1, 1]. Bound it: "
            "wrap the environment, gymnasium.wrappers.TransformAction(env, lambda action: action, Box(low, high)); "
            "or, where there is only data, set .environment(action_space=Box(low, high))."
        )
    if not (low < high).all():
        raise UserError(f"the action space {space!r} has a side with low >= high; give every action a range.")
    return low, high


def to_unit(actions: Array, space: gym.Space) -> Array:
    """Maps actions (..., act) from the space's own units to [-1, 1]. Out-of-range values stay out of range."""
    low, high = _bounds_like(actions, space)
    return (actions - low) * (2.0 / (high - low)) - 1.0


def from_unit(actions: Array, space: gym.Space) -> Array:
    """Maps unit actions (..., act) from [-1, 1] to the space's own units; the inverse of `to_unit`."""
    return from_unit_between(actions, *_bounds_like(actions, space))


def from_unit_between(actions: Array, low: Array, high: Array) -> Array:
    """As `from_unit`, with the bounds (act,) given."""
    return low + (actions + 1.0) * ((high - low) * 0.5)


def _bounds_like(actions: Array, space: gym.Space) -> tuple[Array, Array]:
    low, high = action_bounds(space)
    if actions.shape[-1] != low.shape[0]:
        raise UserError(f"actions have width {actions.shape[-1]}, but the action space {space!r} has {low.shape[0]}.")
    if isinstance(actions, torch.Tensor):
        return torch.as_tensor(low).to(actions), torch.as_tensor(high).to(actions)
    return low.astype(actions.dtype), high.astype(actions.dtype)
