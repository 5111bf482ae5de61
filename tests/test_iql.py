"""IQL: expectiles, weighted cloning and the order of steps against the paper, and a chain with tables as networks."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rllib_damo import OfflineIQL, OfflineIQLConfig
from rllib_damo.baselines.iql import (
    OfflineIQLTorchRLModule,
    OfflineIQLUpdate,
    advantage_weights,
    expectile_loss,
    return_range_scale,
)
from rllib_damo.core.update import DatasetFacts, StepBatch
from rllib_damo.errors import DataError
from rllib_damo.utils.batch import Batch
from tests.data_helpers import make_transitions

OBS, ACT, ROWS = 3, 2, 12


@pytest.fixture
def module() -> Any:
    torch.manual_seed(0)
    module = OfflineIQLTorchRLModule(
        observation_space=gym.spaces.Box(-1, 1, (OBS,)),
        action_space=gym.spaces.Box(-1, 1, (ACT,)),
        inference_only=False,
        model_config={"hidden_dims": (16,), "twin_q": True, "critic_layer_norm": False},
    ).double()
    with torch.no_grad():  # a target that differs, or nothing would tell it from what it follows
        for p in module.target_critics.parameters():
            p += 0.3 * torch.randn(p.shape)
        module.actor.log_std.copy_(torch.tensor([-0.5, 0.2]))
    return module


@pytest.fixture
def batch() -> StepBatch:
    rng = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=rng, dtype=torch.float64)

    actions = (2 * normal(ROWS, ACT)).clamp(-1, 1)  # many at the bounds, as in datasets
    terminated = (torch.arange(ROWS) % 4 == 0).double()
    return StepBatch({"update": Batch(normal(ROWS, OBS), actions, normal(ROWS, OBS), normal(ROWS), terminated)}, ROWS)


def make_update(module: Any, lr: float = 0.0, **options: Any) -> OfflineIQLUpdate:
    config = OfflineIQLConfig().training(gamma=0.9, tau=0.1, **options)
    optimizers = {name: torch.optim.SGD(params, lr=lr) for name, params in module.trainable().items()}
    return OfflineIQLUpdate(module, config, optimizers=optimizers, generator=torch.Generator())


def assert_gradients(params: Any, loss: Tensor) -> None:
    params = list(params)
    for param, gradient in zip(params, torch.autograd.grad(loss, params), strict=True):
        torch.testing.assert_close(param.grad, gradient)


# -- expectiles ------------------------------------------------------------------------------------------------------


def expectile(sample: np.ndarray, tau: float) -> float:
    """m with τ Σ (q - m)₊ = (1 - τ) Σ (m - q)₊, by bisection."""
    low, high = sample.min(), sample.max()
    for _ in range(100):
        m = (low + high) / 2
        if tau * np.maximum(sample - m, 0).sum() > (1 - tau) * np.maximum(m - sample, 0).sum():
            low = m
        else:
            high = m
    return float(low)


def test_the_loss_is_least_at_the_expectile() -> None:
    sample = np.random.default_rng(0).normal(size=31) ** 3
    found = []
    for tau in (0.1, 0.5, 0.7, 0.9, 0.9999):
        expected = expectile(sample, tau)
        m = torch.tensor(expected, dtype=torch.float64, requires_grad=True)
        (gradient,) = torch.autograd.grad(expectile_loss(torch.from_numpy(sample) - m, tau), m)
        assert abs(gradient) < 1e-12
        for other in (expected - 0.01, expected + 0.01):
            assert expectile_loss(torch.from_numpy(sample) - other, tau) > expectile_loss(
                torch.from_numpy(sample) - expected, tau
            )
        found.append(expected)
    assert found == sorted(found)
    assert found[1] == pytest.approx(sample.mean())
    assert found[-1] == pytest.approx(sample.max(), rel=0.05)


# -- the gradient step -----------------------------------------------------------------------------------------------


def test_gradients_are_the_papers_and_v_moves_first(module: Any, batch: StepBatch) -> None:
    rows, before = batch["update"], copy.deepcopy(module)
    update = make_update(module, expectile=0.8, beta=2.0, max_weight=1.5)
    update.optimizers["value"].param_groups[0]["lr"] = 0.5  # the others stand still, so that gradients can be repeated
    metrics = update.step(batch, 0, True)

    data_q = before.target_critics(rows.obs, rows.actions).amin(0).detach()
    u = data_q - before.values(rows.obs)[0]
    value_loss = ((0.8 - (u < 0).double()).abs() * u**2).mean()
    for old, new, gradient in zip(
        before.values.parameters(), module.values.parameters(),
        torch.autograd.grad(value_loss, list(before.values.parameters())), strict=True,
    ):  # fmt: skip
        torch.testing.assert_close(new, old - 0.5 * gradient)
    assert metrics["value_loss"].item() == pytest.approx(value_loss.item())

    target = rows.rewards + 0.9 * (1 - rows.terminated) * module.values(rows.next_obs)[0].detach()
    first, second = module.critics(rows.obs, rows.actions)
    critic_loss = ((first - target) ** 2 + (second - target) ** 2).mean()
    assert_gradients(module.critics.parameters(), critic_loss)

    weights = torch.exp(2 * (data_q - module.values(rows.obs)[0].detach())).clip(max=1.5)
    assert 0 < (weights == 1.5).sum() < ROWS
    actor_loss = -(weights * module.actor.log_prob(rows.obs, rows.actions)).mean()
    assert_gradients(module.actor.parameters(), actor_loss)
    assert metrics["policy_loss"].item() == pytest.approx(actor_loss.item())
    assert metrics["qf_loss"].item() == pytest.approx(critic_loss.item())
    assert metrics["clipped_share"].item() == pytest.approx((weights == 1.5).double().mean().item())
    for old, new, leader in zip(
        *(m.parameters() for m in (before.target_critics, module.target_critics, module.critics)), strict=True
    ):
        torch.testing.assert_close(new, 0.9 * old + 0.1 * leader)


def test_weighted_cloning_against_numpy(module: Any, batch: StepBatch) -> None:
    """With respect to the mean's bias b and log σ: -E[w (a-μ)/σ² (1-μ²)] and -E[w ((a-μ)²/σ² - 1)], μ = tanh(...+b)."""
    obs, actions = batch["update"].obs, batch["update"].actions.numpy()
    with torch.no_grad():
        mean = module.actor.net(obs).tanh().numpy()
        advantage = (module.target_critics(obs, batch["update"].actions).amin(0) - module.values(obs)[0]).numpy()
    make_update(module, beta=3.0).step(batch, 0, True)
    weights = np.minimum(np.exp(3 * advantage), 100)[:, None]
    std = np.exp(module.actor.log_std.detach().numpy())
    away = (actions - mean) / std
    np.testing.assert_allclose(module.actor.net[-1].bias.grad, -(weights * away / std * (1 - mean**2)).mean(0))
    np.testing.assert_allclose(module.actor.log_std.grad, -(weights * (away**2 - 1)).mean(0))


def test_every_network_moves_and_no_action_is_sampled(module: Any, batch: StepBatch) -> None:
    before, update = copy.deepcopy(module), make_update(module, lr=0.1)
    state = update.generator.get_state()
    update.step(batch, 0, True)
    old = dict(before.named_parameters())
    moved = {name.split(".")[0] for name, p in module.named_parameters() if not torch.equal(p, old[name])}
    assert moved == {"actor", "critics", "target_critics", "values"}
    assert torch.equal(update.generator.get_state(), state)


def test_the_exponent_is_bounded_before_exp() -> None:
    advantage = torch.tensor([-1e6, 0.0, 1.0, 1e6])
    np.testing.assert_allclose(advantage_weights(advantage, 3.0, 100.0), [0, 1, np.exp(3), 100], rtol=1e-5)
    assert advantage_weights(advantage, 0.0, 100.0).tolist() == [1, 1, 1, 1]


def test_metrics_of_values_are_in_the_datasets_rewards(module: Any, batch: StepBatch) -> None:
    plain, scaled = (make_update(copy.deepcopy(module)) for _ in range(2))
    scaled.fit(DatasetFacts(reward_scale=4.0))
    plain_metrics, metrics = plain.step(batch, 0, True), scaled.step(batch, 0, True)
    for name in ("qf_mean", "value_mean", "td_error_abs"):
        assert metrics[name] == pytest.approx(plain_metrics[name].item() / 4)
    assert metrics["qf_loss"] == plain_metrics["qf_loss"]


# -- a chain, with tables as networks --------------------------------------------------------------------------------


class Table(nn.Module):
    """Q(s,a) or V(s) of state numbers in the first column; actions are -1 and 1."""

    def __init__(self, values: np.ndarray):
        super().__init__()
        self.table = nn.Parameter(torch.tensor(values))

    def forward(self, obs: Tensor, actions: Tensor | None = None) -> Tensor:
        rows = self.table[obs[:, 0].long()]
        return (rows if actions is None else rows.gather(1, (actions > 0).long())[:, 0])[None]


class TableActor(nn.Module):
    """log π(a|s) of two actions."""

    def __init__(self, num_states: int):
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(num_states, 2, dtype=torch.float64))

    def log_prob(self, obs: Tensor, actions: Tensor) -> Tensor:
        rows = self.logits[obs[:, 0].long()].log_softmax(-1)
        return rows.gather(1, (actions > 0).long())[:, 0]


class TableModule(nn.Module):
    def __init__(self, q: np.ndarray):
        super().__init__()
        self.values, self.critics, self.actor = Table(np.zeros(len(q))), Table(q), TableActor(len(q))
        self.target_critics = copy.deepcopy(self.critics).requires_grad_(False)

    def trainable(self) -> dict[str, list[nn.Parameter]]:
        parts = {"value": self.values, "critic": self.critics, "actor": self.actor}
        return {name: list(net.parameters()) for name, net in parts.items()}

    def targets(self) -> list[tuple[nn.Module, nn.Module]]:
        return [(self.critics, self.target_critics)]


# (s, a, r, s', terminated): left costs 1 and leads to the end sooner, right pays at the end; right in state 2 is unseen
CHAIN = [(0, 0, -1.0, 1, 0), (0, 1, 0.0, 1, 0), (1, 0, 0.5, 3, 1), (1, 1, 0.0, 2, 0), (2, 0, 2.0, 3, 1)]


@pytest.mark.parametrize("tau", [0.5, 0.9, 0.999])
def test_chain_reaches_the_best_value_in_the_data(tau: float) -> None:
    q = np.zeros((4, 2))
    q[2, 1] = 100.0  # no row shows this action: nothing may learn from its value
    module: Any = TableModule(q.copy())
    columns = [torch.tensor(column, dtype=torch.float64) for column in zip(*CHAIN, strict=True)]
    rows = Batch(columns[0][:, None], 2 * columns[1][:, None] - 1, columns[3][:, None], columns[2], columns[4])
    config = OfflineIQLConfig().training(gamma=0.9, tau=1.0, expectile=tau, beta=10.0)
    rates = {"value": 1.5 / max(tau, 1 - tau), "critic": 2.5, "actor": 5.0}
    optimizers = {name: torch.optim.SGD(params, lr=rates[name]) for name, params in module.trainable().items()}
    update = OfflineIQLUpdate(module, config, optimizers=optimizers, generator=torch.Generator())
    for step in range(400):
        update.step(StepBatch({"update": rows}, len(CHAIN)), step, False)

    expected, value = q.copy(), np.zeros(4)
    for _ in range(10):  # value iteration over the dataset's actions, with expectiles in place of the maximum
        for s, a, r, s_next, terminated in CHAIN:
            expected[s, a] = r + 0.9 * (1 - terminated) * value[s_next]
        value = np.array([expectile(np.array([expected[s, a] for s, a, *_ in CHAIN if s == n]), tau) if n < 3 else 0
                          for n in range(4)])  # fmt: skip
    np.testing.assert_allclose(module.critics.table.detach(), expected, atol=1e-3)
    np.testing.assert_allclose(module.values.table.detach()[:3], value[:3], atol=1e-3)
    if tau > 0.99:  # the optimum of the data: right, right, left
        np.testing.assert_allclose(value[:3], [0.9 * 0.9 * 2, 0.9 * 2, 2.0], atol=3e-3)
        policy = module.actor.logits.detach().softmax(-1)
        assert policy[0, 1] > 0.9
        assert policy[1, 1] > 0.9
        assert policy[2, 0] > 0.9


# -- options ---------------------------------------------------------------------------------------------------------


def test_return_range_scales_by_the_spread_of_returns() -> None:
    transitions = make_transitions(lengths=(4, 1, 7))
    returns = [transitions.rewards[a:b].sum() for a, b in ((0, 4), (4, 5), (5, 12))]
    assert return_range_scale(transitions) == pytest.approx(1000 / (max(returns) - min(returns)), rel=1e-5)


def test_rewards_are_scaled_as_the_option_says() -> None:
    transitions = make_transitions()
    for option, scale in (("return_range", return_range_scale(transitions)), (0.1, 0.1)):
        config = OfflineIQLConfig().training(reward_scale=option)
        assert OfflineIQL.reward_scale(SimpleNamespace(config=config), transitions) == scale


def test_equal_returns_have_no_range() -> None:
    with pytest.raises(DataError, match=r"made: reward_scale='return_range' .* all 1 are .* Set reward_scale to a num"):
        return_range_scale(make_transitions(lengths=(5,)))


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({"expectile": 1.0}, ("`expectile` must be a number in (0, 1)", "1.0")),
        ({"beta": -1.0}, ("`beta`", ">= 0", "-1.0")),
        ({"max_weight": 0}, ("`max_weight`", "> 0")),
        ({"reward_scale": "range"}, ("`reward_scale`", '"return_range" or a finite number > 0', "'range'")),
        ({"reward_scale": 0.0}, ("`reward_scale`", "0.0")),
        ({"value_lr": 0.0}, ("`value_lr`", "> 0")),
    ],
)
def test_errors_name_option_and_value(options: dict[str, Any], parts: tuple[str, ...]) -> None:
    config = OfflineIQLConfig().environment("Pendulum-v1").offline_data(input_="pendulum-mixed").training(**options)
    with pytest.raises(ValueError, match="`") as info:
        config.validate()
    assert all(part in str(info.value) for part in parts), info.value
