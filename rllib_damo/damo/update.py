"""One gradient step of DAMO: which network sees which rows, and who receives which gradient.

Each policy sample and each critic value is computed once and serves both losses: the critic loss takes the parameters'
gradients at (s,a) and (s0,a0), the actor loss the actions' gradients at (s0,a0) and (s',a').
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rllib_damo.core.config import resolve_target_entropy
from rllib_damo.core.losses import alpha_loss, bellman_target, td_loss
from rllib_damo.core.update import DatasetFacts, Metrics, RowGroup, StepBatch, Update, mixed_rows
from rllib_damo.damo import losses
from rllib_damo.damo.divergences import DIVERGENCES
from rllib_damo.damo.rl_module import DAMOTorchRLModule
from rllib_damo.utils.batch import Batch, unknown_successors

#: By how much a step moves the mean logit towards that of its batch.
MEAN_LOGIT_TAU = 1e-3


class DAMOUpdate(Update):
    """Applies DAMO's losses to a module.

    Args:
        module: all networks.
        config: a `DAMOConfig`, or what has its options of the objective.
        parts: "optimizers" (actor, critic, classifier, alpha), "generator" and "reduce_gradients" as for `Update`.

    Attributes:
        actor_eta: the coefficient in the actor's density ratio.
        logit_range: of the classifier's logits in the modified reward.
        is_consistent: whether the actor ascends the critic's own objective.
        is_anchored: whether the policy has an anchor, at some step.
        return_size: (mean |r| of the dataset + η) / (1-γ), about the largest a modified return can be: a unit for
            values that does not shrink where the classifier takes most of the reward.
        mean_logit: moving mean of the update rows' clipped logits, (); of several learners each has its own.
        knows_terminals: False where the dataset has terminals, but the successor of none, so that it has nothing to
            compare the model's terminals with.
    """

    return_size = 1.0
    knows_terminals = True

    def __init__(self, module: DAMOTorchRLModule, config: Any, **parts: Any):
        super().__init__(module, config, **parts)
        self.actor_eta = config.eta if config.actor_eta is None else config.actor_eta
        self.is_consistent = config.policy_improvement == "consistent" and config.behavior_alignment
        self.target_entropy = resolve_target_entropy(config.target_entropy, module.action_space)
        self.divergence = DIVERGENCES[config.f_divergence](config.f_power)
        self.actor_divergence = DIVERGENCES[config.actor_f_divergence](config.f_power)
        self.logit_range = -config.max_logit, config.max_logit if config.logit_bonus else 0.0
        weight = config.bc_weight
        self._bc_schedule = np.array([[0, weight]] if np.ndim(weight) == 0 else weight, float).T
        self.is_anchored = bool(self._bc_schedule[1].any())
        self.mean_logit = torch.zeros_like(module.log_alpha.detach())

    def row_groups(self) -> dict[str, RowGroup]:
        """B rows for critics and actor, B states s0, and B rows for each of the classifier's halves."""
        c = self.config
        num = c.train_batch_size_per_learner
        initial = RowGroup(num, of="starts" if c.initial_states == "episode_start" else "selected")
        if not c.data_alignment:
            return {"initial": initial, "update": mixed_rows(c)}
        return {
            "initial": initial,
            "classifier_offline": RowGroup(num, of="known"),
            "update": mixed_rows(c),
            "classifier_synthetic": RowGroup(0, num),
        }

    def fit(self, facts: DatasetFacts) -> None:
        self.return_size = (facts.reward_size + self.config.eta) / (1 - self.config.gamma)
        self.knows_terminals = facts.knows_terminals

    def get_state(self) -> dict[str, Any]:
        return {"mean_logit": float(self.mean_logit)}

    def set_state(self, state: dict[str, Any]) -> None:
        self.mean_logit.fill_(state.get("mean_logit", 0.0))  # earlier versions have none

    def is_plain(self, rows: Batch) -> Tensor:
        """``(B,)`` bool: rows whose reward the classifier does not modify, since there is no data to compare with."""
        if not self.knows_terminals:
            return rows.terminated > 0
        return unknown_successors(rows.obs, rows.next_obs, rows.terminated)

    def bc_weight(self, step: int) -> float:
        """Weight of the anchor at a gradient step."""
        return float(np.interp(step, *self._bc_schedule))

    def value_weight(self, step: int) -> float:
        """Weight of the actor loss's gradient through the critics; 0 while the policy only follows its anchor."""
        return float(step >= self.config.actor_warmup_steps or not self.is_anchored)

    def step(self, batch: StepBatch, step: int, measure: bool) -> Metrics:
        """One gradient step of every network."""
        o, m, update, initial = self.config, self.module, batch["update"], batch["initial"]
        num, num_initial = len(update.obs), len(initial.obs)
        alpha = m.log_alpha.detach().exp()

        rewards, classifier_metrics = self.classifier_step(batch) if o.data_alignment else (update.rewards, {})

        # a' ~ π(s'), a0 ~ π(s0), and for the ordinary actor loss also π(s)
        inconsistent = not self.is_consistent
        states = [update.next_obs, initial.obs] + ([update.obs] if inconsistent else [])
        noise = torch.randn(
            sum(map(len, states)), update.actions.shape[1], generator=self.generator, device=update.obs.device
        )
        sampled, log_prob = m.actor.sample(torch.cat(states), noise)
        next_log_prob = log_prob[:num]

        # The detached copy of the sampled actions is the cut between critic and actor: the critic loss stops there, and
        # the actor loss's gradient is carried over it below. One call for each group of rows: a joint one would
        # back-propagate zeros through the groups that a loss does not see.
        cut = sampled.detach().requires_grad_()
        cuts = cut.split([len(rows) for rows in states])
        q_data = m.critics(update.obs, update.actions)  # (C, B)
        q_initial = m.critics(initial.obs, cuts[1])  # (C, B0)
        if not (inconsistent and o.target_networks):
            q_next = m.critics(update.next_obs, cuts[0])  # (C, B)

        target_rewards = self.target_rewards(rewards, update)
        if o.target_networks:
            with torch.no_grad():
                next_q = m.target_critics(update.next_obs, cuts[0]).min(0).values
                target = bellman_target(target_rewards, update.terminated, next_q, next_log_prob, alpha, o.gamma)
        else:
            target = bellman_target(target_rewards, update.terminated, q_next, next_log_prob.detach(), alpha, o.gamma)
        if o.behavior_alignment:
            critic_loss = losses.critic_loss(q_data, target, q_initial, o.eta, o.gamma, self.divergence)
        else:
            critic_loss = td_loss(q_data, target)

        # The actor ascends the smallest of the critics. Values first as functions of the cut...
        if inconsistent:
            weight = torch.ones_like(rewards)
            value_loss = -m.critics(update.obs, cuts[2]).min(0).values.mean()
            entropy_loss = alpha * log_prob[num + num_initial :].mean()
        else:
            residual = (target if target.ndim == 1 else target.min(0).values) - q_data.min(0).values
            weight = losses.density_ratio(residual, self.actor_eta, self.actor_divergence, o.max_actor_weight)
            value_loss = losses.consistent_actor_loss(
                q_initial.min(0).values, q_next.min(0).values, weight, update.terminated, o.gamma
            )
            discount = weight * o.gamma * (1 - update.terminated)
            entropy_loss = alpha * (discount * next_log_prob).mean()
        # ... then of the actor's parameters, by the chain rule across the cut.
        (action_gradient,) = torch.autograd.grad(value_loss, cut, retain_graph=True)
        actor_loss = entropy_loss + self.value_weight(step) * (action_gradient * sampled).sum()
        bc_loss = torch.zeros_like(alpha)
        if self.is_anchored:  # the value part in units of a return; the anchor has its own weight
            bc_loss = (sampled[num : num + num_initial] - initial.actions).square().mean()
            actor_loss = actor_loss / self.return_size + self.bc_weight(step) * bc_loss
        entropy_coefficient_loss = alpha_loss(m.log_alpha, next_log_prob, self.target_entropy)

        self.apply("critic", critic_loss)
        self.apply("actor", actor_loss)
        self.apply("alpha", entropy_coefficient_loss)
        self._conclude()
        return self._metrics(
            policy_loss=value_loss + entropy_loss, qf_loss=critic_loss, alpha_loss=entropy_coefficient_loss,
            alpha_value=alpha, qf_mean=q_data.mean(), qf_initial_mean=q_initial.mean(),
            td_error_abs=(target - q_data).abs().mean(), density_ratio_mean=weight.mean(),
            entropy=-next_log_prob.mean(), bc_loss=bc_loss, modified_reward_mean=rewards.mean(), **classifier_metrics,
        )  # fmt: skip

    def modified_rewards(self, rewards: Tensor, logits: Tensor) -> Tensor:
        """r̃ of the update rows ``(B,)``; moves the mean logit towards theirs."""
        if self.config.terminal_alignment:
            self.mean_logit.lerp_(logits.mean(), MEAN_LOGIT_TAU)
        return losses.modified_reward(rewards, logits, self.config.eta)

    def target_rewards(self, rewards: Tensor, rows: Batch) -> Tensor:
        """``(B,)`` rewards of the targets: with ``terminal_alignment`` and the discounted value of a terminal s'."""
        if not self.config.terminal_alignment:
            return rewards
        return rewards + self.config.gamma * rows.terminated * self.terminal_value()

    def terminal_value(self) -> Tensor:
        """What ``terminal_alignment`` says that a terminal state is worth, () (step 13)."""
        o = self.config
        logit = self.mean_logit if o.data_alignment else torch.zeros_like(self.mean_logit)
        has_residual = o.behavior_alignment and not o.target_networks
        return losses.terminal_value(logit, o.eta, o.gamma, self.divergence if has_residual else None)

    @torch.no_grad()
    def _conclude(self) -> None:
        """Bounds α and moves the targets."""
        self.module.log_alpha.clamp_(max=math.log(self.config.max_alpha))
        self.move_targets()

    def _metrics(self, **metrics: Tensor) -> Metrics:
        if self.config.terminal_alignment:
            metrics["terminal_value"] = self.terminal_value()
        return {name: value.detach() for name, value in metrics.items()}

    def classifier_step(self, batch: StepBatch, measure: bool = True) -> tuple[Tensor, Metrics]:
        """Trains the classifier and returns the update rows' modified rewards ``(B,)`` and its metrics."""
        o, classifier = self.config, self.module.classifier
        halves = batch["classifier_offline"], batch["classifier_synthetic"]
        inputs = torch.cat([classifier.inputs(rows.obs, rows.actions, rows.next_obs) for rows in halves])
        half = len(halves[0].obs)
        if o.classifier_noise > 0:
            inputs += o.classifier_noise * torch.randn(inputs.shape, generator=self.generator, device=inputs.device)
        offline, synthetic = classifier(inputs).split(half)
        loss = losses.classifier_loss(offline, synthetic, o.label_smoothing)
        total = loss
        if o.classifier_gradient_penalty > 0:
            mix = torch.rand((half, 1), generator=self.generator, device=inputs.device)
            between = torch.lerp(inputs[:half], inputs[half:], mix).requires_grad_()
            total = loss + o.classifier_gradient_penalty * losses.gradient_penalty(classifier(between), between)
        with torch.no_grad():
            rows = batch["update"]
            logits = classifier(classifier.inputs(rows.obs, rows.actions, rows.next_obs))
            logits = logits.clamp(*self.logit_range).masked_fill(self.is_plain(rows), 0.0)
            rewards = self.modified_rewards(rows.rewards, logits)
            accuracy = ((offline > 0).float().mean() + (synthetic < 0).float().mean()) / 2
            metrics = {
                "classifier_loss": loss.detach(), "classifier_accuracy": accuracy,
                "logit_offline_mean": offline.mean(), "logit_synthetic_mean": synthetic.mean(),
            }  # fmt: skip
        self.apply("classifier", total)
        return rewards, metrics
