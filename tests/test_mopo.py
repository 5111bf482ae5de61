"""MOPO's penalties on a hand-made ensemble."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from ray.rllib.core import DEFAULT_MODULE_ID
from torch import Tensor

from rllib_damo import MOPOConfig
from rllib_damo.baselines.uncertainty import UNCERTAINTIES, PenalizedDynamics
from rllib_damo.dynamics import DynamicsEnsemble, never_terminates
from rllib_damo.dynamics.rollout import rollout
from tests.baseline_steps import noise
from tests.small_runs import make_small, train_policy


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
    found = UNCERTAINTIES[uncertainty](mean, (logvar / 2).exp())
    np.testing.assert_allclose(found.detach(), np.full(5, expected), rtol=1e-5)

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


@pytest.mark.usefixtures("ray_cluster")
def test_trains_on_penalised_rollouts(dataset: str, tmp_path: Any, caplog: Any) -> None:
    config = make_small(MOPOConfig(), dataset, str(tmp_path)).training(penalty_coef=1000.0)
    algo = config.evaluation(evaluation_interval=None).build_algo()
    assert algo.train()["phase"] == "dynamics"
    result = train_policy(algo, 1)
    rollout = result["env_runners"]["rollout"]
    assert rollout["num_transitions"] == 200
    # Pendulum's rewards lie above -17; what is below comes from the penalty
    assert rollout["reward_mean"] < -17 - 1000 * rollout["uncertainty_mean"] + 34
    fitting = np.abs(algo.offline_data.transitions.rewards).mean() / rollout["uncertainty_mean"]
    (warned,) = [message for message in caplog.messages if message.startswith("penalty_coef=1000 makes penalties of ")]
    assert f"Set penalty_coef to {fitting:.2g}" in warned
    result = train_policy(algo, 1)
    assert len([message for message in caplog.messages if "makes penalties of" in message]) == 1
    learner = result["learners"][DEFAULT_MODULE_ID]
    assert np.isfinite([learner[k] for k in ("policy_loss", "qf_loss", "alpha_value", "initial_value_mean")]).all()
    algo.stop()


def test_initial_alpha_is_at_most_max_alpha() -> None:
    config = MOPOConfig().environment("Hopper-v5").offline_data(input_="hopper-medium")
    with pytest.raises(ValueError, match=r"`initial_alpha` \(2.0\) must not exceed `max_alpha` \(1.0\)"):
        config.training(initial_alpha=2.0, max_alpha=1.0).validate()
