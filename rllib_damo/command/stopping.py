"""Stop conditions: a metric that no result has is an error, and a run that stops is evaluated first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from ray import tune
from ray.rllib.utils.metrics import ENV_RUNNER_RESULTS, EVALUATION_RESULTS, LEARNER_RESULTS
from ray.tune.result import TRAINING_ITERATION

from rllib_damo.utils.names import flatten, near
from rllib_damo.utils.ray_internals import evaluate_now

if TYPE_CHECKING:
    from ray.rllib.algorithms.algorithm_config import AlgorithmConfig


_PLAYED = f"{EVALUATION_RESULTS}/{ENV_RUNNER_RESULTS}/"


def reached(stop: Mapping[str, float], flat: Mapping[str, Any]) -> bool:
    """Whether any metric of a flat result has reached its value."""
    return any(flat[key] >= value for key, value in stop.items() if flat.get(key) is not None)


class CheckedStopper(tune.Stopper):
    """Stops a trial when any metric reaches its value; stops everything if a metric does not exist.

    Tune's own dict of stop conditions ignores a metric that no result has, and the run never ends. Here the
    names are checked at the first result that has training metrics and, if the run is evaluated, evaluation metrics. A
    metric of evaluated episodes is waited for while all evaluation runners fail.

    Args:
        stop: metrics and their values.
        evaluated: whether the run is evaluated.
        others: metrics that other options name, by the option; they must exist, too.

    Attributes:
        error: the message about a metric that does not exist, or None.
    """

    def __init__(
        self, stop: Mapping[str, float], evaluated: bool, others: Mapping[str, Sequence[str]] | None = None
    ) -> None:
        self.stop, self.others = dict(stop), dict(others or {})
        self.evaluated = evaluated
        self.known: set[str] = set()
        self.checked = False
        self.error: str | None = None

    def __call__(self, trial_id: str, result: Mapping[str, Any]) -> bool:
        flat = flatten(result)
        if not self.checked:
            self._check(flat)
        return reached(self.stop, flat)

    def _check(self, flat: Mapping[str, Any]) -> None:
        self.known.update(key for key in flat if not key.startswith("config/"))
        sections = {key.split("/", 1)[0] for key in self.known}
        if LEARNER_RESULTS not in sections or (self.evaluated and EVALUATION_RESULTS not in sections):
            return
        waits = not any(key.startswith(_PLAYED) for key in self.known)  # no episode was evaluated so far
        named = [(option, key) for option, keys in {"stop": self.stop, **self.others}.items() for key in keys]
        waiting = [pair for pair in named if waits and pair[1].startswith(_PLAYED)]
        missing = [pair for pair in named if pair[1] not in self.known and pair not in waiting]
        self.checked = not waiting
        if missing:
            self.error = " ".join(
                f"{option}: no result has a metric {key!r}.{near(key, self.known)}" for option, key in missing
            )

    def stop_all(self) -> bool:
        return self.error is not None


def with_last_evaluation(config: AlgorithmConfig, stop: Any) -> AlgorithmConfig:
    """Evaluates also when the run is about to stop, whatever the interval, so that the last checkpoint has a score."""
    if not (isinstance(stop, dict) and config.evaluation_interval):
        return config
    return add_to_results(config, partial(_evaluate_last, stop))


def _evaluate_last(stop: dict[str, float], *, algorithm: Any, result: dict[str, Any], **kwargs: Any) -> None:
    flat = flatten(result) | {TRAINING_ITERATION: algorithm.iteration + 1}  # which Tune counts later
    if EVALUATION_RESULTS not in result and reached(stop, flat):
        result.update(evaluate_now(algorithm))


def add_to_results(config: AlgorithmConfig, callback: Any) -> AlgorithmConfig:
    """A copy of the config with an `on_train_result` callback after those that it has."""
    given = config.callbacks_on_train_result or []
    given = [given] if callable(given) else list(given)
    return config.copy(copy_frozen=False).callbacks(on_train_result=[*given, callback])
