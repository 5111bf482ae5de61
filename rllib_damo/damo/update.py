"""One gradient step of DAMO: which network sees which rows, and who receives which gradient.

Each policy sample and each critic value is computed once and serves both losses: the critic loss takes the parameters'
gradients at (s,a) and (s0,a0), the actor loss the actions' gradients at (s0,a0) and (s',a').
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from rllib_damo.damo import losses
from rllib_damo.damo.divergences import DIVERGENCES
from rllib_damo.damo.rl_module import DAMOTorchRLModule
from rllib_damo.nn.flat_parameters import gradient_of
from rllib_damo.utils.batch import Batch, unknown_successors

CLASSIFIER_METRICS = ("classifier_loss", "classifier_accuracy", "logit_offline_mean", "logit_synthetic_mean")
METRICS = (
    "policy_loss", "qf_loss", "alpha_loss", "alpha_value", "qf_mean", "qf_initial_mean", "td_error_abs",
    "density_ratio_mean", "entropy", "bc_loss", "modified_reward_mean", *CLASSIFIER_METRICS,
)  # fmt: skip


@dataclass(frozen=True)
class UpdateOptions:
    """The part of ``DAMOConfig`` that a gradient step reads; see there for the meaning of each."""

    eta: float
    actor_eta: float
    gamma: float
    tau: float
    f_divergence: str
    actor_f_divergence: str
    max_actor_weight: float
    policy_improvement: str
    data_alignment: bool
    behavior_alignment: bool
    target_networks: bool
    bc_weight: float | Sequence[Sequence[float]]
    actor_warmup_steps: int
    target_entropy: float
    max_alpha: float
    label_smoothing: float
    classifier_gradient_penalty: float
    classifier_noise: float
    max_logit: float
    grad_clip: float | None


class StepBatch:
    """The rows of one step.

    Attributes:
        update: B rows for critics and actor, offline and synthetic mixed.
        initial: B0 dataset rows, whose observations are s0.
        offline, synthetic: the classifier's halves.
    """

    __slots__ = ("initial", "offline", "synthetic", "update")

    def __init__(self, update: Batch, initial: Batch, offline: Batch, synthetic: Batch):
        self.update, self.initial, self.offline, self.synthetic = update, initial, offline, synthetic


class Update:
    """What all update rules share: one network's gradients, averaged over learners, clipped and applied.

    Args:
        module: all networks; ``module.trainable()`` names the parameters of each optimiser.
        optimizers: by the same names.
        generator: source of the policy's noise, on the module's device.
        grad_clip: largest norm of one network's gradient; None does not clip.
        reduce_gradients: changes gradients in place before they are applied (averages over learners).

    Attributes:
        num_steps: steps taken before the next one, as the Learner counts them.
        measures: whether the next step's metrics are wanted; where they take time of their own, a step without them
            returns an empty tensor.
        return_size: (mean |r| of the dataset + η) / (1-γ), about the largest a modified return can be, set by the
            Learner: a unit for values that does not shrink where the classifier takes most of the reward.
        knows_terminals: False where the dataset has terminals, but the successor of none, so that it has nothing to
            compare the model's terminals with.
    """

    num_steps = 0
    measures = True
    return_size = 1.0
    knows_terminals = True

    def __init__(
        self,
        module: DAMOTorchRLModule,
        optimizers: Mapping[str, torch.optim.Optimizer],
        generator: torch.Generator,
        grad_clip: float | None = None,
        reduce_gradients: Callable[[Sequence[Tensor]], None] | None = None,
    ):
        self.module, self.optimizers, self.generator = module, optimizers, generator
        self.grad_clip, self.reduce_gradients = grad_clip, reduce_gradients
        self.params: dict[str, list[nn.Parameter]] = module.trainable()

    def step(self, batch: StepBatch) -> Tensor:
        """One gradient step; returns the rule's metrics on the device, in the order of the Learner's `metric_names`."""
        raise NotImplementedError

    def constants(self) -> Hashable:
        """Python's numbers, other than options and `measures`, that the next step puts into its operations.

        Raises:
            NotImplementedError: the rule can't be recorded (`RecordedSteps`).
        """
        raise NotImplementedError(f"{type(self).__name__} can't be recorded: set cuda_graphs=False.")

    def _apply(self, name: str, loss: Tensor) -> None:
        """One optimiser step on ``loss`` with the parameters of one network alone."""
        gradients = torch.autograd.grad(loss, self.params[name])
        torch._foreach_copy_([gradient_of(param) for param in self.params[name]], list(gradients))
        self._apply_gradients([name])

    def _apply_gradients(self, names: Sequence[str]) -> None:
        """One step of these optimisers with the gradients that are there, averaged over learners and clipped."""
        if self.reduce_gradients is not None:
            groups = [group for name in names for group in self.optimizers[name].param_groups]
            self.reduce_gradients([gradient_of(param) for group in groups for param in group["params"]])
        for name in names:
            if self.grad_clip is not None:
                nn.utils.clip_grad_norm_(self.params[name], self.grad_clip)
            self.optimizers[name].step()


class DAMOUpdate(Update):
    """Applies DAMO's losses to a module.

    Args:
        module: all networks.
        optimizers: "actor", "critic", "classifier" and "alpha".
        options: the coefficients.
        generator: source of the policy's noise, on the module's device.
        reduce_gradients: changes gradients in place before they are applied (averages over learners).

    Attributes:
        is_anchored: whether the policy has an anchor, at some step.
        bc_weight: of the anchor at this step.
        value_weight: of the actor loss's gradient through the critics; 0 while the policy only follows its anchor.
    """

    def __init__(
        self,
        module: DAMOTorchRLModule,
        optimizers: Mapping[str, torch.optim.Optimizer],
        options: UpdateOptions,
        generator: torch.Generator,
        reduce_gradients: Callable[[Sequence[Tensor]], None] | None = None,
    ):
        super().__init__(module, optimizers, generator, options.grad_clip, reduce_gradients)
        self.opt = options
        self.divergence = DIVERGENCES[options.f_divergence]
        self.actor_divergence = DIVERGENCES[options.actor_f_divergence]
        weight = options.bc_weight
        self._bc_schedule = np.array([[0, weight]] if np.ndim(weight) == 0 else weight, float).T
        self.is_anchored = bool(self._bc_schedule[1].any())
        self._critic_params = [p.data for p in module.critics.parameters()]
        self._target_params = [p.data for p in module.target_critics.parameters()]

    def is_plain(self, rows: Batch) -> Tensor:
        """``(B,)`` bool: rows whose reward the classifier does not modify, since there is no data to compare with."""
        if not self.knows_terminals:
            return rows.terminated > 0
        return unknown_successors(rows.obs, rows.next_obs, rows.terminated)

    @property
    def bc_weight(self) -> float:
        return float(np.interp(self.num_steps, *self._bc_schedule))

    @property
    def value_weight(self) -> float:
        return float(self.num_steps >= self.opt.actor_warmup_steps or not self.is_anchored)

    def step(self, batch: StepBatch) -> Tensor:
        """One gradient step of every network; returns the ``METRICS``, ``(len(METRICS),)``, on the device."""
        o, m, update = self.opt, self.module, batch.update
        num, num_initial = len(update.obs), len(batch.initial.obs)
        alpha = m.log_alpha.detach().exp()

        rewards, classifier_metrics = self.classifier_step(batch) if o.data_alignment else (update.rewards, None)

        # a' ~ π(s'), a0 ~ π(s0), and for the ordinary actor loss also π(s)
        inconsistent = o.policy_improvement == "inconsistent"
        states = [update.next_obs, batch.initial.obs] + ([update.obs] if inconsistent else [])
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
        q_initial = m.critics(batch.initial.obs, cuts[1])  # (C, B0)
        if not (inconsistent and o.target_networks):
            q_next = m.critics(update.next_obs, cuts[0])  # (C, B)

        if o.target_networks:
            with torch.no_grad():
                next_q = m.target_critics(update.next_obs, cuts[0]).min(0).values
                target = losses.bellman_target(rewards, update.terminated, next_q, next_log_prob, alpha, o.gamma)
        else:
            target = losses.bellman_target(rewards, update.terminated, q_next, next_log_prob.detach(), alpha, o.gamma)
        if o.behavior_alignment:
            critic_loss = losses.critic_loss(q_data, target, q_initial, o.eta, o.gamma, self.divergence)
        else:
            critic_loss = losses.td_loss(q_data, target)

        # The actor ascends the smallest of the critics. Values first as functions of the cut...
        if inconsistent:
            weight = torch.ones_like(rewards)
            value_loss = -m.critics(update.obs, cuts[2]).min(0).values.mean()
            entropy_loss = alpha * log_prob[num + num_initial :].mean()
        else:
            residual = (target if target.ndim == 1 else target.min(0).values) - q_data.min(0).values
            weight = losses.density_ratio(residual, o.actor_eta, self.actor_divergence, o.max_actor_weight)
            value_loss = losses.consistent_actor_loss(
                q_initial.min(0).values, q_next.min(0).values, weight, update.terminated, o.gamma
            )
            discount = weight * o.gamma * (1 - update.terminated)
            entropy_loss = alpha * (discount * next_log_prob).mean()
        # ... then of the actor's parameters, by the chain rule across the cut.
        (action_gradient,) = torch.autograd.grad(value_loss, cut, retain_graph=True)
        actor_loss = entropy_loss + self.value_weight * (action_gradient * sampled).sum()
        bc_loss = torch.zeros((), device=cut.device)
        if self.is_anchored:  # the value part in units of a return; the anchor has its own weight
            bc_loss = (sampled[num : num + num_initial] - batch.initial.actions).square().mean()
            actor_loss = actor_loss / self.return_size + self.bc_weight * bc_loss
        alpha_loss = losses.alpha_loss(m.log_alpha, next_log_prob, o.target_entropy)

        self._apply("critic", critic_loss)
        self._apply("actor", actor_loss)
        self._apply("alpha", alpha_loss)
        metrics = (
            value_loss + entropy_loss, critic_loss, alpha_loss, alpha, q_data.mean(), q_initial.mean(),
            (target - q_data).abs().mean(), weight.mean(), -next_log_prob.mean(), bc_loss, rewards.mean(),
        )  # fmt: skip
        self._conclude()
        return self._metrics(metrics, classifier_metrics)

    @torch.no_grad()
    def _conclude(self) -> None:
        """Bounds α and moves the targets."""
        self.module.log_alpha.clamp_(max=math.log(self.opt.max_alpha))
        torch._foreach_lerp_(self._target_params, self._critic_params, self.opt.tau)

    @torch.no_grad()
    def _metrics(self, metrics: Sequence[Tensor], classifier_metrics: Tensor | None) -> Tensor:
        """The ``METRICS``; those of a classifier that is not used are NaN."""
        stacked = torch.stack(tuple(metrics))
        if classifier_metrics is None:
            classifier_metrics = torch.full((len(CLASSIFIER_METRICS),), float("nan"), device=stacked.device)
        return torch.cat((stacked, classifier_metrics))

    def classifier_step(self, batch: StepBatch) -> tuple[Tensor, Tensor]:
        """Trains the classifier and returns the update rows' modified rewards ``(B,)`` and four metrics."""
        o, classifier = self.opt, self.module.classifier
        inputs = torch.cat([
            classifier.inputs(rows.obs, rows.actions, rows.next_obs) for rows in (batch.offline, batch.synthetic)
        ])  # fmt: skip
        half = len(batch.offline.obs)
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
            rows = batch.update
            logits = classifier(classifier.inputs(rows.obs, rows.actions, rows.next_obs))
            logits = logits.clamp(-o.max_logit, o.max_logit).masked_fill(self.is_plain(rows), 0.0)
            rewards = losses.modified_reward(rows.rewards, logits, o.eta)
            accuracy = ((offline > 0).float().mean() + (synthetic < 0).float().mean()) / 2
            metrics = torch.stack((loss, accuracy, offline.mean(), synthetic.mean()))
        self._apply("classifier", total)
        return rewards, metrics
