"""MOPO: "Model-based Offline Policy Optimization" (Yu et al. 2020, arXiv 2005.13239)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from ray.rllib.utils.metrics import ENV_RUNNER_RESULTS
from torch import Tensor
from typing_extensions import Unpack

from rllib_damo.baselines.uncertainty import UNCERTAINTIES, PenalizedDynamics
from rllib_damo.core.config import ModelBasedConfig
from rllib_damo.core.model_based_algorithm import ModelBasedAlgorithm
from rllib_damo.core.model_based_learner import ModelBasedTorchLearner
from rllib_damo.core.option_groups import CriticTraining, EntropyTraining, ModelBasedTraining, PrecisionTraining
from rllib_damo.core.options import Option, not_negative, one_of
from rllib_damo.core.registration import register_algorithm
from rllib_damo.core.rl_module import SACTorchRLModule
from rllib_damo.core.sac import NETWORK_OPTIONS, SACUpdate
from rllib_damo.core.update import cosine
from rllib_damo.data.schema import Transitions
from rllib_damo.dynamics.ensemble import DynamicsEnsemble
from rllib_damo.dynamics.rollout import Model
from rllib_damo.dynamics.rollout_runner import ModelRolloutEnvRunner
from rllib_damo.utils.batch import Batch

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


class MOPOTorchLearner(ModelBasedTorchLearner):
    """The model-based learner with `SACUpdate`, on batches of dataset and penalised model rows.

    Metrics: ``qf_loss`` is the sum over critics of half the mean squared TD error, ``td_error_abs`` the mean absolute
    one, ``qf_mean`` the mean Q(s,a), ``policy_loss`` the mean of α log π - Q, ``alpha_value`` α, ``entropy`` the mean
    of -log π, ``reward_mean`` the batch's mean reward, penalties included.
    """

    update_class = SACUpdate
    divergence_hint = "smaller learning rates, a larger penalty_coef or a shorter rollout_length"


class MOPOTraining(ModelBasedTraining, CriticTraining, EntropyTraining, PrecisionTraining, total=False):
    """What ``MOPOConfig.training`` takes (the paper's u and λ, in r - λ u(s,a))."""

    uncertainty: Annotated[
        str,
        Option(
            "aleatoric",
            one_of(*UNCERTAINTIES),
            'u, "aleatoric" (the paper\'s), "pairwise-diff" or "ensemble-std"; see ``uncertainty.py``.',
        ),
    ]
    penalty_coef: Annotated[
        float,
        Option(
            1.0,
            not_negative,
            "λ; 0 trusts the model (MBPO). The paper's and its successors' are between 0.5 and 5.",
        ),
    ]


class MOPOConfig(ModelBasedConfig):
    """Configuration of MOPO.

    .. code-block:: python

        from rllib_damo import MOPOConfig

        config = MOPOConfig().environment("Hopper-v5").offline_data(input_="hopper-medium").training(penalty_coef=5.0)
    """

    option_groups: ClassVar[Mapping[str, type]] = {**ModelBasedConfig.option_groups, "training": MOPOTraining}
    defaults: ClassVar[Mapping[str, Any]] = {"actor_lr": 1e-4, "alpha_lr": 1e-4}
    network_options = NETWORK_OPTIONS
    default_module_class = SACTorchRLModule
    default_learner_class = MOPOTorchLearner
    rollout_runner_class = MOPORolloutEnvRunner

    @classmethod
    def algorithm_class(cls) -> type:
        return MOPO

    @classmethod
    def paper(cls, num_steps: int = 3_000_000) -> MOPOConfig:
        """The settings of OfflineRL-Kit, whose scores are the best known reproduction.

        ``rollout_length`` and ``penalty_coef`` are per task and still to be set. On D4RL's v2 data, [length, c] is

        ============= ======== =============== ===============
        task          medium   medium-replay   medium-expert
        ============= ======== =============== ===============
        halfcheetah   [5, 0.5] [5, 0.5]        [5, 2.5]
        hopper        [5, 5.0] [5, 2.5]        [5, 5.0]
        walker2d      [5, 0.5] [1, 2.5]        [1, 2.5]
        ============= ======== =============== ===============

        Args:
            num_steps: gradient steps of the run, over which the actor's learning rate falls to 0 as half a cosine.
        """
        return cls().dynamics(dynamics_lr=1e-3).training(
            actor_lr=cosine(1e-4, num_steps), initial_alpha=1.0, max_alpha=1.0, real_ratio=0.05,
            critic_layer_norm=False, normalize_observations=False, policy_tau=1.0,
        )  # fmt: skip

    def training(self, **options: Unpack[MOPOTraining]) -> MOPOConfig:  # type: ignore[override]
        """Sets the options of MOPO."""
        return super().training(**options)


@register_algorithm
class MOPO(ModelBasedAlgorithm):
    """MOPO (arXiv 2005.13239)."""

    config_class: ClassVar[Any] = MOPOConfig

    def _set_dataset(self, transitions: Transitions, fit: bool) -> Batch:
        self._reward_size = transitions.reward_size()
        return super()._set_dataset(transitions, fit)

    def roll_out(self) -> list[Any]:
        parts = super().roll_out()
        if parts and not self._num_gradient_steps:  # the first round
            self._warn_of_large_penalties()
        return parts

    def _warn_of_large_penalties(self) -> None:
        """The uncertainty is in the data's units, and of columns of unlike scale the largest makes it up."""
        uncertainty = float(self.metrics.peek((ENV_RUNNER_RESULTS, "rollout", "uncertainty_mean")))
        penalty = self.config.penalty_coef * uncertainty
        if penalty > _FAR_ABOVE * self._reward_size > 0:
            self.warn(
                f"penalty_coef={self.config.penalty_coef:g} makes penalties of {penalty:.3g} in the mean, and the "
                f"dataset's rewards are {self._reward_size:.3g} in the mean of absolute values: the policy will learn "
                f"little of the reward. Set penalty_coef to {self._reward_size / uncertainty:.2g}, or bring the "
                "observations' columns to one scale."
            )
