"""Behaviour cloning: the deterministic policy nearest to the dataset's actions in the mean square."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from typing_extensions import Unpack

from rllib_damo.core.algorithm import OfflineAlgorithm
from rllib_damo.core.config import OfflineConfig
from rllib_damo.core.learner import OfflineTorchLearner
from rllib_damo.core.option_groups import OfflineTraining
from rllib_damo.core.registration import register_algorithm
from rllib_damo.core.rl_module import DeterministicMixin, OfflineTorchRLModule
from rllib_damo.core.update import Metrics, StepBatch, Update


class BCTorchRLModule(DeterministicMixin, OfflineTorchRLModule):
    """The actor alone."""


class BehaviorCloningUpdate(Update):
    """Minimises the mean over rows and action coordinates of (π(s) - a)², actions in [-1, 1]."""

    def step(self, batch: StepBatch, step: int, measure: bool) -> Metrics:
        rows = batch["update"]
        loss = (self.module.actor(rows.obs)[0].tanh() - rows.actions).square().mean()
        self.apply("actor", loss)
        return {"bc_loss": loss.detach()}


class BehaviorCloningTorchLearner(OfflineTorchLearner):
    """The learner with `BehaviorCloningUpdate`; its metric is ``bc_loss``, the mean of (π(s) - a)²."""

    update_class = BehaviorCloningUpdate
    divergence_hint = "a smaller actor_lr"


class BehaviorCloningConfig(OfflineConfig):
    """Configuration of behaviour cloning.

    .. code-block:: python

        from rllib_damo import BehaviorCloningConfig

        config = BehaviorCloningConfig().environment("Hopper-v5").offline_data(input_="hopper-medium")
    """

    option_groups: ClassVar[Mapping[str, type]] = {**OfflineConfig.option_groups, "training": OfflineTraining}
    default_module_class = BCTorchRLModule
    default_learner_class = BehaviorCloningTorchLearner

    @classmethod
    def algorithm_class(cls) -> type:
        return BehaviorCloning

    def training(self, **options: Unpack[OfflineTraining]) -> BehaviorCloningConfig:  # type: ignore[override]
        """Sets the options of behaviour cloning."""
        return super().training(**options)


@register_algorithm
class BehaviorCloning(OfflineAlgorithm):
    """Behaviour cloning by the mean squared error.

    Its name keeps it apart from RLlib's "BC", which maximises the likelihood.
    """

    config_class: ClassVar[Any] = BehaviorCloningConfig
