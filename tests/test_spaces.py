from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch

from rllib_damo.utils.spaces import check_spaces, from_unit, to_unit

BOX = gym.spaces.Box(np.array([-2.0, 0.0]), np.array([2.0, 10.0]), dtype=np.float32)
FLT_MAX = float(np.finfo(np.float32).max)
VECTOR = gym.spaces.Box(-np.inf, np.inf, (3,))


@pytest.mark.parametrize("make", [np.asarray, torch.as_tensor])
def test_the_bounds_map_to_plus_and_minus_one_and_back(make) -> None:
    actions = make(np.array([[-2.0, 0.0], [2.0, 10.0], [0.0, 5.0]], np.float32))
    unit = to_unit(actions, BOX)
    assert type(unit) is type(actions)
    assert unit.dtype == actions.dtype
    np.testing.assert_allclose(unit, [[-1, -1], [1, 1], [0, 0]])
    np.testing.assert_allclose(from_unit(unit, BOX), actions)


def test_the_map_is_rllibs() -> None:
    from ray.rllib.utils.spaces.space_utils import unsquash_action

    unit = np.random.default_rng(0).uniform(-1, 1, (20, 2)).astype(np.float32)
    expected = np.stack([unsquash_action(row, BOX) for row in unit])
    np.testing.assert_allclose(from_unit(unit, BOX), expected, atol=1e-6)


def test_gradients_pass_through() -> None:
    unit = torch.zeros(4, 2, requires_grad=True)
    from_unit(unit, BOX).sum().backward()
    np.testing.assert_allclose(unit.grad, np.tile([2.0, 5.0], (4, 1)))


def test_a_wrong_width_is_named() -> None:
    with pytest.raises(ValueError, match="width 3"):
        to_unit(np.zeros((1, 3), np.float32), BOX)


def test_good_spaces_pass() -> None:
    check_spaces(VECTOR, BOX)


@pytest.mark.parametrize("space", [gym.spaces.Discrete(3), gym.spaces.MultiBinary(3)])
def test_the_fixes_named_for_observations_and_actions_work(space) -> None:
    class Wide(gym.Env):
        observation_space = space
        action_space = gym.spaces.Box(-np.inf, np.inf, (1,))

    with pytest.raises(ValueError, match="FlattenObservation"):
        check_spaces(Wide.observation_space, BOX)
    env = gym.wrappers.FlattenObservation(Wide())
    with pytest.raises(ValueError, match=r"TransformAction.*\.environment\(action_space="):
        check_spaces(env.observation_space, env.action_space)
    bounded = gym.wrappers.TransformAction(env, lambda action: action, gym.spaces.Box(-3.0, 3.0, (1,)))
    check_spaces(bounded.observation_space, bounded.action_space)


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, bool])
def test_observations_of_whole_numbers_pass(dtype) -> None:
    check_spaces(gym.spaces.Box(0, 1, (3,), dtype), BOX)


@pytest.mark.parametrize(
    ("observation", "action", "message"),
    [
        (None, BOX, "observation space"),
        (gym.spaces.Discrete(3), BOX, "observation space must be .*, but is Discrete"),
        (gym.spaces.Dict({"a": VECTOR}), BOX, "FlattenObservation"),
        (gym.spaces.Box(0, 255, (8, 8, 3), np.uint8), BOX, "shape"),
        (gym.spaces.Box(0, 1, (3, 2)), BOX, r"shape \(3, 2\).*FlattenObservation"),
        (gym.spaces.MultiBinary(3), BOX, "FlattenObservation"),
        (VECTOR, gym.spaces.Discrete(2), "action space must be .*, but is Discrete"),
        (VECTOR, gym.spaces.Box(-1, 1, (2, 2)), "shape"),
        (VECTOR, gym.spaces.Box(-np.inf, np.inf, (2,)), "unbounded"),
        (VECTOR, gym.spaces.Box(np.array([-1.0, 0.0]), np.array([1.0, np.inf])), "unbounded"),
        (VECTOR, gym.spaces.Box(-FLT_MAX, FLT_MAX, (2,)), "unbounded"),
        (VECTOR, gym.spaces.Box(-1e39, 1.0, (2,), np.float64), "unbounded"),
        (VECTOR, gym.spaces.Box(np.array([0.0, 1.0]), np.array([1.0, 1.0])), "low >= high"),
        (VECTOR, gym.spaces.Box(0, 5, (2,), np.int32), "dtype int32"),
        (VECTOR, gym.spaces.Box(-1, 1, (2,), np.float16), "dtype float16"),
    ],
)
def test_spaces_that_cannot_be_trained_on_are_refused(observation, action, message) -> None:
    with pytest.raises(ValueError, match=message):
        check_spaces(observation, action)
