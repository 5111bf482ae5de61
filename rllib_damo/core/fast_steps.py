"""Steps of critics, and of SAC's actor, with gradients written out by hand: the same numbers in less time.

`critic_step` and `SACUpdate.actor_step` are the readable forms; tests pin these to them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rllib_damo.core import losses
from rllib_damo.core.update import Update
from rllib_damo.nn.flat_parameters import gradient_of
from rllib_damo.nn.squashed_gaussian import SquashedSample
from rllib_damo.nn.stacked_mlp import FastMLP
from rllib_damo.utils.batch import Batch

#: The critics' loss as a function of Q(s,a) ``(C, B)``.
LossOf = Callable[[Tensor], Tensor]


def critic_step(update: Update, rows: Batch, loss_of: LossOf) -> tuple[Tensor, Tensor]:
    """One step of the critics; returns Q(s,a) ``(C, B)`` and the loss before it."""
    q = update.module.critics(rows.obs, rows.actions)
    loss = loss_of(q)
    update.apply("critic", loss)
    return q.detach(), loss.detach()


class FastCriticStep:
    """Takes `critic_step` faster.

    Args:
        module: whose critics to step; it has fast networks.

    Attributes:
        critics: their passes.
    """

    def __init__(self, module: Any):
        self.critics = FastMLP(module.critics.net, module.fast_dtype)

    def __call__(self, update: Update, rows: Batch, loss_of: LossOf) -> tuple[Tensor, Tensor]:
        critics, params = self.critics, update.params["critic"]
        with torch.no_grad():
            q = critics.forward(update.module.critics.inputs(rows.obs, rows.actions))[..., 0]
        q.requires_grad_()
        loss = loss_of(q)  # which may evaluate the critics elsewhere, too
        delta, *others = torch.autograd.grad(loss, [q, *params], allow_unused=True)
        critics.backward(delta[..., None])
        critics.parameter_gradients(delta[..., None])
        if others[0] is not None:
            torch._foreach_add_([gradient_of(param) for param in params], others)
        update.apply_gradients(["critic"])
        return q.detach(), loss.detach()


class FastActorStep:
    """Takes `SACUpdate.actor_step` faster.

    Args:
        module: whose actor to step; it has fast networks.
        critics: passes of its critics.
    """

    def __init__(self, module: Any, critics: FastMLP):
        self._actor, self._critics = FastMLP(module.actor.net, module.fast_dtype), critics

    @torch.no_grad()
    def __call__(self, update: Update, rows: Batch, alpha: Tensor) -> tuple[Tensor, Tensor]:
        m, actor, critics, (num, obs_dim) = update.module, self._actor, self._critics, rows.obs.shape
        noise = torch.randn(rows.actions.shape, generator=update.generator, device=alpha.device)
        policy = SquashedSample(actor.forward(m.actor.standardize(rows.obs))[0], noise)
        values = critics.forward(m.critics.inputs(rows.obs, policy.actions))[..., 0]
        q, smallest = values.min(0)
        # The loss's gradient at the smallest critic of each row, and from there at the actions
        delta = torch.zeros_like(values).scatter_(0, smallest[None], -1 / num)
        critics.backward(delta[..., None])
        action_delta = critics.input_gradients(slice(None), slice(obs_dim, None)).sum(0)
        actor_delta = policy.backward(action_delta, (alpha / num).expand(num))[None]
        actor.backward(actor_delta)
        actor.parameter_gradients(actor_delta)
        update.apply_gradients(["actor"])
        return losses.sac_actor_loss(q, policy.log_prob, alpha), policy.log_prob
