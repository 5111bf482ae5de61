"""A dataset in memory as a running algorithm's config holds it: not copied, not sent to workers, not saved."""

from __future__ import annotations

from typing import Any

from rllib_damo.data.schema import Transitions


class InMemory:
    """Stands for `Transitions` in the ``input_`` of a config. What is unpickled knows their name and size alone.

    Attributes:
        transitions: the dataset; None in other processes and in checkpoints.
    """

    def __init__(self, transitions: Transitions):
        self.transitions: Transitions | None = transitions
        self._described = f"Transitions {transitions.name!r} of {len(transitions):,} rows in memory"

    def __repr__(self) -> str:
        return f"<{self._described}>"

    def __deepcopy__(self, memo: dict[int, Any]) -> InMemory:
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "transitions": None}
