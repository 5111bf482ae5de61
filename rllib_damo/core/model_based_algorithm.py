"""The Algorithm that model-based ones extend: a dynamics model first, then rollouts and gradient steps in turn."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.data
import torch
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.utils.annotations import override
from ray.rllib.utils.metrics import (
    ENV_RUNNER_RESULTS,
    TIMERS,
)

from rllib_damo.core import dataset_checks
from rllib_damo.core.algorithm import PHASE, OfflineAlgorithm
from rllib_damo.core.going_on import Start
from rllib_damo.core.online_algorithm import ONLINE
from rllib_damo.data.schema import Transitions, concatenate
from rllib_damo.dynamics.known_range import KnownRange
from rllib_damo.dynamics.model_error import Tracks
from rllib_damo.dynamics.rollout_rounds import RolloutRounds
from rllib_damo.dynamics.trained_model import DynamicsComponent
from rllib_damo.utils import ray_internals
from rllib_damo.utils.batch import Batch, deal_buffers
from rllib_damo.utils.spaces import to_unit

COMPONENT_DYNAMICS = "dynamics"
PENDING_ROUND = "pending_round"
MODEL_BUFFERS = "model_buffers"
REFITS = "dynamics_refits"


def rollout_starts(selected: np.ndarray, firsts: np.ndarray, ratio: float) -> np.ndarray:
    """Rows of the dataset of which one is drawn for each rollout.

    Args:
        selected: indices of the rows that training draws from ``(N,)``, in order.
        firsts: indices of the rows that start an episode.
        ratio: share of the draws that fall on a selected one of these, about; where there is none, none do.

    Returns:
        ``selected``, with such rows as often as gives them their share.
    """
    own = firsts[np.isin(firsts, selected)] if ratio else firsts[:0]
    if not len(own):
        return selected
    copies = round(ratio / (1 - ratio) * len(selected) / len(own))
    return np.concatenate((selected, np.tile(own, copies)))


class ModelBasedAlgorithm(OfflineAlgorithm):
    """First the dynamics model, then rollouts, gradient steps and weights in turn.

    An iteration is either an epoch of the dynamics model (``phase`` "dynamics", until it is trained or found in the
    cache), or one round of rollouts and ``rollout_freq`` gradient steps (``phase`` "policy").
    """

    @override(OfflineAlgorithm)
    def setup(self, config: AlgorithmConfig) -> None:
        self._has_rollouts = False  # in the model buffers
        self._num_refits = self._refit_at = 0  # of the model, and the real steps at the last one
        super().setup(config)
        self._rounds = RolloutRounds(self.config, self.env_runner, self.env_runner_group)

    @override(OfflineAlgorithm)
    def dataset_warnings(self, transitions: Transitions) -> Iterator[str]:
        yield from super().dataset_warnings(transitions)
        is_capped = self.offline_data.is_capped
        yield from dataset_checks.warnings_of_model(self.config, transitions, is_capped, self._rollout_device())

    def _rollout_device(self) -> torch.device | None:
        """Where runners roll out, as seen from here; None: on a GPU, and there is none here."""
        if self.config.num_env_runners == 0:
            return self.env_runner._device
        if not self.config.num_gpus_per_env_runner:
            return torch.device("cpu")
        return torch.device("cuda") if torch.cuda.is_available() else None

    @override(OfflineAlgorithm)
    def _set_dataset(self, transitions: Transitions, fit: bool) -> Batch:
        """As the base's; and the states that rollouts start from are kept.

        Here, and not only by the runners, since a runner that died comes back without them.
        """
        columns = super()._set_dataset(transitions, fit)
        bounds = transitions.episode_bounds()
        self._longest_episode = int(np.diff(bounds).max())
        rows = rollout_starts(self._selected, bounds[:, 0], self.config.episode_start_ratio)
        is_all = rows is self._selected and len(rows) == len(columns.obs)
        self._starts: dict[str, Any] = {"start_states": columns.obs, "start_rows": None if is_all else rows}
        if self.config.num_env_runners > 0:
            states = columns.obs if is_all else columns.obs[rows]  # the other rows are not sent
            self._starts = {"start_states": ray.put(states)}
        self._extremes = [np.stack((column.min(0), column.max(0))) for column in (columns.obs, columns.rewards)]
        self._set_online_starts()
        return columns

    def _set_online_starts(self) -> None:
        """Adds the online states that a share of the rollouts start from, and what the model's range follows from."""
        self._starts.pop("online_states", None)
        if len(self._online):
            states = self._online.rows.observations
            self._starts["online_states"] = ray.put(states) if self.config.num_env_runners > 0 else states
        if self.config.rollout_margin is not None:
            obs, rewards = self._extremes
            if len(self._online):
                obs = np.concatenate((obs, self._online.rows.observations))
                rewards = np.concatenate((rewards, self._online.rows.rewards))
            self._starts["known_range"] = KnownRange.of(obs, rewards, self.config.rollout_margin)

    @override(OfflineAlgorithm)
    def _take_columns(self, columns: Batch) -> None:
        parent = None
        if self._start is not None and not self._is_same_data:
            parent = self._start.training[COMPONENT_DYNAMICS]["file"]
        name, fingerprint = self._dataset
        if self._holdout is not None:  # the model must not be one that was trained on all episodes
            fingerprint = self._holdout["train_fingerprint"]
        episodes = self.offline_data.held_out or self.offline_data.transitions
        bounds = episodes.episode_bounds()
        tracks = Tracks.of(episodes.observations, episodes.actions, bounds, self.config.action_space)
        self.dynamics = DynamicsComponent(self.config, columns, name, fingerprint, parent, tracks)

    @override(OfflineAlgorithm)
    def _go_on(self, start: Start) -> None:
        super()._go_on(start)
        self._num_refits, self._refit_at = start.training.get(REFITS, (0, 0))
        if self._is_same_data:
            self.dynamics.set_state(start.training[COMPONENT_DYNAMICS], self._read_columns)
            return
        self._refit_at = 0  # the model is trained on the dataset alone, once more
        self._foreach_learner("forget_kept_policy")
        if self._update_uses_dynamics():
            self._foreach_learner("forget_dynamics")

    # -- the real environment --------------------------------------------------------------------------------------

    @override(OfflineAlgorithm)
    def take_online_steps(self) -> None:
        """As the base's; and the model is trained further when ``dynamics_refit_interval`` is over."""
        before = self._online.total
        super().take_online_steps()
        interval, total = self.config.dynamics_refit_interval, self._online.total
        if total > before:
            self._set_online_starts()
        if interval and self._sampler is not None and total - self._refit_at >= interval:
            with self.metrics.log_time((TIMERS, "dynamics_refit")):
                self._refit()
            self._num_refits, self._refit_at = self._num_refits + 1, total
        if total:
            self.metrics.log_value((ONLINE, "num_refits"), self._num_refits, window=1)

    def _refit(self) -> None:
        """Trains the model further on the dataset and the online rows."""
        dataset = self.offline_data.transitions
        rows, num_offline = concatenate([dataset, self._online.rows]), len(dataset)
        del dataset
        self.offline_data.release()
        unit_actions = to_unit(rows.actions, self.config.action_space)
        columns: Any = (rows.observations, unit_actions, rows.next_observations, rows.rewards, rows.terminations)
        for key, value in self.dynamics.refit(Batch(*columns), num_offline, self._num_refits + 1).items():
            self.metrics.log_value(("dynamics", key), value, window=1)
        self._foreach_learner("check_kept_policy", str(self.dynamics.file()), self._longest_episode)
        if self._update_uses_dynamics():
            self._foreach_learner("forget_dynamics")

    @override(OfflineAlgorithm)
    def _set_online_state(self, state: Mapping[str, Any] | None) -> None:
        super()._set_online_state(state)
        self._set_online_starts()

    # -- training --------------------------------------------------------------------------------------------------

    @override(OfflineAlgorithm)
    def training_step(self) -> None:
        if self.dynamics.ready:
            before = self._num_gradient_steps
            super().training_step()
            every = self.config.policy_check_freq
            if every and self._num_gradient_steps // every > before // every:
                self._check_policy()
            return
        self.metrics.log_value(PHASE, "dynamics", reduce="item")
        for key, value in self.dynamics.train_epoch().items():
            self.metrics.log_value(("dynamics", key), value, window=1)
        self._log_steps()

    def _check_policy(self) -> None:
        """Has the policy played in the model; all learners come to the same result."""
        with self.metrics.log_time((TIMERS, "policy_check")):
            found = self._foreach_learner("check_policy", str(self.dynamics.file()), self._longest_episode)[0]
        for key, value in found.items():
            self.metrics.log_value(("policy_check", key), value, window=1)

    @override(OfflineAlgorithm)
    def _log_steps(self) -> None:
        super()._log_steps()
        if self.dynamics.error:
            self.metrics.log_dict({"model_error": self.dynamics.error}, reduce="item")

    @override(OfflineAlgorithm)
    def before_steps(self) -> bool:
        """A round of rollouts. Where none came, the gradient steps go on with the rows that there are."""
        self._hand_out_dynamics()
        super().before_steps()
        with self.metrics.log_time((TIMERS, "rollouts")):
            parts = self.roll_out()
        if parts and not any(len(part if isinstance(part, pa.Table) else part["rewards"]) for part in parts):
            raise RuntimeError(
                f"No prediction of the dynamics model {self.dynamics.path} is finite, from any start state of this "
                "round of rollouts. Restore the last checkpoint with smaller learning rates; or delete the file, and "
                "train the model anew with a smaller dynamics_lr."
            )
        if parts:
            with self.metrics.log_time((TIMERS, "model_buffer")):
                self._fill_model_buffers(parts)
            self._has_rollouts = True
        return self._has_rollouts

    def roll_out(self) -> list[Any]:
        """A round of rollouts for this iteration: Arrow tables, or tensors on the GPU that runner and learner share.

        It is rolled out now, with the current policy; with ``overlap_rollouts`` it was asked for an iteration ago, and
        the next one is asked for.
        """
        if not self._rounds.pending:
            self._request_round(self._num_gradient_steps)
        parts, metrics = self._rounds.collect()
        if self.config.overlap_rollouts and (parts or self._has_rollouts):
            self._request_round(self._num_gradient_steps + self.config.rollout_freq)
        self.metrics.aggregate(metrics, key=ENV_RUNNER_RESULTS)
        return parts

    def _request_round(self, iteration: int) -> None:
        """Asks the runners for a round with the policy as it is now."""
        saved = {"weights": self._policy_weights(), "iteration": iteration}
        dynamics_state = self._dynamics_state()
        if dynamics_state is not None:
            saved["dynamics_state"] = dynamics_state
        self._request(saved)

    def _request(self, saved: Mapping[str, Any]) -> None:
        """``saved`` determines the round (with the seed); the rest belongs to this run."""
        self._rounds.request(**saved, dynamics_path=str(self.dynamics.file()), **self._starts)

    def _dynamics_state(self) -> Mapping[str, Any] | None:
        """The weights of a model that the learner goes on training; None: those of the file."""
        return self._foreach_learner("dynamics_state")[0] if self._update_uses_dynamics() else None

    def _hand_out_dynamics(self) -> None:
        """Gives the learners the trained model, where their update reads it."""
        if self._update_uses_dynamics():
            self._foreach_learner("set_dynamics", str(self.dynamics.file()))

    def _update_uses_dynamics(self) -> bool:
        return self.config.learner_class.update_class.uses_dynamics

    def _fill_model_buffers(self, parts: list[Any]) -> None:
        """Adds a round to the learners' model buffers, tables as Ray Datasets; several learners get an equal part each.

        ``from_blocks`` and not ``from_arrow_refs``: the latter starts a task to look at each table, which never gets a
        CPU where learners and runners hold them all.
        """
        if not isinstance(parts[0], pa.Table):  # on the GPU already
            ray_internals.local_learner(self.learner_group).add_tensors(parts[0])
            return
        round_ = pa.concat_tables(parts)
        if not self.learner_group.is_remote:
            ray_internals.local_learner(self.learner_group).add_rollouts(ray.data.from_blocks([round_]))
            return
        workers = ray_internals.learner_actors(self.learner_group)
        size = len(round_) // len(workers)
        parts = [ray.data.from_blocks([round_.slice(i * size, size)]) for i in range(len(workers))]
        with self.guarding_learners():
            ray.get([worker.add_rollouts.remote(part) for worker, part in zip(workers, parts, strict=True)])

    @override(OfflineAlgorithm)
    def cleanup(self) -> None:
        super().cleanup()
        self.dynamics.close()

    # -- checkpoints -----------------------------------------------------------------------------------------------

    @override(OfflineAlgorithm)
    def _training_state(self) -> dict[str, Any]:
        return super()._training_state() | {
            COMPONENT_DYNAMICS: self.dynamics.get_state(),
            PENDING_ROUND: self._rounds.pending,
            # Here, since RLlib keeps the first learner's state, and the model buffer is divided among all.
            MODEL_BUFFERS: self._foreach_learner("get_model_buffer"),
            REFITS: (self._num_refits, self._refit_at),
        }

    @override(OfflineAlgorithm)
    def _set_training_state(self, state: Mapping[str, Any]) -> None:
        super()._set_training_state(state)
        self.dynamics.set_state(state[COMPONENT_DYNAMICS], self._read_columns)
        if self.learner_group.is_remote:
            workers = ray_internals.learner_actors(self.learner_group)
            buffers = deal_buffers(state[MODEL_BUFFERS], len(workers))
            ray.get([w.set_model_buffer.remote(buffer) for w, buffer in zip(workers, buffers, strict=True)])
        else:
            learner = ray_internals.local_learner(self.learner_group)
            learner.set_model_buffer(*deal_buffers(state[MODEL_BUFFERS], 1))
        self._num_refits, self._refit_at = state.get(REFITS, (0, 0))
        self._has_rollouts = any(len(buffer["rows"]) for buffer in state[MODEL_BUFFERS])
        if self.dynamics.ready:
            self._hand_out_dynamics()
        self._rounds.discard()  # not of the restored run
        if state[PENDING_ROUND]:  # the same request has the same answer
            self._request(state[PENDING_ROUND])
