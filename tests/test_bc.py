"""Behaviour cloning's gradient step."""

from __future__ import annotations

import pytest
import torch

from rllib_damo import BehaviorCloningConfig
from rllib_damo.baselines.bc import BCTorchRLModule, BehaviorCloningUpdate
from tests.baseline_steps import ACT, ROWS, assert_gradients, make_batch, make_module, make_update, take


def test_bc_minimises_the_mean_squared_error_of_tanh_mean() -> None:
    module, rows = make_module(BCTorchRLModule), make_batch()["update"]
    metrics = take(make_update(BehaviorCloningUpdate, module, BehaviorCloningConfig()), make_batch())
    expected = (torch.tanh(module.actor(rows.obs)[0]) - rows.actions).pow(2).sum() / (ROWS * ACT)
    assert_gradients(module.actor.parameters(), expected)
    assert {name: value.item() for name, value in metrics.items()} == pytest.approx({"bc_loss": expected.item()})


def test_bc_converges_to_the_behaviour() -> None:
    module = make_module(BCTorchRLModule)
    update = make_update(BehaviorCloningUpdate, module, BehaviorCloningConfig(), lr=0.5)
    losses = [take(update, make_batch())["bc_loss"].item() for _ in range(300)]
    assert losses[-1] < 0.3 * losses[0]
