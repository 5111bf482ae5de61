"""`FastMLP` under autograd: rules that are written with networks and losses take less time, as they are."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from rllib_damo.nn.stacked_mlp import FastMLP, StackedMLP, layers_of


class FastNetwork:
    """A network's values and gradients by `FastMLP`; ``net.forward = FastNetwork(net)`` puts it in the network's place.

    The gradient of a call can be taken once. Until then, or until no tensor refers to the call, the buffers that hold
    it are the call's own: the next call makes others, or takes some that are free.

    Args:
        net: as for `FastMLP`. From the first call on, its parameters must stay where they are in memory.
        dtype: of the products between hidden layers; None: the parameters' own.
    """

    def __init__(self, net: StackedMLP | nn.Sequential, dtype: torch.dtype | None = None):
        self._net, self._dtype = net, dtype
        self._free: list[_Passes] = []

    def __call__(self, x: Tensor) -> Tensor:
        """As the network, of ``x (B, in)``.

        Raises:
            ValueError: ``x`` has another number of dimensions.
        """
        if x.ndim != 2:
            raise ValueError(f"A fast network takes inputs (B, in), found shape {tuple(x.shape)}.")
        passes = self._free.pop() if self._free else _Passes(self._net, self._dtype)
        if torch.is_grad_enabled():
            call = _Call(passes, self._free)
            outputs = _Forward.apply(call, x, _Parameters.apply(call, *passes.params))
        else:
            outputs = passes.mlp.forward(x)
            self._free.append(passes)
        return outputs if isinstance(self._net, StackedMLP) else outputs[0]

    def __deepcopy__(self, memo: dict[int, Any]) -> FastNetwork:
        return FastNetwork(copy.deepcopy(self._net, memo), self._dtype)


class _Passes:
    """A `FastMLP` with buffers of its own. It reads the network's parameters, but not their ``.grad``."""

    def __init__(self, net: StackedMLP | nn.Sequential, dtype: torch.dtype | None):
        layers = layers_of(net)
        self.params = [*layers.weights, *layers.biases]
        own = [p.detach().requires_grad_(p.requires_grad) for p in self.params]
        num = len(layers.weights)
        self.mlp = FastMLP(layers._replace(weights=own[:num], biases=own[num:]), dtype)
        self.gradients = [p.grad for p in own if p.grad is not None]


class _Call:
    """A call that may be differentiated, and the passes that it holds."""

    def __init__(self, passes: _Passes, free: list[_Passes]):
        self.passes, self._free, self._is_held = passes, free, True
        self.delta: Tensor  # the gradient with respect to the outputs

    def release(self) -> bool:
        """Gives the passes back; whether the call still held them."""
        was_held, self._is_held = self._is_held, False
        if was_held:
            self._free.append(self.passes)
        return was_held

    def __del__(self) -> None:
        self.release()


class _Parameters(torch.autograd.Function):
    """The parameters' node of a call, apart from its `_Forward`: a loss's gradient with respect to other things, such
    as the actions of a policy, then passes it by.
    """

    @staticmethod
    def forward(ctx: Any, call: _Call, *params: Tensor) -> Tensor:
        ctx.call = call
        return params[0].new_zeros(())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, _: Tensor) -> tuple[Tensor | None, ...]:
        call = ctx.call
        call.passes.mlp.parameter_gradients(call.delta)
        return None, *(gradient.clone() for gradient in call.passes.gradients)


class _Forward(torch.autograd.Function):
    """The passes of a call."""

    @staticmethod
    def forward(ctx: Any, call: _Call, x: Tensor, parameters: Tensor) -> Tensor:
        ctx.call = call
        return call.passes.mlp.forward(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, delta: Tensor) -> tuple[Tensor | None, ...]:
        call = ctx.call
        if not call.release():
            raise RuntimeError("The gradient of a fast network's call can be taken once: call the network again.")
        # Free, and yet the call's own until the next forward pass: `_Parameters` comes before that.
        mlp, call.delta = call.passes.mlp, delta
        mlp.backward(delta)
        by_input = mlp.input_gradients(slice(None), slice(None)).sum(0) if ctx.needs_input_grad[1] else None
        return None, by_input, delta.new_zeros(())
