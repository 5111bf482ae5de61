"""OptiDICE: "OptiDICE: Offline Policy Optimization via Stationary Distribution Correction Estimation" (Lee et al. 2021,
arXiv 2106.10783).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from rllib_damo.core.algorithm import OfflineAlgorithm
from rllib_damo.core.config import OfflineConfig
from rllib_damo.core.learner import OfflineTorchLearner
from rllib_damo.core.networks import Critics, GaussianActor, Values
from rllib_damo.core.option_groups import OfflineTraining, Schedule
from rllib_damo.core.options import Check, Option, count_or_zero, learning_rate, one_of, positive
from rllib_damo.core.registration import register_algorithm
from rllib_damo.core.rl_module import OfflineTorchRLModule
from rllib_damo.core.update import Metrics, RowGroup, StepBatch, Update
from rllib_damo.data.schema import Transitions
from rllib_damo.errors import DataError

REWARD_STD = "std"
reward_scales = Check(
    f'"{REWARD_STD}" or a finite number > 0',
    lambda value: value == REWARD_STD if isinstance(value, str) else positive.holds(value),
)


@dataclass(frozen=True)
class Divergence:
    """f*(y) = max_{w>=0} w y - f(w), and the w that attains it, which is f*'(y) = max(0, (f')⁻¹(y))."""

    conjugate: Callable[[Tensor], Tensor]
    ratio: Callable[[Tensor], Tensor]


DIVERGENCES = {
    # f(w) = w log w - w + 1 below 1 and (w - 1)²/2 above: no row has weight 0, and none an exponential one
    "soft_chi_squared": Divergence(
        conjugate=lambda y: torch.where(y < 0, y.clamp(max=0).expm1(), y + y.square() / 2),
        ratio=lambda y: torch.where(y < 0, y.clamp(max=0).exp(), y + 1),
    ),
    # f(w) = (w - 1)²/2
    "half_chi_squared": Divergence(
        conjugate=lambda y: ((y + 1).clamp(min=0).square() - 1) / 2,
        ratio=lambda y: (y + 1).clamp(min=0),
    ),
    # f(w) = w log w
    "kl": Divergence(conjugate=lambda y: (y - 1).exp(), ratio=lambda y: (y - 1).exp()),
}


class OptiDICETorchRLModule(OfflineTorchRLModule):
    """Gaussian actor, v(s), its advantages e(s,a), and a multiplier λ for each of these two."""

    def setup(self) -> None:
        super().setup()
        self.values: Any = Values(self.sizes[0], self.model_config["hidden_dims"])
        self.advantages: Any = Critics(*self.sizes, self.model_config["hidden_dims"], 1)
        self.lambda_v, self.lambda_e = nn.Parameter(torch.zeros(())), nn.Parameter(torch.zeros(()))

    def make_actor(self) -> nn.Module:
        return GaussianActor(*self.sizes, self.model_config["hidden_dims"])

    def trainable(self) -> dict[str, list[nn.Parameter]]:
        """A multiplier is stepped with its network: Adam is elementwise."""
        return super().trainable() | {
            "value": [*self.values.parameters(), self.lambda_v],
            "advantage": [*self.advantages.parameters(), self.lambda_e],
        }


class OptiDICEUpdate(Update):
    """Learns the best stationary distribution d = w d^D near the data's, and clones the actions with weights w.

    With e_v = r + γ v(s') - v(s), the dual of max_d E_d[r] - α D_f(d‖d^D) is, λ being the multiplier of E[w] = 1,

        min_{v,λ} (1-γ) E[v(s0)] + λ + α E_D[f*((e_v - λ)/α)],  w = f*'((e_v - λ)/α).

    Its full gradient is taken, without target networks. e(s,a) learns the mean of e_v over the successors, and w for
    the policy is of e and a multiplier of its own. No action is sampled. The authors' "wbc"; what they call "iproj", a
    projection of the policy, is not here.
    """

    def __init__(self, module: Any, config: Any, **parts: Any):
        super().__init__(module, config, **parts)
        self.divergence = DIVERGENCES[config.f_divergence]

    def row_groups(self) -> dict[str, RowGroup]:
        """B transitions, and B first states of the same episodes: the loss has no bound where v(s0) stands alone."""
        num = self.config.train_batch_size_per_learner
        return {"initial": RowGroup(num, of="selected_starts"), "update": RowGroup(num)}

    def step(self, batch: StepBatch, step: int, measure: bool) -> Metrics:
        o, m, rows = self.config, self.module, batch["update"]
        num = len(rows.obs)
        value, next_value, initial_value = m.values(torch.cat((rows.obs, rows.next_obs, batch["initial"].obs)))[
            0
        ].tensor_split((num, 2 * num))
        residual = rows.rewards + o.gamma * (1 - rows.terminated) * next_value - value
        value_loss = (1 - o.gamma) * initial_value.mean() + self.dual(residual, m.lambda_v)

        advantage = m.advantages(rows.obs, rows.actions)[0]
        fit_loss = self.advantage_loss(advantage, residual.detach())
        multiplier_loss = self.dual(advantage.detach(), m.lambda_e)

        weights = self.weights(advantage, m.lambda_e).detach()
        actor_loss = -(weights * m.actor.log_prob(rows.obs, rows.actions)).mean()

        metrics = {
            "policy_loss": actor_loss.detach(), "value_loss": value_loss.detach(), "advantage_loss": fit_loss.detach(),
            "residual_mean": residual.detach().mean(), "lambda_v": m.lambda_v.detach().clone(),
            "lambda_e": m.lambda_e.detach().clone(),
            "density_ratio_mean": self.weights(residual, m.lambda_v).detach().mean(), "weight_mean": weights.mean(),
            "effective_share": weights.mean().square() / weights.square().mean().clamp(min=1e-30),
        }  # fmt: skip
        self.apply("value", value_loss)
        self.apply("advantage", fit_loss + multiplier_loss)
        if step >= o.actor_warmup_steps:
            self.apply("actor", actor_loss)
        return metrics

    def dual(self, advantage: Tensor, multiplier: Tensor) -> Tensor:
        """λ + α E[f*((e - λ)/α)], whose derivative with respect to λ is 1 - E[w]."""
        alpha = self.config.divergence_coef
        return multiplier + alpha * self.divergence.conjugate((advantage - multiplier) / alpha).mean()

    def weights(self, advantage: Tensor, multiplier: Tensor) -> Tensor:
        """w ``(B,)``."""
        return self.divergence.ratio((advantage - multiplier) / self.config.divergence_coef)

    def advantage_loss(self, advantage: Tensor, residual: Tensor) -> Tensor:
        """Of e(s,a); both kinds are least at the mean of the residuals.

        "minimax" is α f(w) - w (e_v - λ), with w of e, by f(w) = w y - f*(y): errors count where w grows with e.
        """
        if self.config.advantage_loss == "mse":
            return (advantage - residual).square().mean()
        alpha, multiplier = self.config.divergence_coef, self.module.lambda_e.detach()
        dual = alpha * self.divergence.conjugate((advantage - multiplier) / alpha)
        return (self.weights(advantage, multiplier) * (advantage - residual) - dual).mean()


class OptiDICETorchLearner(OfflineTorchLearner):
    """The learner with `OptiDICEUpdate`.

    Metrics: ``density_ratio_mean`` is the mean w of v, and ``weight_mean`` that of e, by which actions are cloned: both
    are 1 where the multipliers ``lambda_v`` and ``lambda_e`` are right; ``effective_share`` is the share of rows that
    the weights leave, (mean w)² / mean w² (near 0, a few rows make the policy: raise ``divergence_coef``);
    ``residual_mean`` is the mean e_v; ``policy_loss``, ``value_loss`` and ``advantage_loss`` are the losses. All are in
    scaled rewards. v(s) has no metric: its level and ``lambda_v`` can replace each other.
    """

    update_class = OptiDICEUpdate
    divergence_hint = "smaller learning rates or a larger divergence_coef"


class OptiDICETraining(OfflineTraining, total=False):
    """What ``OptiDICEConfig.training`` takes; symbols are the paper's."""

    divergence_coef: Annotated[
        float,
        Option(
            0.1,
            positive,
            "α, weight of D_f(d‖d^D), in scaled rewards: large clones the data, small trusts few rows. The authors' "
            "default is 1, and theirs for mazes 0.001.",
        ),
    ]
    f_divergence: Annotated[
        str,
        Option(
            "soft_chi_squared",
            one_of(*DIVERGENCES),
            'f: "soft_chi_squared", w log w - w + 1 below 1 and (w-1)²/2 above; "half_chi_squared", (w-1)²/2; or "kl", '
            "w log w.",
        ),
    ]
    advantage_loss: Annotated[
        str,
        Option(
            "minimax",
            one_of("minimax", "mse"),
            'How e(s,a) learns the mean of e_v: "minimax", by the dual, as the authors; or "mse", by least squares.',
        ),
    ]
    actor_warmup_steps: Annotated[
        int,
        Option(0, count_or_zero, "The first gradient steps, in which the policy stands still while v and e learn."),
    ]
    reward_scale: Annotated[
        str | float,
        Option(
            REWARD_STD,
            reward_scales,
            'What rewards are multiplied by: a number, or "std", 0.1 / (standard deviation of the dataset\'s rewards), '
            "as in the authors' code, but without its shift of the mean to 0, by which a fall costs an average future. "
            "`divergence_coef` belongs to it.",
        ),
    ]
    value_lr: Annotated[Schedule, Option(3e-4, learning_rate, "Adam's learning rate for v and its λ, or a schedule.")]
    advantage_lr: Annotated[
        Schedule, Option(3e-4, learning_rate, "Adam's learning rate for e and its λ, or a schedule.")
    ]


class OptiDICEConfig(OfflineConfig):
    """Configuration of OptiDICE.

    .. code-block:: python

        from rllib_damo import OptiDICEConfig

        config = OptiDICEConfig().environment("Hopper-v5").offline_data(input_="hopper-medium").training(
            divergence_coef=0.3
        )
    """

    option_groups: ClassVar[Mapping[str, type]] = {**OfflineConfig.option_groups, "training": OptiDICETraining}
    default_module_class = OptiDICETorchRLModule
    default_learner_class = OptiDICETorchLearner

    @classmethod
    def algorithm_class(cls) -> type:
        return OptiDICE

    @classmethod
    def paper(cls, num_steps: int = 3_000_000) -> OptiDICEConfig:
        """The authors' settings; α, here their default, is per task.

        Theirs with weighted cloning. Left out are the absorbing states after terminal ones and the entropy constraint;
        the policy here is a Gaussian that is not squashed. Their multiplier of w for the policy follows also how w
        moves with e; here it follows 1 - E[w] alone, to which theirs comes once e is right.

        Args:
            num_steps: gradient steps of the run; the policy waits for the first sixth of them.
        """
        return cls().training(
            divergence_coef=1.0, train_batch_size_per_learner=512, actor_warmup_steps=num_steps // 6, policy_tau=1.0
        )  # fmt: skip

    def training(self, **options: Unpack[OptiDICETraining]) -> OptiDICEConfig:  # type: ignore[override]
        """Sets the options of OptiDICE."""
        return super().training(**options)


@register_algorithm
class OptiDICE(OfflineAlgorithm):
    """OptiDICE (arXiv 2106.10783)."""

    config_class: ClassVar[Any] = OptiDICEConfig

    def reward_scale(self, transitions: Transitions) -> float:
        """The option; "std" is of the whole dataset, or of the first window of a larger one."""
        scale = self.config.reward_scale
        return reward_std_scale(transitions) if scale == REWARD_STD else float(scale)


def reward_std_scale(transitions: Transitions) -> float:
    """0.1 / (standard deviation of the rewards).

    Raises:
        DataError: all rewards are the same.
    """
    rewards = transitions.rewards.astype(float)
    deviation = float(rewards.std())
    if deviation <= 1e-6 * float(abs(rewards).max()):
        raise DataError(
            f"{transitions.name}: reward_scale='{REWARD_STD}' divides by the rewards' standard deviation, and all "
            f"rewards are {rewards[0]:g}. Set reward_scale to a number, such as 1.0."
        )
    return 0.1 / deviation
