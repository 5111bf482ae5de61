"""IQL: "Offline Reinforcement Learning with Implicit Q-Learning" (Kostrikov et al. 2021, arXiv 2110.06169)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from rllib_damo.core.algorithm import OfflineAlgorithm
from rllib_damo.core.config import OfflineConfig
from rllib_damo.core.learner import OfflineTorchLearner
from rllib_damo.core.networks import GaussianActor, Values
from rllib_damo.core.option_groups import CriticTraining, OfflineTraining, Schedule
from rllib_damo.core.options import Check, Option, learning_rate, not_negative, number, positive
from rllib_damo.core.registration import register_algorithm
from rllib_damo.core.rl_module import ActorCriticTorchRLModule
from rllib_damo.core.update import DatasetFacts, Metrics, StepBatch, Update, cosine
from rllib_damo.data.schema import Transitions
from rllib_damo.errors import DataError

RETURN_RANGE = "return_range"
reward_scales = Check(
    f'"{RETURN_RANGE}" or a finite number > 0',
    lambda value: value == RETURN_RANGE if isinstance(value, str) else positive.holds(value),
)


def expectile_loss(residual: Tensor, expectile: float) -> Tensor:
    """Mean of |τ - 1(u < 0)| u² over residuals u ``(B,)`` (eq. 5); the τ-expectile minimises it, for 0.5 the mean."""
    return ((expectile - (residual < 0).to(residual.dtype)).abs() * residual.square()).mean()


def advantage_weights(advantage: Tensor, beta: float, max_weight: float) -> Tensor:
    """min(exp(β A), max_weight); the exponent is bounded, since exp overflows float32 from 89 on."""
    return (beta * advantage).clamp(max=math.log(max_weight)).exp()


class OfflineIQLTorchRLModule(ActorCriticTorchRLModule):
    """Gaussian actor, twin critics with targets, and state values."""

    def setup(self) -> None:
        super().setup()
        self.values: Any = Values(self.sizes[0], self.model_config["hidden_dims"])

    def make_actor(self) -> nn.Module:
        return GaussianActor(*self.sizes, self.model_config["hidden_dims"])

    def trainable(self) -> dict[str, list[nn.Parameter]]:
        return super().trainable() | {"value": list(self.values.parameters())}


class OfflineIQLUpdate(Update):
    """Learns only from the dataset's own actions: none is sampled.

    V(s) is an upper expectile of min_i Q̄_i(s,a) over the dataset's actions (eq. 5), Q regresses on r + γ V(s')
    (eq. 6), and the actor clones actions with weights exp(β (min_i Q̄_i(s,a) - V(s))) (eq. 7). As in the authors' code
    V moves first, and actor and critics use the moved one.
    """

    def __init__(self, module: Any, config: Any, **parts: Any):
        super().__init__(module, config, **parts)
        self._reward_scale = 1.0

    def fit(self, facts: DatasetFacts) -> None:
        self._reward_scale = facts.reward_scale

    def step(self, batch: StepBatch, step: int, measure: bool) -> Metrics:
        o, m, rows = self.config, self.module, batch["update"]
        with torch.no_grad():
            data_q = m.target_critics(rows.obs, rows.actions).min(0).values
        value_loss = expectile_loss(data_q - m.values(rows.obs)[0], o.expectile)
        self.apply("value", value_loss)

        with torch.no_grad():
            value, next_value = m.values(torch.cat((rows.obs, rows.next_obs)))[0].chunk(2)
            target = rows.rewards + o.gamma * (1 - rows.terminated) * next_value
            weights = advantage_weights(data_q - value, o.beta, o.max_weight)
        actor_loss = -(weights * m.actor.log_prob(rows.obs, rows.actions)).mean()
        self.apply("actor", actor_loss)

        q = m.critics(rows.obs, rows.actions)  # (C, B)
        critic_loss = (target - q).square().mean(-1).sum()
        self.apply("critic", critic_loss)
        self.move_targets()

        scale = self._reward_scale
        return {
            "policy_loss": actor_loss.detach(), "qf_loss": critic_loss.detach(), "value_loss": value_loss.detach(),
            "qf_mean": q.detach().mean() / scale, "value_mean": value.mean() / scale,
            "td_error_abs": (target - q).detach().abs().mean() / scale, "weight_mean": weights.mean(),
            "clipped_share": (weights >= 0.999 * o.max_weight).float().mean(),
        }  # fmt: skip


class OfflineIQLTorchLearner(OfflineTorchLearner):
    """The learner with `OfflineIQLUpdate`.

    Metrics: ``value_mean`` is the mean V(s), ``qf_mean`` the mean Q(s,a), ``td_error_abs`` the mean absolute TD error,
    all in the dataset's own rewards; ``weight_mean`` is the mean weight of the cloned actions, ``clipped_share`` the
    share of rows whose weight is ``max_weight`` (near 1, the weights tell nothing apart: lower ``beta``);
    ``policy_loss``, ``value_loss`` and ``qf_loss`` (the sum of the critics' mean squared TD errors) are the losses, in
    scaled rewards.
    """

    update_class = OfflineIQLUpdate
    divergence_hint = "smaller learning rates or a smaller beta"


class OfflineIQLTraining(OfflineTraining, CriticTraining, total=False):
    """What ``OfflineIQLConfig.training`` takes; equations are the paper's."""

    expectile: Annotated[
        float,
        Option(
            0.7,
            number("a number in (0, 1)", lambda v: 0 < v < 1),
            "τ, the expectile of eq. 5: 0.5 is the behaviour's value, near 1 that of the dataset's best actions. The "
            "paper's: 0.7 for locomotion and 0.9 for mazes.",
        ),
    ]
    beta: Annotated[
        float,
        Option(
            3.0,
            not_negative,
            "β of eq. 7, per unit of scaled reward: 0 clones the data. The paper's: 3 for locomotion, 10 for mazes.",
        ),
    ]
    max_weight: Annotated[
        float, Option(100.0, positive, "Upper bound of the weights exp(β A), from the authors' code.")
    ]
    reward_scale: Annotated[
        str | float,
        Option(
            RETURN_RANGE,
            reward_scales,
            'What rewards are multiplied by: a number, or "return_range", 1000 / (largest - smallest episode return of '
            "the dataset), as in the authors' code for locomotion. `beta` belongs to it.",
        ),
    ]
    value_lr: Annotated[Schedule, Option(3e-4, learning_rate, "Adam's learning rate for V, or a schedule.")]


class OfflineIQLConfig(OfflineConfig):
    """Configuration of IQL.

    .. code-block:: python

        from rllib_damo import OfflineIQLConfig

        config = OfflineIQLConfig().environment("Hopper-v5").offline_data(input_="hopper-medium").training(beta=3.0)
    """

    option_groups: ClassVar[Mapping[str, type]] = {**OfflineConfig.option_groups, "training": OfflineIQLTraining}
    network_options = ("hidden_dims", "twin_q", "critic_layer_norm")
    default_module_class = OfflineIQLTorchRLModule
    default_learner_class = OfflineIQLTorchLearner

    @classmethod
    def algorithm_class(cls) -> type:
        return OfflineIQL

    @classmethod
    def paper(cls, num_steps: int = 1_000_000) -> OfflineIQLConfig:
        """The settings of the authors' code for locomotion: raw observations, and no average of the policy.

        The first weights are PyTorch's, where theirs are orthogonal.

        Args:
            num_steps: gradient steps of the run, over which the actor's learning rate falls to 0 as half a cosine.
        """
        return cls().training(actor_lr=cosine(3e-4, num_steps), normalize_observations=False, policy_tau=1.0)

    def training(self, **options: Unpack[OfflineIQLTraining]) -> OfflineIQLConfig:  # type: ignore[override]
        """Sets the options of IQL."""
        return super().training(**options)


@register_algorithm
class OfflineIQL(OfflineAlgorithm):
    """IQL (arXiv 2110.06169).

    Its name keeps it apart from RLlib's "IQL", whose actor is a squashed Gaussian, and whose defaults copy the critics
    to their targets in every step.
    """

    config_class: ClassVar[Any] = OfflineIQLConfig

    def reward_scale(self, transitions: Transitions) -> float:
        """The option; "return_range" is of the whole dataset, or of the first window of a larger one."""
        scale = self.config.reward_scale
        return return_range_scale(transitions) if scale == RETURN_RANGE else float(scale)


def return_range_scale(transitions: Transitions) -> float:
    """1000 / (largest - smallest episode return).

    Raises:
        DataError: all episodes have the same return.
    """
    returns = transitions.episode_returns()
    spread = float(np.ptp(returns))
    if spread <= 1e-6 * float(np.abs(returns).max()):
        raise DataError(
            f"{transitions.name}: reward_scale='{RETURN_RANGE}' divides by the range of the episodes' returns, and all "
            f"{len(returns)} are {returns[0]:g}. Set reward_scale to a number, such as 1.0."
        )
    return 1000 / spread
