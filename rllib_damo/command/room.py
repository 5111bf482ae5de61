"""Ends a run of an RLlib algorithm with a clear error before a checkpoint would fill the disk.

This package's own algorithms measure each checkpoint (`SealedCheckpoints`). Of others, the size of the last one is
taken; the first one is only left the room that results need.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rllib_damo.command.stopping import add_to_results
from rllib_damo.core.sealed_checkpoints import SealedCheckpoints, check_room
from rllib_damo.utils.ray_internals import trial_places

if TYPE_CHECKING:
    from ray.rllib.algorithms.algorithm_config import AlgorithmConfig


def with_room_check(config: AlgorithmConfig) -> AlgorithmConfig:
    """A copy of an RLlib algorithm's config that looks for room at each result; others are returned as they are."""
    algorithm = config.algo_class
    if isinstance(algorithm, type) and issubclass(algorithm, SealedCheckpoints):
        return config
    return add_to_results(config, _check_room)


def _check_room(*, algorithm: Any, **kwargs: Any) -> None:
    places = trial_places(algorithm)
    if places is not None:
        check_room(places, like=places.checkpoint)
