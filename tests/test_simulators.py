"""The quick batches give what Gymnasium gives, step for step."""

import gymnasium as gym
import numpy as np
import pytest

from rllib_damo.data.generate import simulators


@pytest.mark.parametrize("env_id", [*simulators.LOCOMOTION, "Pendulum-v1"])
def test_batch_equals_gymnasium(env_id: str) -> None:
    num = 2
    batch = simulators.make_batch(env_id, num)
    envs = [gym.make(env_id) for _ in range(num)]
    rng = np.random.default_rng(0)
    for i, env in enumerate(envs):
        np.testing.assert_array_equal(batch.reset(i, seed=i), env.reset(seed=i)[0])
    resets = 0
    for _ in range(250):
        actions = rng.uniform(batch.action_space.low, batch.action_space.high, (num, *batch.action_space.shape))
        actions = actions.astype(np.float32)
        observations, rewards, terminated = batch.step(np.arange(num), actions)
        for i, env in enumerate(envs):
            observation, reward, terminal, truncated, _ = env.step(actions[i])
            np.testing.assert_array_equal(observations[i], observation)
            assert rewards[i] == pytest.approx(reward, rel=1e-6, abs=1e-6)
            assert terminated[i] == terminal
            if terminal or truncated:
                resets += 1
                seed = 100 + resets
                np.testing.assert_array_equal(batch.reset(i, seed=seed), env.reset(seed=seed)[0])
    assert batch.max_steps == gym.spec(env_id).max_episode_steps
    if env_id in ("Hopper-v5", "Walker2d-v5"):
        assert resets > 5


def test_only_a_part_of_the_batch_is_stepped() -> None:
    batch = simulators.make_batch("Hopper-v5", 3)
    for i in range(3):
        batch.reset(i, seed=i)
    before = batch.envs[1].data.qpos.copy()
    batch.step(np.array([0, 2]), np.zeros((2, 3), np.float32))
    np.testing.assert_array_equal(batch.envs[1].data.qpos, before)


def test_an_env_without_time_limit_is_refused() -> None:
    gym.register("Endless-v0", entry_point="gymnasium.envs.classic_control:PendulumEnv")
    with pytest.raises(ValueError, match=r"Endless-v0 has no max_episode_steps"):
        simulators.make_batch("Endless-v0", 1)
