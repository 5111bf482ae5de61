"""AlgaeDICE: "AlgaeDICE: Policy Gradient from Arbitrary Experience" (Nachum et al. 2019, arXiv 1912.02074)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import torch
from typing_extensions import Unpack

from rllib_damo.core.algorithm import OfflineAlgorithm
from rllib_damo.core.config import OfflineConfig, resolve_target_entropy
from rllib_damo.core.learner import OfflineTorchLearner
from rllib_damo.core.losses import alpha_loss, bellman_target
from rllib_damo.core.option_groups import CriticTraining, EntropyTraining, OfflineTraining
from rllib_damo.core.options import Option, count, number, positive, positive_or_inf
from rllib_damo.core.registration import register_algorithm
from rllib_damo.core.rl_module import SACTorchRLModule
from rllib_damo.core.update import Metrics, RowGroup, StepBatch, Update
from rllib_damo.damo import losses
from rllib_damo.damo.divergences import power


class AlgaeDICEUpdate(Update):
    """DAMO's objective on the dataset's own transitions, without model and classifier:

        max_π min_Q (1-γ) E[Q(s0,π(s0))] + η E_D[f*(x/η)],  x = r + γ (Q(s',π(s')) - α log π) - Q(s,a),  f* = |y|^p/p.

    In x, Q(s',·) is for each of the critics β Q_i + (1-β) min_j Q̄_j, β being ``residual_gradient``; its gradient
    reaches both the critics (by the share β) and the actor. The actor ascends the mean over the critics. For p = 2 and
    β = 0 the critics' step is DAMO's with ``half_squared``, and for β = 1 that without target networks.
    """

    def __init__(self, module: Any, config: Any, **parts: Any):
        super().__init__(module, config, **parts)
        self.divergence = power(config.f_power)
        self.target_entropy = resolve_target_entropy(config.target_entropy, module.action_space)
        zero = torch.zeros((), device=module.log_alpha.device)
        self._actor_metrics = {"policy_loss": zero, "alpha_loss": zero}

    def row_groups(self) -> dict[str, RowGroup]:
        """B transitions, and B first states of the same episodes: the loss has no bound where Q(s0) stands alone."""
        num = self.config.train_batch_size_per_learner
        return {"initial": RowGroup(num, of="selected_starts"), "update": RowGroup(num)}

    def step(self, batch: StepBatch, step: int, measure: bool) -> Metrics:
        o, m, rows, initial = self.config, self.module, batch["update"], batch["initial"]
        num = len(rows.obs)
        alpha = m.log_alpha.detach().exp()
        actions, log_prob = m.sample_actions(torch.cat((rows.next_obs, initial.obs)), self.generator)
        next_log_prob = log_prob[:num]

        # The detached copy is the cut between critics and actor: the critics' loss stops there, and the actor's
        # gradient is carried over it below.
        cut = actions.detach().requires_grad_()
        next_actions, initial_actions = cut[:num], cut[num:]
        q = m.critics(rows.obs, rows.actions)  # (C, B)
        initial_q = m.critics(initial.obs, initial_actions)
        next_q = (
            o.residual_gradient * m.critics(rows.next_obs, next_actions)
            + (1 - o.residual_gradient) * m.target_critics(rows.next_obs, next_actions).min(0).values
        )
        target = bellman_target(rows.rewards, rows.terminated, next_q, next_log_prob.detach(), alpha, o.gamma)
        critic_loss = losses.critic_loss(q, target, initial_q, o.eta, o.gamma, self.divergence)
        weight = losses.density_ratio(target - q, o.eta, self.divergence, o.max_actor_weight)

        if (step + 1) % o.policy_delay == 0:
            value_loss = losses.consistent_actor_loss(initial_q, next_q, weight, rows.terminated, o.gamma)
            entropy_loss = alpha * (weight.mean(0) * o.gamma * (1 - rows.terminated) * next_log_prob).mean()
            (action_gradient,) = torch.autograd.grad(value_loss, cut, retain_graph=True)
            entropy_coefficient_loss = alpha_loss(m.log_alpha, next_log_prob, self.target_entropy)
            self.apply("actor", entropy_loss + (action_gradient * actions).sum())
            self.apply("alpha", entropy_coefficient_loss)
            with torch.no_grad():
                m.log_alpha.clamp_(max=math.log(o.max_alpha))
            self._actor_metrics = {
                "policy_loss": (value_loss + entropy_loss).detach(), "alpha_loss": entropy_coefficient_loss.detach(),
            }  # fmt: skip
        self.apply("critic", critic_loss)
        if (step + 1) % o.policy_delay == 0:
            self.move_targets()
        return {
            **self._actor_metrics, "qf_loss": critic_loss.detach(), "alpha_value": alpha, "qf_mean": q.detach().mean(),
            "qf_initial_mean": initial_q.detach().mean(), "td_error_abs": (target - q).detach().abs().mean(),
            "density_ratio_mean": weight.mean(), "entropy": -next_log_prob.detach().mean(),
        }  # fmt: skip


class AlgaeDICETorchLearner(OfflineTorchLearner):
    """The learner with `AlgaeDICEUpdate`.

    Metrics: ``qf_mean`` is the mean Q(s,a), ``qf_initial_mean`` the mean Q(s0,π(s0)), ``td_error_abs`` the mean |x|;
    ``density_ratio_mean`` is the mean of w = f*'(x/η), 1 for the ratio of two distributions; ``entropy`` the policy's,
    in nats, and ``alpha_value`` its coefficient; ``qf_loss`` (the critics' objective times η, summed),
    ``policy_loss`` and ``alpha_loss`` are the losses, the latter two those of the last step that took them.
    """

    update_class = AlgaeDICEUpdate
    divergence_hint = "smaller learning rates, a larger eta or critic_layer_norm=True"


class AlgaeDICETraining(OfflineTraining, CriticTraining, EntropyTraining, total=False):
    """What ``AlgaeDICEConfig.training`` takes; symbols are those of docs/damo.md."""

    eta: Annotated[
        float,
        Option(
            1.0,
            positive,
            "η, the one coefficient of the objective, in units of a step's reward; the paper's α. The α of the "
            "authors' code, 0.01 with p = 1.5, is η^(p-1), so that η is 1e-4.",
        ),
    ]
    f_power: Annotated[
        float,
        Option(
            2.0, number("a number in (1, 2]", lambda v: 1 < v <= 2), "p of f*(y) = |y|^p/p; the authors' runs: 1.5."
        ),
    ]
    residual_gradient: Annotated[
        float,
        Option(
            0.05,
            number("a number in [0, 1]", lambda v: 0 <= v <= 1),
            "β, share of the critic itself in Q(s',·), whose gradient it gets; the rest is of the targets. From the "
            "authors' code.",
        ),
    ]
    max_actor_weight: Annotated[
        float, Option(float("inf"), positive_or_inf, "Upper bound of the density ratio w; the lower one is 0.")
    ]
    policy_delay: Annotated[
        int,
        Option(
            2, count, "Gradient steps of the critics for each of actor, entropy coefficient and targets (their code)."
        ),
    ]


class AlgaeDICEConfig(OfflineConfig):
    """Configuration of AlgaeDICE.

    Nothing keeps the policy near the data: offline, returns near those of a random policy are published for it.

    .. code-block:: python

        from rllib_damo import AlgaeDICEConfig

        config = AlgaeDICEConfig().environment("Hopper-v5").offline_data(input_="hopper-medium").training(eta=0.1)
    """

    option_groups: ClassVar[Mapping[str, type]] = {**OfflineConfig.option_groups, "training": AlgaeDICETraining}
    defaults: ClassVar[Mapping[str, Any]] = {"critic_layer_norm": True, "initial_alpha": 0.05, "max_alpha": 0.05}
    network_options = ("hidden_dims", "twin_q", "critic_layer_norm", "initial_alpha")
    default_module_class = SACTorchRLModule
    default_learner_class = AlgaeDICETorchLearner

    @classmethod
    def algorithm_class(cls) -> type:
        return AlgaeDICE

    @classmethod
    def paper(cls) -> AlgaeDICEConfig:
        """The settings of the authors' code, for 500 k gradient steps; it was written for training online.

        Left out are its orthogonal first weights and the penalty that keeps the actor's near these. There the critics
        move before the actor, which draws actions of its own, and the actor's log σ is squashed between -5 and 2; here
        both take one set of actions and the critics before their step, log σ is clamped, and residuals are not.
        """
        return cls().training(
            eta=1e-4, f_power=1.5, actor_lr=1e-3, critic_lr=1e-3, alpha_lr=1e-3, critic_layer_norm=False,
            initial_alpha=1.0, max_alpha=float("inf"), normalize_observations=False, policy_tau=1.0,
        )  # fmt: skip

    def training(self, **options: Unpack[AlgaeDICETraining]) -> AlgaeDICEConfig:  # type: ignore[override]
        """Sets the options of AlgaeDICE."""
        return super().training(**options)


@register_algorithm
class AlgaeDICE(OfflineAlgorithm):
    """AlgaeDICE (arXiv 1912.02074), on a dataset."""

    config_class: ClassVar[Any] = AlgaeDICEConfig
