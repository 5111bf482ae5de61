"""Whether Ray has what an algorithm's runners and learners ask for; otherwise it would wait for them without end."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import ray
from ray.util import get_current_placement_group

if TYPE_CHECKING:
    from rllib_damo.core.algorithm import OfflineAlgorithm
    from rllib_damo.core.config import OfflineConfig

logger = logging.getLogger(__name__)

_ASKING = (
    "num_env_runners", "num_cpus_per_env_runner", "num_gpus_per_env_runner", "evaluation_num_env_runners",
    "num_learners", "num_cpus_per_learner", "num_gpus_per_learner",
)  # fmt: skip


def lacking(needed: Mapping[str, float], there: Mapping[str, float]) -> list[tuple[str, float, float]]:
    """What is asked for beyond what is there: (resource, asked, there)."""
    return [(name, amount, there.get(name, 0)) for name, amount in needed.items() if amount > there.get(name, 0)]


def check_actors(algorithm: type[OfflineAlgorithm], config: OfflineConfig) -> None:
    """Checks the resources of an algorithm in this process. (A trial of Tune has got its own before it starts.)

    Raises:
        ValueError: Ray has too few CPUs or the like for the runners and learners; the message names the options.
    """
    has_actors = config.num_env_runners or config.num_learners or config.evaluation_num_env_runners
    if not has_actors or get_current_placement_group() is not None:
        return
    needed = _sum(algorithm.default_resource_request(config).bundles[1:])  # the first is this process
    asking = ", ".join(f"{name}={getattr(config, name)!r}" for name in _ASKING)
    for resource, amount, there in lacking(needed, ray.cluster_resources()):
        config.refuse(
            f"{config.algorithm_name}'s runners and learners ask for {amount:g} {resource} ({asking}), and Ray has "
            f"{there:g}: they would be waited for without end. Set lower numbers, from a checkpoint by "
            f"`{algorithm.__name__}.from_checkpoint(path, num_env_runners=0)`; or start Ray with more, by `ray.init()`."
        )
    for resource, amount, free in lacking(needed, ray.available_resources()):
        logger.warning(
            f"{config.algorithm_name}'s runners and learners ask for {amount:g} {resource}, of which {free:g} are "
            "free: they wait for the rest. Stop algorithms that are not needed any more: `algo.stop()`."
        )


def _sum(bundles: Iterable[Mapping[str, float]]) -> Mapping[str, float]:
    total: Counter[str] = Counter()
    for bundle in bundles:
        total.update(bundle)
    return total
