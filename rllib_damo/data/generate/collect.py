"""Playing episodes: many environments in step, one batched policy evaluation for all of them."""

import zlib
from collections.abc import Sequence

import numpy as np

from rllib_damo.data.generate.controllers import BehaviorPolicy
from rllib_damo.data.generate.simulators import GymBatch, make_batch

FIELDS = ("observations", "actions", "rewards", "next_observations", "terminations", "truncations")


def episode_seeds(seed: int, stream: str, start: int, stop: int) -> list[np.random.SeedSequence]:
    """Seeds of the episodes ``start``..``stop`` of a stream: independent of how episodes are grouped into units."""
    entropy = [seed, zlib.crc32(stream.encode())]
    return [np.random.SeedSequence(entropy, spawn_key=(episode,)) for episode in range(start, stop)]


class _Recorder:
    """The episodes being played, one a slot: arrays (slots, steps, ...)."""

    def __init__(self, envs: GymBatch, policy: BehaviorPolicy, slots: int):
        self.envs, self.policy = envs, policy
        steps = envs.max_steps
        self.observations = np.empty((slots, steps + 1, envs.observation_dim), np.float32)
        self.actions = np.empty((slots, steps, *envs.action_space.shape), np.float32)
        self.rewards = np.empty((slots, steps), np.float32)
        self.noise: list[np.ndarray] = [np.empty(0)] * slots
        self.t = np.zeros(slots, np.int64)
        self.episode = np.zeros(slots, np.int64)

    def start(self, slot: int, episode: int, seed: np.random.SeedSequence) -> None:
        env_seed, noise_seed = seed.spawn(2)
        self.noise[slot] = self.policy.draw(np.random.default_rng(noise_seed), self.envs.max_steps)
        self.observations[slot, 0] = self.envs.reset(slot, int(env_seed.generate_state(1)[0]))
        self.t[slot], self.episode[slot] = 0, episode

    def step(self, slots: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Plays one step in each of ``slots``: (terminated, over), both (B,) bool."""
        t = self.t[slots]
        noise = np.stack([self.noise[slot][step] for slot, step in zip(slots, t, strict=True)])
        actions = self.policy.actions(self.observations[slots, t], noise)
        observations, rewards, terminated = self.envs.step(slots, actions)
        self.actions[slots, t], self.rewards[slots, t] = actions, rewards
        self.observations[slots, t + 1] = observations
        self.t[slots] = t + 1
        return terminated, terminated | (t + 1 == self.envs.max_steps)

    def finish(self, slot: int, terminated: bool) -> tuple[np.ndarray, ...]:
        """The slot's episode as ``FIELDS``, copied."""
        t = self.t[slot]
        last = np.arange(t) == t - 1
        observations = self.observations[slot, : t + 1].copy()
        actions, rewards = self.actions[slot, :t].copy(), self.rewards[slot, :t].copy()
        return observations[:-1], actions, rewards, observations[1:], last & terminated, last & (not terminated)


def play(
    env_id: str, policy: BehaviorPolicy, seeds: Sequence[np.random.SeedSequence], num_envs: int = 32
) -> dict[str, np.ndarray]:
    """Plays one whole episode per seed, up to ``num_envs`` at a time.

    Returns:
        The ``FIELDS`` as arrays over all steps (float32; flags bool), episodes in the order of ``seeds``, and
        ``lengths`` (E,) int64. Actions are in the environment's units and inside its Box; a time limit sets
        ``truncations``.
    """
    num = min(num_envs, len(seeds))
    recorder = _Recorder(make_batch(env_id, num), policy, num)
    waiting = iter(enumerate(seeds))
    episodes: dict[int, tuple[np.ndarray, ...]] = {}
    for slot in range(num):
        recorder.start(slot, *next(waiting))
    slots = np.arange(num)
    while len(slots):
        terminated, over = recorder.step(slots)
        if not over.any():
            continue
        kept = []
        for slot, terminal, ended in zip(slots.tolist(), terminated.tolist(), over.tolist(), strict=True):
            following = None
            if ended:
                episodes[int(recorder.episode[slot])] = recorder.finish(slot, terminal)
                following = next(waiting, None)
                if following is not None:
                    recorder.start(slot, *following)
            if not ended or following is not None:
                kept.append(slot)
        slots = np.array(kept, np.int64)
    columns = zip(*(episodes[index] for index in range(len(seeds))), strict=True)
    out = {field: np.concatenate(column) for field, column in zip(FIELDS, columns, strict=True)}
    out["lengths"] = np.array([len(episodes[index][2]) for index in range(len(seeds))], np.int64)
    return out
