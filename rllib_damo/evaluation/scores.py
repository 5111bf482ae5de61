"""Callbacks that add scores to an evaluation: the normalised score, and the discounted return.

`ScoreCallbacks` works with every RLlib algorithm, and together with other callbacks:
`config.callbacks([ScoreCallbacks, MyCallbacks])`.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

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

from rllib_damo.tasks import normalized_score, normalized_std
from rllib_damo.utils.names import nested

if TYPE_CHECKING:
    from ray.rllib.algorithms.algorithm import Algorithm
    from ray.rllib.utils.metrics.metrics_logger import MetricsLogger

DISCOUNTED_RETURN_MEAN = "discounted_return_mean"
EPISODE_RETURN_STD = "episode_return_std"
NORMALIZED_SCORE = "normalized_score"
NORMALIZED_SCORE_STD = "normalized_score_std"
# The numbers of the single episodes are sent under these keys; `on_evaluate_end` removes them from the result.
_RETURNS = "_episode_returns"
_DISCOUNTED_RETURNS = "_discounted_returns"
_LENGTHS = "_episode_lengths"


def discounted_return(rewards: Sequence[float] | np.ndarray, gamma: float) -> float:
    """Sum over t of gamma^t r_t, for the rewards (T,) of one whole episode."""
    rewards = np.asarray(rewards, dtype=np.float64)
    return float(rewards @ gamma ** np.arange(len(rewards)))


class ScoreCallbacks(RLlibCallback):
    """Adds to `evaluation/env_runners`: `discounted_return_mean`, `episode_return_std`, and the normalised scores.

    `discounted_return_mean` is the real value of the policy at the start states, to be compared with the critics'
    estimate (Table 1 of the paper). `normalized_score` and `normalized_score_std` exist where `REFERENCE_RETURNS`
    knows the environment. These numbers, and RLlib's returns and lengths, are over all episodes of an evaluation.
    RLlib's own are over a runner's last 100, and average the means of runners with unequal shares.

    The numbers are only in results of iterations that evaluated. RLlib repeats an evaluation in the next result; that
    copy is removed, since Tune would count it for the next checkpoint. Return and normalised score are also there under
    their whole names, "evaluation/env_runners/...", so that Tune can keep the best checkpoints by them.
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
        # A series holds one evaluation: RLlib empties it when it collects the metrics of the runners.
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
        for name in (EPISODE_RETURN_MEAN, NORMALIZED_SCORE):
            add_flat_copy(result, f"{EVALUATION_RESULTS}/{ENV_RUNNER_RESULTS}/{name}")


def add_flat_copy(result: dict[str, Any], metric: str) -> None:
    """Puts a nested metric "a/b" into a result under its whole name as well, if it is a finite number.

    Tune looks for `CheckpointConfig.checkpoint_score_attribute` only by the whole name. Without this it keeps the last
    checkpoints, and not the best.
    """
    value = nested(result, metric.split("/"))
    if isinstance(value, numbers.Real) and math.isfinite(value):
        result[metric] = float(value)
