"""Stop conditions that name a metric nobody reports are found out, and not waited for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ray import tune
from ray.rllib.utils.metrics import EVALUATION_RESULTS, LEARNER_RESULTS

from rllib_damo.utils.names import flatten, near


def reached(stop: Mapping[str, float], flat: Mapping[str, Any]) -> bool:
    """Whether any metric of a flat result has reached its value."""
    return any(flat[key] >= value for key, value in stop.items() if flat.get(key) is not None)


class CheckedStopper(tune.Stopper):
    """Stops a trial when any metric reaches its value; stops everything if a metric does not exist.

    Tune's own dict of stop conditions ignores a metric that no result has, and the run goes on for ever. Here the
    names are checked at the first result that has training metrics and, if the run is evaluated, evaluation metrics.
    """

    def __init__(self, stop: Mapping[str, float], evaluated: bool) -> None:
        self.stop = dict(stop)
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
        self.checked = True
        missing = [key for key in self.stop if key not in self.known]
        if missing:
            self.error = " ".join(f"stop: no result has a metric {key!r}.{near(key, self.known)}" for key in missing)

    def stop_all(self) -> bool:
        return self.error is not None
