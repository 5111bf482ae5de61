"""RLlib's own offline algorithms (BC, MARWIL, CQL, IQL) on every dataset that this package reads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from ray.rllib.core.columns import Columns
from ray.rllib.offline.offline_data import OfflineData

from rllib_damo.data.offline_data import BulkOfflineData
from rllib_damo.data.schema import Transitions
from rllib_damo.errors import UserError
from rllib_damo.utils.arrow import to_arrow
from rllib_damo.utils.environments import make_env
from rllib_damo.utils.spaces import check_spaces, to_unit

if TYPE_CHECKING:
    import gymnasium as gym
    from ray.rllib.algorithms.algorithm_config import AlgorithmConfig

#: Gradient steps of an iteration, where the config does not say: as many as this package's algorithms take.
STEPS_PER_ITERATION = 1000
_ROWS_PER_BLOCK = 1 << 13  # what one process turns into batches at a time


def with_package_readers(config: AlgorithmConfig) -> AlgorithmConfig:
    """A copy of an RLlib algorithm's config whose ``input_`` may be whatever this package reads.

    Changed are: ``offline_data_class``, to `RLlibOfflineData`; ``dataset_num_iters_per_learner``, where it is None, to
    1000; the spaces, where they are None, to the environment's; ``map_batches_kwargs``, by which one process a learner
    prepares the batches and waits for no CPU that the trial holds; and CQL's default of ``lr``, which CQL refuses, to
    None.

    Configs are returned as they are that are not offline, or have an ``offline_data_class`` or a way of reading of
    their own, or spaces that this package does not read (`check_spaces`).
    """
    reads_itself = config.input_read_episodes or config.input_read_sample_batches or config.prelearner_class
    if not config.is_offline or config.offline_data_class or reads_itself or config.env is None:
        return config
    observation_space, action_space = _spaces(config)
    try:
        check_spaces(observation_space, action_space)
    except UserError:
        return config
    config = config.copy(copy_frozen=False)
    if hasattr(config, "critic_lr") and config.lr == type(config)().lr:
        config.lr = None
    config.environment(observation_space=observation_space, action_space=action_space)
    return config.offline_data(
        offline_data_class=RLlibOfflineData,
        dataset_num_iters_per_learner=config.dataset_num_iters_per_learner or STEPS_PER_ITERATION,
        map_batches_kwargs={"num_cpus": 0, "concurrency": max(1, config.num_learners), **config.map_batches_kwargs},
    )


class RLlibOfflineData(OfflineData):
    """RLlib's data pipeline, which starts from `Transitions` in place of Parquet files.

    Rows are in random order, since RLlib takes them as they come, and each is an episode of one step, as when RLlib
    reads columns: what MARWIL sums up as an advantage ends there, and its critic stands for the rest.
    """

    def __init__(self, config: AlgorithmConfig) -> None:
        table = rows_for_rllib(read_transitions(config), _spaces(config)[1])
        reading: Any = config.copy(copy_frozen=False)
        reading.input_ = [table.slice(start, _ROWS_PER_BLOCK) for start in range(0, len(table), _ROWS_PER_BLOCK)]
        # Not "from_arrow", which starts a task to look at each table: it would wait for the CPU that the trial holds.
        reading.input_read_method, reading.input_read_method_kwargs = "from_blocks", {}
        reading.input_filesystem = None
        super().__init__(reading)
        self.config, self.path = config, config.input_


def read_transitions(config: AlgorithmConfig) -> Transitions:
    """The dataset of an RLlib algorithm's config.

    Raises:
        DataError: as `sources.load` does.
    """
    reading: Any = config.copy(copy_frozen=False)
    reading.observation_space, reading.action_space = _spaces(config)
    # RLlib's default, False, says nothing: it normalises the actions of its recordings in any case.
    reading.actions_in_input_normalized = config.actions_in_input_normalized or None
    return BulkOfflineData(reading).transitions


def rows_for_rllib(transitions: Transitions, action_space: gym.Space, seed: int = 0) -> pa.Table:
    """The columns that RLlib reads, with unit actions, as its environments take them; rows in random order."""
    order = np.random.default_rng(seed).permutation(len(transitions))
    return to_arrow(
        {
            Columns.OBS: transitions.observations[order],
            Columns.ACTIONS: to_unit(transitions.actions, action_space)[order].clip(-1, 1),
            Columns.REWARDS: transitions.rewards[order],
            Columns.NEXT_OBS: transitions.next_observations[order],
            Columns.TERMINATEDS: transitions.terminations[order],
            Columns.TRUNCATEDS: transitions.truncations[order],
        }
    )


def _spaces(config: AlgorithmConfig) -> tuple[Any, Any]:
    if config.observation_space is not None and config.action_space is not None:
        return config.observation_space, config.action_space
    env = make_env(config.env, config.env_config)
    spaces = env.observation_space, env.action_space
    env.close()
    return spaces
