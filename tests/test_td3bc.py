"""TD3+BC's gradient step against its paper."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from rllib_damo import BehaviorCloningConfig, TD3BCConfig
from rllib_damo.baselines.bc import BCTorchRLModule, BehaviorCloningUpdate
from rllib_damo.baselines.td3bc import TD3BCUpdate
from rllib_damo.core.td3 import TD3TorchRLModule
from rllib_damo.utils.batch import Batch
from tests.baseline_steps import (
    ACT,
    OBS,
    ROWS,
    assert_gradients,
    make_batch,
    make_module,
    make_update,
    moved,
    noise,
    take,
)


def make_config(**options: Any) -> TD3BCConfig:
    return TD3BCConfig().training(gamma=0.9, tau=0.1).training(**options)


def td3bc_critic_loss(module: Any, rows: Batch, noise_clip: float = 0.5) -> Tensor:
    drawn = torch.randn(ROWS, ACT, generator=noise()).double()
    actions = torch.tanh(module.target_actor(rows.next_obs)[0])
    actions = torch.maximum(torch.minimum(actions + (0.2 * drawn).clip(-noise_clip, noise_clip),
                                          torch.ones(())), -torch.ones(()))  # fmt: skip
    first, second = module.target_critics(rows.next_obs, actions)
    target = rows.rewards + 0.9 * (1 - rows.terminated) * torch.minimum(first, second)
    q1, q2 = module.critics(rows.obs, rows.actions)
    return ((q1 - target.detach()) ** 2).mean() + ((q2 - target.detach()) ** 2).mean()


def test_td3bc_gradients_are_the_papers() -> None:
    module, batch = make_module(TD3TorchRLModule), make_batch()
    rows = batch["update"]
    update = make_update(TD3BCUpdate, module, make_config())
    first = take(update, batch)
    critic_loss = td3bc_critic_loss(module, rows)
    assert_gradients(module.critics.parameters(), critic_loss)
    assert first["qf_loss"].item() == pytest.approx(critic_loss.item())
    assert all(p.grad is None for p in module.actor.parameters())  # the actor is delayed

    second = take(update, batch, step=1)
    actions = torch.tanh(module.actor(rows.obs)[0])
    q = module.critics(rows.obs, actions)[0]
    scale = 2.5 / q.abs().mean().item()
    actor_loss = -(scale * q - (actions - rows.actions).pow(2).mean(-1)).mean()
    assert_gradients(module.actor.parameters(), actor_loss)
    assert second["policy_loss"].item() == pytest.approx(actor_loss.item())
    assert second["value_scale"].item() == pytest.approx(scale)
    assert second["bc_loss"].item() == pytest.approx((actions - rows.actions).pow(2).mean().item())


def test_td3bc_clips_the_targets_noise() -> None:
    module, batch = make_module(TD3TorchRLModule), make_batch()
    take(make_update(TD3BCUpdate, module, make_config(noise_clip=0.1)), batch)
    assert_gradients(module.critics.parameters(), td3bc_critic_loss(module, batch["update"], noise_clip=0.1))


def test_td3bc_moves_actor_and_targets_every_second_step() -> None:
    module, batch = make_module(TD3TorchRLModule), make_batch()
    update = make_update(TD3BCUpdate, module, make_config(), lr=0.01)
    before = copy.deepcopy(module)
    take(update, batch)
    assert moved(before, module) == {"critics"}
    halfway = copy.deepcopy(module)
    take(update, batch, step=1)
    assert moved(halfway, module) == {"critics", "actor", "target_actor", "target_critics"}
    for name, follows in (("target_actor", "actor"), ("target_critics", "critics")):
        for old, new, leader in zip(
            *(list(getattr(m, n).parameters()) for m, n in ((before, name), (module, name), (module, follows))),
            strict=True,
        ):
            torch.testing.assert_close(new, 0.9 * old + 0.1 * leader)


def test_td3bc_without_the_value_term_clones() -> None:
    module, batch = make_module(TD3TorchRLModule), make_batch()
    take(make_update(TD3BCUpdate, module, make_config(bc_alpha=0.0, policy_delay=1)), batch)
    twin = make_module(BCTorchRLModule)
    twin.actor.load_state_dict(module.actor.state_dict())
    take(make_update(BehaviorCloningUpdate, twin, BehaviorCloningConfig()), batch)
    for p, q in zip(module.actor.parameters(), twin.actor.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad)


def test_deterministic_modules_act_alike_with_and_without_exploration() -> None:
    module = make_module(TD3TorchRLModule).float()
    obs = {"obs": torch.randn(4, OBS)}
    actions = module.forward_inference(obs)["actions"]
    torch.testing.assert_close(actions, torch.tanh(module.actor(obs["obs"])[0]))
    torch.testing.assert_close(module.forward_exploration(obs)["actions"], actions)
