"""C stacked networks of one shape: readable, and with gradients written out by hand.

The fast form builds no autograd graph, and keeps activations and gradients in buffers from step to step: fresh large
temporaries cost page faults, about as much as the elementwise work in them. Only rows that a loss sees are propagated.

Layer normalisation, y = (z - mean(z)) / std with std² = var(z) + ε, takes the mean out of the weights on a CPU: weights
and biases less their mean over a layer's units give sums z whose mean over the units is zero already. Backwards,
dz = (dy - mean(dy) - y mean(dy y)) / std; its mean is zero, so the centring of the weights passes it on as it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rllib_damo.nn import batched_matmul
from rllib_damo.nn.flat_parameters import gradient_of

_EPSILON = 1e-5  # of `torch.nn.functional.layer_norm`


def stacked_forward(
    x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], activation: Callable[[Tensor], Tensor]
) -> Tensor:
    """C networks side by side: ``x (C, B, in)`` → ``(C, B, out)``, one batched matmul a layer.

    Args:
        x: the inputs.
        weights: ``(C, in, out)`` for each layer.
        biases: ``(C, 1, out)`` for each layer.
        activation: what follows each hidden layer.
    """
    for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
        x = activation(batched_matmul.baddbmm(bias, x, weight))
    return batched_matmul.baddbmm(biases[-1], x, weights[-1])


class StackedMLP(nn.Module):
    """C networks of one shape, evaluated together: ``(B, in)`` → ``(C, B, out)``, one batched matmul a layer.

    Args:
        num: C.
        dims: widths from the input to the output.
        layer_norm: normalise each hidden layer before its ReLU.
    """

    def __init__(self, num: int, dims: Sequence[int], layer_norm: bool = False):
        super().__init__()
        self.layer_norm = layer_norm
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for fan_in, fan_out in zip(dims[:-1], dims[1:], strict=True):
            bound = 1 / math.sqrt(fan_in)  # as in torch.nn.Linear
            self.weights.append(nn.Parameter(torch.empty(num, fan_in, fan_out).uniform_(-bound, bound)))
            self.biases.append(nn.Parameter(torch.empty(num, 1, fan_out).uniform_(-bound, bound)))

    def forward(self, x: Tensor) -> Tensor:
        x = x.expand(self.weights[0].shape[0], *x.shape)
        return stacked_forward(x, list(self.weights), list(self.biases), self._activation)

    def _activation(self, x: Tensor) -> Tensor:
        return F.relu(F.layer_norm(x, x.shape[-1:]) if self.layer_norm else x)


def mlp(dims: Sequence[int], spectral_norm: bool = False) -> nn.Sequential:
    """A ReLU network with the given widths."""
    layers: list[nn.Module] = []
    for i, (fan_in, fan_out) in enumerate(zip(dims[:-1], dims[1:], strict=True)):
        linear: nn.Module = nn.Linear(fan_in, fan_out)
        layers.append(nn.utils.parametrizations.spectral_norm(linear) if spectral_norm else linear)
        if i < len(dims) - 2:
            layers.append(nn.ReLU())
    return nn.Sequential(*layers)


class Layers(NamedTuple):
    """What `FastMLP` knows of C networks.

    Attributes:
        weights: ``(C, in, out)`` for each layer, or ``(out, in)`` of a single network.
        biases: ``(C, 1, out)`` or ``(out,)``.
        activation: what follows each hidden layer: "relu" or "silu".
        layer_norm: normalise each hidden layer before its ReLU.
    """

    weights: Sequence[Tensor]
    biases: Sequence[Tensor]
    activation: str
    layer_norm: bool = False


class FastMLP:
    """Forward and backward passes of C networks; what the passes share lives in buffers, one set for each batch size.

    With ``dtype=torch.bfloat16``, the products between hidden layers are taken in bfloat16, from float32 parameters
    that are rounded anew in each forward pass. The first and the last layer, and all outputs, stay in the parameters'
    own dtype.

    Args:
        net: the networks; ``C = 1`` for an ``nn.Sequential`` of ``nn.Linear`` and ``nn.ReLU`` or ``nn.SiLU``.
        dtype: of the products between hidden layers; None: the parameters' own.
        rows_innermost: memory order of the outputs. Narrow outputs are computed faster with the rows innermost.
        buffers: those of other networks of the same shapes, whose passes are over before these begin theirs.

    Gradients are written into the ``.grad`` of parameters that require one.

    Raises:
        ValueError: other activations than ReLU and SiLU, or normalised layers with SiLU.
    """

    def __init__(
        self, net: StackedMLP | nn.Sequential | Layers, dtype: torch.dtype | None = None, rows_innermost: bool = True,
        buffers: dict[int, _Buffers] | None = None,
    ):  # fmt: skip
        weights, biases, self._activation, self._layer_norm = net if isinstance(net, Layers) else layers_of(net)
        if self._layer_norm and self._activation != "relu":
            raise ValueError(f"FastMLP normalises layers before ReLU only, found {self._activation!r}.")
        self._centres = self._layer_norm and not _has_fast_layer_norm(weights[0].device)
        # All seen as those of a StackedMLP: weights (C, in, out), biases (C, 1, out)
        self._weights, self._biases = [_stacked(w.detach()) for w in weights], [_stacked(b.detach()) for b in biases]
        self._weight_grads, self._bias_grads = (
            [_stacked(gradient_of(p)) for p in part if p.requires_grad] for part in (weights, biases)
        )
        self._rows_innermost = rows_innermost
        self._last_weight, self._last_bias = self._weights[-1].mT, self._biases[-1].mT
        self._last = len(weights) - 1
        is_mixed = dtype is not None and dtype != weights[0].dtype and self._last > 1
        self._dtype = dtype if is_mixed else None
        # What the products of the hidden layers read: parameters, or copies of them, centred or in ``dtype``
        self._copies: list[tuple[Tensor, Tensor]] = []
        self._read_weights, self._read_biases = (self._read(part[:-1]) for part in (self._weights, self._biases))
        self._transposed = [w.mT for w in self._read_weights]
        # What those between hidden layers write: gradients, or copies of them in ``dtype``
        inner_grads = self._weight_grads[1 : self._last]
        self._inner_grads = [torch.empty_like(g, dtype=self._dtype) for g in inner_grads] if is_mixed else inner_grads
        self._buffers: dict[int, _Buffers] = {} if buffers is None else buffers
        self._x: Tensor
        self._now: _Buffers

    def _read(self, params: Sequence[Tensor]) -> list[Tensor]:
        """Hidden layers' weights or biases, or empty copies that ``forward`` fills."""
        read = []
        for i, own in enumerate(params):
            is_cast = self._dtype is not None and i > 0
            if is_cast or self._centres:
                copy = torch.empty_like(own, dtype=self._dtype if is_cast else None)
                self._copies.append((own, copy))
                read.append(copy)
            else:
                read.append(own)
        return read

    def forward(self, x: Tensor) -> Tensor:
        """Outputs ``(C, B, out)``, a new tensor.

        Args:
            x: inputs ``(B, in)`` of all networks, or ``(C, B, in)``, which must stay as they are until the gradients
                are taken.
        """
        batch = x.shape[-2]
        if batch not in self._buffers:
            self._buffers[batch] = _Buffers(
                self._weights[:-1], batch, self._dtype, self._activation, self._layer_norm, self._centres
            )
        now = self._now = self._buffers[batch]
        self._x = inputs = x if x.ndim == 3 else x.expand(len(self._weights[0]), *x.shape)
        for own, copy in self._copies:
            if self._centres:  # in two calls, where `mean` alone is a sum and a division
                torch.sub(own, own.sum(-1, keepdim=True), alpha=1 / own.shape[-1], out=copy)
            else:
                copy.copy_(own)
        for i, (weight, bias) in enumerate(zip(self._read_weights, self._read_biases, strict=True)):
            batched_matmul.baddbmm(bias, inputs, weight, out=now.results[i])
            now.activate(i)
            inputs = now.hidden[i]
        if now.top is not now.hidden[-1]:
            now.top.copy_(now.hidden[-1])
        if self._rows_innermost:
            return torch.baddbmm(self._last_bias, self._last_weight, now.top_transposed).mT
        return batched_matmul.baddbmm(self._biases[-1], now.top, self._weights[-1])

    def backward(self, delta: Tensor, rows: slice = slice(None)) -> None:
        """Carries a gradient with respect to the outputs of the last ``forward`` back to all hidden layers.

        Args:
            delta: ``(C, R, out)``.
            rows: the R rows it belongs to.
        """
        part = self._now.at(rows)
        deltas, top_delta = part.deltas, part.full[-1]
        weight, delta = self._last_weight.to(top_delta.dtype), delta.to(top_delta.dtype)
        if weight.shape[1] == 1:
            torch.mul(delta, weight, out=top_delta)
        else:
            batched_matmul.bmm(delta, weight, out=top_delta)
        part.activation_backward(self._last - 1, top_delta)
        for i in range(self._last - 1, 0, -1):
            batched_matmul.bmm(deltas[i], self._transposed[i], out=deltas[i - 1])
            part.activation_backward(i - 1, deltas[i - 1])

    def input_gradients(self, rows: slice, columns: slice) -> Tensor:
        """Gradients ``(C, R, columns)`` with respect to some columns of the inputs."""
        return torch.bmm(self._read_weights[0][:, columns], self._now.at(rows).bottom.mT).mT

    def parameter_gradients(self, delta: Tensor, rows: slice = slice(None)) -> None:
        """Sets the parameters' gradients, from ``delta (C, R, out)`` and what ``backward`` left at the same rows."""
        part, weights, biases = self._now.at(rows), self._weight_grads, self._bias_grads
        batched_matmul.bmm(self._x[:, rows].mT, part.bottom, out=weights[0])
        torch.sum(part.bottom, 1, keepdim=True, out=biases[0])
        for i, grad in enumerate(self._inner_grads, 1):
            batched_matmul.bmm(part.hidden_transposed[i - 1], part.deltas[i], out=grad)
            if self._dtype is None:
                torch.sum(part.deltas[i], 1, keepdim=True, out=biases[i])
            else:
                weights[i].copy_(grad)
                biases[i].copy_(part.deltas[i].sum(1, keepdim=True))
        if self._rows_innermost:
            torch.bmm(delta.mT, part.top, out=weights[-1].mT)
        else:
            batched_matmul.bmm(part.top.mT, delta, out=weights[-1])
        torch.sum(delta, 1, keepdim=True, out=biases[-1])


class _Buffers:
    """What the passes over B rows share, ``(C, B, width)`` for each hidden layer.

    ``results`` are what the products give, ``sums`` the same as the activation or the normalisation reads them,
    ``hidden`` what follows the activation, ``deltas`` gradients before it. The backward pass reads the ``sums`` for
    SiLU, and ``hidden`` alone for ReLU, whose ``sums`` without normalisation are in the memory of ``hidden``.
    ``means`` and ``scales (C, B, 1)``, 1 / std, are those of normalised rows; ``is_centred``: the weights make all
    means 0. ``top`` is the last of ``hidden``, and ``full`` are the ``deltas`` that other things than products between
    hidden layers read.

    Where those products have a dtype of their own, ``hidden`` and ``deltas`` have it, as copies; ``top``, ``full[0]``,
    and all that normalisation reads stay in the parameters' dtype: a scale that is rounded moves all of a row's units
    alike, and the network's output by as much. Each operation's operands are of one dtype, since torch copies those of
    a mixed one before it, which takes longer than the operation.

    Args:
        weights: of the hidden layers, ``(C, in, width)`` each.
        batch: B.
        dtype: of the products between hidden layers; None: the weights'.
        activation, layer_norm, is_centred: as in `FastMLP`.
    """

    def __init__(
        self, weights: Sequence[Tensor], batch: int, dtype: torch.dtype | None, activation: str, layer_norm: bool,
        is_centred: bool,
    ):  # fmt: skip
        shapes = [(len(weight), batch, weight.shape[2]) for weight in weights]

        def buffers(dtype: torch.dtype | None) -> list[Tensor]:
            return [weights[0].new_zeros(shape, dtype=dtype) for shape in shapes]

        is_mixed = dtype is not None
        self.hidden, self.deltas = buffers(dtype), buffers(dtype)
        self.top, self.full = self.hidden[-1], [*self.deltas]
        if is_mixed:
            self.top = weights[0].new_zeros(shapes[-1])
            self.full = buffers(None) if layer_norm else [weights[0].new_zeros(shapes[0]), *self.deltas[1:]]
        if layer_norm:
            self.sums = buffers(None)
            self.results = [self.sums[0], *self.deltas[1:]] if is_mixed else self.sums
            if is_mixed:
                self.hidden[-1] = self.top
        else:
            self.sums = self.hidden if activation == "relu" else buffers(dtype)
            self.results = [self.full[0], *self.sums[1:]] if is_mixed else self.sums
        # ``deltas`` and ``full`` among the ``results`` are free in the forward pass.
        self.activation, self.layer_norm, self._is_centred = activation, layer_norm, is_centred
        self._normalized = self.full if is_mixed else self.hidden
        self.means, self.scales = ([sums.new_zeros(*sums.shape[:2], 1) for sums in self.sums] for _ in range(2))
        self.top_transposed = self.top.mT
        self._parts: dict[tuple[int | None, int | None], _Rows] = {}

    def activate(self, layer: int) -> None:
        """From the layer's product, which is normalised where it has that, to what follows its activation."""
        result, sums, hidden = self.results[layer], self.sums[layer], self.hidden[layer]
        if result is not sums:
            sums.copy_(result)
        if self.activation == "silu":
            torch.ops.aten.silu.out(sums, out=hidden)
            return
        y = sums
        if self._is_centred:
            scale = torch.linalg.vector_norm(sums, dim=-1, keepdim=True, out=self.scales[layer])
            scale.square_().div_(sums.shape[-1]).add_(_EPSILON).rsqrt_()
            y = torch.mul(sums, scale, out=self._normalized[layer])
        elif self.layer_norm:
            y, self.means[layer], self.scales[layer] = torch.native_layer_norm(
                sums, sums.shape[-1:], None, None, _EPSILON
            )
        if y.dtype == hidden.dtype:
            torch.clamp_min(y, 0, out=hidden)
        else:
            hidden.copy_(y).relu_()

    def at(self, rows: slice) -> _Rows:
        """The buffers at some rows; the views are kept, for making them takes time in every step."""
        key = rows.start, rows.stop
        if key not in self._parts:
            self._parts[key] = _Rows(self, rows)
        return self._parts[key]


class _Rows:
    """What the backward pass reads and writes, at some rows."""

    def __init__(self, buffers: _Buffers, rows: slice):
        def at(tensors: Sequence[Tensor]) -> list[Tensor]:
            return [tensor[:, rows] for tensor in tensors]

        self.hidden, self.deltas = at(buffers.hidden), at(buffers.deltas)
        self.full = [
            own if full is delta else full[:, rows]
            for full, delta, own in zip(buffers.full, buffers.deltas, self.deltas, strict=True)
        ]
        self.hidden_transposed = [h.mT for h in self.hidden]
        self.top, self.bottom = buffers.top[:, rows], self.full[0]
        self._sums, self._buffers, self._rows = at(buffers.sums), buffers, rows

    def activation_backward(self, layer: int, delta: Tensor) -> None:
        """Carries a gradient back through the layer's activation and its normalisation, into ``full`` and ``deltas``.

        Args:
            layer: number of the hidden layer.
            delta: the gradient after the activation, in one of the two.
        """
        low, full = self.deltas[layer], self.full[layer]
        if self._buffers.activation == "silu":
            torch.ops.aten.silu_backward.grad_input(delta, self._sums[layer], grad_input=delta)
        else:  # one pass, where a product with a mask takes two
            torch.ops.aten.threshold_backward.grad_input(delta, self.hidden[layer], 0, grad_input=delta)
        if delta is not full:
            full.copy_(delta)
        if self._buffers.layer_norm:
            statistics = self._buffers.means[layer], self._buffers.scales[layer]
            mean, scale = (part[:, self._rows].contiguous() for part in statistics)
            before, _, _ = torch.ops.aten.native_layer_norm_backward(
                full, self._sums[layer], full.shape[-1:], mean, scale, None, None, [True, False, False]
            )
            full.copy_(before)
        if layer and low is not full:
            low.copy_(full)


def _has_fast_layer_norm(device: torch.device) -> bool:
    """A GPU runs torch's in one kernel; on a CPU it takes more than twice as long as the steps that it replaces."""
    return device.type != "cpu"


def layers_of(net: StackedMLP | nn.Sequential) -> Layers:
    """The layers of the networks that `FastMLP` takes; raises as it does."""
    if isinstance(net, StackedMLP):
        return Layers(list(net.weights), list(net.biases), "relu", net.layer_norm)
    linears = [layer for layer in net if isinstance(layer, nn.Linear)]
    others = {type(layer) for layer in net if not isinstance(layer, nn.Linear)}
    if others not in ({nn.ReLU}, {nn.SiLU}):
        names = ", ".join(sorted(kind.__name__ for kind in others)) or "none"
        raise ValueError(f"FastMLP needs hidden layers that all have ReLU or all have SiLU, found: {names}.")
    activation = "relu" if nn.ReLU in others else "silu"
    return Layers([layer.weight for layer in linears], [layer.bias for layer in linears], activation)


def is_plain(net: nn.Module) -> bool:
    """Whether `FastMLP` computes what the network does: linear layers with one activation between them, no more."""
    if any(map(nn.utils.parametrize.is_parametrized, net.modules())):
        return False
    if isinstance(net, StackedMLP):
        return True
    if not isinstance(net, nn.Sequential) or len(net) < 3 or len(net) % 2 == 0:
        return False
    kinds = [type(layer) for layer in net]
    return set(kinds[::2]) == {nn.Linear} and set(kinds[1::2]) in ({nn.ReLU}, {nn.SiLU})


def _stacked(param: Tensor) -> Tensor:
    """A view ``(C, in, out)`` or ``(C, 1, out)`` of a weight or bias of `StackedMLP` or of ``nn.Linear``."""
    return param if param.ndim == 3 else param.t()[None] if param.ndim == 2 else param[None, None]
