"""Behaviour cloning: the deterministic policy nearest to the dataset's actions in the mean square."""

from __future__ import annotations

from typing import Any

from rllib_damo.baselines.config import BaselineConfig
from rllib_damo.baselines.modules import DeterministicTorchRLModule
from rllib_damo.baselines.updates import BehaviorCloningUpdate
from rllib_damo.core.algorithm import DAMO
from rllib_damo.core.learner import DAMOTorchLearner
from rllib_damo.damo.update import Update


class BCTorchRLModule(DeterministicTorchRLModule):
    """The actor alone."""

    has_critics = False


class BehaviorCloningTorchLearner(DAMOTorchLearner):
    """DAMO's learner with `BehaviorCloningUpdate`."""

    metric_names = ("bc_loss",)
    divergence_hint = "a smaller actor_lr"

    def make_update(self, module: Any, **parts: Any) -> Update:
        return BehaviorCloningUpdate(module, grad_clip=self.config.grad_clip, **parts)


class BehaviorCloningConfig(BaselineConfig):
    """Configuration of behaviour cloning; ``training`` reads the options in ``reads`` and RLlib's own.

    .. code-block:: python

        from rllib_damo.baselines import BehaviorCloningConfig

        config = BehaviorCloningConfig().environment("Hopper-v5").offline_data(input_="hopper-medium")
    """

    uses_model = False
    reads = frozenset({"hidden_dims", "normalize_observations", "actor_lr"})
    module_class = BCTorchRLModule
    learner_class = BehaviorCloningTorchLearner

    def __init__(self, algo_class: type | None = None):
        super().__init__(algo_class=algo_class or BehaviorCloning)
        self.real_ratio = 1.0


class BehaviorCloning(DAMO):
    """Behaviour cloning by the mean squared error, on DAMO's parts and without a model.

    Its name keeps it apart from RLlib's "BC", which maximises the likelihood.
    """

    @classmethod
    def get_default_config(cls) -> BehaviorCloningConfig:
        return BehaviorCloningConfig()
