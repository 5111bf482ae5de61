"""SAC's gradient step (Haarnoja et al. 2018, arXiv 1812.05905), which model-based algorithms build on."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from rllib_damo.core import losses
from rllib_damo.core.config import resolve_target_entropy
from rllib_damo.core.fast_steps import FastActorStep, FastCriticStep, critic_step
from rllib_damo.core.update import Metrics, RowGroup, StepBatch, Update, mixed_rows
from rllib_damo.utils.batch import Batch

#: Options that `SACTorchRLModule` is built from.
NETWORK_OPTIONS = ("hidden_dims", "twin_q", "critic_layer_norm", "initial_alpha")
#: Defaults by which SAC in a model is stable within 100,000 gradient steps, where published settings take millions.
SHORT_RUN: Mapping[str, Any] = {
    "actor_lr": 1e-4, "alpha_lr": 1e-4, "critic_layer_norm": True, "real_ratio": 0.5, "initial_alpha": 0.1,
    "max_alpha": 1.0,
}  # fmt: skip


class SACUpdate(Update):
    """SAC with automatic entropy coefficient (eq. 5, 7 and 18), on rows of the dataset and of the model buffer.

    The critics move first, and the actor ascends the moved ones. Subclasses change the critics' `target` or their
    `critic_loss`.
    """

    def __init__(self, module: Any, config: Any, **parts: Any):
        super().__init__(module, config, **parts)
        self.target_entropy = resolve_target_entropy(config.target_entropy, module.action_space)
        self._critic_step: Any = critic_step
        self._actor_step: Any = SACUpdate.actor_step
        if module.is_fast:
            self._critic_step = FastCriticStep(module)
            self._actor_step = FastActorStep(module, self._critic_step.critics)

    def row_groups(self) -> dict[str, RowGroup]:
        return {"update": mixed_rows(self.config)}

    @torch.no_grad()
    def target(self, batch: StepBatch, alpha: Tensor) -> Tensor:
        """The critics' targets for the rows of "update", ``(B,)``."""
        m, rows = self.module, batch["update"]
        next_actions, next_log_prob = m.sample_actions(rows.next_obs, self.generator)
        next_q = m.target_critics(rows.next_obs, next_actions).min(0).values
        return losses.bellman_target(
            rows.rewards, rows.terminated, next_q, next_log_prob, alpha, self.config.gamma
        )  # fmt: skip

    def critic_loss(self, q: Tensor, target: Tensor, batch: StepBatch) -> Tensor:
        """The critics' loss from Q(s,a) ``(C, B)`` and the targets."""
        return losses.td_loss(q, target)

    def step(self, batch: StepBatch, step: int, measure: bool) -> Metrics:
        """One gradient step of critics, actor and entropy coefficient."""
        m, rows = self.module, batch["update"]
        alpha = m.log_alpha.detach().exp()
        target = self.target(batch, alpha)
        q, critic_loss = self._critic_step(self, rows, lambda q: self.critic_loss(q, target, batch))
        actor_loss, log_prob = self._actor_step(self, rows, alpha)
        alpha_loss = losses.alpha_loss(m.log_alpha, log_prob, self.target_entropy)
        self.apply("alpha", alpha_loss)
        with torch.no_grad():
            m.log_alpha.clamp_(max=math.log(self.config.max_alpha))
        self.move_targets()
        if not measure:
            return {}
        return {
            "policy_loss": actor_loss, "qf_loss": critic_loss, "alpha_loss": alpha_loss.detach(),
            "alpha_value": alpha, "qf_mean": q.mean(), "td_error_abs": (target - q).abs().mean(),
            "entropy": -log_prob.mean(), "reward_mean": rows.rewards.mean(),
        }  # fmt: skip

    def actor_step(self, rows: Batch, alpha: Tensor) -> tuple[Tensor, Tensor]:
        """The actor's step; returns the loss before it, and log π(a|s) ``(B,)`` of the actions that it sampled."""
        actions, log_prob = self.module.sample_actions(rows.obs, self.generator)
        q = self.module.critics(rows.obs, actions).min(0).values
        loss = losses.sac_actor_loss(q, log_prob, alpha)
        self.apply("actor", loss)
        return loss.detach(), log_prob.detach()
