"""The Learner that model-based algorithms extend: a model buffer beside the dataset."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import ray
import torch
from ray.rllib.utils.annotations import override
from torch import Tensor

from rllib_damo.core.learner import OfflineTorchLearner
from rllib_damo.dynamics.ensemble import DynamicsEnsemble
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
        self.model_buffer = RingBuffer(self._layout, self._capacity, self._device)

    @override(OfflineTorchLearner)
    def _model_rows(self) -> Tensor:
        return self.model_buffer.rows[: len(self.model_buffer)]

    def add_rollouts(self, dataset: ray.data.Dataset) -> int:
        """Appends a Ray Dataset of rollouts (columns of ``dynamics.rollout``) to the model buffer; returns its rows."""
        count = 0
        for table in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
            rows = self._layout.pack(**from_arrow(table))
            self.model_buffer.add(torch.from_numpy(rows).to(self._device))
            count += len(rows)
        return count

    def add_tensors(self, batch: dict[str, Tensor]) -> None:
        """As `add_rollouts`, for a round on this learner's own device."""
        self.model_buffer.add(self._layout.pack(**batch))

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
            if self._update_state is not None:
                self._update.set_state(self._update_state)

    def dynamics_state(self) -> Mapping[str, Any] | None:
        """`Update.dynamics_state`, on the CPU."""
        state = self._update.dynamics_state()
        return None if state is None else {name: value.cpu() for name, value in state.items()}

    # -- checkpoints -----------------------------------------------------------------------------------------------

    @override(OfflineTorchLearner)
    def _set_update_state(self, state: dict[str, Any]) -> None:
        if self._update.uses_dynamics:  # the algorithm hands the model out anew
            self._has_dynamics, self._update_state = False, state
        else:
            self._update.set_state(state)
