"""TD3+BC: "A Minimalist Approach to Offline Reinforcement Learning" (Fujimoto & Gu 2021, arXiv 2106.06860)."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import torch
from torch import nn
from typing_extensions import Unpack

from rllib_damo.core.algorithm import OfflineAlgorithm
from rllib_damo.core.config import OfflineConfig
from rllib_damo.core.learner import OfflineTorchLearner
from rllib_damo.core.option_groups import CriticTraining, OfflineTraining
from rllib_damo.core.options import Option, count, not_negative
from rllib_damo.core.rl_module import ActorCriticTorchRLModule, DeterministicMixin
from rllib_damo.core.update import Metrics, StepBatch, Update


class TD3BCTorchRLModule(DeterministicMixin, ActorCriticTorchRLModule):
    """Deterministic actor, twin critics, and the targets of both."""

    def setup(self) -> None:
        super().setup()
        self.target_actor = copy.deepcopy(self.actor).requires_grad_(False)

    def targets(self) -> list[tuple[nn.Module, nn.Module]]:
        return [*super().targets(), (self.actor, self.target_actor)]


class TD3BCUpdate(Update):
    """TD3's critics, and an actor that ascends λ Q₁(s,π(s)) - (π(s) - a)² (the paper's eq. 3 to 5).

    λ = α / mean|Q₁(s,π(s))| over the batch, as in the authors' code; the paper's eq. 5 has Q(s,a) in it. Every
    ``policy_delay``-th step moves the actor and the targets.
    """

    def __init__(self, module: Any, config: Any, **parts: Any):
        super().__init__(module, config, **parts)
        zero = torch.zeros((), device=module.actor.standardize.mean.device)
        self._actor_metrics = dict.fromkeys(("policy_loss", "bc_loss", "value_scale"), zero)

    def step(self, batch: StepBatch, step: int, measure: bool) -> Metrics:
        """The actor's metrics are from the last time it moved."""
        o, m, rows = self.config, self.module, batch["update"]
        with torch.no_grad():
            noise = torch.randn(rows.actions.shape, generator=self.generator, device=rows.obs.device) * o.policy_noise
            next_actions = m.target_actor(rows.next_obs)[0].tanh() + noise.clamp(-o.noise_clip, o.noise_clip)
            next_q = m.target_critics(rows.next_obs, next_actions.clamp(-1, 1)).min(0).values
            target = rows.rewards + o.gamma * (1 - rows.terminated) * next_q
        q = m.critics(rows.obs, rows.actions)  # (C, B)
        critic_loss = (target - q).square().mean(-1).sum()
        self._apply("critic", critic_loss)
        if (step + 1) % o.policy_delay == 0:
            actions = m.actor(rows.obs)[0].tanh()
            policy_q = m.critics(rows.obs, actions)[0]
            scale = o.bc_alpha / policy_q.detach().abs().mean()
            bc_loss = (actions - rows.actions).square().mean()
            actor_loss = bc_loss - scale * policy_q.mean()
            self._apply("actor", actor_loss)
            self._move_targets()
            self._actor_metrics = {
                "policy_loss": actor_loss.detach(), "bc_loss": bc_loss.detach(), "value_scale": scale,
            }  # fmt: skip
        return {
            **self._actor_metrics, "qf_loss": critic_loss.detach(), "qf_mean": q.detach().mean(),
            "td_error_abs": (target - q).detach().abs().mean(),
        }  # fmt: skip


class TD3BCTorchLearner(OfflineTorchLearner):
    """The learner with `TD3BCUpdate`.

    Metrics: ``policy_loss`` is the actor's, ``bc_loss`` its part (π(s) - a)², ``value_scale`` λ; ``qf_loss`` is the sum
    of the critics' mean squared TD errors, ``td_error_abs`` the mean absolute one, ``qf_mean`` the mean Q(s,a).
    """

    update_class = TD3BCUpdate
    divergence_hint = "smaller learning rates or a smaller bc_alpha"


class TD3BCTraining(OfflineTraining, CriticTraining, total=False):
    """What ``TD3BCConfig.training`` takes (the paper's appendix, Table 3)."""

    bc_alpha: Annotated[
        float,
        Option(
            2.5, not_negative, "α, weight of the value against the distance from the data's actions; 0 clones them."
        ),
    ]
    policy_noise: Annotated[
        float, Option(0.2, not_negative, "Standard deviation of the noise on the target policy's unit actions.")
    ]
    noise_clip: Annotated[float, Option(0.5, not_negative, "Bound of that noise.")]
    policy_delay: Annotated[
        int, Option(2, count, "Gradient steps of the critics for each of the actor and the targets.")
    ]


class TD3BCConfig(OfflineConfig):
    """Configuration of TD3+BC, with the paper's settings.

    .. code-block:: python

        from rllib_damo import TD3BCConfig

        config = TD3BCConfig().environment("Hopper-v5").offline_data(input_="hopper-medium").training(bc_alpha=2.5)
    """

    option_groups: ClassVar[Mapping[str, type]] = {**OfflineConfig.option_groups, "training": TD3BCTraining}
    network_options = ("hidden_dims", "twin_q", "critic_layer_norm")
    default_module_class = TD3BCTorchRLModule
    default_learner_class = TD3BCTorchLearner

    @classmethod
    def algorithm_class(cls) -> type:
        return TD3BC

    def training(self, **options: Unpack[TD3BCTraining]) -> TD3BCConfig:  # type: ignore[override]
        """Sets the options of TD3+BC."""
        return super().training(**options)


class TD3BC(OfflineAlgorithm):
    """TD3+BC (arXiv 2106.06860)."""

    config_class: ClassVar[Any] = TD3BCConfig
