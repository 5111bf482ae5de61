"""ReBRAC against its paper, its reductions to TD3 and TD3+BC, and the column of next actions."""

from __future__ import annotations

import copy
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from ray.rllib.core import DEFAULT_MODULE_ID
from torch import Tensor

from rllib_damo import ReBRACConfig, TD3BCConfig
from rllib_damo.baselines.rebrac import HAS_NEXT_ACTION, NEXT_ACTIONS, ReBRACUpdate, next_action_columns
from rllib_damo.baselines.td3bc import TD3BCUpdate
from rllib_damo.core.td3 import TD3TorchRLModule, TD3Update
from rllib_damo.core.update import StepBatch, Update
from rllib_damo.utils.batch import Batch
from tests.data_helpers import make_transitions

OBS, ACT, ROWS = 3, 2, 12


def make_module(twin_q: bool = True) -> Any:
    torch.manual_seed(0)
    module = TD3TorchRLModule(
        observation_space=gym.spaces.Box(-1, 1, (OBS,)),
        action_space=gym.spaces.Box(-1, 1, (ACT,)),
        inference_only=False,
        model_config={"hidden_dims": (16, 16, 16), "twin_q": twin_q, "critic_layer_norm": True},
    ).double()
    with torch.no_grad():  # targets that differ, or nothing would tell them from what they follow
        for net in (module.target_critics, module.target_actor):
            for p in net.parameters():
                p += 0.3 * torch.randn(p.shape)
    return module


def normal(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def make_batch() -> StepBatch:
    """Rows 0, 4 and 8 are terminal, and 1, 5 and 9 truncated: none of the six has a next action."""
    number = torch.arange(ROWS)
    rows = Batch(
        normal(ROWS, OBS), normal(ROWS, ACT, seed=2).tanh(), normal(ROWS, OBS, seed=3), normal(ROWS, seed=4),
        (number % 4 == 0).double(),
    )  # fmt: skip
    known = (number % 4 > 1).double()[:, None]
    extra = {NEXT_ACTIONS: normal(ROWS, ACT, seed=5).tanh() * known, HAS_NEXT_ACTION: known}
    return StepBatch({"update": rows}, ROWS, extra)


def make_update(module: Any, rule: type[Update] = ReBRACUpdate, lr: float = 0.0, **options: Any) -> Any:
    config = (TD3BCConfig if rule is TD3BCUpdate else ReBRACConfig)().training(gamma=0.9, tau=0.1, **options)
    optimizers = {name: torch.optim.SGD(params, lr=lr) for name, params in module.trainable().items()}
    return rule(module, config, optimizers=optimizers, generator=torch.Generator().manual_seed(7))


def gradients(net: torch.nn.Module) -> list[Tensor]:
    return [p.grad for p in net.parameters()]


def assert_gradients(net: torch.nn.Module, loss: Tensor) -> None:
    params = list(net.parameters())
    for found, expected in zip(gradients(net), torch.autograd.grad(loss, params), strict=True):
        torch.testing.assert_close(found, expected)


def test_gradients_are_the_papers() -> None:
    module, batch = make_module(), make_batch()
    rows, targets = batch["update"], copy.deepcopy(module)
    options = {"actor_bc_coef": 0.7, "critic_bc_coef": 0.4, "policy_noise": 0.6, "noise_clip": 0.5}
    metrics = make_update(module, **options).step(batch, 1, True)

    noise = torch.randn(ROWS, ACT, generator=torch.Generator().manual_seed(7)).double()
    next_actions = (targets.target_actor(rows.next_obs)[0].tanh() + (0.6 * noise).clip(-0.5, 0.5)).clip(-1, 1)
    distance = ((next_actions - batch.extra[NEXT_ACTIONS]) ** 2).sum(-1)
    distance[torch.arange(ROWS) % 4 <= 1] = 0
    assert (distance > 0).sum() == 6
    soft = targets.target_critics(rows.next_obs, next_actions).amin(0) - 0.4 * distance
    target = (rows.rewards + 0.9 * (1 - rows.terminated) * soft).detach()
    torch.testing.assert_close(target[::4], rows.rewards[::4])  # terminal rows: the reward alone
    q = module.critics(rows.obs, rows.actions)
    critic_loss = ((q[0] - target) ** 2).mean() + ((q[1] - target) ** 2).mean()
    assert_gradients(module.critics, critic_loss)
    assert metrics["qf_loss"].item() == pytest.approx(critic_loss.item())

    actions = module.actor(rows.obs)[0].tanh()
    smaller = module.critics(rows.obs, actions).amin(0)
    scale = 1 / smaller.abs().mean().item()
    bc_loss = ((actions - rows.actions) ** 2).sum(-1).mean()
    actor_loss = 0.7 * bc_loss - scale * smaller.mean()
    assert_gradients(module.actor, actor_loss)
    assert metrics["policy_loss"].item() == pytest.approx(actor_loss.item())
    assert metrics["bc_loss"].item() == pytest.approx(bc_loss.item())
    assert metrics["value_scale"].item() == pytest.approx(scale)


def test_actor_and_targets_move_every_second_step() -> None:
    module, batch = make_module(), make_batch()
    update = make_update(module, lr=0.01)
    before = copy.deepcopy(module)
    for step, expected in ((0, {"critics"}), (1, {"critics", "actor", "target_critics", "target_actor"})):
        before = copy.deepcopy(module)
        update.step(batch, step, True)
        old = dict(before.named_parameters())
        assert {n.split(".")[0] for n, p in module.named_parameters() if not torch.equal(p, old[n])} == expected
    for name, follows in (("target_actor", "actor"), ("target_critics", "critics")):
        nets = getattr(before, name), getattr(module, name), getattr(module, follows)
        for old_p, new_p, leader in zip(*(net.parameters() for net in nets), strict=True):
            torch.testing.assert_close(new_p, 0.9 * old_p + 0.1 * leader)


@pytest.mark.parametrize("twin_q", [True, False])
def test_without_distances_it_is_td3(twin_q: bool) -> None:
    """TD3's actor ascends the first critic, ReBRAC's the smaller one: with one critic both are the same."""
    ours, td3 = make_module(twin_q), make_module(twin_q)
    make_update(ours, actor_bc_coef=0.0, critic_bc_coef=0.0, normalize_q=False).step(make_batch(), 1, True)
    make_update(td3, TD3Update).step(make_batch(), 1, True)
    for a, b in zip(gradients(ours.critics), gradients(td3.critics), strict=True):
        torch.testing.assert_close(a, b)
    same = [torch.allclose(a, b) for a, b in zip(gradients(ours.actor), gradients(td3.actor), strict=True)]
    assert all(same) != twin_q


def test_td3bc_is_a_special_case_but_for_a_factor() -> None:
    """One critic, β₂ = 0, and β₁ = 1 / (α dim(A)), since TD3+BC takes the mean over coordinates: its loss over α."""
    ours, theirs = make_module(twin_q=False), make_module(twin_q=False)
    loss = make_update(ours, actor_bc_coef=1 / (2.5 * ACT), critic_bc_coef=0.0).step(make_batch(), 1, True)
    other = make_update(theirs, TD3BCUpdate, bc_alpha=2.5).step(make_batch(), 1, True)
    assert loss["policy_loss"].item() == pytest.approx(other["policy_loss"].item() / 2.5)
    for a, b in zip(gradients(ours.actor), gradients(theirs.actor), strict=True):
        torch.testing.assert_close(a, b / 2.5)
    for a, b in zip(gradients(ours.critics), gradients(theirs.critics), strict=True):
        torch.testing.assert_close(a, b)


def test_targets_fall_by_the_distance_alone() -> None:
    """However large β₂ is, rows whose next action is the target policy's keep their target, and rows without one."""
    module, batch = make_module(), make_batch()
    policy = module.target_actor(batch["update"].next_obs)[0].tanh().detach()
    batch.extra[NEXT_ACTIONS][:6] = policy[:6]
    values = [
        make_update(module, critic_bc_coef=coef, policy_noise=0.0).next_value(batch, policy) for coef in (0.0, 1e6)
    ]
    distance = (policy - batch.extra[NEXT_ACTIONS]).square().sum(-1)
    distance[[8, 9]] = 0  # one is terminal, one truncated
    assert (distance > 0).tolist() == [False] * 6 + [True] * 2 + [False] * 2 + [True] * 2
    torch.testing.assert_close(values[0] - values[1], 1e6 * distance)


# -- the dataset's next actions --------------------------------------------------------------------------------------


def test_next_actions_of_hand_made_episodes() -> None:
    transitions = make_transitions(lengths=(3, 1, 2), terminated=(True, False, False))
    actions = np.arange(12, dtype=np.float32).reshape(6, 2)
    columns = next_action_columns(transitions, actions)
    assert columns[HAS_NEXT_ACTION].tolist() == [[1], [1], [0], [0], [1], [0]]
    assert columns[NEXT_ACTIONS].tolist() == [[2, 3], [4, 5], [0, 0], [0, 0], [10, 11], [0, 0]]
    assert {values.dtype for values in columns.values()} == {np.dtype(np.float32)}


def test_next_actions_end_where_the_recording_is_cut() -> None:
    cut = make_transitions(lengths=(5, 4)).slice(1, 7)  # rows 1 to 4 of the first episode, and 0 and 1 of the second
    columns = next_action_columns(cut, np.ones((6, 2), np.float32))
    assert columns[HAS_NEXT_ACTION][:, 0].tolist() == [1, 1, 1, 0, 1, 0]


def test_batches_hold_each_rows_own_next_action() -> None:
    transitions = make_transitions(lengths=(30, 1, 29))
    transitions.observations[:, 0] = np.arange(60)
    config = ReBRACConfig().environment(
        observation_space=gym.spaces.Box(-np.inf, np.inf, (OBS,)), action_space=gym.spaces.Box(-1, 1, (ACT,))
    )
    config = config.training(hidden_dims=(8,), train_batch_size_per_learner=16).debugging(seed=0)
    spaces = config.observation_space, config.action_space
    spec = config.get_multi_rl_module_spec(spaces={DEFAULT_MODULE_ID: spaces})
    learner = config.get_default_learner_class()(config=config, module_spec=spec)
    learner.build()
    arrays = transitions.arrays()
    unit_actions = arrays["actions"].clip(-1, 1)
    rows = learner._layout.pack(
        arrays["observations"], unit_actions, arrays["next_observations"], arrays["rewards"], arrays["terminations"]
    )
    columns = next_action_columns(transitions, unit_actions)
    learner.set_dataset(rows, np.array([0, 30, 31]), np.arange(60), True, columns)
    for _ in range(3):
        learner.update_many(1)
        number = learner._batch["update"].obs[:, 0].long().numpy()
        for name, values in columns.items():
            np.testing.assert_array_equal(learner._batch.extra[name], values[number])


# -- options ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({"actor_bc_coef": -0.1}, ("`actor_bc_coef`", ">= 0", "-0.1")),
        ({"critic_bc_coef": "0.1"}, ("`critic_bc_coef`", "number", "'0.1'")),
        ({"normalize_q": 1}, ("`normalize_q`", "True or False")),
        ({"policy_delay": 0}, ("`policy_delay`", "whole number")),
    ],
)
def test_errors_name_option_and_value(options: dict[str, Any], parts: tuple[str, ...]) -> None:
    config = ReBRACConfig().environment("Pendulum-v1").offline_data(input_="pendulum-mixed").training(**options)
    with pytest.raises(ValueError, match="`") as info:
        config.validate()
    assert all(part in str(info.value) for part in parts), info.value
