"""Stop conditions: a metric that no result has is an error, and a run that stops is evaluated first."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from ray import tune
from ray.rllib.utils.metrics import ENV_RUNNER_RESULTS, EPISODE_RETURN_MEAN, EVALUATION_RESULTS, LEARNER_RESULTS
from ray.tune.result import TRAINING_ITERATION

from rllib_damo.core.algorithm import ONLINE
from rllib_damo.core.offline_evaluation import OFFLINE_RESULTS
from rllib_damo.errors import UsageError
from rllib_damo.utils.names import flatten, near
from rllib_damo.utils.ray_internals import evaluate_now

if TYPE_CHECKING:
    from ray.rllib.algorithms.algorithm_config import AlgorithmConfig


_FITTED = f"{EVALUATION_RESULTS}/{OFFLINE_RESULTS}/"
_PLAYED = f"{EVALUATION_RESULTS}/"
#: How the names of metrics start that come later than the first results, and the option that they need.
_LATE = {
    _FITTED: "offline_evaluation_interval",
    _PLAYED: "evaluation_interval",  # all others of evaluations
    "policy_check/": "policy_check_freq",
    f"{ONLINE}/": "online_steps_per_iteration",
}
#: How a metric starts after which none is waited for, where it is not the first of its kind: an episode has ended.
_LAST = {
    _PLAYED: f"{EVALUATION_RESULTS}/{ENV_RUNNER_RESULTS}/",
    f"{ONLINE}/": f"{ONLINE}/{EPISODE_RETURN_MEAN}",
}


def check_metrics(config: AlgorithmConfig, named: Mapping[str, Collection[str]]) -> None:
    """Refuses metrics that no result will have, since the option that they need is off.

    Args:
        config: of any RLlib algorithm.
        named: metrics that options name, by the option.

    Raises:
        UsageError: with the option to set.
    """
    for option, key in ((option, key) for option, keys in named.items() for key in keys):
        needed = _LATE.get(_kind(key))
        if needed and not getattr(config, needed, True):
            raise UsageError(
                f"{option}: no result will have {key!r}, since `{needed}` is {getattr(config, needed)!r}. Set it in "
                "the config, or name another metric."
            )


def late_metrics(config: AlgorithmConfig) -> list[str]:
    """How the names of metrics start that come later than the first results, as far as their options are on."""
    return [kind for kind, needed in _LATE.items() if getattr(config, needed, None)]


def _kind(key: str) -> str:
    """The start of a metric's name in the table of late ones, or ""."""
    return next((kind for kind in _LATE if key.startswith(kind)), "")


def reached(stop: Mapping[str, float], flat: Mapping[str, Any]) -> bool:
    """Whether any metric of a flat result has reached its value."""
    return any(flat[key] >= value for key, value in stop.items() if flat.get(key) is not None)


class CheckedStopper(tune.Stopper):
    """Stops a trial when any metric reaches its value; stops everything if a metric does not exist.

    Tune's own dict of stop conditions ignores a metric that no result has, and the run never ends. Here the
    names are checked at the first result that has training metrics and, if the run is evaluated, evaluation metrics.
    Late metrics are waited for until there are others of their kind, such as those of evaluated episodes while all
    evaluation runners fail.

    Args:
        stop: metrics and their values.
        late: of `late_metrics`.
        others: metrics that other options name, by the option; they must exist, too.

    Attributes:
        error: the message about a metric that does not exist, or None.
    """

    def __init__(
        self, stop: Mapping[str, float], late: Collection[str], others: Mapping[str, Sequence[str]] | None = None
    ) -> None:
        self.stop, self.others = dict(stop), dict(others or {})
        self.late = list(late)
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
        is_trained = any(key.startswith(f"{LEARNER_RESULTS}/") for key in self.known)
        if not is_trained or (_PLAYED in self.late and not any(_kind(key) == _PLAYED for key in self.known)):
            return
        awaited = [kind for kind in self.late if not any(key.startswith(_LAST.get(kind, kind)) for key in self.known)]
        named = [(option, key) for option, keys in {"stop": self.stop, **self.others}.items() for key in keys]
        waiting = [pair for pair in named if _kind(pair[1]) in awaited]
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
    if not any(_kind(key) == _PLAYED for key in flat) and reached(stop, flat):
        found = result.get(EVALUATION_RESULTS, {})  # of an offline evaluation
        result.update(evaluate_now(algorithm))
        if found:
            result[EVALUATION_RESULTS] = {**result.get(EVALUATION_RESULTS, {}), **found}


def add_to_results(config: AlgorithmConfig, callback: Any) -> AlgorithmConfig:
    """A copy of the config with an `on_train_result` callback after those that it has."""
    given = config.callbacks_on_train_result or []
    given = [given] if callable(given) else list(given)
    return config.copy(copy_frozen=False).callbacks(on_train_result=[*given, callback])
