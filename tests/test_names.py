"""Near matches, and nested names."""

from __future__ import annotations

from rllib_damo.utils.names import flatten, near


def test_near_finds_a_name_without_its_folders() -> None:
    known = ["evaluation/env_runners/normalized_score", "training_iteration"]
    assert near("normalized_score", known) == " Did you mean 'evaluation/env_runners/normalized_score'?"
    assert near("training_iterations", known) == " Did you mean 'training_iteration'?"
    assert near("zzz", known) == ""


def test_flatten() -> None:
    assert flatten({"a": {"b": {"c": 1}}, "d/e": 2}) == {"a/b/c": 1, "d/e": 2}
