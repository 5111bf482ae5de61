"""What the baselines' configs share: an option that an algorithm does not read is refused, not ignored."""

from __future__ import annotations

import math
from typing import Any, ClassVar

from ray.rllib.core.rl_module.rl_module import RLModuleSpec

from rllib_damo.core.config import DYNAMICS_OPTIONS, TRAINING_OPTIONS, DAMOConfig
from rllib_damo.core.options import is_number


class BaselineConfig(DAMOConfig):
    """DAMO's config with the options of its objective fixed.

    ``rollout_freq`` is, as for DAMO, the gradient steps of one iteration, with or without rollouts.
    """

    #: Those of ``DAMOConfig.training``'s options that the algorithm reads.
    reads: ClassVar[frozenset[str]] = frozenset()
    module_class: ClassVar[type]
    learner_class: ClassVar[type]

    def __init__(self, algo_class: type | None = None):
        super().__init__(algo_class=algo_class)
        self.data_alignment = False  # no classifier, and no rows for it
        self.bc_weight = 0.0
        self.data_fraction = 1.0
        self.tau = 0.005  # TD3's and SAC's own
        self.critic_layer_norm = False

    def get_default_rl_module_spec(self) -> RLModuleSpec:
        return RLModuleSpec(module_class=self.module_class)

    def get_default_learner_class(self) -> type:
        return self.learner_class

    def validate(self) -> None:
        super().validate()
        if self.in_evaluation:
            return
        if self.num_env_runners and not self.uses_model:
            self._value_error(
                f"{self._name} rolls out in no model: leave `num_env_runners` 0; found {self.num_env_runners}."
            )
        default = type(self)()
        for name in sorted(self.unread()):
            found: Any = getattr(self, name)
            if found != getattr(default, name):
                self._value_error(f"{self._name} does not read `{name}`: leave it out; found {found!r}.")

    @classmethod
    def unread(cls) -> frozenset[str]:
        """The options of ``DAMOConfig.training`` and ``DAMOConfig.dynamics`` that the algorithm does not read."""
        unread = TRAINING_OPTIONS - cls.reads - {"rollout_freq", "policy_tau", "data_fraction"}
        return unread if cls.uses_model else unread | DYNAMICS_OPTIONS

    def _require_not_negative(self, *names: str) -> None:
        for name in names:
            value = getattr(self, name)
            if not (is_number(value) and 0 <= value < math.inf):
                self._value_error(f"`{name}` must be a finite number >= 0; found {value!r}.")
