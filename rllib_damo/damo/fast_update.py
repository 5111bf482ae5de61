"""`DAMOUpdate` with the gradients of losses and networks written out by hand: the same numbers in less time.

The losses are functions of few numbers a row (Q values, logits, actions, log densities), and their derivatives with
respect to these are short. `FastMLP` carries them through the networks. `DAMOUpdate.step` is the readable form; tests
pin this one to it.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import torch
from torch import Tensor, nn

from rllib_damo.core.losses import alpha_loss, bellman_target, td_loss
from rllib_damo.core.update import Metrics, StepBatch
from rllib_damo.damo import losses
from rllib_damo.damo.rl_module import DAMOTorchRLModule
from rllib_damo.damo.update import DAMOUpdate
from rllib_damo.nn.batched_matmul import PRODUCT_DTYPES
from rllib_damo.nn.flat_parameters import gradient_of
from rllib_damo.nn.squashed_gaussian import SquashedSample
from rllib_damo.nn.stacked_mlp import FastMLP
from rllib_damo.nn.standardize import Standardize
from rllib_damo.utils.batch import Batch


def unsupported(module: DAMOTorchRLModule, config: Any) -> list[str]:
    """The options that `FastUpdate` leaves to `DAMOUpdate`, as ``name=value``; empty where it can be used."""
    found = {
        "target_networks=False": not config.target_networks,
        "classifier_spectral_norm=True": any(map(nn.utils.parametrize.is_parametrized, module.classifier.net)),
        f"classifier_gradient_penalty={config.classifier_gradient_penalty}": config.classifier_gradient_penalty > 0,
    }
    return [name for name, is_set in found.items() if is_set]


def fastest_update(module: DAMOTorchRLModule, config: Any, **parts: Any) -> DAMOUpdate:
    """A `FastUpdate` where the options allow it, a `DAMOUpdate` otherwise; arguments as there.

    Raises:
        ValueError: ``precision`` is not "fp32", and the options are not for `FastUpdate`.
    """
    names = unsupported(module, config)
    if not names:
        return FastUpdate(module, config, **parts)
    if config.precision != "fp32":
        raise ValueError(f"precision={config.precision!r} does not go with {', '.join(names)}.")
    return DAMOUpdate(module, config, **parts)


class FastUpdate(DAMOUpdate):
    """Takes `DAMOUpdate`'s step faster.

    Args:
        module, config: within what `unsupported` leaves. ``precision`` "bf16" takes products between hidden layers
            in bfloat16.
        parts: the other arguments of `DAMOUpdate`. ``reduce_gradients`` gets all gradients in one call.
    """

    def __init__(self, module: DAMOTorchRLModule, config: Any, **parts: Any):
        super().__init__(module, config, **parts)
        dtype = PRODUCT_DTYPES[config.precision]
        self._actor = FastMLP(module.actor.net, dtype)
        self._critics = FastMLP(module.critics.net, dtype)
        self._targets = FastMLP(module.target_critics.net, dtype)
        if config.data_alignment:
            self._classifier = FastMLP(module.classifier.net, dtype)
        self._alpha_gradient = gradient_of(module.log_alpha)
        self._inputs: dict[tuple[int, int], _Inputs] = {}
        self._classifier_inputs: dict[int, Tensor] = {}

    def constants(self, step: int) -> Hashable:
        rates = [group["lr"] for optimizer in self.optimizers.values() for group in optimizer.param_groups]
        return self.value_weight(step), self.return_size if self.is_anchored else None, self.knows_terminals, *rates

    @torch.no_grad()
    def step(self, batch: StepBatch, step: int, measure: bool) -> Metrics:
        o, m, update, initial = self.config, self.module, batch["update"], batch["initial"]
        num, num_initial = sizes = len(update.obs), len(initial.obs)
        inconsistent, value_weight = not self.is_consistent, self.value_weight(step)
        alpha = m.log_alpha.exp()
        rewards, classifier_metrics = self.classifier_step(batch, measure) if o.data_alignment else (update.rewards, {})

        # a' ~ π(s'), a0 ~ π(s0), and for the ordinary actor loss also π(s)
        if sizes not in self._inputs:
            self._inputs[sizes] = _Inputs(update, num_initial, inconsistent)
        inputs = self._inputs[sizes]
        inputs.set_obs(batch, m.actor.standardize)
        noise = torch.randn(inputs.actions.shape, generator=self.generator, device=alpha.device)
        if inconsistent:
            noise = torch.cat((noise[:num], noise[num + num_initial :], noise[num : num + num_initial]))
        policy = SquashedSample(self._actor.forward(inputs.actor)[0], noise, inputs.actions)
        next_log_prob = policy.log_prob[:num]

        # One call for the critics: first the rows whose actions the actor improves, (s',a') or (s,π(s)); then (s0,a0),
        # whose gradients both losses take; then the rows of data.
        values = self._critics.forward(inputs.critics)[..., 0]
        _, q_initial, q_data = values.split((num, num_initial, num), dim=1)
        next_q = self._targets.forward(inputs.targets)[..., 0].amin(0)
        target_rewards = self.target_rewards(rewards, update)
        target = bellman_target(target_rewards, update.terminated, next_q, next_log_prob, alpha, o.gamma)

        # The critic loss's gradient at the data; that at (s0,a0) is the same for all rows
        delta = torch.ones_like(values)
        initial_delta = 0.0
        if o.behavior_alignment:
            dual_prime = self.divergence.conjugate_prime((target - q_data) / o.eta)
            torch.mul(dual_prime, -o.eta / num, out=delta[:, num + num_initial :])
            initial_delta = o.eta * (1 - o.gamma) / num_initial
        else:
            torch.mul(q_data - target, 1 / num, out=delta[:, num + num_initial :])

        # The actor loss's gradient at the smallest critic of each row and at the log densities
        smallest, index = values[:, : num + num_initial].min(0)
        value_delta, log_prob_delta = torch.zeros_like(smallest), torch.zeros_like(policy.log_prob)
        if inconsistent:
            weight = torch.ones_like(rewards)
            value_delta[:num] = -1 / num
            log_prob_delta[num : 2 * num] = alpha / num
        else:
            residual = target - q_data.amin(0)
            weight = losses.density_ratio(residual, self.actor_eta, self.actor_divergence, o.max_actor_weight)
            discount = weight * o.gamma * (1 - update.terminated)
            torch.mul(discount, -1 / num, out=value_delta[:num])
            value_delta[num:] = -(1 - o.gamma) / num_initial
            torch.mul(discount, alpha / num, out=log_prob_delta[:num])

        # A critic's gradient is linear in that at its one output. It is taken once, with the critic loss's where that
        # has one and 1 elsewhere; the actor loss's follows from it.
        critics, trained = self._critics, slice(num if initial_delta else num + num_initial, None)
        if initial_delta:
            delta[:, num : num + num_initial] = initial_delta
            value_delta[num:] /= initial_delta
        rows = slice(None) if value_weight else trained
        critics.backward(delta[:, rows, None], rows)
        critics.parameter_gradients(delta[:, trained, None], trained)
        action_delta = torch.zeros_like(policy.actions)
        if value_weight:
            by_action = critics.input_gradients(slice(num + num_initial), slice(update.obs.shape[1], None))
            chosen = torch.zeros_like(values[:, : num + num_initial]).scatter_(0, index[None], value_delta[None])
            torch.sum(by_action * chosen[..., None], 0, out=action_delta[inputs.improved])

        error = policy.actions[inputs.initial] - initial.actions
        if self.is_anchored:
            action_delta /= self.return_size
            log_prob_delta /= self.return_size
            action_delta[inputs.initial].add_(error, alpha=self.bc_weight(step) * 2 / error.numel())
        actor_delta = policy.backward(action_delta, log_prob_delta)[None]
        self._actor.backward(actor_delta)
        self._actor.parameter_gradients(actor_delta)

        entropy_coefficient_loss = alpha_loss(m.log_alpha, next_log_prob, self.target_entropy)
        self._alpha_gradient.copy_(entropy_coefficient_loss)  # the exponential is its own derivative
        self.apply_gradients([name for name in self.params if name != "classifier" or o.data_alignment])
        self._conclude()
        if not measure:
            return {}
        if o.behavior_alignment:
            critic_loss = losses.critic_loss(q_data, target, q_initial, o.eta, o.gamma, self.divergence)
        else:
            critic_loss = td_loss(q_data, target)
        if inconsistent:
            value_loss = -smallest[:num].mean()
            entropy_loss = alpha * policy.log_prob[num : 2 * num].mean()
        else:
            value_loss = losses.consistent_actor_loss(
                smallest[num:], smallest[:num], weight, update.terminated, o.gamma
            )
            entropy_loss = alpha * (discount * next_log_prob).mean()
        bc_loss = error.square().mean() if self.is_anchored else torch.zeros_like(alpha)
        return self._metrics(
            policy_loss=value_loss + entropy_loss, qf_loss=critic_loss, alpha_loss=entropy_coefficient_loss,
            alpha_value=alpha, qf_mean=q_data.mean(), qf_initial_mean=q_initial.mean(),
            td_error_abs=(target - q_data).abs().mean(), density_ratio_mean=weight.mean(),
            entropy=-next_log_prob.mean(), bc_loss=bc_loss, modified_reward_mean=rewards.mean(), **classifier_metrics,
        )  # fmt: skip

    @torch.no_grad()
    def classifier_step(self, batch: StepBatch, measure: bool = True) -> tuple[Tensor, Metrics]:
        """As `DAMOUpdate`'s, but gradients are left for the step's end, and metrics out where they are not wanted."""
        o, standardize, net = self.config, self.module.classifier.standardize, self._classifier
        update = batch["update"]
        groups = batch["classifier_offline"], batch["classifier_synthetic"], update
        sizes = [len(group.obs) for group in groups]
        num, total = sizes[0] + sizes[1], sum(sizes)
        if total not in self._classifier_inputs:
            self._classifier_inputs[total] = standardize.mean.new_zeros(total, len(standardize.mean))
        inputs = self._classifier_inputs[total]
        obs_dim, act_dim = update.obs.shape[1], update.actions.shape[1]
        obs, actions, change = inputs.split((obs_dim, act_dim, obs_dim), dim=1)
        torch.cat([group.obs for group in groups], out=obs)
        torch.cat([group.actions for group in groups], out=actions)
        torch.cat([group.next_obs for group in groups], out=change)
        change.sub_(obs)
        inputs.sub_(standardize.mean).div_(standardize.std)
        if o.classifier_noise > 0:
            noise = torch.randn(inputs[:num].shape, generator=self.generator, device=inputs.device)
            inputs[:num] += o.classifier_noise * noise
        logits = net.forward(inputs)[0, :, 0]
        offline, synthetic, of_update = logits.split(sizes)
        of_update = of_update.clamp(*self.logit_range).masked_fill_(self.is_plain(update), 0.0)
        rewards = self.modified_rewards(update.rewards, of_update)
        metrics = {}
        if measure:
            loss = losses.classifier_loss(offline, synthetic, o.label_smoothing)
            accuracy = ((offline > 0).float().mean() + (synthetic < 0).float().mean()) / 2
            metrics = {
                "classifier_loss": loss, "classifier_accuracy": accuracy,
                "logit_offline_mean": offline.mean(), "logit_synthetic_mean": synthetic.mean(),
            }  # fmt: skip
        # The cross-entropy's gradient: sigmoid minus label, over the rows of a group and the two groups
        delta = logits[:num].sigmoid()
        delta[: sizes[0]].sub_(1 - o.label_smoothing).mul_(0.5 / sizes[0])
        delta[sizes[0] :].sub_(o.label_smoothing).mul_(0.5 / sizes[1])
        net.backward(delta[None, :, None], slice(num))
        net.parameter_gradients(delta[None, :, None], slice(num))
        return rewards, metrics


class _Inputs:
    """Inputs of actor, critics and targets in one buffer, for groups of fixed sizes.

    Rows are [s' | s, where the actor improves π(s) | s0 | s of the data], columns [standardised observation | action].

    Attributes:
        actor, critics, targets: what each network reads.
        actions: where the actor's actions go, ``(rows of actor, act_dim)``.
        initial, improved: among these rows, those of s0, and those that the actor loss improves, s0 included.
    """

    def __init__(self, update: Batch, num_initial: int, inconsistent: bool):
        num, (obs_dim, act_dim) = len(update.obs), (update.obs.shape[1], update.actions.shape[1])
        first = num if inconsistent else 0
        acting = num + first + num_initial
        rows = update.obs.new_zeros(acting + num, obs_dim + act_dim)
        self._obs, self._data_actions = rows[:, :obs_dim], rows[acting:, obs_dim:]
        self._inconsistent = inconsistent
        self.actor, self.actions = rows[:acting, :obs_dim], rows[:acting, obs_dim:]
        self.critics, self.targets = rows[first:], rows[:num]
        self.initial, self.improved = slice(num + first, acting), slice(first, acting)

    def set_obs(self, batch: StepBatch, standardize: Standardize) -> None:
        """Sets all but the actor's actions. Actor, critics and targets standardise alike (`fit_standardizers`)."""
        update, initial = batch["update"], batch["initial"]
        own = [update.obs] if self._inconsistent else []
        torch.cat([update.next_obs, *own, initial.obs, update.obs], out=self._obs)
        self._obs.sub_(standardize.mean).div_(standardize.std)
        self._data_actions.copy_(update.actions)
