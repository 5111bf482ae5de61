"""A whole algorithm from outside of the package: behaviour cloning of noisy actions, with an option for the noise."""

from __future__ import annotations

from typing import Annotated, Any

import torch
from typing_extensions import Unpack

from rllib_damo import register_algorithm
from rllib_damo.core.algorithm import OfflineAlgorithm
from rllib_damo.core.config import OfflineConfig
from rllib_damo.core.learner import OfflineTorchLearner
from rllib_damo.core.option_groups import OfflineTraining
from rllib_damo.core.options import Option, not_negative
from rllib_damo.core.rl_module import OfflineTorchRLModule
from rllib_damo.core.update import Metrics, StepBatch, Update


class ToyUpdate(Update):
    def step(self, batch: StepBatch, step: int, measure: bool) -> Metrics:
        rows = batch["update"]
        noise = self.config.action_noise * torch.randn(rows.actions.shape, generator=self.generator)
        loss = (self.module.actor(rows.obs)[0].tanh() - rows.actions - noise).square().mean()
        self.apply("actor", loss)
        return {"toy_loss": loss.detach()}


class ToyLearner(OfflineTorchLearner):
    update_class = ToyUpdate


class ToyTraining(OfflineTraining, total=False):
    action_noise: Annotated[float, Option(0.1, not_negative, "Standard deviation of the noise on actions.")]


class ToyConfig(OfflineConfig):
    option_groups = {**OfflineConfig.option_groups, "training": ToyTraining}  # noqa: RUF012
    default_module_class = OfflineTorchRLModule
    default_learner_class = ToyLearner

    @classmethod
    def algorithm_class(cls) -> type:
        return Toy

    def training(self, **options: Unpack[ToyTraining]) -> ToyConfig:  # type: ignore[override]
        """Sets the options of the toy."""
        return super().training(**options)


@register_algorithm
class Toy(OfflineAlgorithm):
    config_class: Any = ToyConfig
