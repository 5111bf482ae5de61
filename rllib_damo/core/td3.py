"""TD3's gradient step (Fujimoto et al. 2018, arXiv 1802.09477), which deterministic algorithms build on."""

from __future__ import annotations

import copy
from typing import Annotated, Any, ClassVar, TypedDict

import torch
from torch import Tensor, nn

from rllib_damo.core.fast_steps import FastCriticStep, critic_step
from rllib_damo.core.options import Option, count, not_negative
from rllib_damo.core.rl_module import ActorCriticTorchRLModule, DeterministicMixin
from rllib_damo.core.update import Metrics, StepBatch, Update


class TD3TorchRLModule(DeterministicMixin, ActorCriticTorchRLModule):
    """Deterministic actor, twin critics, and the targets of both."""

    def setup(self) -> None:
        super().setup()
        self.target_actor = copy.deepcopy(self.actor).requires_grad_(False)

    def targets(self) -> list[tuple[nn.Module, nn.Module]]:
        return [*super().targets(), (self.actor, self.target_actor)]


class TD3Update(Update):
    """Critics that move in every step; actor and targets in every ``policy_delay``-th one.

    Subclasses change the `next_value` of the critics' targets or the `actor_loss`.
    """

    #: Metrics of `actor_loss`, which stay as they were until it is next taken.
    actor_metrics: ClassVar[tuple[str, ...]] = ()

    def __init__(self, module: Any, config: Any, **parts: Any):
        super().__init__(module, config, **parts)
        zero = torch.zeros((), device=module.actor.standardize.mean.device)
        self._critic_step: Any = FastCriticStep(module) if module.is_fast else critic_step
        self._actor_metrics = dict.fromkeys(("policy_loss", *self.actor_metrics), zero)

    def step(self, batch: StepBatch, step: int, measure: bool) -> Metrics:
        o, rows = self.config, batch["update"]
        with torch.no_grad():
            next_actions = self._next_actions(rows.next_obs)
            target = rows.rewards + o.gamma * (1 - rows.terminated) * self.next_value(batch, next_actions)
        q, critic_loss = self._critic_step(self, rows, lambda q: (target - q).square().mean(-1).sum())
        if (step + 1) % o.policy_delay == 0:
            actor_loss, metrics = self.actor_loss(batch)
            self.apply("actor", actor_loss)
            self.move_targets()
            self._actor_metrics = {"policy_loss": actor_loss.detach(), **metrics}
        if not measure:
            return {}
        return {
            **self._actor_metrics, "qf_loss": critic_loss, "qf_mean": q.mean(),
            "td_error_abs": (target - q).abs().mean(),
        }  # fmt: skip

    def _next_actions(self, next_obs: Tensor) -> Tensor:
        """The target policy's actions with clipped noise, ``(B, act_dim)``."""
        o, mean = self.config, self.module.target_actor(next_obs)[0].tanh()
        noise = torch.randn(mean.shape, generator=self.generator, device=mean.device) * o.policy_noise
        return (mean + noise.clamp(-o.noise_clip, o.noise_clip)).clamp(-1, 1)

    def next_value(self, batch: StepBatch, next_actions: Tensor) -> Tensor:
        """What the critics' targets add for the successors, before γ (1 - terminated): min_i Q̄_i(s',a') ``(B,)``."""
        return self.module.target_critics(batch["update"].next_obs, next_actions).min(0).values

    def actor_loss(self, batch: StepBatch) -> tuple[Tensor, Metrics]:
        """The actor's loss, the mean of -Q₁(s,π(s)), and the `actor_metrics`."""
        obs = batch["update"].obs
        return -self.module.critics(obs, self.module.actor(obs)[0].tanh())[0].mean(), {}


class TD3Training(TypedDict, total=False):
    """Options of TD3's targets and delay."""

    policy_noise: Annotated[
        float, Option(0.2, not_negative, "Standard deviation of the noise on the target policy's unit actions.")
    ]
    noise_clip: Annotated[float, Option(0.5, not_negative, "Bound of that noise.")]
    policy_delay: Annotated[
        int, Option(2, count, "Gradient steps of the critics for each of the actor and the targets.")
    ]
