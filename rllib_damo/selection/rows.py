"""A dataset as the estimators of the selection read it: tensors, with the episode of each row."""

from __future__ import annotations

from dataclasses import dataclass

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from rllib_damo.data.schema import Transitions
from rllib_damo.utils.batch import as_constant
from rllib_damo.utils.spaces import to_unit


@dataclass(frozen=True, eq=False)
class Rows:
    """N transitions of episodes one after the other; the last row of each ends it."""

    obs: Tensor  # (N, obs)
    actions: Tensor  # (N, act), in [-1, 1]
    rewards: Tensor  # (N,)
    next_obs: Tensor  # (N, obs); nothing reads it where terminated
    terminated: Tensor  # (N,) bool
    episode: Tensor  # (N,) int64, the number of the row's episode
    starts: Tensor  # (episodes,) int64, first rows
    stops: Tensor  # (episodes,) int64, one past the last rows

    @classmethod
    def of(cls, transitions: Transitions, action_space: gym.Space) -> Rows:
        """From a dataset whose actions are in the environment's units."""
        starts, stops = transitions.episode_bounds().T
        return cls(
            as_constant(transitions.observations),
            as_constant(np.clip(to_unit(transitions.actions, action_space), -1, 1)),
            as_constant(transitions.rewards),
            as_constant(transitions.next_observations),
            as_constant(transitions.terminations),
            torch.from_numpy(np.repeat(np.arange(len(starts)), stops - starts)),
            torch.from_numpy(starts.copy()),
            torch.from_numpy(stops.copy()),
        )

    def __len__(self) -> int:
        return len(self.rewards)

    @property
    def num_episodes(self) -> int:
        return len(self.starts)

    def of_episodes(self, chosen: Tensor) -> Tensor:
        """Indices of the rows of the episodes where ``chosen (episodes,)`` bool."""
        return chosen[self.episode].nonzero().squeeze(-1)

    def discounted_returns(self, gamma: float, tails: Tensor | None = None) -> Tensor:
        """Σ_t γ^t r_t of each episode, (episodes,) float64.

        Args:
            gamma: the discount.
            tails: values of the last next states ``(episodes,)``, which complete the episodes that did not terminate.
        """
        age = torch.arange(len(self)) - self.starts[self.episode]
        terms = self.rewards.double() * gamma ** age.double()
        returns = torch.zeros(self.num_episodes, dtype=torch.float64).index_add_(0, self.episode, terms)
        if tails is None:
            return returns
        open_ended = ~self.terminated[self.stops - 1]
        return returns + torch.where(open_ended, tails.double() * gamma ** (self.stops - self.starts).double(), 0.0)

    def returns_to_go(self, rewards: Tensor, gamma: float, tail: float) -> Tensor:
        """Σ_k γ^k r_{t+k} from each row to its episode's end, (N,) float64; ``tail`` follows where none terminated."""
        values, terminated = rewards.double().numpy(), self.terminated.numpy()
        result, stops = np.empty(len(values)), self.stops.numpy()
        after = np.where(terminated[stops - 1], 0.0, tail)
        lengths = stops - self.starts.numpy()
        for back in range(int(lengths.max())):  # the same step of all episodes at once, from their ends
            own = lengths > back
            at = stops[own] - 1 - back
            after[own] = values[at] + gamma * after[own]
            result[at] = after[own]
        return torch.from_numpy(result)
