"""COMBO: "Conservative Offline Model-Based Policy Optimization" (Yu et al. 2021, arXiv 2102.08363)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor
from typing_extensions import Unpack

from rllib_damo.core.config import ModelBasedConfig
from rllib_damo.core.model_based_algorithm import ModelBasedAlgorithm
from rllib_damo.core.model_based_learner import ModelBasedTorchLearner
from rllib_damo.core.option_groups import CriticTraining, EntropyTraining, ModelBasedTraining, PrecisionTraining
from rllib_damo.core.options import Option, count, flag, not_negative, one_of
from rllib_damo.core.registration import register_algorithm
from rllib_damo.core.rl_module import SACTorchRLModule
from rllib_damo.core.sac import NETWORK_OPTIONS, SHORT_RUN, SACUpdate
from rllib_damo.core.update import Metrics, StepBatch, cosine


class COMBOUpdate(SACUpdate):
    """SAC whose critics are pushed down where the policy may go, and up on the dataset's actions.

    Each critic minimises ½ [mean (Q - target)² + w (mean_s log Σ_k exp z_k(s) - mean over dataset rows of Q(s,a))]. The
    z_k are Q(s,a_k) - log p(a_k) of N actions each of π(·|s), of π(·|s'), and of the uniform distribution: the mean of
    exp z_k is an unbiased estimate of ∫ exp Q(s,a) da. Actions of π(·|s') are valued at s, as CQL's are.
    """

    def __init__(self, module: Any, config: Any, **parts: Any):
        super().__init__(module, config, **parts)
        self._gap = torch.zeros((), device=module.log_alpha.device)

    def step(self, batch: StepBatch, step: int, measure: bool) -> Metrics:
        return super().step(batch, step, measure) | {"conservative_gap": self._gap}

    @torch.no_grad()
    def target(self, batch: StepBatch, alpha: Tensor) -> Tensor:
        return super().target(batch, torch.zeros_like(alpha) if self.config.deterministic_backup else alpha)

    def critic_loss(self, q: Tensor, target: Tensor, batch: StepBatch) -> Tensor:
        loss = super().critic_loss(q, target, batch)
        if not self.config.conservative_weight:
            return loss
        gap = self.soft_maximum(batch) - q[:, : batch.num_real].mean(-1)  # (C,)
        self._gap = gap.detach().mean()
        return loss + 0.5 * self.config.conservative_weight * gap.sum()

    def soft_maximum(self, batch: StepBatch) -> Tensor:
        """The mean of log Σ_k exp z_k(s) over the states that are pushed down, ``(C,)``."""
        z = self.weighted_values(batch)  # (C, 3, N, S)
        return z.logsumexp(1).mean((1, 2)) if self.config.logsumexp_over == "triples" else z.logsumexp((1, 2)).mean(-1)

    def weighted_values(self, batch: StepBatch) -> Tensor:
        """z = Q(s,a_k) - log p(a_k), ``(C, 3, N, S)``: actions of π(·|s), of π(·|s'), and uniform ones."""
        m, rows = self.module, batch["update"]
        first = batch.num_real if self.config.rho_s == "model" else 0
        obs, next_obs = rows.obs[first:], rows.next_obs[first:]
        shape = 3, self.config.num_actions, len(obs), rows.actions.shape[1]
        noise = torch.randn((2, *shape[1:]), generator=self.generator, device=obs.device, dtype=obs.dtype)
        uniform = torch.rand(shape[1:], generator=self.generator, device=obs.device, dtype=obs.dtype)
        with torch.no_grad():
            now, log_now = m.actor.sample(obs, noise[0])
            after, log_after = m.actor.sample(next_obs, noise[1])
            actions = torch.stack((now, after, 2 * uniform - 1))  # (3, N, S, act)
            log_density = torch.stack((log_now, log_after, torch.full_like(log_now, -shape[-1] * math.log(2))))
        q = m.critics(obs.expand(*shape[:2], *obs.shape).flatten(0, 2), actions.flatten(0, 2))
        return q.view(len(q), *shape[:3]) - log_density


class COMBOTorchLearner(ModelBasedTorchLearner):
    """The model-based learner with `COMBOUpdate`.

    Metrics: those of `SACUpdate` (``qf_loss`` is the sum of the critics' losses, ``td_error_abs`` the mean absolute TD
    error, ``qf_mean`` the mean Q(s,a), ``policy_loss`` the mean of α log π - Q, ``alpha_value`` α, ``entropy`` the mean
    of -log π, ``reward_mean`` the batch's mean reward), and ``conservative_gap``, what w multiplies: the mean of
    log Σ_k exp z_k less the mean Q of the dataset's rows, over the critics; 0 where w is 0.
    """

    update_class = COMBOUpdate
    divergence_hint = "smaller learning rates or a smaller conservative_weight"


class COMBOTraining(ModelBasedTraining, CriticTraining, EntropyTraining, PrecisionTraining, total=False):
    """What ``COMBOConfig.training`` takes."""

    conservative_weight: Annotated[
        float,
        Option(
            0.5,
            not_negative,
            "w, weight of the conservative term against the mean squared TD error, as in public code (the paper's β "
            "is against half of it, from memory: w / 2). Published ones are 0.5 and 5. 0 is MBPO.",
        ),
    ]
    num_actions: Annotated[
        int,
        Option(
            4,
            count,
            "N, actions of each kind for a state's log-sum-exp, 3N in all. The published 10 take some 13 times SAC's "
            "arithmetic.",
        ),
    ]
    rho_s: Annotated[
        str,
        Option(
            "mix",
            one_of("mix", "model"),
            'States whose values are pushed down: "mix", all of the batch, as in public code; "model", those of the '
            "rollouts alone, as in the paper.",
        ),
    ]
    logsumexp_over: Annotated[
        str,
        Option(
            "all",
            one_of("all", "triples"),
            '"all": over a state\'s 3N values; "triples": over one value of each kind, and the mean over N of that, '
            "which is what OfflineRL-Kit computes, and what published weights and scores belong to. It bears less on "
            "the worst actions.",
        ),
    ]
    deterministic_backup: Annotated[
        bool, Option(True, flag, "Targets without the entropy's part -γ α log π(a'|s'), as in public code.")
    ]


class COMBOConfig(ModelBasedConfig):
    """Configuration of COMBO. The defaults are for some 100,000 gradient steps; `paper` has the published settings.

    .. code-block:: python

        from rllib_damo import COMBOConfig

        config = (
            COMBOConfig()
            .environment("Hopper-v5")
            .offline_data(input_="hopper-medium")
            .training(conservative_weight=5.0)
        )
    """

    option_groups: ClassVar[Mapping[str, type]] = {**ModelBasedConfig.option_groups, "training": COMBOTraining}
    defaults = SHORT_RUN
    network_options = NETWORK_OPTIONS
    default_module_class = SACTorchRLModule
    default_learner_class = COMBOTorchLearner

    @classmethod
    def algorithm_class(cls) -> type:
        return COMBO

    @classmethod
    def paper(cls, num_steps: int = 1_000_000) -> COMBOConfig:
        """The settings of OfflineRL-Kit, whose scores are the best known reproduction; the authors published no code.

        ``rollout_length`` and ``conservative_weight`` are per task and still to be set. On D4RL's v2 data, [length, w]
        is

        ============= ======== =============== ===============
        task          medium   medium-replay   medium-expert
        ============= ======== =============== ===============
        halfcheetah   [5, 0.5] [5, 0.5]        [5, 5]
        hopper        [5, 5]   [5, 0.5]        [5, 5]
        walker2d      [1, 5]   [1, 0.5]        [1, 5]
        ============= ======== =============== ===============

        These weights belong to ``logsumexp_over="triples"``, which is set here. That code moves the actor before the
        critics; here the critics move first. Its optional Lagrange multiplier for w is left out.

        Args:
            num_steps: gradient steps of the run, over which the actor's learning rate falls to 0 as half a cosine.
        """
        config = cls().dynamics(dynamics_lr=1e-3)
        return config.training(
            num_actions=10, logsumexp_over="triples", hidden_dims=(256, 256, 256), actor_lr=cosine(1e-4, num_steps),
            critic_layer_norm=False, initial_alpha=1.0, max_alpha=float("inf"), normalize_observations=False,
            policy_tau=1.0,
        )  # fmt: skip

    def training(self, **options: Unpack[COMBOTraining]) -> COMBOConfig:  # type: ignore[override]
        """Sets the options of COMBO."""
        return super().training(**options)

    def check(self) -> None:
        super().check()
        if self.conservative_weight and int(self.train_batch_size_per_learner * self.real_ratio) < 1:
            self.refuse(
                "`real_ratio` must leave a row of the dataset in each batch, whose value `conservative_weight` raises: "
                f"found {self.real_ratio!r} of train_batch_size_per_learner={self.train_batch_size_per_learner!r} rows."
            )


@register_algorithm
class COMBO(ModelBasedAlgorithm):
    """COMBO (arXiv 2102.08363)."""

    config_class: ClassVar[Any] = COMBOConfig
