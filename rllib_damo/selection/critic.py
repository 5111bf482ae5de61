"""The networks of fitted Q evaluation: one for each policy and head, trained side by side on the same batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from rllib_damo.nn.adam import FusedAdam, load_optimizer_state, optimizer_state
from rllib_damo.nn.flat_parameters import flatten, gradient_of
from rllib_damo.nn.stacked_mlp import FastMLP, Layers, StackedMLP, layers_of

_GROUP = 5  # policies
BATCH = 128  # rows of a batch, by default, and of others that go through the networks together


class Critic(Protocol):
    """Q functions of K policies with E heads each; M outputs, such as the value and the survival."""

    def values(self, obs: Tensor, actions: Tensor) -> Tensor:
        """Of the targets' moving average, ``(K, E, B, M)``.

        Args:
            obs: ``(B, obs)``, or ``(K, B, obs)``; of each head's own rows ``(E, B, obs)``.
            actions: unit actions of each policy, ``(K, B, act)``; of each head's own rows ``(K, E, B, act)``.
        """

    def update(self, obs: Tensor, actions: Tensor, targets: Tensor, weights: Tensor) -> None:
        """A step towards targets ``(K, E, B, M)`` with weights ``(E, B)``.

        Args:
            obs: ``(B, obs)``, or each head's own ``(E, B, obs)``.
            actions: ``(B, act)``, or ``(E, B, act)``.
            targets, weights: see above.
        """

    def follow(self, tau: float) -> None:
        """Moves the targets' average by ``tau`` towards the present functions."""

    def state(self) -> dict[str, Any]: ...

    def set_state(self, state: dict[str, Any]) -> None: ...


class NetworkCritic:
    """ReLU networks with layer normalisation: Q = center + scale · net. All policies begin with the same weights.

    Args:
        num_policies, num_heads: K and E.
        obs_scales: mean and standard deviation of the observations, ``(obs,)`` each.
        act_dim: width of an action.
        center, scale: ``(M,)``, the mean and the spread of what is learned.
        lr: Adam's learning rate.
        seed: of the first weights.
        hidden_dims: widths of the hidden layers.
    """

    def __init__(
        self, num_policies: int, num_heads: int, obs_scales: tuple[Tensor, Tensor], act_dim: int, center: Tensor,
        scale: Tensor, lr: float, seed: int, hidden_dims: Sequence[int] = (128, 128),
    ):  # fmt: skip
        self._shape = num_policies, num_heads
        self._mean, self._std = obs_scales
        self._center, self._scale = center.float(), scale.float()
        dims = (len(self._mean) + act_dim, *hidden_dims, len(center))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            first = StackedMLP(num_heads, dims, layer_norm=True)
        # Groups of policies take their passes in turn, in the same buffers, for all of them would need much memory.
        starts = range(0, num_policies, _GROUP)
        self._groups = [slice(start, min(start + _GROUP, num_policies)) for start in starts]
        self._buffers: list[dict[int, Any]] = [{} for _ in range(_GROUP + 1)]  # by the number of policies
        self._flat, self._nets = self._copies(first, dims)
        self._target_flat, self._targets = self._copies(first, dims)
        self._optimizer = FusedAdam([self._flat], lr=lr)

    def _copies(self, first: StackedMLP, dims: Sequence[int]) -> tuple[Tensor, list[FastMLP]]:
        """Each head's network for every policy, as (parameters in one piece, the networks of each group)."""
        num_policies, num_heads = self._shape
        net = StackedMLP(num_policies * num_heads, dims, layer_norm=True)
        with torch.no_grad():
            for own, source in zip(net.parameters(), first.parameters(), strict=True):
                own.copy_(source.repeat(num_policies, 1, 1))
        flat = flatten(list(net.parameters()))
        nets = []
        for group in self._groups:
            part = _part(net, group.start * num_heads, group.stop * num_heads)
            nets.append(FastMLP(part, buffers=self._buffers[group.stop - group.start]))
        return flat, nets

    @torch.no_grad()
    def values(self, obs: Tensor, actions: Tensor) -> Tensor:
        inputs = self._inputs(obs.expand(*actions.shape[:-1], obs.shape[-1]), actions)
        if inputs.ndim == 3:  # the same rows for all heads
            inputs = inputs[:, None].expand(-1, self._shape[1], -1, -1)
        parts = []
        for part in inputs.split(BATCH, dim=2):
            rows = part.shape[2]
            padded = torch.nn.functional.pad(part, (0, 0, 0, BATCH - rows))  # one set of buffers for all sizes
            outputs = [
                net.forward(padded[group].flatten(0, 1))[:, :rows]
                for group, net in zip(self._groups, self._targets, strict=True)
            ]
            parts.append(torch.cat(outputs))
        return torch.cat(parts, 1).unflatten(0, self._shape) * self._scale + self._center

    @torch.no_grad()
    def update(self, obs: Tensor, actions: Tensor, targets: Tensor, weights: Tensor) -> None:
        inputs, scaled = self._inputs(obs, actions), (targets - self._center) / self._scale
        share = (2 * weights / weights.sum(-1, keepdim=True).clamp_min(1))[..., None]  # (E, B, 1)
        for group, net in zip(self._groups, self._nets, strict=True):
            own = scaled[group]
            x = inputs if inputs.ndim == 2 else inputs.repeat(len(own), 1, 1)
            delta = (net.forward(x).view_as(own) - own).mul_(share).flatten(0, 1)
            net.backward(delta)
            net.parameter_gradients(delta)
        self._optimizer.step()

    @torch.no_grad()
    def follow(self, tau: float) -> None:
        self._target_flat.lerp_(self._flat, tau)

    def _inputs(self, obs: Tensor, actions: Tensor) -> Tensor:
        return torch.cat(((obs - self._mean) / self._std, actions), dim=-1)

    def state(self) -> dict[str, Any]:
        """All that changes in training, as tensors."""
        moments = [{key: torch.from_numpy(v) for key, v in part.items()} for part in optimizer_state(self._optimizer)]
        return {"net": self._flat.detach().cpu(), "target": self._target_flat.detach().cpu(), "adam": moments}

    @torch.no_grad()
    def set_state(self, state: dict[str, Any]) -> None:
        self._flat.copy_(state["net"])
        self._target_flat.copy_(state["target"])
        load_optimizer_state(self._optimizer, [{k: v.numpy() for k, v in part.items()} for part in state["adam"]])


def _part(net: StackedMLP, start: int, stop: int) -> Layers:
    """Some of the networks, in the same memory."""
    layers = layers_of(net)

    def part(params: Sequence[Tensor]) -> list[Tensor]:
        parts: list[Tensor] = [torch.nn.Parameter(param.detach()[start:stop]) for param in params]
        for own, param in zip(parts, params, strict=True):
            own.grad = gradient_of(param)[start:stop]
        return parts

    return layers._replace(weights=part(layers.weights), biases=part(layers.biases))
