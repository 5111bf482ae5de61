"""Playing episodes: whole, in order, and the same however they are batched."""

import gymnasium as gym
import numpy as np
import pytest

from rllib_damo.data.generate.collect import FIELDS, episode_seeds, play
from rllib_damo.data.generate.policies import resolve_policy


def test_seeds_do_not_depend_on_grouping_but_on_seed_and_stream() -> None:
    def states(seed: int, stream: str, start: int, stop: int) -> list[int]:
        return [int(s.generate_state(1)[0]) for s in episode_seeds(seed, stream, start, stop)]

    assert states(0, "a", 0, 6) == states(0, "a", 0, 2) + states(0, "a", 2, 6)
    assert len({*states(0, "a", 0, 6), *states(0, "b", 0, 6), *states(1, "a", 0, 6)}) == 18


def test_episodes_are_the_same_for_any_batch_size() -> None:
    policy = resolve_policy("Hopper-v5", "uniform")  # elementwise, so exactly
    one, many = (play("Hopper-v5", policy, episode_seeds(3, "x", 0, 7), num_envs=n) for n in (1, 3))
    for field in (*FIELDS, "lengths"):
        np.testing.assert_array_equal(one[field], many[field])


def test_played_episodes_are_gymnasiums() -> None:
    env_id = "Hopper-v5"
    policy = resolve_policy(env_id, "uniform")
    seeds = episode_seeds(0, "x", 0, 2)
    rows = play(env_id, policy, seeds)
    env = gym.make(env_id)
    row = 0
    for seed, length in zip(episode_seeds(0, "x", 0, 2), rows["lengths"], strict=True):
        observation, _ = env.reset(seed=int(seed.spawn(2)[0].generate_state(1)[0]))
        for t in range(length):
            np.testing.assert_array_equal(rows["observations"][row], observation.astype(np.float32))
            observation, reward, terminated, truncated, _ = env.step(rows["actions"][row])
            np.testing.assert_array_equal(rows["next_observations"][row], observation.astype(np.float32))
            assert rows["rewards"][row] == pytest.approx(reward, rel=1e-5)
            assert rows["terminations"][row] == terminated
            assert (terminated or truncated) == (t == length - 1)
            row += 1
    assert row == len(rows["rewards"])


def test_time_limit_is_a_truncation() -> None:
    rows = play("Pendulum-v1", resolve_policy("Pendulum-v1", "pendulum-mixed"), episode_seeds(0, "x", 0, 3))
    assert rows["lengths"].tolist() == [200] * 3
    assert np.flatnonzero(rows["truncations"]).tolist() == [199, 399, 599]
    assert not rows["terminations"].any()


def test_pendulum_mixed_is_mixed() -> None:
    rows = play("Pendulum-v1", resolve_policy("Pendulum-v1", "pendulum-mixed"), episode_seeds(0, "x", 0, 100))
    returns = rows["rewards"].reshape(100, 200).sum(axis=1)
    assert returns.mean() < -500
    assert returns.max() > -200
    assert returns.min() < -1200
    assert np.abs(rows["actions"]).max() <= 2
    swing_up = resolve_policy("Pendulum-v1", "pendulum-mixed")
    noiseless = type("Noiseless", (type(swing_up),), {"draw": lambda self, rng, steps: np.eye(1, 2).repeat(steps, 0)})()
    rows = play("Pendulum-v1", noiseless, episode_seeds(0, "x", 0, 20))
    assert rows["rewards"].reshape(20, 200).sum(axis=1).mean() > -220
