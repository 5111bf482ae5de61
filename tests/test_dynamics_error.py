"""The dynamics model's error along real episodes, and whether it is as large as the model says."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import Tensor

from rllib_damo.dynamics.ensemble import DynamicsEnsemble
from rllib_damo.dynamics.model_error import LENGTHS, Tracks, model_error

SPACE = gym.spaces.Box(0.0, 2.0, (1,))
NOISE = 0.3


def walks(num: int = 50, length: int = 60) -> Tracks:
    """Random walks of two columns, and a third one that is constant."""
    steps = np.random.default_rng(0).normal(size=(num, length, 3)).astype(np.float32) * NOISE
    steps[..., 2] = 0
    bounds = np.stack([np.arange(num), np.arange(1, num + 1)], 1) * length
    tracks = Tracks.of(steps.cumsum(1).reshape(-1, 3), np.ones((num * length, 1), np.float32), bounds, SPACE)
    assert tracks is not None
    return tracks


def model(std: float, drift: float = 0.0) -> Any:
    """Says that the first two columns are random walks of these steps; columns are in units of 2."""

    def step(obs: Tensor, actions: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        noise = torch.randn(obs.shape, generator=generator) * std + drift
        return obs + noise * torch.tensor([1.0, 1.0, 0.0]), torch.zeros(len(obs))

    varies = torch.tensor([1.0, 1.0, 0.0, 1.0])
    return SimpleNamespace(obs_dim=3, input_std=torch.full((4,), 2.0), target_std=varies, sampler=lambda: step)


def test_a_right_model_predicts_its_errors() -> None:
    found = model_error(model(NOISE), walks())
    assert list(found) == [str(h) for h in LENGTHS]
    for h, at in zip(LENGTHS, found.values(), strict=True):
        assert at["within_1_std"] == pytest.approx(0.66, abs=0.08)
        assert at["within_2_std"] == pytest.approx(0.93, abs=0.06)
        assert at["error"] == pytest.approx(at["predicted_std"], rel=0.25)
        assert at["predicted_std"] == pytest.approx(NOISE * math.sqrt(h) / 2, rel=0.15)


def test_a_model_that_is_too_sure_shows() -> None:
    found = model_error(model(NOISE / 3), walks())
    assert all(at["within_2_std"] < 0.6 and at["error"] > 2 * at["predicted_std"] for at in found.values())
    drifts = model_error(model(NOISE, drift=1.0), walks())
    assert drifts["20"]["error"] == pytest.approx(20 / 2, rel=0.1)
    assert drifts["20"]["within_2_std"] == 0


def test_predictions_that_are_not_finite_are_left_out() -> None:
    tracks = walks()
    broken = tracks._replace(states=tracks.states.clone())
    broken.states[:50, 0] = math.nan
    found = model_error(model(NOISE), broken)
    assert found["5"]["within_1_std"] == pytest.approx(0.66, abs=0.08)
    broken.states[:, 0] = math.nan
    assert model_error(model(NOISE), broken) == {}


def test_tracks_stay_within_their_episodes() -> None:
    lengths = np.array([4, 40, 9, 3, 6])
    stops = lengths.cumsum()
    bounds = np.stack([stops - lengths, stops], 1)
    number, age = np.repeat(np.arange(5), lengths), np.concatenate([np.arange(n) for n in lengths])
    obs = np.stack([number, age], 1).astype(np.float32)
    tracks = Tracks.of(obs, age[:, None].astype(np.float32), bounds, SPACE)
    assert tracks is not None
    assert tracks.states.shape == (20, 21, 2)  # of the one episode that is long enough
    assert (tracks.states[:, :, 0] == 1).all()
    assert (tracks.states[:, 1:, 1] - tracks.states[:, :-1, 1] == 1).all()
    torch.testing.assert_close(tracks.actions[..., 0] + 1, tracks.states[:, :-1, 1])  # in unit actions
    short = np.stack([np.arange(0, 90, 3), np.arange(3, 91, 3)], 1)
    parts = Tracks.of(np.zeros((90, 2), np.float32), np.zeros((90, 1), np.float32), short, SPACE)
    assert parts is not None
    assert parts.states.shape == (30, 3, 2)
    assert Tracks.of(obs[:4], obs[:4, :1], bounds[:1], SPACE) is None


def test_measuring_draws_no_random_numbers_of_others() -> None:
    ensemble = DynamicsEnsemble(3, 1, hidden_dims=(8,))
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    first = model_error(ensemble, walks())
    assert first == model_error(ensemble, walks())
    assert torch.equal(before[0], torch.get_rng_state())
    np.testing.assert_array_equal(before[1], np.random.get_state()[1])
