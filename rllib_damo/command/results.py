"""What a run of the `rllib` command adds to the results of any algorithm."""

from __future__ import annotations

import math
import numbers
from functools import partial
from typing import TYPE_CHECKING, Any

from ray.rllib.utils.metrics import EVALUATION_RESULTS
from ray.tune.result import TRAINING_ITERATION

from rllib_damo.command.stopping import reached
from rllib_damo.utils.names import flatten, nested
from rllib_damo.utils.ray_internals import evaluate_now

if TYPE_CHECKING:
    from ray.rllib.algorithms.algorithm_config import AlgorithmConfig


def with_last_evaluation(config: AlgorithmConfig, stop: Any) -> AlgorithmConfig:
    """Evaluates when the run is about to stop, too, whatever the interval: the last checkpoint gets a score."""
    if not (isinstance(stop, dict) and config.evaluation_interval):
        return config
    return _on_train_result(config, partial(_evaluate_last, stop))


def _evaluate_last(stop: dict[str, float], *, algorithm: Any, result: dict[str, Any], **kwargs: Any) -> None:
    flat = flatten(result) | {TRAINING_ITERATION: algorithm.iteration + 1}  # which Tune counts later
    if EVALUATION_RESULTS not in result and reached(stop, flat):
        result.update(evaluate_now(algorithm))


def with_flat_score(config: AlgorithmConfig, metric: str) -> AlgorithmConfig:
    """Puts a nested metric into each result under its whole name, too: Tune keeps the best checkpoints by no other."""
    return _on_train_result(config, partial(_flatten_score, metric))


def _flatten_score(metric: str, *, result: dict[str, Any], **kwargs: Any) -> None:
    value = nested(result, metric.split("/"))
    if isinstance(value, numbers.Real) and math.isfinite(value):
        result[metric] = float(value)


def _on_train_result(config: AlgorithmConfig, callback: Any) -> AlgorithmConfig:
    """Adds a callback after those that are there."""
    given = config.callbacks_on_train_result or []
    given = [given] if callable(given) else list(given)
    return config.copy(copy_frozen=False).callbacks(on_train_result=[*given, callback])
