"""One gradient step of each baseline."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rllib_damo.damo import losses
from rllib_damo.damo.rl_module import DAMOTorchRLModule
from rllib_damo.damo.update import StepBatch, Update


class BehaviorCloningUpdate(Update):
    """Minimises the mean over rows and action coordinates of (π(s) - a)², actions in [-1, 1]."""

    def step(self, batch: StepBatch) -> Tensor:
        """One gradient step of the actor; returns ``BehaviorCloningTorchLearner.metric_names``, on the device."""
        rows = batch.update
        loss = (self.module.actor(rows.obs)[0].tanh() - rows.actions).square().mean()
        self._apply("actor", loss)
        return torch.stack((loss.detach(),))


@dataclass(frozen=True)
class TD3BCOptions:
    """The part of ``TD3BCConfig`` that a gradient step reads; see there for the meaning of each."""

    gamma: float
    tau: float
    bc_alpha: float
    policy_noise: float
    noise_clip: float
    policy_delay: int


class TD3BCUpdate(Update):
    """TD3's critics, and an actor that ascends λ Q₁(s,π(s)) - (π(s) - a)² (the paper's eq. 3 to 5).

    λ = α / mean|Q₁(s,π(s))| over the batch, as in the authors' code; the paper's eq. 5 has Q(s,a) in it. Every
    ``policy_delay``-th step moves the actor and the targets.
    """

    def __init__(self, module: DAMOTorchRLModule, *, options: TD3BCOptions, **parts: Any):
        super().__init__(module, **parts)
        self.opt = options
        nets = ((module.critics, module.target_critics), (module.actor, module.target_actor))
        self._params = [p.data for net, _ in nets for p in net.parameters()]
        self._targets = [p.data for _, target in nets for p in target.parameters()]
        self._actor_metrics = torch.zeros(3, device=module.actor.standardize.mean.device)

    def step(self, batch: StepBatch) -> Tensor:
        """One gradient step; returns ``TD3BCTorchLearner.metric_names``, the actor's from the last time it moved."""
        o, m, rows = self.opt, self.module, batch.update
        with torch.no_grad():
            noise = torch.randn(rows.actions.shape, generator=self.generator, device=rows.obs.device) * o.policy_noise
            next_actions = m.target_actor(rows.next_obs)[0].tanh() + noise.clamp(-o.noise_clip, o.noise_clip)
            next_q = m.target_critics(rows.next_obs, next_actions.clamp(-1, 1)).min(0).values
            target = rows.rewards + o.gamma * (1 - rows.terminated) * next_q
        q = m.critics(rows.obs, rows.actions)  # (C, B)
        critic_loss = (target - q).square().mean(-1).sum()
        self._apply("critic", critic_loss)
        if (self.num_steps + 1) % o.policy_delay == 0:
            actions = m.actor(rows.obs)[0].tanh()
            policy_q = m.critics(rows.obs, actions)[0]
            scale = o.bc_alpha / policy_q.detach().abs().mean()
            bc_loss = (actions - rows.actions).square().mean()
            actor_loss = bc_loss - scale * policy_q.mean()
            self._apply("actor", actor_loss)
            torch._foreach_lerp_(self._targets, self._params, o.tau)
            self._actor_metrics = torch.stack((actor_loss.detach(), bc_loss.detach(), scale)).to(rows.obs)
        critic_metrics = torch.stack((critic_loss.detach(), q.detach().mean(), (target - q).detach().abs().mean()))
        return torch.cat((self._actor_metrics, critic_metrics))


@dataclass(frozen=True)
class SACOptions:
    """The part of ``MOPOConfig`` that a gradient step reads; see there for the meaning of each."""

    gamma: float
    tau: float
    target_entropy: float
    max_alpha: float


class SACUpdate(Update):
    """SAC with automatic entropy coefficient (Haarnoja et al. 2018, arXiv 1812.05905, eq. 5, 7 and 18).

    The critics move first, and the actor ascends the moved ones.
    """

    def __init__(self, module: DAMOTorchRLModule, *, options: SACOptions, **parts: Any):
        super().__init__(module, **parts)
        self.opt = options
        self._params = [p.data for p in module.critics.parameters()]
        self._targets = [p.data for p in module.target_critics.parameters()]

    def step(self, batch: StepBatch) -> Tensor:
        """One gradient step of critics, actor and entropy coefficient; returns ``MOPOTorchLearner.metric_names``."""
        o, m, rows = self.opt, self.module, batch.update
        alpha = m.log_alpha.detach().exp()
        with torch.no_grad():
            next_actions, next_log_prob = m.sample_actions(rows.next_obs, self.generator)
            next_q = m.target_critics(rows.next_obs, next_actions).min(0).values
            target = losses.bellman_target(rows.rewards, rows.terminated, next_q, next_log_prob, alpha, o.gamma)
        q = m.critics(rows.obs, rows.actions)  # (C, B)
        critic_loss = losses.td_loss(q, target)
        self._apply("critic", critic_loss)
        actions, log_prob = m.sample_actions(rows.obs, self.generator)
        actor_loss = losses.sac_actor_loss(m.critics(rows.obs, actions).min(0).values, log_prob, alpha)
        self._apply("actor", actor_loss)
        alpha_loss = losses.alpha_loss(m.log_alpha, log_prob, o.target_entropy)
        self._apply("alpha", alpha_loss)
        with torch.no_grad():
            m.log_alpha.clamp_(max=math.log(o.max_alpha))
            torch._foreach_lerp_(self._targets, self._params, o.tau)
            error = (target - q).abs().mean()
            return torch.stack((
                actor_loss, critic_loss, alpha_loss, alpha, q.mean(), error, -log_prob.mean(), rows.rewards.mean()
            ))  # fmt: skip
