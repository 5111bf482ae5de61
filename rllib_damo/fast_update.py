"""`DAMOUpdate` with the gradients of losses and networks written out by hand: the same numbers in less time.

The losses are functions of few numbers a row (Q values, logits, actions, log densities), and their derivatives with
respect to these are short. `FastMLP` carries them through the networks. `DAMOUpdate.step` is the readable form; tests
pin this one to it.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rllib_damo import losses
from rllib_damo.fast_mlp import FastMLP
from rllib_damo.networks import LOG_STD_MAX, LOG_STD_MIN
from rllib_damo.rl_module import DAMOTorchRLModule
from rllib_damo.update import DAMOUpdate, StepBatch, UpdateOptions


def unsupported(module: DAMOTorchRLModule, options: UpdateOptions) -> list[str]:
    """The options that `FastUpdate` leaves to `DAMOUpdate`, as ``name=value``; empty where it can be used."""
    found = {
        "target_networks=False": not options.target_networks,
        "critic_layer_norm=True": module.critics.net.layer_norm,
        "classifier_spectral_norm=True": any(map(nn.utils.parametrize.is_parametrized, module.classifier.net)),
        f"classifier_gradient_penalty={options.classifier_gradient_penalty}": options.classifier_gradient_penalty > 0,
    }
    return [name for name, is_set in found.items() if is_set]


def fastest_update(
    module: DAMOTorchRLModule, *, options: UpdateOptions, precision: str = "fp32", **parts: Any
) -> DAMOUpdate:
    """A `FastUpdate` where the options allow it, a `DAMOUpdate` otherwise; arguments as there.

    Raises:
        ValueError: ``precision`` is not "fp32", and the options are not for `FastUpdate`.
    """
    names = unsupported(module, options)
    if not names:
        return FastUpdate(module, options=options, precision=precision, **parts)
    if precision != "fp32":
        raise ValueError(f"precision={precision!r} does not go with {', '.join(names)}.")
    return DAMOUpdate(module, options=options, **parts)


class FastUpdate(DAMOUpdate):
    """Takes `DAMOUpdate`'s step faster.

    Args:
        module, options: within what `unsupported` leaves.
        precision: "fp32", or "bf16" for products between hidden layers in bfloat16.
        parts: the other arguments of `DAMOUpdate`.
    """

    def __init__(self, module: DAMOTorchRLModule, *, options: UpdateOptions, precision: str = "fp32", **parts: Any):
        super().__init__(module, options=options, **parts)
        dtype = torch.bfloat16 if precision == "bf16" else None
        self._actor = FastMLP(module.actor.net, dtype)
        self._critics = FastMLP(module.critics.net, dtype)
        self._targets = FastMLP(module.target_critics.net, dtype)
        self._classifier = FastMLP(module.classifier.net, dtype)

    @torch.no_grad()
    def step(self, batch: StepBatch) -> Tensor:
        o, m, update, initial = self.opt, self.module, batch.update, batch.initial
        num, num_initial = len(update.obs), len(initial.obs)
        alpha = m.log_alpha.exp()
        rewards, classifier_metrics = self.classifier_step(batch) if o.data_alignment else (update.rewards, None)

        # a' ~ π(s'), a0 ~ π(s0), and for the ordinary actor loss also π(s)
        inconsistent = o.policy_improvement == "inconsistent"
        states = torch.cat([update.next_obs, initial.obs] + ([update.obs] if inconsistent else []))
        noise = torch.randn(len(states), update.actions.shape[1], generator=self.generator, device=states.device)
        policy = _Sample(self._actor.forward(m.actor.standardize(states))[0], noise)
        next_log_prob = policy.log_prob[:num]
        next_actions, initial_actions, own_actions = policy.actions.tensor_split((num, num + num_initial))

        # One call for the critics: first the rows whose actions the actor improves, (s',a') or (s,π(s)); then (s0,a0),
        # whose gradients both losses take; then the rows of data.
        obs, actions = (update.obs, own_actions) if inconsistent else (update.next_obs, next_actions)
        values = self._critics.forward(
            torch.cat((
                m.critics.standardize(torch.cat((obs, initial.obs, update.obs))),
                torch.cat((actions, initial_actions, update.actions)),
            ), dim=-1)
        )[..., 0]  # fmt: skip
        _, q_initial, q_data = values.split((num, num_initial, num), dim=1)
        next_inputs = torch.cat((m.target_critics.standardize(update.next_obs), next_actions), dim=-1)
        next_q = self._targets.forward(next_inputs)[..., 0].amin(0)
        target = losses.bellman_target(rewards, update.terminated, next_q, next_log_prob, alpha, o.gamma)

        # Critic loss, and its gradient at (s0,a0) and the data
        critic_delta = torch.zeros_like(values[:, num:])
        if o.behavior_alignment:
            critic_loss = losses.critic_loss(q_data, target, q_initial, o.eta, o.gamma, self.divergence)
            slope = self.divergence.slope_at_zero
            dual_prime = self.divergence.conjugate_prime((target - q_data) / o.eta) - slope
            critic_delta[:, :num_initial] = o.eta * (1 - o.gamma) * (1 - slope) / num_initial
            torch.mul(dual_prime, -o.eta / num, out=critic_delta[:, num_initial:])
        else:
            critic_loss = losses.td_loss(q_data, target)
            torch.mul(q_data - target, 1 / num, out=critic_delta[:, num_initial:])

        # Actor loss, and its gradient at the smallest critic of each row and at the log densities
        smallest, index = values[:, : num + num_initial].min(0)
        value_delta, log_prob_delta = torch.zeros_like(smallest), torch.zeros_like(policy.log_prob)
        if inconsistent:
            weight = torch.ones_like(rewards)
            value_loss = -smallest[:num].mean()
            entropy_loss = alpha * policy.log_prob[num + num_initial :].mean()
            value_delta[:num] = -1 / num
            log_prob_delta[num + num_initial :] = alpha / num
        else:
            weight = losses.density_ratio(
                target - q_data.amin(0), o.actor_eta, self.actor_divergence, o.max_actor_weight,
                o.normalize_actor_weight,
            )  # fmt: skip
            value_loss = losses.consistent_actor_loss(
                smallest[num:], smallest[:num], weight, update.terminated, o.gamma
            )
            discount = weight * o.gamma * (1 - update.terminated)
            entropy_loss = alpha * (discount * next_log_prob).mean()
            torch.mul(discount, -1 / num, out=value_delta[:num])
            value_delta[num:] = -(1 - o.gamma) / num_initial
            torch.mul(discount, alpha / num, out=log_prob_delta[:num])

        # A critic's gradient is linear in that at its one output. It is taken once, for an output's gradient of 1, and
        # then scaled by the actor loss's and by the critic loss's.
        critics, rows = self._critics, slice(num, None)
        critics.backward(None)
        obs_dim = update.obs.shape[1]
        by_action = critics.input_gradients(slice(num + num_initial), slice(obs_dim, None))
        chosen = torch.zeros_like(values[:, : num + num_initial]).scatter_(0, index[None], value_delta[None])
        by_action = (by_action * chosen[..., None]).sum(0) * self.value_weight
        critics.scale(critic_delta[..., None], rows)
        critics.parameter_gradients(critic_delta[..., None], rows)

        if inconsistent:  # nothing at s', and s0 follows the rows of s
            action_delta = torch.cat((torch.zeros_like(next_actions), by_action[num:], by_action[:num]))
        else:
            action_delta = by_action
        bc_loss = torch.zeros((), device=values.device)
        if o.bc_weight > 0:
            scale = 1 / q_data.abs().mean().clamp(min=1e-3)
            error = initial_actions - initial.actions
            bc_loss = error.square().mean()
            action_delta, log_prob_delta = action_delta * scale, log_prob_delta * scale
            action_delta[num : num + num_initial] += error * (o.bc_weight * 2 / error.numel())
        actor_delta = policy.backward(action_delta, log_prob_delta)[None]
        self._actor.backward(actor_delta)
        self._actor.parameter_gradients(actor_delta)

        alpha_loss = losses.alpha_loss(m.log_alpha, next_log_prob, o.target_entropy)
        self._descend("critic", critics.gradients)
        self._descend("actor", self._actor.gradients)
        self._descend("alpha", [alpha_loss.clone()])  # the exponential is its own derivative
        metrics = (
            value_loss + entropy_loss, critic_loss, alpha_loss, alpha, q_data.mean(), q_initial.mean(),
            (target - q_data).abs().mean(), weight.mean(), -next_log_prob.mean(), bc_loss, rewards.mean(),
        )  # fmt: skip
        return self._conclude(metrics, classifier_metrics)

    @torch.no_grad()
    def classifier_step(self, batch: StepBatch) -> tuple[Tensor, Tensor]:
        o, classifier, net = self.opt, self.module.classifier, self._classifier
        sizes = [len(batch.offline.obs), len(batch.synthetic.obs), len(batch.update.obs)]
        # Of the columns of the three groups, the first three: observations, actions, next observations
        columns = list(zip(batch.offline, batch.synthetic, batch.update, strict=True))[:3]
        inputs = classifier.inputs(*map(torch.cat, columns))
        num = sizes[0] + sizes[1]
        if o.classifier_noise > 0:
            noise = torch.randn(inputs[:num].shape, generator=self.generator, device=inputs.device)
            inputs[:num] += o.classifier_noise * noise
        logits = net.forward(inputs)[0, :, 0]
        offline, synthetic, rows = logits.split(sizes)
        rewards = losses.modified_reward(batch.update.rewards, rows.clamp(-o.max_logit, o.max_logit), o.eta)
        loss = losses.classifier_loss(offline, synthetic, o.label_smoothing)
        accuracy = ((offline > 0).float().mean() + (synthetic < 0).float().mean()) / 2
        metrics = torch.stack((loss, accuracy, offline.mean(), synthetic.mean()))
        # The cross-entropy's gradient: sigmoid minus label, over the rows of a group and the two groups
        delta = logits[:num].sigmoid()
        delta[: sizes[0]].sub_(1 - o.label_smoothing).mul_(0.5 / sizes[0])
        delta[sizes[0] :].sub_(o.label_smoothing).mul_(0.5 / sizes[1])
        net.backward(delta[None, :, None], slice(num))
        net.parameter_gradients(delta[None, :, None], slice(num))
        self._descend("classifier", net.gradients)
        return rewards, metrics


class _Sample:
    """Actions of the squashed Gaussian, as `Actor.sample` draws them, with their gradients.

    Args:
        outputs: the actor's outputs, means and log standard deviations ``(N, 2 act_dim)``.
        noise: ``(N, act_dim)`` standard normal.

    Attributes:
        actions: ``(N, act_dim)``.
        log_prob: ``(N,)``.
    """

    def __init__(self, outputs: Tensor, noise: Tensor):
        mean, raw = outputs.chunk(2, dim=-1)
        log_std = raw.clamp(LOG_STD_MIN, LOG_STD_MAX)
        self._is_free = log_std == raw
        self._spread = log_std.exp() * noise
        u = mean + self._spread
        self.actions = u.tanh()
        log_prob = -0.5 * noise.square() - log_std - 0.5 * math.log(2 * math.pi)
        self.log_prob = (log_prob - 2 * (math.log(2) - u - F.softplus(-2 * u))).sum(-1)

    def backward(self, action_delta: Tensor, log_prob_delta: Tensor) -> Tensor:
        """Gradient ``(N, 2 act_dim)`` at the outputs from those at the actions ``(N, act_dim)`` and densities ``(N,)``.

        -log|d tanh(u)/du| has the derivative 2 tanh(u).
        """
        log_prob_delta = log_prob_delta[:, None]
        d_mean = action_delta * (1 - self.actions.square()) + 2 * log_prob_delta * self.actions
        d_log_std = (d_mean * self._spread - log_prob_delta) * self._is_free
        return torch.cat((d_mean, d_log_std), dim=-1)
