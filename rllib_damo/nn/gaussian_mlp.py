"""The likelihood of the dynamics ensemble: a readable form, and the gradients that training uses."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from rllib_damo.nn.flat_parameters import gradient_of
from rllib_damo.nn.stacked_mlp import FastMLP, Layers, stacked_forward


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
    raw = stacked_forward(x, params[:num_layers], params[num_layers:-2], F.silu)
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
        layers = Layers(params[:num_layers], params[num_layers:-2], "silu")
        self._net = FastMLP(layers, dtype, rows_innermost=False)
        self._bounds = [param.detach() for param in params[-2:]]
        self._bound_grads = [gradient_of(param) for param in params[-2:]]
        self._coef = logvar_loss_coef

    @torch.no_grad()
    def compute(self, x: Tensor, y: Tensor, target_weights: Tensor | None = None) -> Tensor:
        """Sets ``.grad`` of all parameters; returns the members' summed negative log likelihood, a scalar.

        Args:
            x: standardised inputs ``(A, B, in)``.
            y: standardised targets ``(A, B, D)``.
            target_weights: of the terms of the likelihood, ``(A, B, D)``; None: all 1.
        """
        loss, delta = self._likelihood(self._net.forward(x), y, target_weights)
        self._net.backward(delta)
        self._net.parameter_gradients(delta)
        return loss

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
        torch.sum(d_capped - d_free, 1, keepdim=True, out=self._bound_grads[0]).add_(self._coef)
        torch.sum(d_logvar - d_capped, 1, keepdim=True, out=self._bound_grads[1]).sub_(self._coef)
        return loss, torch.cat((weighted.mul_(2 * scale), d_free), dim=-1)
