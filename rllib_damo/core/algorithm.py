"""The RLlib Algorithm that all others extend: gradient steps on a dataset."""

from __future__ import annotations

import copy
import logging
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import ray
import ray.data
from pyarrow.fs import copy_files
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.core import COMPONENT_LEARNER, COMPONENT_RL_MODULE, DEFAULT_MODULE_ID
from ray.rllib.core.rl_module.rl_module import RLModule
from ray.rllib.utils.annotations import override
from ray.rllib.utils.metrics import (
    LEARNER_RESULTS,
    TIMERS,
)
from ray.rllib.utils.typing import StateDict
from ray.tune import Checkpoint
from typing_extensions import Self

from rllib_damo.core import dataset_checks
from rllib_damo.core.config import OfflineConfig
from rllib_damo.core.going_on import Start
from rllib_damo.core.offline_evaluation import VALUE_WATCH, WatchedAlgorithm
from rllib_damo.core.online_algorithm import NUM_ONLINE_STEPS, ONLINE, OnlineAlgorithm
from rllib_damo.core.resources import check_actors
from rllib_damo.core.sealed_checkpoints import SealedCheckpoints, stored_config
from rllib_damo.data.in_memory import InMemory
from rllib_damo.data.schema import Transitions
from rllib_damo.errors import CheckpointError, UserError
from rllib_damo.evaluation.checkpoints import SPLIT_FILE, newest_whole
from rllib_damo.utils import ray_internals
from rllib_damo.utils.batch import Batch, Layout
from rllib_damo.utils.paths import place_of
from rllib_damo.utils.spaces import to_unit
from rllib_damo.version import versions

logger = logging.getLogger(__name__)

COMPONENT_TRAINING = "offline_training"
NUM_GRADIENT_STEPS = "num_gradient_steps_lifetime"
DATA_WINDOW = "data_window"
IS_WINDOW_FRESH = "is_data_window_fresh"
FINGERPRINT = "dataset_fingerprint"
EARLIER_DATA = "earlier_dataset_fingerprints"
IN_SAMPLE = "in_sample"
REWARD_SCALE = "reward_scale"
HOLDOUT = "holdout"
PHASE = "phase"
ALGORITHM = "algorithm"


class OfflineAlgorithm(OnlineAlgorithm, SealedCheckpoints, WatchedAlgorithm):
    """Gradient steps on a dataset: an iteration takes ``rollout_freq`` of them (``phase`` "policy").

    A subclass names its config in ``config_class``. Hooks: `extra_columns`, `reward_scale`, `dataset_warnings`,
    `before_steps`.
    """

    config_class: ClassVar[type[OfflineConfig]]
    config: Any

    @classmethod
    @override(Algorithm)
    def get_default_config(cls) -> OfflineConfig:
        return cls.config_class()

    def __repr__(self) -> str:
        # RLlib's fails where `setup` did, and Ray then ends the process and reports that in place of the error.
        return super().__repr__() if self.config is not None else type(self).__name__

    @override(Algorithm)
    def setup(self, config: AlgorithmConfig) -> None:
        # A line for each round of rollouts that passes through Ray Data would bury everything else.
        ray.data.DataContext.get_current().enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.WARNING)
        check_actors(type(self), self.config)
        if isinstance(self.config.input_, Transitions):  # which workers and checkpoints would get with the config
            held = self.config.copy(copy_frozen=False).offline_data(input_=InMemory(self.config.input_))
            held.freeze()
            self.config = held
        super().setup(config)
        self._num_gradient_steps = 0
        self._is_module_current = False  # whether what `get_module` gave is still the policy
        self._start = self._read_start()
        self._set_up_online()
        transitions = self.offline_data.transitions
        self._warnings: list[str] = []
        for warning in self.dataset_warnings(transitions):
            self.warn(f"{transitions.name}: {warning}.")
        self._dataset = transitions.name, self.offline_data.fingerprint
        self._holdout = self.offline_data.holdout
        self._reward_scale = self.reward_scale(transitions)
        self._earlier_data: list[str] = []
        self._in_sample = False  # whether networks may have seen the episodes that are held out
        self._is_window_fresh = True
        self._is_same_data = False  # as those of the checkpoint that it goes on from
        if self._start is not None:
            self._check_algorithm(self._start.training.get(ALGORITHM))
            self._reward_scale = self._scale_of(self._start)
            same_split = self._start.training.get(HOLDOUT) == self._holdout
            self._is_same_data = same_split and self._start.training[FINGERPRINT] == self._dataset[1]
        self._take_columns(self._set_dataset(transitions, fit=True))
        if self._start is not None:
            self._go_on(self._start)
            self._start = None  # it holds a whole run's state
        del transitions
        self.offline_data.release()

    def warn(self, text: str) -> None:
        """Logs a warning; it is in all later results, too."""
        logger.warning(text)
        self._warnings.append(text)

    def _read_start(self) -> Start | None:
        """The checkpoint to go on from; none where it is gone and a trial of Tune is resumed from its own."""
        name = self.config.start_from
        try:
            return None if name is None else Start.read(name, COMPONENT_TRAINING)
        except CheckpointError:
            places = ray_internals.trial_places(self)
            if places is not None and newest_whole(places.folder, places.filesystem):
                return None
            raise

    def _scale_of(self, start: Start) -> float:
        """What rewards are multiplied by, as the networks of the checkpoint have learned them.

        Raises:
            UserError: the option is another number.
        """
        scale = start.training.get(REWARD_SCALE, self._reward_scale)
        option = getattr(self.config, REWARD_SCALE, None)
        if isinstance(option, (int, float)) and option != scale:
            raise UserError(
                f"reward_scale={option!r}: the networks of {start.name} have learned from rewards times {scale!r}, and "
                f"go on with these. Set reward_scale={scale!r}, or train anew, without start_from."
            )
        return scale

    def _go_on(self, start: Start) -> None:
        """Takes over what a checkpoint has learned, whatever its data."""
        with self.guarding_learners():
            start.restore_learners(self.learner_group)
        self._foreach_learner("draw_anew")
        self._num_gradient_steps = start.training[NUM_GRADIENT_STEPS]
        self._in_sample = start.training.get(IN_SAMPLE, False)
        if self._holdout is not None and not self._is_same_data:
            self._in_sample = True
            self.warn(
                f"The run that {start.name} is of had other data or held out other episodes, and may have learned from "
                "those that are held out now: what is measured on them is not independent"
            )
        earlier = [*start.training.get(EARLIER_DATA, []), start.training[FINGERPRINT]]
        self._earlier_data = [data for data in dict.fromkeys(earlier) if data != self._dataset[1]]
        self._set_online_state(start.training.get(ONLINE))
        self._sync_evaluation()

    # -- hooks -----------------------------------------------------------------------------------------------------

    def dataset_warnings(self, transitions: Transitions) -> Iterator[str]:
        """Yields what is to be said of the dataset before any work, a sentence each.

        Raises:
            ValueError: the dataset (or its first window) is not fit for the algorithm.
        """
        yield from dataset_checks.warnings_of_all(self.config, transitions)

    def extra_columns(self, transitions: Transitions, unit_actions: np.ndarray) -> dict[str, np.ndarray]:
        """Further columns of the dataset, ``(N, width)`` float32 each, for the rows of "update" (`StepBatch.extra`)."""
        return {}

    def reward_scale(self, transitions: Transitions) -> float:
        """What the learner's rewards are multiplied by, those of rollouts included.

        The dynamics model, and metrics of values and rollouts, are in the dataset's own rewards.
        """
        return 1.0

    def before_steps(self) -> bool:
        """What an iteration does before its gradient steps; False: there can be none yet."""
        if not self._num_gradient_steps:
            self._foreach_learner("pretrain")
        return True

    # -- data ------------------------------------------------------------------------------------------------------

    def _set_dataset(self, transitions: Transitions, fit: bool) -> Batch:
        """Hands the dataset to the learners, and the online rows that there are.

        Returns:
            The columns with the dataset's own rewards; views of the learners' rows where these are in this machine's
            memory.
        """
        scale = self._reward_scale
        layout, rows, extra = self._packed(transitions)
        starts = transitions.episode_bounds()[:, 0]
        selected = transitions.best_rows(self.config.data_fraction)
        is_selected = np.isin(starts, selected)
        returns = transitions.episode_returns()[is_selected]
        self._dataset_metrics = {
            "num_episodes": len(returns),
            "episode_return_mean": float(returns.mean()),
            "episode_return_std": float(returns.std()),
            "episode_return_min": float(returns.min()),
            "episode_return_max": float(returns.max()),
            "discounted_return_mean": float(transitions.episode_returns(self.config.gamma)[is_selected].mean()),
            "terminated_frac": float(transitions.terminations[selected].mean()),
        }
        if scale != 1.0:
            self._dataset_metrics["reward_scale"] = scale
        if self.learner_group.is_remote:
            shared = ray.put(rows)
            rows = ray.get(shared)  # the same memory
            places = [ray.put(part) for part in (starts, selected)]
            self._foreach_learner("set_dataset", shared, *places, fit, ray.put(extra), scale)
        else:
            self._foreach_learner("set_dataset", rows, starts, selected, fit, extra, scale)
        if len(self._online):  # the learners' were behind the rows that were replaced
            self._hand_out_online(self._online.rows)
        self._selected = selected
        columns: Any = layout.unpack(rows)
        return columns if scale == 1.0 else columns._replace(rewards=transitions.rewards)

    def _packed(self, transitions: Transitions) -> tuple[Layout, np.ndarray, dict[str, np.ndarray]]:
        """The learners' rows ``(N, Layout.width)``, with scaled rewards, and their extra columns."""
        unit_actions, scale = to_unit(transitions.actions, self.config.action_space), self._reward_scale
        layout = Layout(transitions.observations.shape[1], unit_actions.shape[1])
        rows = layout.pack(
            transitions.observations, unit_actions, transitions.next_observations,
            transitions.rewards if scale == 1.0 else transitions.rewards * np.float32(scale), transitions.terminations,
        )  # fmt: skip
        return layout, rows, self.extra_columns(transitions, unit_actions)

    def _take_columns(self, columns: Batch) -> None:
        """What else happens with the dataset's columns at setup."""

    def _next_window(self, window: Transitions | None) -> None:
        """Goes on to a window of a dataset that is larger than ``max_dataset_rows``."""
        if window is not None:
            self._set_dataset(window, fit=False)

    # -- training --------------------------------------------------------------------------------------------------

    @override(Algorithm)
    def training_step(self) -> None:
        self.metrics.log_value(PHASE, "policy", reduce="item")
        if not self._is_window_fresh:
            self._next_window(self.offline_data.refresh())
        for key, value in self._dataset_metrics.items():
            self.metrics.log_value(("dataset", key), value, window=1)
        self.take_online_steps()
        if self.before_steps():
            with self.metrics.log_time((TIMERS, "learner_update")):
                timesteps = {NUM_GRADIENT_STEPS: self._num_gradient_steps}
                results = self._foreach_learner("update_many", self.config.rollout_freq, timesteps)
            self.metrics.aggregate(results, key=LEARNER_RESULTS)
            self._num_gradient_steps += self.config.rollout_freq
            self._is_module_current = self._is_window_fresh = False
        self._log_steps()

    def _log_steps(self) -> None:
        self.metrics.log_value(NUM_GRADIENT_STEPS, self._num_gradient_steps, reduce="max", window=1)
        name, fingerprint = self._dataset
        facts: dict[str, Any] = {"dataset": {"name": name, "fingerprint": fingerprint}, "versions": versions()}
        if self._warnings:
            facts["warnings"] = "\n".join(self._warnings)
        self.metrics.log_dict(facts, reduce="item")

    def _policy_weights(self) -> dict[str, Any]:
        """A copy: what a learner in this process hands out is its own memory, which the gradient steps change."""
        component = f"{COMPONENT_LEARNER}/{COMPONENT_RL_MODULE}"
        with self.guarding_learners():
            state = self.learner_group.get_state(component, inference_only=True)
        return copy.deepcopy(state[COMPONENT_LEARNER][COMPONENT_RL_MODULE])

    @override(Algorithm)
    def get_module(self, module_id: str = DEFAULT_MODULE_ID) -> RLModule | None:
        """The policy as it is now, to act with. (RLlib's is that of the last round of rollouts, if any.)"""
        module = super().get_module(module_id)
        if self.env_runner is not None and module is not None and not self._is_module_current:
            module.set_state(self._policy_weights()[module_id])
            self._is_module_current = True
        return module

    @override(Algorithm)
    def compute_single_action(self, *args: Any, **kwargs: Any) -> Any:
        """RLlib's old API.

        Raises:
            UserError: always; the message says how to act by the policy.
        """
        raise UserError(
            "RLlib's old API (compute_single_action, compute_actions, get_policy) needs policies that this algorithm "
            "does not have. Act by `policy = rllib_damo.load_policy(algo.save_to_path())` and `policy(observation)`."
        )

    compute_actions = get_policy = compute_single_action

    @override(Algorithm)
    def cleanup(self) -> None:
        super().cleanup()
        self.offline_data.close()

    # -- checkpoints -----------------------------------------------------------------------------------------------

    @override(Algorithm)
    def get_state(self, components: Any = None, *, not_components: Any = None, **kwargs: Any) -> StateDict:
        state = super().get_state(components, not_components=not_components, **kwargs)
        if ray_internals.wants_component(self, COMPONENT_TRAINING, components, not_components):
            state[COMPONENT_TRAINING] = self._training_state()
        return state

    def _training_state(self) -> dict[str, Any]:
        return {
            ALGORITHM: type(self).__name__,
            FINGERPRINT: self._dataset[1],
            EARLIER_DATA: self._earlier_data,
            IN_SAMPLE: self._in_sample,
            REWARD_SCALE: self._reward_scale,
            HOLDOUT: self._holdout,
            VALUE_WATCH: self._get_watch_state(),
            ONLINE: self._online.get_state(),
            NUM_GRADIENT_STEPS: self._num_gradient_steps,
            DATA_WINDOW: self.offline_data.window,
            IS_WINDOW_FRESH: self._is_window_fresh,
        }

    @override(Algorithm)
    def set_state(self, state: StateDict) -> None:
        training = state.get(COMPONENT_TRAINING)
        if training is not None:
            self._check_algorithm(training.get(ALGORITHM))
            self._check_fingerprint(training[FINGERPRINT])
            self._check_holdout(training.get(HOLDOUT))
        super().set_state(state)
        self._is_module_current = False
        if training is not None:
            self._set_training_state(training)

    def _check_algorithm(self, saved: str | None) -> None:
        if saved not in (None, *(base.__name__ for base in type(self).__mro__)):
            raise ValueError(f"The checkpoint is of {saved}, and this is {type(self).__name__}: restore it by {saved}.")

    def _check_fingerprint(self, saved: str) -> None:
        name, fingerprint = self._dataset
        if saved != fingerprint:
            raise ValueError(
                f"The checkpoint was trained on other data than {name} (fingerprints {saved[:12]} and "
                f"{fingerprint[:12]}): give it the dataset it was trained on. A new run goes on with other data: "
                "`.offline_data(start_from=CHECKPOINT)`, or `rllib train --from CHECKPOINT --input DATA`."
            )

    def _check_holdout(self, saved: Mapping[str, Any] | None) -> None:
        if saved != self._holdout:
            raise ValueError(
                f"The checkpoint was trained with {_describe(saved)}, and this algorithm has "
                f"{_describe(self._holdout)}: set its holdout_episodes and holdout_seed in .offline_data()."
            )

    @override(SealedCheckpoints)
    def readable_files(self) -> dict[str, dict[str, Any]]:
        """What was trained, on which episodes, and on which not: in plain values, for the choice of a policy."""
        name, fingerprint = self._dataset
        return {
            SPLIT_FILE: {
                "format": "rllib_damo.split/1",
                ALGORITHM: type(self).__name__,
                "dataset": name,
                FINGERPRINT: fingerprint,
                EARLIER_DATA: self._earlier_data,
                IN_SAMPLE: self._in_sample,
                HOLDOUT: self._holdout,
                "gamma": self.config.gamma,
                NUM_GRADIENT_STEPS: self._num_gradient_steps,
                NUM_ONLINE_STEPS: self._online.total,
            }
        }

    def _set_training_state(self, state: Mapping[str, Any]) -> None:
        self._num_gradient_steps = state[NUM_GRADIENT_STEPS]
        self._earlier_data, self._in_sample = state.get(EARLIER_DATA, []), state.get(IN_SAMPLE, False)
        self._is_window_fresh = state.get(IS_WINDOW_FRESH, not self._num_gradient_steps)
        self._set_watch_state(state.get(VALUE_WATCH))
        scale = state.get(REWARD_SCALE, self._reward_scale)
        is_rescaled, self._reward_scale = scale != self._reward_scale, scale
        window = state[DATA_WINDOW]
        if self.offline_data.is_capped and (is_rescaled or window != self.offline_data.window):
            self._set_dataset(self.offline_data.skip_to(window), fit=False)
        elif is_rescaled:  # that of the run that this one went on from
            self._read_columns()
        self._set_online_state(state.get(ONLINE))

    def _read_columns(self) -> Batch:
        """Hands the dataset out again; returns its columns."""
        columns = self._set_dataset(self.offline_data.transitions, fit=False)
        self.offline_data.release()
        return columns

    @override(Algorithm)
    def get_ctor_args_and_kwargs(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """As RLlib's, but a checkpoint does not need the one that its run went on from."""
        (config,), kwargs = super().get_ctor_args_and_kwargs()
        return ({**config, "start_from": None},), kwargs

    @classmethod
    @override(SealedCheckpoints)
    def from_checkpoint(cls, path: Any, filesystem: Any = None, **options: Any) -> Self:
        """A new algorithm in the state of a checkpoint.

        Args:
            path: the checkpoint's folder or address, or a Checkpoint of Tune.
            filesystem: where `path` is; by default it follows from the address.
            options: of the config that shall not be as at training: ``num_env_runners=0`` on a smaller machine. With
                another dataset, ``input_``, the algorithm goes on from the checkpoint as by ``start_from``.

        Raises:
            CheckpointError: a file is missing, truncated or changed, or of version 0.1.
            TypeError: there is no such option.
        """
        if "input_" not in options:
            return super().from_checkpoint(path, filesystem, **options)
        if isinstance(path, Checkpoint):
            path = path.to_directory()
        if filesystem is None:
            return cls._with_data(path, options)
        with tempfile.TemporaryDirectory() as folder:
            copy_files(str(path), folder, source_filesystem=filesystem)
            return cls._with_data(folder, options)

    @classmethod
    def _with_data(cls, path: str | Path, options: Mapping[str, Any]) -> Self:
        """`from_checkpoint` with a dataset: goes on from the checkpoint unless it is the one that it was trained on."""
        place, inside = place_of(path)
        config = stored_config(inside, place, options)
        algo = cls(config={**config, "start_from": str(path)})
        if algo._is_same_data:
            algo.restore_from_path(path)
        else:
            logger.warning(
                f"{algo._dataset[0]} is not the data that {path} was trained on: its networks and optimisers go on "
                "from it, and rollouts start anew."
            )
        return algo

    @override(Algorithm)
    def restore_from_path(self, path: Any, *args: Any, **kwargs: Any) -> None:
        """Restores all components; the evaluation runners take the weights even if these are older than theirs."""
        super().restore_from_path(path, *args, **kwargs)
        self._sync_evaluation()

    def _sync_evaluation(self) -> None:
        if self.eval_env_runner_group is not None:
            self.eval_env_runner_group.foreach_env_runner(ray_internals.accept_any_weights)
            self.eval_env_runner_group.sync_weights(
                from_worker_or_learner_group=self.learner_group, inference_only=True
            )


def _describe(record: Mapping[str, Any] | None) -> str:
    """A split in words."""
    if record is None:
        return "holdout_episodes=0"
    return (
        f"holdout_episodes={record['holdout_episodes']!r}, holdout_seed={record['holdout_seed']} "
        f"({record['episodes']} episodes)"
    )
