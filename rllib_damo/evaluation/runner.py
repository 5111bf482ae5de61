"""An EnvRunner that evaluates in several copies of the environment, without favouring short episodes."""

from __future__ import annotations

import logging
from typing import Any

import gymnasium as gym
import numpy as np
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner
from ray.rllib.utils.annotations import override

from rllib_damo.utils.ray_internals import require_reset, set_env_seed

logger = logging.getLogger(__name__)

_LONG = 10_000  # steps of an episode


class EvaluationEnvRunner(SingleAgentEnvRunner):
    """Plays as many episodes as asked for in ``num_envs_per_env_runner`` copies of the environment.

    RLlib's runner stops when so many have ended anywhere. Short episodes end first and make room for others, so that a
    policy that sometimes falls gets too low a mean. Here each copy plays its share, and later episodes are
    left out of all results (their steps are in ``num_env_steps_sampled``).
    """

    env: Any

    def __init__(self, *, config: AlgorithmConfig, **kwargs: Any):
        super().__init__(config=config, **kwargs)
        # Copy i is seeded with this plus i; RLlib's own, seed + worker index + 1e6, would have runners share episodes.
        if config.seed is not None:
            sequence = np.random.SeedSequence((config.seed, self.worker_index or 0))
            set_env_seed(self, int(sequence.generate_state(1)[0] >> 1))

    @override(SingleAgentEnvRunner)
    def make_env(self) -> None:
        if self.config.env is None:  # a `custom_evaluation_function` needs none
            return
        super().make_env()
        self.env = _Shares(self.env)

    @override(SingleAgentEnvRunner)
    def sample(self, *, num_episodes: int | None = None, force_reset: bool | None = None, **kwargs: Any) -> list[Any]:
        if self.env is not None:
            self.env.set_total(num_episodes)
        config = self.config
        # RLlib does not pass it to a local runner
        if force_reset is None and config.custom_evaluation_function is None:
            force_reset = config.evaluation_force_reset_envs_before_iteration
        if force_reset:  # with the seed, which RLlib's reset leaves out
            require_reset(self)
        return super().sample(num_episodes=num_episodes, **kwargs)


class _Shares(gym.vector.VectorWrapper):
    """Copies of an environment that report the ends of their own share of the episodes, and of no others."""

    def __init__(self, env: gym.vector.VectorEnv):
        super().__init__(env)
        self._left = np.full(env.num_envs, np.inf)
        self._steps = 0  # since an episode ended

    def set_total(self, num_episodes: int | None) -> None:
        """Divides so many episodes among the copies; the first ones get the rest. None: no limit."""
        self._steps = 0
        if num_episodes is None:
            self._left[:] = np.inf
        else:
            share, rest = divmod(num_episodes, self.num_envs)
            self._left[:] = share + (np.arange(self.num_envs) < rest)

    def step(self, actions: Any) -> Any:
        observations, rewards, terminations, truncations, infos = self.env.step(actions)
        counts = self._left > 0
        terminations, truncations = terminations & counts, truncations & counts
        ends = terminations | truncations
        self._left -= ends
        self._steps = 0 if ends.any() else self._steps + 1
        if self._steps == _LONG and np.isfinite(self._left).any():
            logger.warning(
                f"Evaluation waits for the end of an episode, and none has ended in {_LONG} steps. If the environment "
                "has no time limit, make it with one: gymnasium.wrappers.TimeLimit(env, max_episode_steps=1000)."
            )
        return observations, rewards, terminations, truncations, infos
