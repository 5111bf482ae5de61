"""OptiDICE: its dual against the primal on tables (SciPy), its gradients, and weighted cloning, without training."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from scipy.optimize import linprog, minimize, root
from torch import Tensor, nn

from rllib_damo import OptiDICE, OptiDICEConfig
from rllib_damo.baselines.optidice import (
    DIVERGENCES,
    OptiDICETorchRLModule,
    OptiDICEUpdate,
    reward_std_scale,
)
from rllib_damo.core.update import StepBatch
from rllib_damo.errors import DataError
from rllib_damo.utils.batch import Batch
from tests.data_helpers import make_transitions

OBS, ACT, ROWS, STARTS = 3, 2, 12, 8

F: dict[str, Callable[[Any], Any]] = {
    "soft_chi_squared": lambda w: np.where(
        w < 1, w * np.log(np.maximum(w, 1e-300)) - w + 1, (np.maximum(w, 1) - 1) ** 2 / 2
    ),
    "half_chi_squared": lambda w: (w - 1) ** 2 / 2,
    "kl": lambda w: w * np.log(np.maximum(w, 1e-300)),
}
every = pytest.mark.parametrize("divergence", sorted(DIVERGENCES))


def make_update(module: Any, lr: float = 0.0, **options: Any) -> OptiDICEUpdate:
    config = OptiDICEConfig().training(gamma=0.9, **options)
    optimizers = {name: torch.optim.SGD(params, lr=lr) for name, params in module.trainable().items()}
    return OptiDICEUpdate(module, config, optimizers=optimizers, generator=torch.Generator())


# -- divergences -----------------------------------------------------------------------------------------------------


def test_every_divergence_is_tested() -> None:
    assert set(F) == set(DIVERGENCES)


@every
def test_conjugate_and_ratio_by_a_grid(divergence: str) -> None:
    w = np.linspace(0, 30, 300_001)
    for y in (-3.0, -1.0, -0.4, 0.0, 0.8, 3.0):
        lines = w * y - F[divergence](w)
        argument = torch.tensor(y, dtype=torch.float64, requires_grad=True)
        value = DIVERGENCES[divergence].conjugate(argument)
        ratio = DIVERGENCES[divergence].ratio(argument).item()
        assert value.item() == pytest.approx(lines.max(), abs=1e-8)
        assert ratio == pytest.approx(w[lines.argmax()], abs=1e-3)
        assert torch.autograd.grad(value, argument)[0].item() == pytest.approx(ratio)


# -- the dual, with tables as networks -------------------------------------------------------------------------------


class TableModule(nn.Module):
    """v, e and a policy over 3 actions by state numbers in the first column; actions are their numbers."""

    def __init__(self, num_states: int, num_actions: int = 3):
        super().__init__()
        self.v = nn.Parameter(torch.zeros(num_states, dtype=torch.float64))
        self.e = nn.Parameter(torch.zeros(num_states, num_actions, dtype=torch.float64))
        self.logits = nn.Parameter(torch.zeros(num_states, num_actions, dtype=torch.float64))
        self.lambda_v, self.lambda_e = (nn.Parameter(torch.zeros((), dtype=torch.float64)) for _ in range(2))
        self.actor = self

    def values(self, obs: Tensor) -> Tensor:
        return self.v[obs[:, 0].long()][None]

    def advantages(self, obs: Tensor, actions: Tensor) -> Tensor:
        return self.e[obs[:, 0].long(), actions[:, 0].long()][None]

    def log_prob(self, obs: Tensor, actions: Tensor) -> Tensor:
        return self.logits.log_softmax(-1)[obs[:, 0].long(), actions[:, 0].long()]

    def trainable(self) -> dict[str, list[nn.Parameter]]:
        return {"value": [self.v, self.lambda_v], "advantage": [self.e, self.lambda_e], "actor": [self.logits]}

    def targets(self) -> list[tuple[nn.Module, nn.Module]]:
        return []


class Data:
    """Rows of a random MDP with 4 states and 3 actions, any number for each (s,a); nothing terminates."""

    def __init__(self, seed: int, deterministic: bool = True):
        rng = np.random.default_rng(seed)
        counts = rng.integers(1, 6, size=(4, 3))
        self.state, self.action = np.divmod(np.repeat(np.arange(12), counts.ravel()), 3)
        successor = rng.integers(4, size=(4, 3))
        num = len(self.state)
        self.next_state = successor[self.state, self.action] if deterministic else rng.integers(4, size=num)
        self.rewards = rng.normal(size=(4, 3))[self.state, self.action]
        self.starts = rng.integers(4, size=7)

    def batch(self) -> StepBatch:
        def column(numbers: np.ndarray) -> Tensor:
            return torch.tensor(numbers, dtype=torch.float64)[:, None]

        num = len(self.state)
        rows = Batch(column(self.state), column(self.action), column(self.next_state), torch.from_numpy(self.rewards),
                     torch.zeros(num, dtype=torch.float64))  # fmt: skip
        starts = Batch(column(self.starts), *(torch.zeros(7, 1) for _ in range(4)))
        return StepBatch({"update": rows, "initial": starts}, num)

    def flow(self) -> tuple[np.ndarray, np.ndarray]:
        """A and b of A w = b: what leaves each state, less γ times what arrives, is (1-γ) d0; w is of rows."""
        states, num = np.arange(4)[:, None], len(self.state)
        leaves, arrives = (self.state == states) / num, (self.next_state == states) / num
        return leaves - 0.9 * arrives, 0.1 * (self.starts == states).mean(1)


def solve(data: Data, **options: Any) -> tuple[TableModule, OptiDICEUpdate, float]:
    """v and λ_v at the minimum of the update's own loss, where its gradient is 0: by BFGS, then Levenberg-Marquardt."""
    module = TableModule(4)
    update, batch = make_update(module, **options), data.batch()

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        with torch.no_grad():
            module.v.copy_(torch.from_numpy(flat[:4]))
            module.lambda_v.fill_(flat[4])
        loss = update.step(batch, 0, True)["value_loss"].item()
        return loss, np.append(module.v.grad.numpy(), module.lambda_v.grad.item())

    found = minimize(objective, np.zeros(5), jac=True, method="BFGS", options={"gtol": 1e-11})
    exact = root(lambda flat: objective(flat)[1], found.x, method="lm", options={"xtol": 1e-15, "ftol": 1e-15}).x
    return module, update, objective(exact)[0]


def ratios(module: TableModule, update: OptiDICEUpdate, data: Data) -> np.ndarray:
    v = module.v.detach().numpy()
    residual = data.rewards + 0.9 * v[data.next_state] - v[data.state]
    return update.weights(torch.from_numpy(residual), module.lambda_v).detach().numpy()


@every
@pytest.mark.parametrize("deterministic", [True, False])
def test_minimum_of_the_dual_is_the_maximum_of_the_primal(divergence: str, deterministic: bool) -> None:
    data, alpha = Data(3, deterministic), 0.5
    module, update, value = solve(data, f_divergence=divergence, divergence_coef=alpha)
    w = ratios(module, update, data)
    matrix, right = data.flow()
    np.testing.assert_allclose(matrix @ w, right, rtol=0, atol=1e-10)
    assert w.mean() == pytest.approx(1, abs=1e-10)

    def primal(w: np.ndarray) -> float:
        return float(-(w * data.rewards - alpha * F[divergence](w)).mean())

    best = minimize(primal, np.ones(len(w)), method="SLSQP", bounds=[(0, None)] * len(w),
                    constraints={"type": "eq", "fun": lambda w: matrix @ w - right, "jac": lambda w: matrix},
                    options={"maxiter": 500, "ftol": 1e-12})  # fmt: skip
    assert best.success
    assert value == pytest.approx(-best.fun, abs=1e-6)
    assert value == pytest.approx(-primal(w), abs=1e-6)


@pytest.mark.parametrize("deterministic", [True, False])
def test_value_does_not_depend_on_the_multiplier(deterministic: bool) -> None:
    """Where nothing terminates, v + k and λ - (1-γ) k are the same."""
    data = Data(5, deterministic)
    module, update, value = solve(data)
    with torch.no_grad():
        module.v.add_(3.0)
        module.lambda_v.sub_(0.3)
    assert update.step(data.batch(), 0, True)["value_loss"].item() == pytest.approx(value, abs=1e-9)
    assert module.v.grad.abs().max() < 1e-10


def test_small_alpha_nears_the_best_return_of_the_data() -> None:
    data = Data(1)
    matrix, right = data.flow()
    best = -linprog(-data.rewards / len(data.rewards), A_eq=matrix, b_eq=right).fun
    values = [solve(data, f_divergence="half_chi_squared", divergence_coef=alpha)[2] for alpha in (0.1, 0.01)]
    assert values[0] < values[1] < best
    assert values[1] == pytest.approx(best, abs=0.1)


def test_large_alpha_is_the_behaviour() -> None:
    """w is then nearly 1, where the data's own distribution is a flow: a cycle, started everywhere alike."""
    data = Data(0)
    data.state, data.action = np.repeat(np.arange(4), 4), np.tile([0, 0, 1, 2], 4)
    data.next_state, data.starts = (data.state + 1) % 4, np.arange(4)
    data.rewards = np.array([1.0, -2.0, 0.5, 3.0])[data.state] + np.array([0.0, 2.0, -1.0])[data.action]
    module, update, value = solve(data, divergence_coef=1e3)
    np.testing.assert_allclose(ratios(module, update, data), np.ones(16), atol=1e-2)
    assert value == pytest.approx(data.rewards.mean(), abs=1e-3)
    v = module.v.detach().numpy()
    with torch.no_grad():
        module.e[data.state, data.action] = torch.from_numpy(data.rewards + 0.9 * v[data.next_state] - v[data.state])
        module.lambda_e.copy_(module.lambda_v)
    gradients = []
    for counts in ([2.0, 1.0, 1.0], [1.0, 1.0, 1.0]):
        with torch.no_grad():
            module.logits.copy_(torch.tensor(counts).log())
        update.step(data.batch(), 0, True)
        gradients.append(module.logits.grad.abs().max())
    assert gradients[0] < 1e-3 < 1e-2 < gradients[1]


@every
@pytest.mark.parametrize("kind", ["mse", "minimax"])
def test_both_losses_of_e_are_least_at_the_mean_residual(divergence: str, kind: str) -> None:
    data = Data(7, deterministic=False)
    module, v = TableModule(4), np.array([0.3, -1.0, 2.0, 0.5])
    residual = data.rewards + 0.9 * v[data.next_state] - v[data.state]
    means = np.zeros((4, 3))
    for s, a in zip(data.state, data.action, strict=True):
        means[s, a] = residual[(data.state == s) & (data.action == a)].mean()
    assert np.abs(means[data.state, data.action] - residual).max() > 0.1  # successors differ
    with torch.no_grad():
        module.v.copy_(torch.from_numpy(v))
        module.e.copy_(torch.from_numpy(means))
        module.lambda_e.fill_(0.2)
    update = make_update(module, f_divergence=divergence, advantage_loss=kind, divergence_coef=2.0)
    at_mean = update.step(data.batch(), 0, True)
    assert module.e.grad.abs().max() < 1e-12
    # the multiplier sees what e's weights lack to 1
    assert module.lambda_e.grad.item() == pytest.approx(1 - at_mean["weight_mean"].item())
    with torch.no_grad():
        module.e[data.state[0], data.action[0]] += 0.1
    assert update.step(data.batch(), 0, True)["advantage_loss"] > at_mean["advantage_loss"]
    assert module.e.grad.abs().max() > 1e-4


def test_cloning_on_a_table_returns_the_weighted_behaviour() -> None:
    """π ∝ w μ."""
    data, module = Data(2), TableModule(4)
    rng = np.random.default_rng(0)
    with torch.no_grad():
        module.e.copy_(torch.from_numpy(rng.normal(size=(4, 3))))
        module.lambda_e.fill_(0.1)
    update = make_update(module, divergence_coef=0.7)
    y = (module.e.detach().numpy() - 0.1) / 0.7
    w = np.where(y < 0, np.exp(np.minimum(y, 0)), y + 1)
    counts = np.zeros((4, 3))
    np.add.at(counts, (data.state, data.action), 1)
    with torch.no_grad():
        module.logits.copy_(torch.from_numpy(np.log(w * counts)))
    update.step(data.batch(), 0, True)
    assert module.logits.grad.abs().max() < 1e-12


# -- the step, with networks -----------------------------------------------------------------------------------------


@pytest.fixture
def module() -> Any:
    torch.manual_seed(0)
    module = OptiDICETorchRLModule(
        observation_space=gym.spaces.Box(-1, 1, (OBS,)),
        action_space=gym.spaces.Box(-1, 1, (ACT,)),
        inference_only=False,
        model_config={"hidden_dims": (16,)},
    ).double()
    with torch.no_grad():
        module.lambda_v.fill_(0.2)
        module.lambda_e.fill_(-0.1)
    return module


@pytest.fixture
def batch() -> StepBatch:
    rng = torch.Generator().manual_seed(1)

    def rows(num: int) -> Batch:
        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=rng, dtype=torch.float64)

        actions = (2 * normal(num, ACT)).clamp(-1, 1)
        return Batch(normal(num, OBS), actions, normal(num, OBS), normal(num), (torch.arange(num) % 4 == 0).double())

    return StepBatch({"update": rows(ROWS), "initial": rows(STARTS)}, ROWS)


def test_gradients_are_the_papers(module: Any, batch: StepBatch) -> None:
    """By the paper's form, in which w is constant: E[w (e_v - λ) - α f(w)]; f is (w-1)²/2."""
    rows, starts, alpha = batch["update"], batch["initial"].obs, 0.6
    metrics = make_update(module, divergence_coef=alpha, f_divergence="half_chi_squared").step(batch, 0, True)

    v, v_next = module.values(rows.obs)[0], module.values(rows.next_obs)[0]
    e_v = rows.rewards + 0.9 * (1 - rows.terminated) * v_next - v
    w = ((e_v - module.lambda_v) / alpha + 1).clamp(min=0).detach()
    loss = 0.1 * module.values(starts).mean() + module.lambda_v + (w * (e_v - module.lambda_v)).mean()
    params = module.trainable()["value"]
    for param, expected in zip(params, torch.autograd.grad(loss, params), strict=True):
        torch.testing.assert_close(param.grad, expected)
    value = loss - alpha * ((w - 1) ** 2 / 2).mean()
    assert metrics["value_loss"].item() == pytest.approx(value.item())

    e = module.advantages(rows.obs, rows.actions)[0]
    w_e = ((e - module.lambda_e.detach()) / alpha + 1).clamp(min=0)
    assert 0 < (w_e == 0).sum() + (w == 0).sum() < 2 * ROWS
    loss = (alpha * (w_e - 1) ** 2 / 2 - w_e * (e_v.detach() - module.lambda_e.detach())).mean()
    params = list(module.advantages.parameters())
    for param, expected in zip(params, torch.autograd.grad(loss, params), strict=True):
        torch.testing.assert_close(param.grad, expected)
    assert metrics["advantage_loss"].item() == pytest.approx(loss.item())

    weights = w_e.detach()
    actor_loss = -(weights * module.actor.log_prob(rows.obs, rows.actions)).mean()
    params = list(module.actor.parameters())
    for param, expected in zip(params, torch.autograd.grad(actor_loss, params), strict=True):
        torch.testing.assert_close(param.grad, expected)
    share = (weights.sum() ** 2 / (weights**2).sum() / ROWS).item()
    assert metrics["effective_share"].item() == pytest.approx(share)


def test_the_policy_waits_for_its_warmup_and_no_action_is_sampled(module: Any, batch: StepBatch) -> None:
    update = make_update(module, lr=0.1, actor_warmup_steps=1)
    state = update.generator.get_state()
    for step, expected in ((0, set()), (1, {"actor"})):
        before = copy.deepcopy(module)
        update.step(batch, step, True)
        old = dict(before.named_parameters())
        moved = {name.split(".")[0] for name, p in module.named_parameters() if not torch.equal(p, old[name])}
        assert moved == {"values", "advantages", "lambda_v", "lambda_e"} | expected
    assert torch.equal(update.generator.get_state(), state)


def test_rows_are_the_datasets_and_its_starts(module: Any) -> None:
    groups = make_update(module).row_groups()
    assert {name: (g.num_real, g.num_model, g.of) for name, g in groups.items()} == {
        "initial": (256, 0, "selected_starts"), "update": (256, 0, "selected"),
    }  # fmt: skip


# -- options ---------------------------------------------------------------------------------------------------------


def test_rewards_are_scaled_and_not_shifted() -> None:
    transitions = make_transitions(lengths=(4, 7))
    scale = reward_std_scale(transitions)
    assert (scale * transitions.rewards).std() == pytest.approx(0.1, rel=1e-5)
    shifted = dataclasses.replace(transitions, rewards=transitions.rewards + 5)
    assert reward_std_scale(shifted) == pytest.approx(scale, rel=1e-4)


def test_rewards_are_scaled_as_the_option_says() -> None:
    transitions = make_transitions(lengths=(4, 7))
    for option, scale in (("std", 0.1 / transitions.rewards.std()), (0.2, 0.2)):
        config = OptiDICEConfig().training(reward_scale=option)
        assert OptiDICE.reward_scale(SimpleNamespace(config=config), transitions) == pytest.approx(scale, rel=1e-5)


def test_equal_rewards_have_no_deviation() -> None:
    transitions = make_transitions(lengths=(5,))
    with pytest.raises(DataError, match=r"made: reward_scale='std' .* all rewards are 2\. Set reward_scale to a num"):
        reward_std_scale(dataclasses.replace(transitions, rewards=np.full(5, 2.0, np.float32)))


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({"divergence_coef": 0.0}, ("`divergence_coef`", "> 0", "0.0")),
        ({"f_divergence": "chi_squared"}, ("`f_divergence`", "soft_chi_squared", "'chi_squared'")),
        ({"advantage_loss": "huber"}, ("`advantage_loss`", "minimax, mse", "'huber'")),
        ({"actor_warmup_steps": -1}, ("`actor_warmup_steps`", ">= 0", "-1")),
        ({"reward_scale": "return_range"}, ("`reward_scale`", '"std" or a finite number > 0', "'return_range'")),
    ],
)
def test_errors_name_option_and_value(options: dict[str, Any], parts: tuple[str, ...]) -> None:
    config = OptiDICEConfig().environment("Pendulum-v1").offline_data(input_="pendulum-mixed").training(**options)
    with pytest.raises(ValueError, match="`") as info:
        config.validate()
    assert all(part in str(info.value) for part in parts), info.value
