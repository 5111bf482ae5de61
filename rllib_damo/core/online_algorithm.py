"""What an Algorithm does with the real environment while it trains (`.online`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.utils.annotations import override
from ray.rllib.utils.metrics import TIMERS

from rllib_damo.core.guarded_learners import GuardedLearners
from rllib_damo.core.online import OnlineBuffer, OnlineSampler
from rllib_damo.data.offline_data import needs_whole
from rllib_damo.data.schema import Transitions
from rllib_damo.errors import UserError

ONLINE = "online"
NUM_ONLINE_STEPS = "num_online_steps_lifetime"


class OnlineAlgorithm(GuardedLearners):
    """Takes real steps, keeps their rows, and hands them to the learners.

    Attributes:
        _sampler: who takes the steps; None: nobody.
        _online: the newest rows.
    """

    _sampler: OnlineSampler | None = None
    _online: OnlineBuffer

    def _set_up_online(self) -> None:
        """To be called once the dataset is read, before it is handed out.

        Raises:
            UserError: the environment cannot be made; or the dataset is larger than `max_dataset_rows`.
        """
        config = self.config
        self._online = OnlineBuffer(config.online_buffer_size)
        if not config.online_steps_per_iteration:
            return
        if self.offline_data.is_capped:
            option = f"online_steps_per_iteration={config.online_steps_per_iteration}"
            raise UserError(needs_whole(option, config.max_dataset_rows, "leave online_steps_per_iteration 0"))
        self._sampler = OnlineSampler(config)

    def take_online_steps(self) -> None:
        """Takes the iteration's steps in the real environment, and hands their rows to the learners."""
        config, sampler = self.config, self._sampler
        if sampler is not None and self._num_gradient_steps >= config.online_after_steps:
            num = config.online_steps_per_iteration
            if not self._online.total:
                num = max(num, config.online_first_steps)
            with self.metrics.log_time((TIMERS, "online_steps")):
                new = sampler.sample(num, self._policy_weights()[DEFAULT_MODULE_ID], self._online.total)
            self._online.add(new)
            self._hand_out_online(new.slice(max(0, len(new) - config.online_buffer_size), len(new)))
            self.metrics.aggregate([sampler.metrics()], key=ONLINE)
        if sampler is not None or self._online.total:
            self.metrics.log_value(NUM_ONLINE_STEPS, self._online.total, reduce="max", window=1)
            self.metrics.log_value((ONLINE, "buffer_size"), len(self._online), window=1)

    def _hand_out_online(self, newest: Transitions) -> None:
        """Gives the learners the newest rows of the buffer."""
        _, rows, extra = self._packed(newest)
        self._foreach_learner("add_online", rows, extra, self._online.slots(len(newest)), len(self._online))

    def _set_online_state(self, state: Mapping[str, Any] | None) -> None:
        """Takes the online rows of a checkpoint; of one without the option there are none.

        The next real steps begin a new episode: the environment's state is not saved.
        """
        self._online = OnlineBuffer(self.config.online_buffer_size)
        if state is not None:
            self._online.set_state(state)
        if self._sampler is not None:
            self._sampler.reset()
        self._foreach_learner("forget_online")
        if len(self._online):
            self._hand_out_online(self._online.rows)

    @override(GuardedLearners)
    def cleanup(self) -> None:
        super().cleanup()
        if self._sampler is not None:
            self._sampler.close()
