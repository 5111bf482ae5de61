from __future__ import annotations

from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from ray.rllib.core.rl_module.rl_module import RLModuleSpec

from rllib_damo import DAMOConfig
from rllib_damo.errors import CheckpointError
from rllib_damo.evaluation.checkpoints import load_config, module_dir
from rllib_damo.evaluation.policy import Policy, load_policy

ACTION_SPACE = gym.spaces.Box(np.array([-2.0, 0.0], np.float32), np.array([2.0, 10.0], np.float32))
OBSERVATION_SPACE = gym.spaces.Box(-np.inf, np.inf, (3,), np.float32)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DAMO module's own checkpoint."""
    config = DAMOConfig().environment(observation_space=OBSERVATION_SPACE, action_space=ACTION_SPACE)
    default = config.get_default_rl_module_spec()
    module = RLModuleSpec(
        module_class=default.module_class,
        observation_space=OBSERVATION_SPACE,
        action_space=ACTION_SPACE,
        model_config=config._model_config_auto_includes,
    ).build()
    with torch.no_grad():  # of an untrained policy all actions are near the middle of the box
        for parameter in module.actor.parameters():
            parameter.mul_(3.0)
    path = tmp_path_factory.mktemp("policy") / "module"
    module.save_to_path(path)
    return path


def test_addresses_are_taken(checkpoint: Path, policy: Policy) -> None:
    obs = np.ones(3, np.float32)
    np.testing.assert_array_equal(load_policy(f"file://{checkpoint}")(obs), policy(obs))


@pytest.fixture(scope="module")
def policy(checkpoint: Path) -> Policy:
    return load_policy(checkpoint)


def test_actions_are_the_mean_in_the_box_units(policy: Policy) -> None:
    obs = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
    unit = policy.module.mean_actions(torch.from_numpy(obs)).detach().numpy()
    actions = policy(obs)
    np.testing.assert_allclose(actions, [[-2.0, 0.0]] + (unit + 1.0) * [[2.0, 5.0]], atol=1e-5)
    assert all(ACTION_SPACE.contains(action) for action in actions)
    assert np.ptp(actions, axis=0).min() > 0.1


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_saturated_actions_lie_in_the_box(policy: Policy, dtype: type, monkeypatch: pytest.MonkeyPatch) -> None:
    bounds = np.sort(np.random.default_rng(0).normal(size=(2, 1000)), axis=0).astype(dtype)
    bounds[:, 0], bounds[:, 1] = (-0.1, 0.1), (0.2739233746, 0.8207989350)
    box = gym.spaces.Box(*bounds, dtype=dtype)
    unit = torch.tensor([[-1.0], [1.0], [0.0]]).expand(3, 1000)
    monkeypatch.setattr(policy, "action_space", box)
    monkeypatch.setattr(policy.module, "forward_inference", lambda batch: {"actions": unit})
    actions = policy(np.zeros((3, 3)))
    assert all(box.contains(action) for action in actions)
    np.testing.assert_allclose(actions, [*bounds, bounds.mean(0)], atol=1e-6)
    assert actions.dtype == dtype


def test_one_observation_and_a_batch_agree(policy: Policy) -> None:
    obs = np.random.default_rng(0).normal(size=(4, 3))
    batched = policy(obs)
    assert batched.shape == (4, 2)
    assert batched.dtype == np.float32
    assert policy(obs[0]).shape == (2,)
    np.testing.assert_allclose(policy(obs[0]), batched[0], atol=1e-5)
    assert policy(np.zeros((0, 3))).shape == (0, 2)


@pytest.mark.parametrize("shape", [(), (2,), (4, 2), (1, 4, 3)])
def test_wrong_width_is_refused(policy: Policy, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"must have shape \(3,\)"):
        policy(np.zeros(shape))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused(policy: Policy, value: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        policy(np.full(3, value))


def test_observations_are_left_alone(policy: Policy) -> None:
    obs = np.ones(3, np.float32)
    policy(obs)
    np.testing.assert_array_equal(obs, 1.0)


def test_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such folder"):
        load_policy(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="holds no RLlib checkpoint"):
        load_policy(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="is a file"):
        load_policy(tmp_path / "file")


def make_checkpoint(folder: Path, constructor: bytes) -> Path:
    (folder / "learner_group" / "learner" / "rl_module" / "other").mkdir(parents=True)
    (folder / "class_and_ctor_args.pkl").write_bytes(constructor)
    return folder


def test_checkpoints_below_are_named(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "trial" / "checkpoint_000003", b"")
    for folder in (tmp_path, tmp_path / "trial"):
        with pytest.raises(CheckpointError, match="trial/checkpoint_000003"):
            load_policy(folder)


def test_other_module_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no module 'default_policy'; it has \['other'\]"):
        module_dir(make_checkpoint(tmp_path / "checkpoint", b""))


@pytest.mark.parametrize("content", [b"", b"not a pickle", b"\x80\x04}."])
def test_broken_constructor(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(CheckpointError, match=r"class_and_ctor_args\.pkl (cannot be read|holds no algorithm's config)"):
        load_config(make_checkpoint(tmp_path / "checkpoint", content))


def test_broken_module(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "module_state.pkl").write_bytes(b"")
    (tmp_path / "class_and_ctor_args.pkl").write_bytes((checkpoint / "class_and_ctor_args.pkl").read_bytes())
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_policy(tmp_path)
