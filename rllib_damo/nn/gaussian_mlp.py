"""The likelihood of the dynamics ensemble: a readable form, and the gradients that training uses."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from rllib_damo.nn import batched_matmul
from rllib_damo.nn.flat_parameters import gradient_of


def mlp(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], inplace: bool = False) -> Tensor:
    """G SiLU networks side by side: ``x (G, B, in)`` → ``(G, B, out)``; one batched matmul a layer."""
    for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
        x = F.silu(batched_matmul.baddbmm(bias, x, weight), inplace=inplace)
    return batched_matmul.baddbmm(biases[-1], x, weights[-1])


def bounded_gaussian(raw: Tensor, max_logvar: Tensor, min_logvar: Tensor) -> tuple[Tensor, Tensor]:
    """Splits ``raw (G, B, 2D)`` into a mean and a log variance that is softly kept between two bounds ``(G, 1, D)``."""
    mean, logvar = raw.chunk(2, dim=-1)
    logvar = max_logvar - F.softplus(max_logvar - logvar)
    return mean, min_logvar + F.softplus(logvar - min_logvar)


def reference_loss(
    params: Sequence[Tensor], x: Tensor, y: Tensor, logvar_loss_coef: float, weights: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """What `Gradients` differentiates, readably: Σ_members mean[(μ - y)²/σ² + log σ²], and with the bounds' loss added.

    Each term of the mean is multiplied by its weight. Weight decay is not in it: Adam adds its gradient.
    """
    num_layers = (len(params) - 2) // 2
    raw = mlp(x, params[:num_layers], params[num_layers:-2])
    mean, logvar = bounded_gaussian(raw, params[-2], params[-1])
    terms = (mean - y).square() * (-logvar).exp() + logvar
    likelihood = (terms if weights is None else terms * weights).mean((1, 2)).sum()
    return likelihood, likelihood + logvar_loss_coef * (params[-2].sum() - params[-1].sum())


class Gradients:
    """Loss and gradients of A stacked Gaussian networks, written out by hand.

    The same numbers as autograd on `reference_loss` (a test pins them), in less time: no graph is built, buffers are
    kept between steps, and no thread waits for another's share of a product.

    With ``dtype=torch.bfloat16``, the products between hidden layers are taken in bfloat16, from parameters that are
    rounded anew each time. First and last layer, likelihood and gradients stay in the parameters' own dtype.

    Args:
        params: L weights ``(A, in, out)``, L biases ``(A, 1, out)``, upper and lower log-variance bounds ``(A, 1, D)``.
        logvar_loss_coef: weight of the bounds' loss.
        dtype: of the products between hidden layers; None: the parameters' own.
    """

    def __init__(self, params: Sequence[Tensor], logvar_loss_coef: float, dtype: torch.dtype | None = None):
        num_layers = (len(params) - 2) // 2
        self._coef = logvar_loss_coef
        self._dtype = dtype if dtype and num_layers > 2 else params[0].dtype
        self._grads = [gradient_of(param) for param in params]
        data = [p.detach() for p in params]
        self._weights, self._biases, self._bounds = data[:num_layers], data[num_layers:-2], data[-2:]
        self._copies: list[tuple[Tensor, Tensor]] = []  # of the parameters between hidden layers, in ``dtype``
        for part in (self._weights, self._biases):
            for i in range(1, num_layers - 1):
                own, part[i] = part[i], part[i].to(self._dtype)
                if part[i] is not own:
                    self._copies.append((own, part[i]))
        self._buffers: dict[int, _Buffers] = {}

    @torch.no_grad()
    def compute(self, x: Tensor, y: Tensor, target_weights: Tensor | None = None) -> Tensor:
        """Sets ``.grad`` of all parameters; returns the members' summed negative log likelihood, a scalar.

        Args:
            x: standardised inputs ``(A, B, in)``.
            y: standardised targets ``(A, B, D)``.
            target_weights: of the terms of the likelihood, ``(A, B, D)``; None: all 1.
        """
        weights, biases, last = self._weights, self._biases, len(self._weights) - 1
        if x.shape[1] not in self._buffers:
            self._buffers[x.shape[1]] = _Buffers(weights, x.shape[1], self._dtype)
        now = self._buffers[x.shape[1]]
        for own, copy in self._copies:
            copy.copy_(own)
        inputs = x
        for i, (z, h) in enumerate(zip(now.sums, now.hidden, strict=True)):
            result = batched_matmul.baddbmm(biases[i], inputs, weights[i], out=now.results[i])
            if result is not z:
                z.copy_(result)
            inputs = torch.ops.aten.silu.out(z, out=h)
        if now.top is not inputs:
            now.top.copy_(inputs)
        raw = batched_matmul.baddbmm(biases[last], now.top, weights[last], out=now.raw)
        loss, delta = self._likelihood(raw, y, target_weights)
        self._set(last, now.top, delta)
        delta, weight = delta.to(self._dtype), weights[last].to(self._dtype)
        for i in reversed(range(last)):
            delta = batched_matmul.bmm(delta, weight.mT, out=now.hidden[i])  # which nothing reads any more
            torch.ops.aten.silu_backward.grad_input(delta, now.sums[i], grad_input=delta)
            weight = weights[i]
            if i:
                self._set(i, now.hidden[i - 1], delta)
        self._set(0, x, delta if delta.dtype == x.dtype else now.results[0].copy_(delta))
        return loss

    def _set(self, layer: int, inputs: Tensor, delta: Tensor) -> None:
        """The gradients of a layer's weights and biases, from ``inputs (A, B, in)`` and ``delta (A, B, out)``."""
        weights, biases = self._grads[layer], self._grads[len(self._weights) + layer]
        if delta.dtype == weights.dtype:
            batched_matmul.bmm(inputs.mT, delta, out=weights)
            torch.sum(delta, 1, keepdim=True, out=biases)
        else:
            weights.copy_(torch.bmm(inputs.mT, delta))
            biases.copy_(delta.sum(1, keepdim=True))

    def _likelihood(self, raw: Tensor, y: Tensor, target_weights: Tensor | None) -> tuple[Tensor, Tensor]:
        """The loss, and its gradient with respect to ``raw (A, B, 2D)``; sets those of the log-variance bounds."""
        max_logvar, min_logvar = self._bounds
        mean, free = raw.chunk(2, dim=-1)
        scale = 1.0 / mean[0].numel()
        upper = max_logvar - free
        lower = (max_logvar - min_logvar) - F.softplus(upper)
        logvar = min_logvar + F.softplus(lower)
        error = mean - y
        weighted = (-logvar).exp_().mul_(error)  # (μ - y) / σ²
        chi = weighted * error
        terms = chi + logvar
        d_logvar = chi.neg_().add_(1.0).mul_(scale)
        if target_weights is not None:
            for part in (terms, d_logvar, weighted):
                part.mul_(target_weights)
        loss = terms.sum() * scale
        d_capped = d_logvar * lower.sigmoid_()
        d_free = d_capped * upper.sigmoid_()
        torch.sum(d_capped - d_free, 1, keepdim=True, out=self._grads[-2]).add_(self._coef)
        torch.sum(d_logvar - d_capped, 1, keepdim=True, out=self._grads[-1]).sub_(self._coef)
        return loss, torch.cat((weighted.mul_(2 * scale), d_free), dim=-1)


class _Buffers:
    """What the passes over B rows share: ``sums`` before SiLU and ``hidden`` after it, ``(A, B, width)``, in ``dtype``.

    ``results`` are what the products give, ``sums`` themselves; but the first of them, and ``top``, the last of
    ``hidden``, are in the parameters' dtype, as copies where that differs. ``raw`` is what the last layer gives.
    """

    def __init__(self, weights: Sequence[Tensor], batch: int, dtype: torch.dtype):
        self.hidden = [w.new_zeros(len(w), batch, w.shape[2], dtype=dtype) for w in weights[:-1]]
        self.sums = [torch.zeros_like(h) for h in self.hidden]
        self.raw = weights[-1].new_zeros(len(weights[-1]), batch, weights[-1].shape[2])
        self.results, self.top = [*self.sums], self.hidden[-1]
        if dtype != weights[0].dtype:
            self.results[0], self.top = (torch.zeros_like(self.hidden[i], dtype=weights[0].dtype) for i in (0, -1))
