"""The Gaussian actor whose samples are not squashed, and state values, against plain torch."""

from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import Independent, Normal

from rllib_damo.core.networks import LOG_STD_MAX, LOG_STD_MIN, GaussianActor, Values


@pytest.fixture
def actor() -> GaussianActor:
    torch.manual_seed(0)
    actor = GaussianActor(3, 2, (16,)).double()
    with torch.no_grad():
        actor.log_std.copy_(torch.tensor([-1.0, 0.5]))
    actor.standardize.fit(torch.randn(50, 3, dtype=torch.float64) * 3 + 1)
    return actor


def test_density_is_the_gaussians_around_tanh(actor: GaussianActor) -> None:
    obs, actions = torch.randn(20, 3, dtype=torch.float64), torch.rand(20, 2, dtype=torch.float64) * 2 - 1
    mean = torch.tanh(actor.net(actor.standardize(obs)))
    reference = Independent(Normal(mean, torch.tensor([-1.0, 0.5]).double().exp().expand_as(mean)), 1)
    torch.testing.assert_close(actor.log_prob(obs, actions), reference.log_prob(actions))
    torch.testing.assert_close(actor(obs)[0].tanh(), mean)


def test_density_is_finite_at_the_bounds(actor: GaussianActor) -> None:
    log_prob = actor.log_prob(torch.zeros(2, 3).double(), torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).double())
    assert torch.isfinite(log_prob).all()


def test_samples_are_clipped_and_their_density_is_of_the_ones_before(actor: GaussianActor) -> None:
    obs, noise = torch.randn(50, 3, dtype=torch.float64), torch.randn(50, 2, dtype=torch.float64)
    actions, log_prob = actor.sample(obs, noise)
    unclipped = actor(obs)[0].tanh() + actor.log_std.exp() * noise
    assert (unclipped.abs() > 1).any()
    torch.testing.assert_close(actions, unclipped.clip(-1, 1))
    torch.testing.assert_close(log_prob, actor.log_prob(obs, unclipped))


def test_log_std_is_bounded_and_alike_in_all_states(actor: GaussianActor) -> None:
    with torch.no_grad():
        actor.log_std.copy_(torch.tensor([-50.0, 50.0]))
    mean, log_std = actor(torch.randn(4, 3).double())
    assert log_std.shape == mean.shape == (4, 2)
    assert log_std.tolist() == [[LOG_STD_MIN, LOG_STD_MAX]] * 4


def test_values_are_networks_of_the_standardised_state() -> None:
    torch.manual_seed(0)
    values = Values(3, (8,), num=2)
    obs = torch.randn(5, 3) * 4 + 2
    values.standardize.fit(obs)
    x = (obs - obs.mean(0)) / obs.std(0)
    for i, found in enumerate(values(obs)):
        hidden = torch.relu(x @ values.net.weights[0][i] + values.net.biases[0][i])
        torch.testing.assert_close(found, (hidden @ values.net.weights[1][i] + values.net.biases[1][i])[:, 0])
    assert values(obs).shape == (2, 5)
    assert not math.isclose(values(obs)[0, 0], values(obs)[1, 0])
