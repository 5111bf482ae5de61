"""Rounds of rollouts: asking all runners for their parts, waiting for them, and going on without those that died."""

from __future__ import annotations

import logging
import time
import traceback
from typing import Any

import ray
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig

logger = logging.getLogger(__name__)

_TAG = "round of rollouts"
#: What is waited after a round without an answer: a runner takes seconds to start again.
_PAUSE_SECONDS = 1.0


class RolloutRounds:
    """Rounds of a `ModelRolloutEnvRunner` in this process, or of a group of remote ones.

    .. code-block:: python

        rounds = RolloutRounds(config, algo.env_runner, algo.env_runner_group)
        rounds.request(weights, iteration, dynamics_path=path, start_states=states)
        parts, metrics = rounds.collect()  # at once, or after other work: remote runners roll out meanwhile

    At most one round is pending. For a checkpoint, save `pending`; to restore it, `discard` what this run has asked
    for, and ``request(**saved, **job)`` if ``saved`` is not empty: the same request gives the same rows.

    Args:
        config: reads ``num_env_runners`` and ``num_consecutive_env_runner_failures_tolerance``.
        env_runner: the local runner; it rolls out where ``num_env_runners`` is 0.
        env_runner_group: RLlib's `EnvRunnerGroup`; its remote runners roll out otherwise.
    """

    def __init__(self, config: AlgorithmConfig, env_runner: Any, env_runner_group: Any):
        self._env_runner, self._group = env_runner, env_runner_group
        self._is_remote = config.num_env_runners > 0
        self._tolerance = config.num_consecutive_env_runner_failures_tolerance
        self._missed = 0  # rounds in a row that no runner answered
        self._request: dict[str, Any] = {}

    @property
    def pending(self) -> dict[str, Any]:
        """What `request` was given and `collect` has not yet returned, or {}.

        ``weights`` and ``iteration``; and ``dynamics_state``, if the round has one. The rest of a job (the model's
        file, the start states) belongs to the run and is given again by the one that restores this.
        """
        return {name: self._request[name] for name in _SAVED if name in self._request}

    def request(self, weights: Any, iteration: int, **job: Any) -> None:
        """Asks all runners for their parts of a round; returns at once.

        Args:
            weights: the policy's state. It must not change until the round is collected: give a copy, where a learner
                in this process hands out its own memory.
            iteration: with the weights and the seed it determines the round.
            job: the other arguments of `ModelRolloutEnvRunner.sample`; what is large, as an ``ObjectRef`` where
                runners are remote (``dynamics_state`` and weights are put into the object store here).

        Raises:
            RuntimeError: a round is pending: collect or discard it first.
        """
        if self._request:
            raise RuntimeError("A round of rollouts is pending: call collect() or discard() before the next request().")
        self._request = {"weights": weights, "iteration": iteration, **job}
        if self._is_remote:
            shared = {name: ray.put(job[name]) for name in ("dynamics_state",) if job.get(name) is not None}
            kwargs = self._request | shared | {"weights": ray.put(weights)}
            self._group.foreach_env_runner_async(_answer, tag=_TAG, kwargs=kwargs)

    def collect(self) -> tuple[list[Any], list[dict[str, Any]]]:
        """Waits for the pending round.

        Returns:
            The parts of all runners (Arrow tables, or a dict of tensors on the GPU that runner and learner share), and
            each runner's metrics. A remote runner that died has neither; where all died, both lists are empty: then go
            on without a new round.

        Raises:
            RuntimeError: no round was requested; a remote runner failed, with its error's type, text and place; or no
                runner answered for more than ``num_consecutive_env_runner_failures_tolerance`` rounds in a row.
            Exception: what the local runner raises.
        """
        if not self._request:
            raise RuntimeError("No round of rollouts is pending: call request() first.")
        request, self._request = self._request, {}
        if not self._is_remote:
            return self._env_runner.sample(**request), [self._env_runner.get_metrics()]
        answers = self._fetch()
        errors = [answer for answer in answers if isinstance(answer, str)]
        if errors:
            raise RuntimeError(errors[0])
        self._missed = 0 if answers else self._missed + 1
        if not answers:
            self._tolerate_missed_round()
        return [part for parts, _ in answers for part in parts], [metrics for _, metrics in answers]

    def discard(self) -> None:
        """Drops the pending round, if any, and an error in it. A remote one is waited for, to leave nothing behind."""
        if self._request and self._is_remote:
            self._fetch()
        self._request = {}

    def _fetch(self) -> list[Any]:
        return [answer for _, answer in self._group.fetch_ready_async_reqs(tags=_TAG, timeout_seconds=None)]

    def _tolerate_missed_round(self) -> None:
        """Waits a moment after a round that no runner answered; raises RuntimeError after too many of them."""
        if self._missed > self._tolerance:
            raise RuntimeError(
                f"No rollout runner answered for {self._missed} rounds "
                f"(`num_consecutive_env_runner_failures_tolerance`={self._tolerance}): all died, and their logs say "
                "why. Restore the last checkpoint, perhaps with num_env_runners=0, which rolls out in this process."
            )
        logger.warning("No rollout runner answered; this iteration goes on without a new round.")
        time.sleep(_PAUSE_SECONDS)


_SAVED = ("weights", "iteration", "dynamics_state")


def _answer(runner: Any, **job: Any) -> tuple[list[Any], dict[str, Any]] | str:
    """A remote runner's part and metrics; or an error as text, since RLlib drops what a remote runner raises."""
    try:
        return runner.sample(**job), runner.get_metrics()
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        return (
            f"A rollout runner failed: {type(error).__name__}: {error} ({place.filename}:{place.lineno}, in "
            f"{place.name}). The same round would fail again: fix the cause, and restore the last checkpoint; with "
            f"num_env_runners=0, rollouts run in this process, where a debugger can follow.\n{traceback.format_exc()}"
        )
