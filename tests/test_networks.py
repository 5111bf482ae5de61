"""Actor, stacked critics, classifier and standardisation against plain torch."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Independent, Normal, TanhTransform, TransformedDistribution

from rllib_damo.core.networks import Actor, Critics
from rllib_damo.damo.networks import Classifier
from rllib_damo.nn.squashed_gaussian import LOG_STD_MAX, LOG_STD_MIN
from rllib_damo.nn.standardize import ACTION_STD_MIN, Standardize, input_scales


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def fixed_actor(mean: float, log_std: float) -> Actor:
    """A 1-D actor whose Gaussian is the same in every state."""
    actor = Actor(2, 1, (4,)).double()
    with torch.no_grad():
        last = actor.net[-1]
        assert isinstance(last, nn.Linear)
        last.weight.zero_()
        last.bias.copy_(torch.tensor([mean, log_std]))
    return actor


@pytest.mark.parametrize(("mean", "log_std"), [(0.0, 0.0), (0.7, -1.0), (-1.5, 0.3), (0.2, -3.0), (0.0, 1.0)])
def test_actor_density_integrates_to_one(mean: float, log_std: float) -> None:
    actor = fixed_actor(mean, log_std)
    u = torch.linspace(mean - 9 * math.exp(log_std), mean + 9 * math.exp(log_std), 40_001, dtype=torch.float64)
    noise = ((u - mean) / math.exp(log_std))[:, None]
    actions, log_prob = actor.sample(torch.zeros(len(u), 2, dtype=torch.float64), noise)
    assert torch.trapezoid(log_prob.exp(), actions[:, 0]).item() == pytest.approx(1, abs=1e-5)


def test_actor_matches_torchs_transformed_distribution() -> None:
    actor = Actor(3, 2, (16,)).double()
    obs, noise = torch.randn(50, 3, dtype=torch.float64), torch.randn(50, 2, dtype=torch.float64)
    actions, log_prob = actor.sample(obs, noise)
    mean, log_std = actor(obs)
    reference = TransformedDistribution(Independent(Normal(mean, log_std.exp()), 1), TanhTransform(cache_size=1))
    u = mean + log_std.exp() * noise
    torch.testing.assert_close(actions, u.tanh())
    torch.testing.assert_close(log_prob, reference.log_prob(actions), atol=1e-8, rtol=1e-8)


def test_actor_density_is_finite_at_saturated_actions() -> None:
    actor = fixed_actor(30.0, 0.0).float()
    actions, log_prob = actor.sample(torch.zeros(2, 2), torch.tensor([[3.0], [-3.0]]))
    gradients = torch.autograd.grad(log_prob.sum() + actions.sum(), list(actor.net[-1].parameters()))
    assert torch.isfinite(log_prob).all()
    assert all(torch.isfinite(g).all() for g in gradients)


def test_actor_samples_are_reparameterised() -> None:
    actor = Actor(3, 2, (8,))
    actions, log_prob = actor.sample(torch.randn(5, 3), torch.randn(5, 2))
    for output in (actions.sum(), log_prob.sum()):
        gradients = torch.autograd.grad(output, list(actor.parameters()), retain_graph=True)
        assert all(g.abs().sum() > 0 for g in gradients)


def test_actor_bounds_its_log_std() -> None:
    for value, bound in ((-100.0, LOG_STD_MIN), (100.0, LOG_STD_MAX)):
        assert fixed_actor(0.0, value)(torch.zeros(1, 2).double())[1].item() == bound


def test_an_action_that_hardly_moves_keeps_the_scale_of_its_box() -> None:
    x = torch.tensor([[1e-9, 0.3, 5.0], [3e-9, 0.30001, 5.0]])
    _, std = input_scales(x, slice(1, 3))
    torch.testing.assert_close(std, torch.tensor([2**0.5 * 1e-9, ACTION_STD_MIN, 1.0]), rtol=1e-5, atol=0)
    assert input_scales(x)[1][1] < 1e-5  # of an observation that hardly moves, each move may matter


def test_standardize() -> None:
    x = torch.randn(1000, 3, dtype=torch.float64) * torch.tensor([1.0, 5.0, 0.0]) + torch.tensor([0.0, -3.0, 2.0])
    standardize = Standardize(3).double()
    torch.testing.assert_close(standardize(x), x)  # the identity until it is fitted
    standardize.fit(x)
    y = standardize(x)
    torch.testing.assert_close(y.mean(0), torch.zeros(3, dtype=torch.float64), atol=1e-12, rtol=0)
    torch.testing.assert_close(y.std(0), torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64))
    assert standardize.std[2] == 1  # a constant column keeps its scale
    assert not list(standardize.parameters())
    copy = Standardize(3).double()
    copy.load_state_dict(standardize.state_dict())
    torch.testing.assert_close(copy(x), y)


def test_standardize_of_one_row_is_finite() -> None:
    standardize = Standardize(2)
    standardize.fit(torch.tensor([[1.0, 2.0]]))
    torch.testing.assert_close(standardize(torch.tensor([[1.0, 3.0]])), torch.tensor([[0.0, 1.0]]))


def test_critics_take_standardised_observations_and_unit_actions() -> None:
    critics = Critics(3, 2, (8, 8), num=2)
    obs, actions = 4 + 3 * torch.randn(20, 3), torch.rand(20, 2)
    critics.standardize.fit(obs)
    q = critics(obs, actions)
    assert q.shape == (2, 20)
    inputs = torch.cat(((obs - obs.mean(0)) / obs.std(0), actions), -1)
    torch.testing.assert_close(q, critics.net(inputs)[..., 0])
    assert not np.allclose(q[0].detach(), q[1].detach())


def test_classifier_sees_the_step() -> None:
    """Its inputs are (s, a, s' - s): a change of s' far below the scale of s is not lost."""
    classifier = Classifier(2, 1, (8,))
    obs, actions = 100 * torch.randn(500, 2), torch.rand(500, 1)
    next_obs = obs + 1e-2 * torch.randn(500, 2)
    classifier.standardize.fit(torch.cat((obs, actions, next_obs - obs), -1))
    inputs = classifier.inputs(obs, actions, next_obs)
    assert inputs.shape == (500, 5)
    torch.testing.assert_close(inputs.std(0), torch.ones(5))
    logits: Tensor = classifier(inputs)
    assert logits.shape == (500,)
    assert not torch.equal(logits, classifier(classifier.inputs(obs, actions, obs)))
