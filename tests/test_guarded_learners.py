"""Learners that died are told of by every use of the algorithm; `tests/faults/test_learners.py` kills real ones."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import RayActorError
from ray.rllib.algorithms.algorithm import Algorithm

from rllib_damo.core.guarded_learners import GuardedLearners

LOST = r".* make a new one by GuardedLearners\.from_checkpoint.*FailureConfig\(max_failures=1\)"


class Learners:
    """Two of them, as RLlib keeps account of them."""

    def __init__(self) -> None:
        self.healthy = 2

    def num_actors(self) -> int:
        return 2

    def num_healthy_actors(self) -> int:
        return self.healthy


@pytest.fixture
def algo() -> GuardedLearners:
    algo = GuardedLearners.__new__(GuardedLearners)
    algo.learner_group = SimpleNamespace(_worker_manager=Learners())  # type: ignore[assignment]
    return algo


@pytest.mark.parametrize("method", ["get_state", "save_to_path", "restore_from_path", "evaluate"])
@pytest.mark.parametrize(
    "error", [RayActorError(error_msg="The actor died.\nIts address: x.\nIt was killed."), IndexError("empty"), None]
)
def test_each_use_tells_of_a_death(
    method: str, error: Exception | None, algo: GuardedLearners, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RLlib raises it, misses the results of the only learner, or goes on with the other one without a word."""
    calls = []

    def dies(self: Any, *args: Any, **kwargs: Any) -> None:
        calls.append(args)
        algo.learner_group._worker_manager.healthy = 1
        if error is not None:
            raise error

    monkeypatch.setattr(Algorithm, method, dies)
    cause = r" \(The actor died\. It was killed\.\)" if isinstance(error, RayActorError) else ""
    for _ in range(2):
        with pytest.raises(RuntimeError, match=f"A learner died or failed{cause}, {LOST}"):
            getattr(algo, method)("x")
    assert calls == [("x",)]  # nothing is tried after the first


def test_an_error_of_something_else_is_raised(algo: GuardedLearners, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Algorithm, "evaluate", lambda self: [][0])
    with pytest.raises(IndexError):
        algo.evaluate()


def test_living_learners_are_no_matter(algo: GuardedLearners, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Algorithm, "evaluate", lambda self: {"played": 1})
    assert algo.evaluate() == {"played": 1}


def test_what_a_learner_raises_is_raised_and_a_death_before_it(algo: GuardedLearners) -> None:
    """The others raise, too, since they miss the one that died."""
    results: list[Any] = [ValueError("diverged")]
    algo.learner_group.foreach_learner = lambda call: [  # type: ignore[method-assign]
        SimpleNamespace(ok=False, get=lambda error=error: error) for error in results
    ]
    with pytest.raises(ValueError, match="diverged"):
        algo._foreach_learner("update")
    results.append(RayActorError(error_msg="It was killed."))
    with pytest.raises(RuntimeError, match=r"died or failed \(It was killed\.\)"):
        algo._foreach_learner("update")
