"""TD3+BC: "A Minimalist Approach to Offline Reinforcement Learning" (Fujimoto & Gu 2021, arXiv 2106.06860)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from torch import Tensor
from typing_extensions import Unpack

from rllib_damo.core.algorithm import OfflineAlgorithm
from rllib_damo.core.config import OfflineConfig
from rllib_damo.core.learner import OfflineTorchLearner
from rllib_damo.core.option_groups import CriticTraining, OfflineTraining, PrecisionTraining
from rllib_damo.core.options import Option, not_negative
from rllib_damo.core.registration import register_algorithm
from rllib_damo.core.td3 import TD3TorchRLModule, TD3Training, TD3Update
from rllib_damo.core.update import Metrics, StepBatch


class TD3BCUpdate(TD3Update):
    """TD3 with an actor that ascends λ Q₁(s,π(s)) - (π(s) - a)² (the paper's eq. 3 to 5).

    λ = α / mean|Q₁(s,π(s))| over the batch, as in the authors' code; the paper's eq. 5 has Q(s,a) in it.
    """

    actor_metrics = ("bc_loss", "value_scale")

    def actor_loss(self, batch: StepBatch) -> tuple[Tensor, Metrics]:
        m, rows = self.module, batch["update"]
        actions = m.actor(rows.obs)[0].tanh()
        policy_q = m.critics(rows.obs, actions)[0]
        scale = self.config.bc_alpha / policy_q.detach().abs().mean()
        bc_loss = (actions - rows.actions).square().mean()
        return bc_loss - scale * policy_q.mean(), {"bc_loss": bc_loss.detach(), "value_scale": scale}


class TD3BCTorchLearner(OfflineTorchLearner):
    """The learner with `TD3BCUpdate`.

    Metrics: ``policy_loss`` is the actor's, ``bc_loss`` its part (π(s) - a)², ``value_scale`` λ; ``qf_loss`` is the sum
    of the critics' mean squared TD errors, ``td_error_abs`` the mean absolute one, ``qf_mean`` the mean Q(s,a).
    """

    update_class = TD3BCUpdate
    divergence_hint = "smaller learning rates or a smaller bc_alpha"


class TD3BCTraining(OfflineTraining, CriticTraining, TD3Training, PrecisionTraining, total=False):
    """What ``TD3BCConfig.training`` takes (the paper's appendix, Table 3)."""

    bc_alpha: Annotated[
        float,
        Option(
            2.5,
            not_negative,
            "α of the paper's eq. 5, weight of the value against the distance from the data's actions; 0 clones them.",
        ),
    ]


class TD3BCConfig(OfflineConfig):
    """Configuration of TD3+BC, with the paper's settings; but evaluated and delivered is an average of the policy.

    .. code-block:: python

        from rllib_damo import TD3BCConfig

        config = TD3BCConfig().environment("Hopper-v5").offline_data(input_="hopper-medium").training(bc_alpha=2.5)
    """

    option_groups: ClassVar[Mapping[str, type]] = {**OfflineConfig.option_groups, "training": TD3BCTraining}
    network_options = ("hidden_dims", "twin_q", "critic_layer_norm")
    default_module_class = TD3TorchRLModule
    default_learner_class = TD3BCTorchLearner

    @classmethod
    def algorithm_class(cls) -> type:
        return TD3BC

    @classmethod
    def paper(cls) -> TD3BCConfig:
        """The settings of the authors' code, for 1 M gradient steps: the policy itself is played."""
        return cls().training(policy_tau=1.0)

    def training(self, **options: Unpack[TD3BCTraining]) -> TD3BCConfig:  # type: ignore[override]
        """Sets the options of TD3+BC."""
        return super().training(**options)


@register_algorithm
class TD3BC(OfflineAlgorithm):
    """TD3+BC (arXiv 2106.06860)."""

    config_class: ClassVar[Any] = TD3BCConfig
