"""An EnvRunner that evaluates in several copies of the environment, without favouring short episodes."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner
from ray.rllib.utils.annotations import override

from rllib_damo.evaluation.rounds import Part
from rllib_damo.utils.ray_internals import require_reset, set_env_seed

logger = logging.getLogger(__name__)

_LONG = 10_000  # steps of an episode
_MAX_REMAKES = 20
_SEEDS_OF_A_ROUND = 1_000_000  # more than a runner remakes its environments in one


class EvaluationEnvRunner(SingleAgentEnvRunner):
    """Plays as many episodes as asked for in ``num_envs_per_env_runner`` copies of the environment.

    RLlib's runner stops when so many have ended anywhere. Short episodes end first and make room for others, so that a
    policy that sometimes falls gets too low a mean. Here each copy plays its share, and later episodes are
    left out of all results (their steps are in ``num_env_steps_sampled``).
    """

    env: Any

    def __init__(self, *, config: AlgorithmConfig, **kwargs: Any):
        self._remakes = 0  # in a row, without an episode that ended
        self._attempts = 0  # seeds taken in this evaluation
        super().__init__(config=config, **kwargs)
        self._set_seed(attempt=0)

    def _set_seed(self, attempt: int) -> None:
        """Copy i is seeded with this plus i; RLlib's own, seed + worker index + 1e6, would have runners share episodes.

        A later attempt has other seeds, so that no episode is played twice.
        """
        if self.config.seed is not None:
            entropy = (self.config.seed, self.worker_index or 0, *([attempt] if attempt else []))
            set_env_seed(self, int(np.random.SeedSequence(entropy).generate_state(1)[0] >> 1))

    @override(SingleAgentEnvRunner)
    def make_env(self) -> None:
        """Makes the copies; with `restart_failed_sub_environments` again after one raised, with what is left to play.

        Raises:
            RuntimeError: the environment raises again and again, and no episode ends.
        """
        if self.config.env is None:  # a `custom_evaluation_function` needs none
            return
        old = self.env if isinstance(self.env, _Shares) else None
        super().make_env()
        self.env = _Shares(self.env)
        if old is None:
            return
        self.env.take_over(old)
        self._remakes = self._remakes + 1 if old.is_without_end else 1
        if self._remakes > _MAX_REMAKES:
            raise RuntimeError(f"the environment failed {self._remakes} times in a row, and no episode ended.")
        self._attempts += 1
        self._set_seed(self._attempts)

    @override(SingleAgentEnvRunner)
    def sample(
        self, *, num_episodes: int | None = None, force_reset: bool | None = None, attempt: int = 0, **kwargs: Any
    ) -> list[Any]:
        """As RLlib's.

        Args:
            num_episodes: whole episodes to play.
            force_reset: whether to begin with a reset.
            attempt: 0, or the number of times that runners were lost in this evaluation; each has its own seeds.
            kwargs: RLlib's.
        """
        if self.env is not None:
            self.env.set_total(num_episodes)
        config = self.config
        # RLlib does not pass it to a local runner
        if force_reset is None and config.custom_evaluation_function is None:
            force_reset = config.evaluation_force_reset_envs_before_iteration
        self._attempts = _SEEDS_OF_A_ROUND * attempt
        self._set_seed(self._attempts)
        if force_reset or attempt:  # with the seed, which RLlib's reset leaves out
            require_reset(self)
        return super().sample(num_episodes=num_episodes, **kwargs)

    def try_play(self, *, shares: Mapping[int, int], unit: str, force_reset: bool, attempt: int) -> Part:
        """Plays this runner's share, and answers with an exception's text instead of raising it (see `rounds`)."""
        amount = shares[self.worker_index]
        try:
            asked = {"num_episodes" if unit == "episodes" else "num_timesteps": amount}
            episodes = self.sample(force_reset=force_reset, attempt=attempt, **asked)
        except Exception:
            self.get_metrics()  # of episodes that are not counted
            return Part(self.worker_index, error=traceback.format_exc())
        steps = sum(episode.env_steps() for episode in episodes)
        units = len(episodes) if unit == "episodes" else steps
        return Part(self.worker_index, units, steps, self.get_metrics())


class _Shares(gym.vector.VectorWrapper):
    """Copies of an environment that report the ends of their own share of the episodes, and of no others."""

    def __init__(self, env: gym.vector.VectorEnv):
        super().__init__(env)
        self._left = np.full(env.num_envs, np.inf)
        self._steps = 0  # since an episode ended
        self.is_without_end = True  # since the copies were made

    def take_over(self, other: _Shares) -> None:
        """Plays on what is left of the shares of other copies."""
        self._left[:] = other._left

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
        self.is_without_end = self.is_without_end and not ends.any()
        self._left -= ends
        self._steps = 0 if ends.any() else self._steps + 1
        if self._steps == _LONG and np.isfinite(self._left).any():
            logger.warning(
                f"Evaluation waits for the end of an episode, and none has ended in {_LONG} steps. If the environment "
                "has no time limit, make it with one: gymnasium.wrappers.TimeLimit(env, max_episode_steps=1000)."
            )
        return observations, rewards, terminations, truncations, infos
