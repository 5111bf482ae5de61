"""MOPO's measures of what the dynamics ensemble does not know, and the model whose rewards are lowered by them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from rllib_damo.dynamics.ensemble import DynamicsEnsemble, Sampler


def aleatoric(mean: Tensor, std: Tensor) -> Tensor:
    """max_i ‖σ_i(s,a)‖ over the members ``(B,)``: MOPO's own (Yu et al. 2020, arXiv 2005.13239, section 4.3).

    Args:
        mean: ``(E, B, D)`` each member's mean of [s' - s, r], in the data's units.
        std: ``(E, B, D)`` its standard deviation.
    """
    return std.norm(dim=-1).amax(0)


def pairwise_diff(mean: Tensor, std: Tensor) -> Tensor:
    """max_i ‖μ_i - mean_j μ_j‖ over the members' next states ``(B,)``.

    As Lu et al. 2022 (arXiv 2110.04135) take the largest difference of two members, with the mean as the other one.
    """
    states = mean[..., :-1]
    return (states - states.mean(0)).norm(dim=-1).amax(0)


def ensemble_std(mean: Tensor, std: Tensor) -> Tensor:
    """√(mean over coordinates of the variance, with 1/E, of the members' mean next states) ``(B,)``."""
    return mean[..., :-1].var(0, correction=0).mean(-1).sqrt()


UNCERTAINTIES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "aleatoric": aleatoric,
    "pairwise-diff": pairwise_diff,
    "ensemble-std": ensemble_std,
}


_ROWS = 1000  # through all members at once, on a CPU: what its cache holds


class PenalizedDynamics:
    """The ensemble with the reward r - penalty_coef · u(s,a); all members are asked for u, one elite for s' and r.

    Args:
        dynamics: the trained ensemble.
        uncertainty: a name in ``UNCERTAINTIES``.
        penalty_coef: weight of u, in reward over the data's units.
    """

    def __init__(self, dynamics: DynamicsEnsemble, uncertainty: str, penalty_coef: float):
        self.dynamics, self.penalty_coef, self.act_dim = dynamics, penalty_coef, dynamics.act_dim
        self._uncertainty = UNCERTAINTIES[uncertainty]
        self._sum, self._count = torch.zeros((), device=dynamics.input_mean.device), 0

    def sampler(self) -> Sampler:
        """As `DynamicsEnsemble.sampler`, with penalised rewards."""
        sample = self.dynamics.sampler()

        @torch.inference_mode()
        def penalized(obs: Tensor, unit_actions: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
            next_obs, rewards = sample(obs, unit_actions, generator)
            rows = _ROWS if obs.device.type == "cpu" else max(1, len(obs))
            uncertainty = torch.cat(
                [self._uncertainty_of(*part) for part in zip(obs.split(rows), unit_actions.split(rows), strict=True)]
            )
            self._sum, self._count = self._sum + uncertainty.sum(), self._count + len(uncertainty)
            return next_obs, rewards - self.penalty_coef * uncertainty

        return penalized

    def _uncertainty_of(self, obs: Tensor, unit_actions: Tensor) -> Tensor:
        mean, logvar = self.dynamics(obs, unit_actions)
        return self._uncertainty(mean, (0.5 * logvar).exp())

    def uncertainty_mean(self) -> float:
        """Mean u over all rows so far, before it is weighted."""
        return float(self._sum) / max(1, self._count)
