"""The Learner that model-based algorithms extend: a model buffer beside the dataset."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import ray
import torch
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.utils.annotations import override
from torch import Tensor

from rllib_damo.core.learner import OfflineTorchLearner
from rllib_damo.core.policy_checks import MARGIN, PolicyChecks
from rllib_damo.dynamics.ensemble import DynamicsEnsemble
from rllib_damo.dynamics.known_range import KnownRange
from rllib_damo.utils.arrow import from_arrow
from rllib_damo.utils.batch import RingBuffer


class ModelBasedTorchLearner(OfflineTorchLearner):
    """A learner with a model buffer: the newest rows of the rollouts, beside those of the dataset."""

    @override(OfflineTorchLearner)
    def build(self) -> None:
        cfg = self.config
        capacity = cfg.rollout_batch_size * cfg.rollout_length * cfg.model_retain_epochs
        self._capacity = math.ceil(capacity / max(1, cfg.num_learners))
        self._has_dynamics = False
        self._update_state: dict[str, Any] | None = None  # a restored one that waits for the dynamics
        super().build()
        self._checks = None
        if cfg.policy_check_freq:
            self._checks = PolicyChecks(cfg, self.module[DEFAULT_MODULE_ID], self._device)
        self.model_buffer = RingBuffer(self._layout, self._capacity, self._device)

    @override(OfflineTorchLearner)
    def _model_rows(self) -> Tensor:
        return self.model_buffer.rows[: len(self.model_buffer)]

    def add_rollouts(self, dataset: ray.data.Dataset) -> int:
        """Appends a Ray Dataset of rollouts (columns of ``dynamics.rollout``) to the model buffer; returns its rows."""
        count = 0
        # Not `iter_batches`: its executor is part of reference cycles that keep the blocks in the object store.
        for table in ray.get(dataset.to_arrow_refs()):
            rows = torch.from_numpy(self._layout.pack(**from_arrow(table))).to(self._device)
            self._add_rows(rows)
            count += len(rows)
        return count

    def add_tensors(self, batch: dict[str, Tensor]) -> None:
        """As `add_rollouts`, for a round on this learner's own device."""
        self._add_rows(self._layout.pack(**batch))

    def _add_rows(self, rows: Tensor) -> None:
        if self._facts.reward_scale != 1.0:
            self._layout.unpack(rows).rewards.mul_(self._facts.reward_scale)
        self.model_buffer.add(rows)

    def get_model_buffer(self) -> dict[str, Any]:
        """The state of this learner's part of the model buffer. The algorithm saves all parts."""
        return self.model_buffer.get_state()

    def set_model_buffer(self, state: dict[str, Any]) -> None:
        """Sets what `get_model_buffer` returned."""
        self.model_buffer.set_state(state)

    # -- the model in the update -----------------------------------------------------------------------------------

    def set_dynamics(self, path: str) -> None:
        """Hands a copy of the trained model to an update that reads it; once, and again after a restore."""
        if not self._has_dynamics:
            self._has_dynamics = True
            self._update.set_dynamics(DynamicsEnsemble.load(path, self._device))
            super()._set_update_state(self._update_state)
            self._update_state = None

    def forget_dynamics(self) -> None:
        """Lets go of the model, and of a restored one that waits for `set_dynamics`: there will be another one."""
        self._has_dynamics, self._update_state = False, None

    def dynamics_state(self) -> Mapping[str, Any] | None:
        """A copy of `Update.dynamics_state`, on the CPU."""
        state = self._update.dynamics_state()
        return None if state is None else {name: value.to("cpu", copy=True) for name, value in state.items()}

    # -- the policy that is kept ---------------------------------------------------------------------------------

    @override(OfflineTorchLearner)
    def update_many(self, num_steps: int, timesteps: dict[str, Any] | None = None) -> dict[str, Any]:
        results = super().update_many(num_steps, timesteps)
        if self._checks is not None and self._checks.kept_return == -math.inf:  # until the first check
            self._checks.keep()
        return results

    def check_policy(self, dynamics_path: str, longest: int) -> dict[str, float]:
        """Plays the policy in the model and keeps it if it is the best so far; see `PolicyChecks`."""
        assert self._checks is not None
        return self._checks.check(dynamics_path, *self._terms_of_checks(), longest, self._num_steps)

    def check_kept_policy(self, dynamics_path: str, longest: int) -> None:
        """Plays the kept policy in a model that was trained further."""
        if self._checks is not None:
            self._checks.check_again(dynamics_path, *self._terms_of_checks(), longest)

    def forget_kept_policy(self) -> None:
        """The next check keeps its policy: the model is another one."""
        if self._checks is not None:
            self._checks.forget()

    def _terms_of_checks(self) -> tuple[Tensor, KnownRange]:
        """The states that episodes start in, and the range of all real rows that there are."""
        assert self._offline is not None
        rows = self._layout.unpack(self._offline[: self._num_offline + self._num_online])
        margin, rewards = self.config.rollout_margin, rows.rewards / self._facts.reward_scale
        known = KnownRange.of(rows.obs, rewards, MARGIN if margin is None else margin)
        return rows.obs[self._rows_of["starts"]], known

    # -- checkpoints -----------------------------------------------------------------------------------------------

    @override(OfflineTorchLearner)
    def _training_state(self) -> dict[str, Any]:
        checks = {} if self._checks is None else {"policy_checks": self._checks.get_state()}
        return super()._training_state() | checks

    @override(OfflineTorchLearner)
    def _set_training_state(self, state: dict[str, Any]) -> None:
        super()._set_training_state(state)
        if self._checks is not None and "policy_checks" in state:
            self._checks.set_state(state["policy_checks"])
        else:
            self.forget_kept_policy()

    @override(OfflineTorchLearner)
    def _get_update_state(self) -> dict[str, Any] | None:
        """None: an update that reads the model has none yet."""
        if self._update.uses_dynamics and not self._has_dynamics:
            return self._update_state
        return super()._get_update_state()

    @override(OfflineTorchLearner)
    def _set_update_state(self, state: dict[str, Any] | None) -> None:
        if self._update.uses_dynamics:  # the algorithm hands the model out anew
            self._has_dynamics, self._update_state = False, state
        else:
            super()._set_update_state(state)
