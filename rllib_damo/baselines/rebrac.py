"""ReBRAC: "Revisiting the Minimalist Approach to Offline RL" (Tarasov et al. 2023, arXiv 2305.09836)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import numpy as np
from torch import Tensor
from typing_extensions import Unpack

from rllib_damo.core.algorithm import OfflineAlgorithm
from rllib_damo.core.config import OfflineConfig
from rllib_damo.core.learner import OfflineTorchLearner
from rllib_damo.core.option_groups import CriticTraining, OfflineTraining, PrecisionTraining
from rllib_damo.core.options import Option, flag, not_negative
from rllib_damo.core.registration import register_algorithm
from rllib_damo.core.td3 import TD3TorchRLModule, TD3Training, TD3Update
from rllib_damo.core.update import Metrics, StepBatch
from rllib_damo.data.schema import Transitions

NEXT_ACTIONS, HAS_NEXT_ACTION = "next_actions", "has_next_action"


def next_action_columns(transitions: Transitions, unit_actions: np.ndarray) -> dict[str, np.ndarray]:
    """The action of each row's successor in its episode ``(N, act_dim)``, and whether there is one ``(N, 1)``.

    The last row of an episode has none, whether it is terminal or truncated; its entries are 0.
    """
    has_next = ~(transitions.terminations | transitions.truncations)
    next_actions = np.zeros_like(unit_actions)
    rows = np.flatnonzero(has_next)
    next_actions[rows] = unit_actions[rows + 1]
    return {NEXT_ACTIONS: next_actions, HAS_NEXT_ACTION: has_next[:, None].astype(np.float32)}


class ReBRACUpdate(TD3Update):
    """TD3 with the distance from the data's actions in the actor's loss and in the critics' targets.

    Targets are r + γ (1 - terminated) (min_i Q̄_i(s',a') - β₂ ‖a' - â'‖²), â' the dataset's next action; where the data
    ends, and â' is not known, without that distance. The actor minimises β₁ ‖π(s) - a‖² - λ min_i Q_i(s,π(s)), with
    λ = 1 / mean|min_i Q_i(s,π(s))| over the batch. Distances are sums over the action's coordinates.
    """

    actor_metrics = ("bc_loss", "value_scale")

    def next_value(self, batch: StepBatch, next_actions: Tensor) -> Tensor:
        distance = (next_actions - batch.extra[NEXT_ACTIONS]).square().sum(-1)
        known = batch.extra[HAS_NEXT_ACTION].squeeze(-1)
        return super().next_value(batch, next_actions) - self.config.critic_bc_coef * known * distance

    def actor_loss(self, batch: StepBatch) -> tuple[Tensor, Metrics]:
        m, rows = self.module, batch["update"]
        actions = m.actor(rows.obs)[0].tanh()
        policy_q = m.critics(rows.obs, actions).min(0).values
        size = policy_q.detach().abs().mean()
        scale = 1 / size if self.config.normalize_q else size.new_ones(())
        bc_loss = (actions - rows.actions).square().sum(-1).mean()
        loss = self.config.actor_bc_coef * bc_loss - scale * policy_q.mean()
        return loss, {"bc_loss": bc_loss.detach(), "value_scale": scale}


class ReBRACTorchLearner(OfflineTorchLearner):
    """The learner with `ReBRACUpdate`.

    Metrics: ``policy_loss`` is the actor's, ``bc_loss`` the mean ‖π(s) - a‖² in it, ``value_scale`` λ; ``qf_loss`` is
    the sum of the critics' mean squared TD errors, ``td_error_abs`` the mean absolute one, ``qf_mean`` the mean Q(s,a).
    """

    update_class = ReBRACUpdate
    divergence_hint = "smaller learning rates, a larger actor_bc_coef or critic_layer_norm=True"


class ReBRACTraining(OfflineTraining, CriticTraining, TD3Training, PrecisionTraining, total=False):
    """What ``ReBRACConfig.training`` takes; symbols are the paper's."""

    actor_bc_coef: Annotated[
        float,
        Option(
            0.01,
            not_negative,
            "β₁, weight of ‖π(s) - a‖² in the actor's loss. TD3+BC's α is 1 / (β₁ dim(A)). The paper's: 0.001 to 0.1 "
            "for locomotion.",
        ),
    ]
    critic_bc_coef: Annotated[
        float,
        Option(0.01, not_negative, "β₂, weight of ‖a' - â'‖² in the critics' targets. The paper's: 0 to 0.5."),
    ]
    normalize_q: Annotated[
        bool,
        Option(
            True,
            flag,
            "λ = 1 / mean of the absolute min_i Q_i(s,π(s)) in the actor's loss, as in the authors' code; False: 1.",
        ),
    ]


class ReBRACConfig(OfflineConfig):
    """Configuration of ReBRAC.

    .. code-block:: python

        from rllib_damo import ReBRACConfig

        config = (
            ReBRACConfig()
            .environment("Hopper-v5")
            .offline_data(input_="hopper-medium-expert")
            .training(actor_bc_coef=0.1, critic_bc_coef=0.01)
        )

    The authors tuned (β₁, β₂) for each task of D4RL:

    =============  ===============  =============  ==============
    dataset        HalfCheetah      Hopper         Walker2d
    =============  ===============  =============  ==============
    random         0.001, 0.1       0.001, 0.01    0.01, 0
    medium         0.001, 0.01      0.01, 0.01     0.05, 0.1
    medium-replay  0.01, 0.001      0.05, 0.5      0.05, 0.01
    medium-expert  0.01, 0.1        0.1, 0.01      0.01, 0.01
    =============  ===============  =============  ==============
    """

    option_groups: ClassVar[Mapping[str, type]] = {**OfflineConfig.option_groups, "training": ReBRACTraining}
    defaults: ClassVar[Mapping[str, Any]] = {
        "hidden_dims": (256, 256, 256),
        "critic_layer_norm": True,
        "actor_lr": 1e-3,
        "critic_lr": 1e-3,
    }
    network_options = ("hidden_dims", "twin_q", "critic_layer_norm")
    default_module_class = TD3TorchRLModule
    default_learner_class = ReBRACTorchLearner

    @classmethod
    def algorithm_class(cls) -> type:
        return ReBRAC

    @classmethod
    def paper(cls) -> ReBRACConfig:
        """The published settings, for 1 M gradient steps; β₁ and β₂ are per task and still to be set.

        This package's are the critics' layer normalisation, before the ReLU and without parameters, and the first
        weights, which are PyTorch's (theirs: last layers within 1e-3 and 3e-3, hidden biases of 0.1).
        """
        return cls().training(train_batch_size_per_learner=1024, normalize_observations=False, policy_tau=1.0)

    def training(self, **options: Unpack[ReBRACTraining]) -> ReBRACConfig:  # type: ignore[override]
        """Sets the options of ReBRAC."""
        return super().training(**options)


@register_algorithm
class ReBRAC(OfflineAlgorithm):
    """ReBRAC (arXiv 2305.09836)."""

    config_class: ClassVar[Any] = ReBRACConfig

    def extra_columns(self, transitions: Transitions, unit_actions: np.ndarray) -> dict[str, np.ndarray]:
        return next_action_columns(transitions, unit_actions)
