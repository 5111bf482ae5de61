"""ODICE: "ODICE: Revealing the Mystery of Distribution Correction Estimation via Orthogonal-gradient Update" (Mao et
al. 2024, arXiv 2402.00348).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from rllib_damo.baselines.iql import RETURN_RANGE, return_range_scale, reward_scales
from rllib_damo.core.algorithm import OfflineAlgorithm
from rllib_damo.core.config import OfflineConfig
from rllib_damo.core.learner import OfflineTorchLearner
from rllib_damo.core.networks import GaussianActor, Values
from rllib_damo.core.option_groups import OfflineTraining, Schedule
from rllib_damo.core.options import (
    Option,
    flag,
    learning_rate,
    not_negative,
    number,
    one_of,
    optional,
    positive,
    rate,
    widths,
)
from rllib_damo.core.registration import register_algorithm
from rllib_damo.core.rl_module import OfflineTorchRLModule
from rllib_damo.core.update import DatasetFacts, Metrics, StepBatch, Update
from rllib_damo.data.schema import Transitions
from rllib_damo.nn.flat_parameters import gradient_of

RESIDUAL, RATIO = "residual", "ratio"


def conjugate(y: Tensor) -> Tensor:
    """f*(y) = max_{w>=0} w y - (w - 1)², of the χ²-divergence f(w) = (w - 1)²: y + y²/4 from -2 on, and -1 below."""
    return (y / 2 + 1).clamp(min=0).square() - 1


def orthogonal(vector: Tensor, to: Tensor) -> Tensor:
    """The part of ``vector (N,)`` that is orthogonal to another; all of it, where the other is 0."""
    return vector - (vector @ to) / (to @ to).clamp(min=1e-10) * to


class ODICETorchRLModule(OfflineTorchRLModule):
    """Gaussian actor, and twin state values with targets."""

    def setup(self) -> None:
        super().setup()
        cfg = self.model_config
        self.values: Any = Values(self.sizes[0], cfg["hidden_dims"], 2, cfg["value_layer_norm"])
        self.target_values: Any = copy.deepcopy(self.values).requires_grad_(False)

    def make_actor(self) -> nn.Module:
        cfg = self.model_config
        return GaussianActor(*self.sizes, cfg["actor_hidden_dims"] or cfg["hidden_dims"])

    def trainable(self) -> dict[str, list[nn.Parameter]]:
        return super().trainable() | {"value": list(self.values.parameters())}

    def targets(self) -> list[tuple[nn.Module, nn.Module]]:
        return [*super().targets(), (self.values, self.target_values)]


class ODICEUpdate(Update):
    """Learns V from the dataset's transitions alone, and clones their actions with weights; no action is sampled.

    With V̄ the smaller one of the two targets, each V_i minimises

        E[(1-λ) V_i(s) + λ f*(r + γ V̄(s') - V_i(s)) + λ η f*(r + γ V_i(s') - V̄(s))],

    but of the last term's gradient, the backward one, only the part is taken that is orthogonal to that of the term
    before it, the forward one. The gradients are vectors over the parameters of both V_i, and with
    several learners those of all their rows. The actor is cloned with weights max(0, y), y = r + γ V̄(s') - V_i(s)
    from before V moved, as in the authors' code; in theory they are the density ratio w = max(0, y/2 + 1).
    """

    def __init__(self, module: Any, config: Any, **parts: Any):
        super().__init__(module, config, **parts)
        self._reward_scale = 1.0

    def fit(self, facts: DatasetFacts) -> None:
        self._reward_scale = facts.reward_scale

    def step(self, batch: StepBatch, step: int, measure: bool) -> Metrics:
        o, m, rows = self.config, self.module, batch["update"]
        discount = o.gamma * (1 - rows.terminated)
        with torch.no_grad():
            states = torch.cat((rows.obs, rows.next_obs))
            target_value, target_next = m.target_values(states).min(0).values.chunk(2)
        value, next_value = m.values(rows.obs), m.values(rows.next_obs)  # (2, B); apart, since each loss sees one
        residual = rows.rewards + discount * target_next - value
        forward_loss = o.lambda_ * conjugate(residual).mean()
        backward_loss = o.lambda_ * o.eta * conjugate(rows.rewards + discount * next_value - target_value).mean()
        initial_loss = (1 - o.lambda_) * value.mean()

        forward, backward, initial = map(self._gradient, (forward_loss, backward_loss, initial_loss))
        if self.reduce_gradients is not None:  # the projection is of the averages
            self.reduce_gradients([forward, backward, initial])
        self._apply_value_gradient(initial + forward + orthogonal(backward, forward))

        y = residual.detach()
        weights = (y if o.policy_weights == RESIDUAL else y / 2 + 1).clamp(0, o.max_weight).mean(0)
        actor_loss = -(weights * m.actor.log_prob(rows.obs, rows.actions)).mean()
        self.apply("actor", actor_loss)
        self.move_targets()
        return {
            "policy_loss": actor_loss.detach(), "value_loss": (initial_loss + forward_loss + backward_loss).detach(),
            "value_mean": value.detach().mean() / self._reward_scale,
            "td_error_abs": y.abs().mean() / self._reward_scale,
            "weight_mean": weights.mean(), "cloned_share": (weights > 0).float().mean(),
            "gradient_cosine": torch.cosine_similarity(forward, backward, dim=0),
        }  # fmt: skip

    def _gradient(self, loss: Tensor) -> Tensor:
        """With respect to all parameters of the V_i, as one vector ``(N,)``."""
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, self.params["value"], retain_graph=True)])

    def _apply_value_gradient(self, gradient: Tensor) -> None:
        params = self.params["value"]
        parts = gradient.split([param.numel() for param in params])
        for param, part in zip(params, parts, strict=True):
            gradient_of(param).copy_(part.view_as(param))
        self.apply_gradients(["value"])


class ODICETorchLearner(OfflineTorchLearner):
    """The learner with `ODICEUpdate`.

    Metrics: ``value_mean`` is the mean V(s) and ``td_error_abs`` the mean |y|, in the dataset's own rewards;
    ``weight_mean`` is the mean weight of the cloned actions, ``cloned_share`` the share of rows with a weight above 0
    (near 0, the policy learns of few rows or none: lower ``lambda_``; it is near 0 as long as V still falls, which it
    does at first where rewards are negative); ``gradient_cosine`` is the cosine of the angle
    between V's two gradients (near 1 or -1, the projection takes nearly all of the backward one away); ``policy_loss``
    and ``value_loss`` are the losses, in scaled rewards.
    """

    update_class = ODICEUpdate
    divergence_hint = "smaller learning rates, or smaller lambda_ or eta"


class ODICETraining(OfflineTraining, total=False):
    """What ``ODICEConfig.training`` takes; symbols are the paper's."""

    lambda_: Annotated[
        float,
        Option(
            0.6,
            number("a number in (0, 1)", lambda v: 0 < v < 1),
            "λ, weight of the residuals against (1-λ) V(s), which stands for the initial states' (1-γ) V(s0). 0.5 is "
            "the behaviour's value; more is more optimistic, and V exceeds the value of the best action where λ is "
            "large against the spread of the returns. No weight is then above 0. `reward_scale` belongs to it.",
        ),
    ]
    eta: Annotated[
        float,
        Option(1.0, not_negative, "η, weight of the orthogonal backward gradient; 0 is the semi-gradient."),
    ]
    policy_weights: Annotated[
        str,
        Option(
            RESIDUAL,
            one_of(RESIDUAL, RATIO),
            'Weights of the cloned actions: "residual", max(0, y), as in the authors\' code; or "ratio", the density '
            "ratio max(0, y/2 + 1).",
        ),
    ]
    max_weight: Annotated[float, Option(100.0, positive, "Upper bound of the weights, from the authors' code.")]
    reward_scale: Annotated[
        str | float,
        Option(
            RETURN_RANGE,
            reward_scales,
            'What rewards are multiplied by: a number, or "return_range", 1000 / (largest - smallest episode return of '
            "the dataset), as in the authors' code for locomotion. f* is of rewards in these units.",
        ),
    ]
    value_layer_norm: Annotated[bool, Option(True, flag, "Layer normalisation in V, as in the authors' code.")]
    value_lr: Annotated[Schedule, Option(2e-4, learning_rate, "Adam's learning rate for V, or a schedule.")]
    tau: Annotated[float, Option(0.005, rate, "Weight of V in the moving average of its targets.")]
    actor_hidden_dims: Annotated[
        tuple[int, ...] | None,
        Option(None, optional(widths), "Widths of the policy's hidden layers; None takes `hidden_dims`."),
    ]
    actor_weight_decay: Annotated[
        float, Option(1e-4, not_negative, "Adam's L2 penalty on the policy, from the authors' code.")
    ]


class ODICEConfig(OfflineConfig):
    """Configuration of ODICE.

    .. code-block:: python

        from rllib_damo import ODICEConfig

        config = ODICEConfig().environment("Hopper-v5").offline_data(input_="hopper-medium").training(lambda_=0.6)
    """

    option_groups: ClassVar[Mapping[str, type]] = {**OfflineConfig.option_groups, "training": ODICETraining}
    network_options = ("hidden_dims", "actor_hidden_dims", "value_layer_norm")
    default_module_class = ODICETorchRLModule
    default_learner_class = ODICETorchLearner

    @classmethod
    def algorithm_class(cls) -> type:
        return ODICE

    @classmethod
    def paper(cls) -> ODICEConfig:
        """The settings of the authors' code for locomotion, for 1 M gradient steps; λ and η are per task.

        Two things are this package's: the policy's mean is a tanh, and layer normalisation has no parameters.
        """
        return cls().training(
            actor_hidden_dims=(1024, 1024), actor_lr=2e-4, normalize_observations=False, policy_tau=1.0
        )  # fmt: skip

    def training(self, **options: Unpack[ODICETraining]) -> ODICEConfig:  # type: ignore[override]
        """Sets the options of ODICE."""
        return super().training(**options)


@register_algorithm
class ODICE(OfflineAlgorithm):
    """ODICE (arXiv 2402.00348)."""

    config_class: ClassVar[Any] = ODICEConfig

    def reward_scale(self, transitions: Transitions) -> float:
        """The option; "return_range" is of the whole dataset, or of the first window of a larger one."""
        scale = self.config.reward_scale
        return return_range_scale(transitions) if scale == RETURN_RANGE else float(scale)
