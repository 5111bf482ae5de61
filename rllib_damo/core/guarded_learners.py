"""Learners that died: one error that says what to do, then and whenever the algorithm is used after that."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from operator import methodcaller
from typing import Any

from ray.exceptions import RayActorError
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.utils.annotations import override
from ray.rllib.utils.typing import StateDict

from rllib_damo.utils import ray_internals


class GuardedLearners(Algorithm):
    """Calls of the learners.

    RLlib goes on without a learner that died or raised an error, and is left with an empty list of results.
    """

    _lost_learner = ""  # what happened to one

    @contextmanager
    def guarding_learners(self) -> Iterator[None]:
        """To be entered for whatever needs all learners.

        Raises:
            RuntimeError: one died or failed, within the block or before.
        """
        if ray_internals.num_lost_learners(self.learner_group):
            raise RuntimeError(self._lost())
        try:
            yield
        except RayActorError as error:
            self._lost_learner = ray_internals.why_died(error)
            raise RuntimeError(self._lost()) from error
        except IndexError as error:  # RLlib takes the first of no results
            if ray_internals.num_lost_learners(self.learner_group):
                raise RuntimeError(self._lost()) from error
            raise
        if ray_internals.num_lost_learners(self.learner_group):  # RLlib restores the others, without a word
            raise RuntimeError(self._lost())

    def _lost(self) -> str:
        cause = f" ({self._lost_learner})" if self._lost_learner else ""
        return (
            f"A learner died or failed{cause}, and what it had learned since the last checkpoint is lost. This "
            f"{type(self).__name__} cannot be used any more: make a new one by {type(self).__name__}."
            "from_checkpoint(...). In Tune, FailureConfig(max_failures=1) does so by itself."
        )

    def _foreach_learner(self, method: str, *args: Any) -> list[Any]:
        """Calls a method of every learner.

        Raises:
            Exception: what a learner raised.
            RuntimeError: as `guarding_learners`.
        """
        with self.guarding_learners():
            results = list(self.learner_group.foreach_learner(methodcaller(method, *args)))
            errors = [result.get() for result in results if not result.ok]
            if errors:  # the others only miss the one that died
                raise next((error for error in errors if isinstance(error, RayActorError)), errors[0])
            return [result.get() for result in results]

    @override(Algorithm)
    def get_state(self, *args: Any, **kwargs: Any) -> StateDict:
        with self.guarding_learners():
            return super().get_state(*args, **kwargs)

    @override(Algorithm)
    def save_to_path(self, *args: Any, **kwargs: Any) -> str:
        with self.guarding_learners():
            return super().save_to_path(*args, **kwargs)

    @override(Algorithm)
    def restore_from_path(self, *args: Any, **kwargs: Any) -> None:
        with self.guarding_learners():
            super().restore_from_path(*args, **kwargs)

    @override(Algorithm)
    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        with self.guarding_learners():
            return super().evaluate(*args, **kwargs)
