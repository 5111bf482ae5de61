"""MOPO's penalties on a hand-made ensemble."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from rllib_damo.baselines.uncertainty import UNCERTAINTIES, PenalizedDynamics
from rllib_damo.dynamics import DynamicsEnsemble, never_terminates
from rllib_damo.dynamics.rollout import rollout
from tests.baseline_steps import noise


def hand_made_ensemble() -> DynamicsEnsemble:
    """Two states; three members whose mean changes are (0,0), (3,0), (0,3), with std 1, 2, 1/2 everywhere."""
    model = DynamicsEnsemble(2, 1, hidden_dims=(4,), num_ensemble=3, num_elites=1)
    with torch.no_grad():
        for weight in model.weights:
            weight.zero_()
        model.min_logvar.fill_(-50.0)
        model.max_logvar.fill_(50.0)
        model.biases[-1][1, 0, 0] = 3.0
        model.biases[-1][2, 0, 1] = 3.0
        for member, std in enumerate((1.0, 2.0, 0.5)):
            model.biases[-1][member, 0, 3:] = 2 * math.log(std)
        model.target_std.copy_(torch.tensor([1.0, 2.0, 1.0]))  # the second state is measured in half units
    return model


# in the data's units the means are (0,0), (3,0), (0,6), their mean is (1,2); σ₂ = (2,4,2) is the largest
@pytest.mark.parametrize(
    ("uncertainty", "expected"),
    [
        ("aleatoric", math.sqrt(4 + 16 + 4)),
        ("pairwise-diff", math.hypot(1, 4)),
        ("ensemble-std", math.sqrt((2 + 8) / 2)),  # variances (1+4+1)/3 and (4+4+16)/3
    ],
)
def test_penalties_of_a_hand_made_ensemble(uncertainty: str, expected: float) -> None:
    ensemble, obs, actions = hand_made_ensemble(), torch.randn(5, 2), torch.zeros(5, 1)
    mean, logvar = ensemble(obs, actions)
    doubt = UNCERTAINTIES[uncertainty](mean, (logvar / 2).exp())
    np.testing.assert_allclose(doubt.detach(), np.full(5, expected), rtol=1e-5)

    plain = ensemble.sampler()(obs, actions, noise())
    penalized = PenalizedDynamics(ensemble, uncertainty, 0.5)
    next_obs, rewards = penalized.sampler()(obs, actions, noise())
    torch.testing.assert_close(next_obs, plain[0])
    torch.testing.assert_close(rewards, plain[1] - 0.5 * expected)
    assert penalized.uncertainty_mean() == pytest.approx(expected, rel=1e-5)


def test_rollouts_carry_the_penalty() -> None:
    starts, ensemble = torch.randn(6, 2), hand_made_ensemble()

    def roll(model: Any) -> dict[str, Tensor]:
        return rollout(lambda obs, _: torch.zeros(len(obs), 1), model, never_terminates, starts, 3, noise())

    plain, penalized = roll(ensemble), roll(PenalizedDynamics(ensemble, "pairwise-diff", 2.0))
    torch.testing.assert_close(penalized["rewards"], plain["rewards"] - 2 * math.hypot(1, 4))
    torch.testing.assert_close(penalized["next_obs"], plain["next_obs"])
