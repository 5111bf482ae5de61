"""Scores on the real environment: D4RL's normalised score, and the discounted return beside RLlib's undiscounted one.

`DAMOCallbacks` adds them to every evaluation of an RLlib algorithm; it needs nothing of DAMO and stands beside other
callbacks: `config.callbacks([DAMOCallbacks, MyCallbacks])`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from ray.rllib.callbacks.callbacks import RLlibCallback
from ray.rllib.utils.metrics import (
    ENV_RUNNER_RESULTS,
    EPISODE_LEN_MAX,
    EPISODE_LEN_MEAN,
    EPISODE_LEN_MIN,
    EPISODE_RETURN_MAX,
    EPISODE_RETURN_MEAN,
    EPISODE_RETURN_MIN,
    EVALUATION_RESULTS,
)

if TYPE_CHECKING:
    from ray.rllib.algorithms.algorithm import Algorithm
    from ray.rllib.utils.metrics.metrics_logger import MetricsLogger

DISCOUNTED_RETURN_MEAN = "discounted_return_mean"
EPISODE_RETURN_STD = "episode_return_std"
NORMALIZED_SCORE = "normalized_score"
NORMALIZED_SCORE_STD = "normalized_score_std"
# What the single episodes of one evaluation were travels under these keys, and leaves the result again in
# `on_evaluate_end`.
_RETURNS = "_episode_returns"
_DISCOUNTED_RETURNS = "_discounted_returns"
_LENGTHS = "_episode_lengths"

# Task -> (return of a uniform random policy, return of an expert), which score 0 and 100.
# MuJoCo: D4RL's `infos.py`, measured there on the v2 environments.
# Pendulum: measured on Pendulum-v1. Low: uniform random actions, 1000 episodes, mean -1230.7 (standard error 9). High:
# an energy swing-up law with a PD catch near the top, 500 episodes, mean -149.1 (standard error 4), which well trained
# policies equal.
REFERENCE_RETURNS: dict[str, tuple[float, float]] = {
    "hopper": (-20.272305, 3234.3),
    "halfcheetah": (-280.178953, 12135.0),
    "walker2d": (1.629008, 4592.3),
    "pendulum": (-1230.7, -149.1),
}

_MUJOCO_VERSIONS = ("v2", "v3", "v4", "v5")
# Environment id -> task. Exact ids, never parts of them: another environment's return has another meaning.
TASKS: dict[str, str] = {
    **{f"Hopper-{version}": "hopper" for version in _MUJOCO_VERSIONS},
    **{f"HalfCheetah-{version}": "halfcheetah" for version in _MUJOCO_VERSIONS},
    **{f"Walker2d-{version}": "walker2d" for version in _MUJOCO_VERSIONS},
    "Pendulum-v1": "pendulum",
}


def reference_returns(env_id: object) -> tuple[float, float] | None:
    """(random, expert) return of a task ("hopper") or Gymnasium id ("Hopper-v5"); None where no reference is known."""
    if not isinstance(env_id, str):
        return None
    return REFERENCE_RETURNS.get(TASKS.get(env_id.rsplit(":", 1)[-1], env_id))


@overload
def normalized_score(env_id: object, returns: float) -> float | None: ...
@overload
def normalized_score(env_id: object, returns: np.ndarray) -> np.ndarray | None: ...
def normalized_score(env_id: object, returns: float | np.ndarray) -> float | np.ndarray | None:
    """D4RL's score 100 * (return - random) / (expert - random): 0 is a random policy, 100 an expert.

    Args:
        env_id: Gymnasium id ("Hopper-v5") or task ("hopper").
        returns: undiscounted episode return(s), any shape.

    Returns:
        The score(s), same shape; None if the environment has no reference returns (see `REFERENCE_RETURNS`).
    """
    reference = reference_returns(env_id)
    if reference is None:
        return None
    low, high = reference
    return 100.0 * (returns - low) / (high - low)


def normalized_std(env_id: object, std: float) -> float | None:
    """Standard deviation of the score, from that of the returns: scaled by the range, and not shifted."""
    reference = reference_returns(env_id)
    return None if reference is None else 100.0 * std / (reference[1] - reference[0])


def discounted_return(rewards: Sequence[float] | np.ndarray, gamma: float) -> float:
    """Sum over t of gamma^t r_t, for the rewards (T,) of one whole episode."""
    rewards = np.asarray(rewards, dtype=np.float64)
    return float(rewards @ gamma ** np.arange(len(rewards)))


class DAMOCallbacks(RLlibCallback):
    """Adds to `evaluation/env_runners`: `discounted_return_mean`, `episode_return_std`, and the normalised scores.

    `discounted_return_mean` is the real value of the policy at the start states, to be compared with the critics'
    estimate (Table 1 of the paper). `normalized_score` and `normalized_score_std` exist where `REFERENCE_RETURNS`
    knows the environment. These, and RLlib's returns and lengths beside them, are of all episodes of an evaluation
    alike: RLlib's own leave out all but a runner's last 100, and average the means of runners with unequal shares.

    The numbers are in the results of those iterations only that evaluated: RLlib's echo of an evaluation in the next
    result is taken out, since Tune would credit it to the next checkpoint.
    """

    def on_episode_end(
        self,
        *,
        episode: Any,
        prev_episode_chunks: list[Any] | None = None,
        env_runner: Any = None,
        metrics_logger: MetricsLogger | None = None,
        **kwargs: Any,
    ) -> None:
        if metrics_logger is None or not env_runner.config.in_evaluation:
            return
        chunks = [*(prev_episode_chunks or []), episode]
        rewards = np.concatenate([np.asarray(chunk.get_rewards(), dtype=np.float64) for chunk in chunks])
        # The series hold one evaluation: RLlib empties them when it collects the runners' metrics.
        for key, value in (
            (_RETURNS, float(rewards.sum())),
            (_DISCOUNTED_RETURNS, discounted_return(rewards, env_runner.config.gamma)),
            (_LENGTHS, len(rewards)),
        ):
            metrics_logger.log_value(key, value, reduce="item_series")

    def on_evaluate_end(
        self,
        *,
        algorithm: Algorithm,
        metrics_logger: MetricsLogger | None = None,
        evaluation_metrics: dict[str, Any],
        **kwargs: Any,
    ) -> None:
        results = evaluation_metrics.get(ENV_RUNNER_RESULTS)
        if not results:
            return
        returns, discounted, lengths = (results.pop(key, None) for key in (_RETURNS, _DISCOUNTED_RETURNS, _LENGTHS))
        if isinstance(returns, list | tuple) and len(returns) > 0:
            results[EPISODE_RETURN_MEAN] = float(np.mean(returns))
            results[EPISODE_RETURN_MIN], results[EPISODE_RETURN_MAX] = min(returns), max(returns)
            results[EPISODE_RETURN_STD] = float(np.std(returns))
            results[DISCOUNTED_RETURN_MEAN] = float(np.mean(discounted))
            results[EPISODE_LEN_MEAN] = float(np.mean(lengths))
            results[EPISODE_LEN_MIN], results[EPISODE_LEN_MAX] = min(lengths), max(lengths)
            for key in ("agent_episode_return_mean", "module_episode_return_mean"):
                results[key] = dict.fromkeys(results.get(key, {}), results[EPISODE_RETURN_MEAN])
        mean = results.get(EPISODE_RETURN_MEAN)
        # The evaluation may run in another environment than the (model-based) training does.
        config: Any = algorithm.evaluation_config or algorithm.config
        score = None if mean is None else normalized_score(config.env, float(mean))
        if score is not None:
            results[NORMALIZED_SCORE] = score
            if EPISODE_RETURN_STD in results:
                results[NORMALIZED_SCORE_STD] = normalized_std(config.env, results[EPISODE_RETURN_STD])

    def on_train_result(
        self, *, algorithm: Algorithm, metrics_logger: MetricsLogger | None = None, result: dict, **kwargs: Any
    ) -> None:
        evaluation = result.get(EVALUATION_RESULTS)
        # An evaluation of this iteration has gone through `on_evaluate_end`, which took the single returns out.
        if evaluation and _RETURNS in evaluation.get(ENV_RUNNER_RESULTS, {}):
            del evaluation[ENV_RUNNER_RESULTS]
            if not evaluation:
                del result[EVALUATION_RESULTS]
