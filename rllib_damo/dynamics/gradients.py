"""The likelihood of the dynamics ensemble: a readable form, and the gradients that training uses."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from rllib_damo.dynamics.ensemble import bounded_gaussian, mlp
from rllib_damo.flat import gradient_of


def reference_loss(params: Sequence[Tensor], x: Tensor, y: Tensor, logvar_loss_coef: float) -> tuple[Tensor, Tensor]:
    """What `Gradients` differentiates, readably: Σ_members mean[(μ - y)²/σ² + log σ²], and with the bounds' loss added.

    Weight decay is not in it: Adam adds its gradient.
    """
    num_layers = (len(params) - 2) // 2
    raw = mlp(x, params[:num_layers], params[num_layers:-2])
    mean, logvar = bounded_gaussian(raw, params[-2], params[-1])
    likelihood = ((mean - y).square() * (-logvar).exp() + logvar).mean((1, 2)).sum()
    return likelihood, likelihood + logvar_loss_coef * (params[-2].sum() - params[-1].sum())


class Gradients:
    """Loss and gradients of A stacked Gaussian networks, written out by hand.

    The same numbers as autograd on `reference_loss` (a test pins them), in less time: no graph is built, buffers are
    kept between steps, SiLU's derivative reuses the forward sigmoid.

    Args:
        params: L weights ``(A, in, out)``, L biases ``(A, 1, out)``, upper and lower log-variance bounds ``(A, 1, D)``.
        logvar_loss_coef: weight of the bounds' loss.
    """

    def __init__(self, params: Sequence[Tensor], logvar_loss_coef: float):
        num_layers = (len(params) - 2) // 2
        self._coef = logvar_loss_coef
        self._grads = [gradient_of(param) for param in params]
        data = [p.detach() for p in params]
        self._weights, self._biases, self._bounds = data[:num_layers], data[num_layers:-2], data[-2:]
        self._one = data[0].new_ones(())
        self._buffers: dict[int, tuple[list[Tensor], list[Tensor]]] = {}

    @torch.no_grad()
    def compute(self, x: Tensor, y: Tensor) -> Tensor:
        """Sets ``.grad`` of all parameters; returns the members' summed negative log likelihood, a scalar.

        Args:
            x: standardised inputs ``(A, B, in)``.
            y: standardised targets ``(A, B, D)``.
        """
        weights, biases, num_layers = self._weights, self._biases, len(self._weights)
        outs, sigmoids = self._get_buffers(x.shape[1])
        hidden = [x]
        for i in range(num_layers - 1):
            z = torch.baddbmm(biases[i], hidden[i], weights[i], out=outs[i])
            torch.sigmoid(z, out=sigmoids[i])
            hidden.append(z.mul_(sigmoids[i]))
        raw = torch.baddbmm(biases[-1], hidden[-1], weights[-1], out=outs[-1])
        loss, delta = self._likelihood(raw, y)
        for i in reversed(range(num_layers)):
            torch.bmm(hidden[i].mT, delta, out=self._grads[i])
            torch.sum(delta, 1, keepdim=True, out=self._grads[num_layers + i])
            if i:
                # silu'(z) = s + h (1 - s) = h + s (1 - h), with s = sigmoid(z) and h = z s; neither is needed after it
                h, s = hidden[i], sigmoids[i - 1]
                slope = torch.lerp(h, self._one, s, out=h)
                delta = torch.bmm(delta, weights[i].mT, out=s).mul_(slope)
        return loss

    def _likelihood(self, raw: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
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
        loss = (chi + logvar).sum() * scale
        d_logvar = chi.neg_().add_(1.0).mul_(scale)
        d_capped = d_logvar * lower.sigmoid_()
        d_free = d_capped * upper.sigmoid_()
        torch.sum(d_capped - d_free, 1, keepdim=True, out=self._grads[-2]).add_(self._coef)
        torch.sum(d_logvar - d_capped, 1, keepdim=True, out=self._grads[-1]).sub_(self._coef)
        return loss, torch.cat((weighted.mul_(2 * scale), d_free), dim=-1)

    def _get_buffers(self, batch: int) -> tuple[list[Tensor], list[Tensor]]:
        if batch not in self._buffers:
            outs = [w.new_zeros(len(w), batch, w.shape[2]) for w in self._weights]
            self._buffers[batch] = outs, [b.clone() for b in outs[:-1]]
        return self._buffers[batch]
