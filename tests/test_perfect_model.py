"""benchmarks/perfect_model.py: the simulator, set to observed states, goes on as the environment did."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

import perfect_model

from rllib_damo.data.generate import datasets
from rllib_damo.data.schema import Transitions


@pytest.mark.parametrize(("task", "env"), [("hopper-medium", "Hopper-v5"), ("halfcheetah-medium", "HalfCheetah-v5")])
def test_the_simulator_continues_observed_states(task: str, env: str) -> None:
    data = datasets.generate(task, 300, seed=0)
    model = perfect_model.Simulator(env)
    assert model.act_dim == data.actions.shape[1]
    obs, actions = torch.from_numpy(data.observations), torch.from_numpy(data.actions)
    next_obs, rewards = model.sampler()(obs, actions, None)
    unclipped = torch.from_numpy((abs(data.observations) < 10).all(1)) if task.startswith("hopper") else slice(None)
    error = torch.cat((next_obs - torch.from_numpy(data.next_observations), rewards[:, None] - rewards_of(data)), 1)
    assert len(error[unclipped]) > 200
    assert error[unclipped].abs().max() < 1e-4


def rewards_of(data: Transitions) -> torch.Tensor:
    return torch.from_numpy(data.rewards)[:, None]
