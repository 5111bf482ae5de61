"""Playing episodes: many environments in step, one batched policy evaluation for all of them."""

import zlib
from collections.abc import Sequence

import gymnasium as gym
import numpy as np

from rllib_damo.data.controllers import BehaviorPolicy

FIELDS = ("observations", "actions", "rewards", "next_observations", "terminations", "truncations")


def episode_seeds(seed: int, key: str, start: int, stop: int) -> list[np.random.SeedSequence]:
    """Seeds of the episodes ``start``..``stop`` of stream ``key``: independent of how episodes are grouped."""
    entropy = [seed, zlib.crc32(key.encode())]
    return [np.random.SeedSequence(entropy, spawn_key=(episode,)) for episode in range(start, stop)]


class _Slot:
    """One environment and the episode that it is playing."""

    def __init__(self, env_id: str):
        wrapped = gym.make(env_id)
        spec = wrapped.spec
        if spec is None or spec.max_episode_steps is None:
            raise ValueError(f"{env_id} has no max_episode_steps: its episodes could last for ever")
        self.steps: int = spec.max_episode_steps
        self.env = wrapped.unwrapped  # the wrappers cost time; the time limit is kept here

    def start(self, index: int, seed: np.random.SeedSequence, policy: BehaviorPolicy) -> np.ndarray:
        self.index, self.t = index, 0
        env_seed, noise_seed = seed.spawn(2)
        self.noise = policy.draw(np.random.default_rng(noise_seed), self.steps)
        first = np.asarray(self.env.reset(seed=int(env_seed.generate_state(1)[0]))[0], np.float32)
        self.observations = np.empty((self.steps + 1, len(first)), np.float32)
        self.actions = np.empty((self.steps, *(self.env.action_space.shape or ())), np.float32)
        self.rewards = np.empty(self.steps, np.float32)
        self.observations[0] = first
        return first

    def step(self, action: np.ndarray) -> bool:
        """Plays one step; True when the episode is over."""
        observation, reward, self.terminated, _, _ = self.env.step(action)
        self.actions[self.t], self.rewards[self.t] = action, reward
        self.t += 1
        self.observations[self.t] = observation
        return bool(self.terminated) or self.t == self.steps

    def episode(self) -> dict[str, np.ndarray]:
        t, last = self.t, np.arange(self.t) == self.t - 1
        return {
            "observations": self.observations[:t],
            "actions": self.actions[:t],
            "rewards": self.rewards[:t],
            "next_observations": self.observations[1 : t + 1],
            "terminations": last & bool(self.terminated),
            "truncations": last & (not self.terminated),
        }


def play(
    env_id: str, policy: BehaviorPolicy, seeds: Sequence[np.random.SeedSequence], num_envs: int = 32
) -> dict[str, np.ndarray]:
    """Plays one whole episode per seed.

    Returns:
        The ``FIELDS`` as arrays over all steps, episodes in the order of ``seeds``, and ``lengths`` (E,) int64.
        Actions are in the environment's units and inside its Box; a time limit sets ``truncations``.
    """
    waiting = iter(enumerate(seeds))
    slots = [_Slot(env_id) for _ in range(min(num_envs, len(seeds)))]
    episodes: dict[int, dict[str, np.ndarray]] = {}
    for slot in slots:
        slot.start(*next(waiting), policy)
    while slots:
        observations = np.stack([slot.observations[slot.t] for slot in slots])
        noise = np.stack([slot.noise[slot.t] for slot in slots])
        ended = [slot.step(action) for slot, action in zip(slots, policy.actions(observations, noise), strict=True)]
        if any(ended):
            for slot in (s for s, e in zip(slots, ended, strict=True) if e):
                episodes[slot.index] = slot.episode()
                following = next(waiting, None)
                if following is None:
                    slots = [s for s in slots if s is not slot]
                else:
                    slot.start(*following, policy)
    ordered = [episodes[index] for index in range(len(seeds))]
    out = {field: np.concatenate([episode[field] for episode in ordered]) for field in FIELDS}
    out["lengths"] = np.array([len(episode["rewards"]) for episode in ordered], np.int64)
    return out
