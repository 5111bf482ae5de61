"""SAC's gradient step against its paper."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from rllib_damo import MOPOConfig
from rllib_damo.core.rl_module import SACTorchRLModule
from rllib_damo.core.sac import SACUpdate
from tests.baseline_steps import ACT, ROWS, assert_gradients, make_batch, make_module, make_update, moved, noise, take


def make_config(**options: Any) -> MOPOConfig:
    return MOPOConfig().training(gamma=0.9, tau=0.1, target_entropy=-2.0).training(**options)


def test_sac_gradients_are_the_papers() -> None:
    module, batch = make_module(SACTorchRLModule), make_batch()
    rows, generator, targets = batch["update"], noise(), copy.deepcopy(module.target_critics)
    metrics = take(make_update(SACUpdate, module, make_config()), batch)

    def draw(obs: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_std = module.actor(obs)
        normal = torch.distributions.Normal(mean, log_std.exp())
        u = mean + log_std.exp() * torch.randn(ROWS, ACT, generator=generator)
        return torch.tanh(u), (normal.log_prob(u) - torch.log(1 - torch.tanh(u) ** 2)).sum(-1)

    next_actions, next_log_prob = draw(rows.next_obs)
    actions, log_prob = draw(rows.obs)
    soft = targets(rows.next_obs, next_actions).amin(0) - 0.3 * next_log_prob
    target = (rows.rewards + 0.9 * (1 - rows.terminated) * soft).detach()
    q = module.critics(rows.obs, rows.actions)
    critic_loss = sum(0.5 * (row - target).pow(2).mean() for row in q)
    actor_loss = (0.3 * log_prob - module.critics(rows.obs, actions).amin(0)).mean()
    assert_gradients(module.critics.parameters(), critic_loss)
    assert_gradients(module.actor.parameters(), actor_loss)
    alpha_loss = (-module.log_alpha.exp() * (log_prob.detach() - 2.0)).mean()
    assert_gradients([module.log_alpha], alpha_loss)
    expected = (actor_loss, critic_loss, alpha_loss, q.mean(), -log_prob.mean())
    names = ("policy_loss", "qf_loss", "alpha_loss", "qf_mean", "entropy")
    for name, value in zip(names, expected, strict=True):
        assert metrics[name].item() == pytest.approx(value.item())


def test_sac_moves_everything_and_bounds_alpha() -> None:
    module = make_module(SACTorchRLModule)
    before = copy.deepcopy(module)
    config = make_config(target_entropy=100.0, max_alpha=0.35)  # an entropy out of reach
    update = make_update(SACUpdate, module, config, lr=0.1)
    for _ in range(3):
        take(update, make_batch())
    assert moved(before, module) == {"actor", "critics", "target_critics", "log_alpha"}
    assert module.log_alpha.exp().item() == pytest.approx(0.35)
