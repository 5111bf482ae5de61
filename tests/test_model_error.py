"""benchmarks/model_error.py: distances and coverage of models whose errors are known."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

import model_error

from rllib_damo.data.schema import Transitions

STEP, ROWS = 0.1, 60


def line(episodes: int = 2) -> Transitions:
    """Two columns that grow by ``STEP`` times an action of 1, from anywhere."""
    starts = np.random.default_rng(0).normal(size=(episodes, 1, 2))
    states = (starts + STEP * np.arange(ROWS + 1)[None, :, None]).astype(np.float32)
    return Transitions(
        observations=states[:, :-1].reshape(-1, 2),
        actions=np.ones((episodes * ROWS, 1), np.float32),
        rewards=np.zeros(episodes * ROWS, np.float32),
        next_observations=states[:, 1:].reshape(-1, 2),
        terminations=np.zeros(episodes * ROWS, bool),
        truncations=np.arange(episodes * ROWS) % ROWS == ROWS - 1,
    )


def model(step: float) -> Any:
    """Moves by ``step`` times the action, in units of 2."""

    def sample(obs: Tensor, actions: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return obs + step * actions, torch.zeros(len(obs))

    return SimpleNamespace(obs_dim=2, input_std=torch.full((3,), 2.0), sampler=lambda: sample)


def test_distances_are_in_standard_deviations_of_the_data() -> None:
    data = line()
    result = model_error.errors(model(STEP), data, data.actions, rows=50)
    assert result["error"] == pytest.approx(dict.fromkeys(model_error.STEPS, 0), abs=1e-3)
    assert result["still"] == pytest.approx({h: h * STEP / 2 for h in model_error.STEPS}, abs=1e-3)
    result = model_error.errors(model(3 * STEP), data, data.actions, rows=50)
    assert result["error"] == pytest.approx({h: h * STEP for h in model_error.STEPS}, abs=1e-3)


def test_a_gaussian_covers_nine_tenths_of_its_own_draws_and_has_its_own_error_and_likelihood() -> None:
    data = line(200)
    noise = np.random.default_rng(1).normal(size=data.observations.shape).astype(np.float32)
    data.next_observations[:] = data.observations + 0.5 * noise
    data.rewards[:] = 0.5 * noise[:, 0]

    class Gaussian:
        target_std = torch.full((3,), 2.0)

        def __call__(self, obs: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
            return torch.zeros(7, len(obs), 3), torch.full((7, len(obs), 3), 2 * float(np.log(0.5)))

    result = model_error.one_step(Gaussian(), data, data.actions)  # type: ignore[arg-type]
    assert result["coverage"] == pytest.approx(0.9, abs=0.01)
    assert result["squared_error"] == pytest.approx(0.25**2, rel=0.03)
    assert result["likelihood_loss"] == pytest.approx(1 + 2 * np.log(0.25), abs=0.03)

    class Constant(Gaussian):
        """Of a reward that is 0 in the data."""

        target_std = torch.tensor([2.0, 2.0, 0.0])

        def __call__(self, obs: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
            mean, logvar = super().__call__(obs, actions)
            logvar[..., -1] = -math.inf
            return mean, logvar

    data.rewards[:] = 0
    assert model_error.one_step(Constant(), data, data.actions) == pytest.approx(result, rel=0.03)  # type: ignore[arg-type]
