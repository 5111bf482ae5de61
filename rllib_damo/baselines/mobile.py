"""MOBILE: "Model-Bellman Inconsistency for Model-based Offline Reinforcement Learning" (Sun et al., ICML 2023)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor
from typing_extensions import Unpack

from rllib_damo.core.config import ModelBasedConfig
from rllib_damo.core.model_based_algorithm import ModelBasedAlgorithm
from rllib_damo.core.model_based_learner import ModelBasedTorchLearner
from rllib_damo.core.option_groups import CriticTraining, EntropyTraining, ModelBasedTraining, PrecisionTraining
from rllib_damo.core.options import Option, count, flag, not_negative, number, optional
from rllib_damo.core.registration import register_algorithm
from rllib_damo.core.rl_module import SACTorchRLModule
from rllib_damo.core.sac import NETWORK_OPTIONS, SHORT_RUN, SACUpdate
from rllib_damo.core.update import Metrics, StepBatch, cosine
from rllib_damo.dynamics.ensemble import DynamicsEnsemble

#: Next states that go through actor and critics together, on a CPU: as many as its cache holds.
_ROWS = 1000


class MOBILEUpdate(SACUpdate):
    """SAC whose targets on model rows are lowered by β U(s,a): how much the elites disagree on the next state's value.

    U(s,a) = std_j (1/n) Σ_k min_i Q̄_i(s'_jk, a'_jk), with s'_jk drawn from elite j, a'_jk from the policy, and E - 1
    in the standard deviation over the E elites. As in the authors' code, neither r nor γ is in it (from memory, both
    are in the paper's), and it counts on rows that end, too. No gradient passes through it, and it is 0 on rows of the
    dataset.
    """

    uses_dynamics = True

    def __init__(self, module: Any, config: Any, **parts: Any):
        super().__init__(module, config, **parts)
        self._inconsistency = torch.zeros((), device=module.log_alpha.device)

    def set_dynamics(self, dynamics: DynamicsEnsemble) -> None:
        self._elites = dynamics.elites_only()

    def step(self, batch: StepBatch, step: int, measure: bool) -> Metrics:
        return super().step(batch, step, measure) | {"inconsistency_mean": self._inconsistency}

    @torch.no_grad()
    def target(self, batch: StepBatch, alpha: Tensor) -> Tensor:
        """r - β U + γ (1 - terminated) min_i Q̄_i(s',a'), where U is 0 on rows of the dataset."""
        o, rows, num_real = self.config, batch["update"], batch.num_real
        target = super().target(batch, torch.zeros_like(alpha) if o.deterministic_backup else alpha)
        if o.penalty_coef:
            inconsistency = self.inconsistency(rows.obs[num_real:], rows.actions[num_real:])
            self._inconsistency = inconsistency.mean()
            target[num_real:] -= o.penalty_coef * inconsistency
        return target if o.min_target is None else target.clamp(min=o.min_target)

    @torch.no_grad()
    def inconsistency(self, obs: Tensor, actions: Tensor) -> Tensor:
        """U ``(B,)`` of ``obs (B, obs)`` and unit actions ``(B, act)``."""
        mean, logvar = self._elites(obs, actions)  # (E, B, obs + 1) of [s' - s, r]
        mean, std = obs + mean[..., :-1], (0.5 * logvar[..., :-1]).exp()
        noise = torch.randn(
            (self.config.num_samples, *mean.shape), generator=self.generator, device=obs.device, dtype=obs.dtype
        )
        next_obs = self._elites.clip(mean + std * noise).flatten(0, 2)
        rows = _ROWS if obs.device.type == "cpu" else len(next_obs)
        values = torch.cat([self._values(part) for part in next_obs.split(rows)])
        return values.view(noise.shape[:3]).mean(0).std(0)

    def _values(self, obs: Tensor) -> Tensor:
        """min_i Q̄_i(s, a) ``(B,)``, a ~ π(s)."""
        actions, _ = self.module.sample_actions(obs, self.generator)
        return self.module.target_critics(obs, actions).min(0).values


class MOBILETorchLearner(ModelBasedTorchLearner):
    """The model-based learner with `MOBILEUpdate`.

    Metrics: those of `SACUpdate` (``qf_loss`` is the sum over critics of half the mean squared TD error against the
    penalised target, ``td_error_abs`` the mean absolute one, ``qf_mean`` the mean Q(s,a), ``policy_loss`` the mean of
    α log π - Q, ``alpha_value`` α, ``entropy`` the mean of -log π, ``reward_mean`` the batch's mean reward, without
    penalties), and ``inconsistency_mean``, the mean U of the batch's model rows; 0 where ``penalty_coef`` is 0.
    """

    update_class = MOBILEUpdate
    divergence_hint = "smaller learning rates, a larger penalty_coef or a shorter rollout_length"


class MOBILETraining(ModelBasedTraining, CriticTraining, EntropyTraining, PrecisionTraining, total=False):
    """What ``MOBILEConfig.training`` takes (the paper's β, n and U)."""

    penalty_coef: Annotated[
        float,
        Option(
            0.5,
            not_negative,
            "β in the target r - β U(s,a) + γ Q. U is a spread of values, so β has no unit; the published ones are "
            "between 0.1 and 5. 0 takes no U, and none of its cost.",
        ),
    ]
    num_samples: Annotated[
        int,
        Option(
            3,
            count,
            "n, next states that each elite draws for U. The published 10 take some 10 times SAC's arithmetic. Fewer "
            "raise U: the draws add their variance over n to that between the elites.",
        ),
    ]
    deterministic_backup: Annotated[
        bool, Option(True, flag, "Targets without the entropy's part -γ α log π(a'|s'), as in the authors' code.")
    ]
    min_target: Annotated[
        float | None,
        Option(
            None,
            optional(number("a number", lambda v: True)),
            "Lower bound of the targets. The authors' code has 0, which suits tasks of rewards >= 0 alone: where "
            "returns are negative, every target is then 0.",
        ),
    ]


class MOBILEConfig(ModelBasedConfig):
    """Configuration of MOBILE. The defaults are for some 100,000 gradient steps; `paper` has the published settings.

    Where episodes can end by a fall, take `long_rollouts`.

    .. code-block:: python

        from rllib_damo import MOBILEConfig

        config = MOBILEConfig().environment("Hopper-v5").offline_data(input_="hopper-medium").training(penalty_coef=1.5)
    """

    option_groups: ClassVar[Mapping[str, type]] = {**ModelBasedConfig.option_groups, "training": MOBILETraining}
    defaults = SHORT_RUN
    network_options = NETWORK_OPTIONS
    default_module_class = SACTorchRLModule
    default_learner_class = MOBILETorchLearner

    @classmethod
    def algorithm_class(cls) -> type:
        return MOBILE

    @classmethod
    def paper(cls, num_steps: int = 3_000_000) -> MOBILEConfig:
        """The settings of the authors' code, for tasks of rewards >= 0.

        ``rollout_length`` and ``penalty_coef`` are per task and still to be set. On D4RL's v2 data, [length, β] is

        ============= ======== ======== =============== ===============
        task          random   medium   medium-replay   medium-expert
        ============= ======== ======== =============== ===============
        halfcheetah   [5, 0.5] [5, 0.5] [5, 0.1]        [5, 2.0]
        hopper        [5, 5.0] [5, 1.5] [5, 0.1]        [5, 1.5]
        walker2d      [5, 2.0] [5, 0.5] [1, 0.5]        [1, 1.5]
        ============= ======== ======== =============== ===============

        and on hopper-medium α is fixed: ``initial_alpha=0.2, max_alpha=0.2, target_entropy=100``.

        Args:
            num_steps: gradient steps of the run, over which the actor's learning rate falls to 0 as half a cosine.
        """
        config = cls().dynamics(dynamics_lr=1e-3, dynamics_max_epochs=30)
        return config.training(
            num_samples=10, min_target=0.0, actor_lr=cosine(1e-4, num_steps), critic_layer_norm=False, real_ratio=0.05,
            initial_alpha=1.0, max_alpha=1.0, normalize_observations=False, policy_tau=1.0,
        )  # fmt: skip

    def training(self, **options: Unpack[MOBILETraining]) -> MOBILEConfig:  # type: ignore[override]
        """Sets the options of MOBILE."""
        return super().training(**options)

    def check(self) -> None:
        super().check()
        if self.penalty_coef and self.num_elites < 2:
            self.refuse(
                "`num_elites` must be 2 or more, for `penalty_coef` weighs how much they differ: found "
                f"{self.num_elites} with penalty_coef={self.penalty_coef!r}. Set penalty_coef=0 to train without."
            )


@register_algorithm
class MOBILE(ModelBasedAlgorithm):
    """MOBILE (ICML 2023, PMLR 202)."""

    config_class: ClassVar[Any] = MOBILEConfig
