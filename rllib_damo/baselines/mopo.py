"""MOPO: "Model-based Offline Policy Optimization" (Yu et al. 2020, arXiv 2005.13239)."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any

import torch
from ray.rllib.algorithms.algorithm_config import NotProvided
from ray.rllib.utils.metrics import ENV_RUNNER_RESULTS
from torch import Tensor, nn

from rllib_damo.baselines.config import BaselineConfig
from rllib_damo.baselines.modules import BaselineTorchRLModule
from rllib_damo.baselines.uncertainty import UNCERTAINTIES, PenalizedDynamics
from rllib_damo.baselines.updates import SACOptions, SACUpdate
from rllib_damo.core.algorithm import DAMO
from rllib_damo.core.learner import DAMOTorchLearner
from rllib_damo.damo.update import Update
from rllib_damo.data.schema import Transitions
from rllib_damo.dynamics.ensemble import DynamicsEnsemble
from rllib_damo.dynamics.rollout import Model
from rllib_damo.dynamics.rollout_runner import ModelRolloutEnvRunner
from rllib_damo.utils.batch import Batch

logger = logging.getLogger(__name__)

# HalfCheetah's rewards under random actions are a thirtieth of the penalties that a hasty model makes.
_FAR_ABOVE = 100


class MOPORolloutEnvRunner(ModelRolloutEnvRunner):
    """Rollouts whose rewards are penalised by the ensemble's uncertainty, whose mean is ``uncertainty_mean``."""

    def model(self, dynamics: DynamicsEnsemble) -> Model:
        self._penalized = PenalizedDynamics(dynamics, self.config.uncertainty, self.config.penalty_coef)
        return self._penalized

    def _log(self, batch: Mapping[str, Tensor]) -> None:
        super()._log(batch)
        self.metrics.log_value(("rollout", "uncertainty_mean"), self._penalized.uncertainty_mean(), window=1)


class MOPOTorchRLModule(BaselineTorchRLModule):
    """Squashed-Gaussian actor, twin critics with targets, and the entropy coefficient."""

    def setup(self) -> None:
        super().setup()
        self.log_alpha = nn.Parameter(torch.tensor(float(self.model_config["initial_alpha"])).log())

    def get_non_inference_attributes(self) -> list[str]:
        return [*super().get_non_inference_attributes(), "log_alpha"]

    def trainable(self) -> dict[str, list[nn.Parameter]]:
        return super().trainable() | {"alpha": [self.log_alpha]}


class MOPOTorchLearner(DAMOTorchLearner):
    """DAMO's learner with `SACUpdate`, on batches of dataset and penalised model rows.

    Metrics: ``qf_loss`` is the sum over critics of half the mean squared TD error, ``td_error_abs`` the mean absolute
    one, ``qf_mean`` the mean Q(s,a), ``policy_loss`` the mean of α log π - Q, ``alpha_value`` α, ``entropy`` the mean
    of -log π, ``reward_mean`` the batch's mean reward, penalties included.
    """

    metric_names = (
        "policy_loss", "qf_loss", "alpha_loss", "alpha_value", "qf_mean", "td_error_abs", "entropy", "reward_mean",
    )  # fmt: skip
    divergence_hint = "smaller learning rates, a larger penalty_coef or a shorter rollout_length"

    def make_update(self, module: Any, **parts: Any) -> Update:
        cfg = self.config
        entropy = cfg.resolve_target_entropy(module.action_space)
        options = SACOptions(gamma=cfg.gamma, tau=cfg.tau, target_entropy=entropy, max_alpha=cfg.max_alpha)
        return SACUpdate(module, options=options, grad_clip=cfg.grad_clip, **parts)


class MOPOConfig(BaselineConfig):
    """Configuration of MOPO; ``training`` reads the options in ``reads`` and its own, ``dynamics`` all of DAMO's.

    .. code-block:: python

        from rllib_damo.baselines import MOPOConfig

        config = MOPOConfig().environment("Hopper-v5").offline_data(input_="hopper-medium").training(penalty_coef=5.0)
    """

    reads = frozenset({
        "hidden_dims", "twin_q", "critic_layer_norm", "normalize_observations", "actor_lr", "critic_lr", "alpha_lr",
        "tau", "target_entropy", "initial_alpha", "max_alpha", "rollout_length", "rollout_batch_size",
        "model_retain_epochs", "real_ratio", "overlap_rollouts",
    })  # fmt: skip
    module_class = MOPOTorchRLModule
    learner_class = MOPOTorchLearner

    def __init__(self, algo_class: type | None = None):
        super().__init__(algo_class=algo_class or MOPO)
        self.env_runner_cls = MOPORolloutEnvRunner
        self.uncertainty = "aleatoric"
        self.penalty_coef = 1.0
        self.real_ratio = 0.05
        self.actor_lr = 1e-4
        self.alpha_lr = 1e-4
        self.initial_alpha = 1.0
        self.max_alpha = math.inf

    def training(
        self, *, uncertainty: str = NotProvided, penalty_coef: float = NotProvided, **kwargs: Any
    ) -> MOPOConfig:
        """Sets MOPO's options (the paper's u and λ, in r - λ u(s,a)).

        Args:
            uncertainty: u, "aleatoric" (the paper's), "pairwise-diff" or "ensemble-std"; see ``uncertainty.py``.
            penalty_coef: λ >= 0; 0 trusts the model (MBPO). The paper's and its successors' lie between 0.5 and 5.
            kwargs: the options in ``reads``, see ``DAMOConfig.training``; and RLlib's own.
        """
        super().training(**kwargs)
        self._set(locals(), ("uncertainty", "penalty_coef"))
        return self

    def validate(self) -> None:
        super().validate()
        self._require_not_negative("penalty_coef")
        if self.uncertainty not in UNCERTAINTIES:
            self._value_error(f"`uncertainty` must be one of {', '.join(UNCERTAINTIES)}; found {self.uncertainty!r}.")


class MOPO(DAMO):
    """MOPO (arXiv 2005.13239), on DAMO's parts."""

    @classmethod
    def get_default_config(cls) -> MOPOConfig:
        return MOPOConfig()

    def _set_dataset(self, transitions: Transitions, fit: bool) -> Batch:
        self._reward_size = transitions.reward_size()
        return super()._set_dataset(transitions, fit)

    def _roll_out(self) -> list[Any]:
        parts = super()._roll_out()
        if parts and not self._num_gradient_steps:  # the first round
            self._warn_of_large_penalties()
        return parts

    def _warn_of_large_penalties(self) -> None:
        """The uncertainty is in the data's units, and of columns of unlike scale the largest makes it up."""
        uncertainty = float(self.metrics.peek((ENV_RUNNER_RESULTS, "rollout", "uncertainty_mean")))
        penalty = self.config.penalty_coef * uncertainty
        if penalty > _FAR_ABOVE * self._reward_size > 0:
            logger.warning(
                f"penalty_coef={self.config.penalty_coef:g} makes penalties of {penalty:.3g} in the mean, and the "
                f"dataset's rewards are {self._reward_size:.3g} in the mean of absolute values: the policy will learn "
                f"little of the reward. Set penalty_coef to {self._reward_size / uncertainty:.2g}, or bring the "
                "observations' columns to one scale."
            )
