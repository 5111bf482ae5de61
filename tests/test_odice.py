"""ODICE: the orthogonal gradient, the weights and the fixed points of V against NumPy and SciPy, without training."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor, nn

from rllib_damo import ODICE, ODICEConfig
from rllib_damo.baselines.odice import ODICETorchRLModule, ODICEUpdate, conjugate, orthogonal
from rllib_damo.core.update import DatasetFacts, StepBatch
from rllib_damo.utils.batch import Batch
from tests.data_helpers import make_transitions

OBS, ACT, ROWS = 3, 2, 12


@pytest.fixture
def module() -> Any:
    torch.manual_seed(0)
    module = ODICETorchRLModule(
        observation_space=gym.spaces.Box(-1, 1, (OBS,)),
        action_space=gym.spaces.Box(-1, 1, (ACT,)),
        inference_only=False,
        model_config={"hidden_dims": (16,), "actor_hidden_dims": None, "value_layer_norm": True},
    ).double()
    with torch.no_grad():  # targets that differ, or nothing would tell them from what they follow
        for p in module.target_values.parameters():
            p += 0.3 * torch.randn(p.shape)
    return module


@pytest.fixture
def rows() -> Batch:
    rng = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=rng, dtype=torch.float64)

    actions = (2 * normal(ROWS, ACT)).clamp(-1, 1)
    return Batch(normal(ROWS, OBS), actions, normal(ROWS, OBS), normal(ROWS), (torch.arange(ROWS) % 4 == 0).double())


def make_update(module: Any, lr: float = 0.0, reduce: Any = None, **options: Any) -> ODICEUpdate:
    config = ODICEConfig().training(gamma=0.9, tau=0.1, **options)
    optimizers = {name: torch.optim.SGD(params, lr=lr) for name, params in module.trainable().items()}
    return ODICEUpdate(module, config, optimizers=optimizers, generator=torch.Generator(), reduce_gradients=reduce)


def take(update: ODICEUpdate, rows: Batch) -> dict[str, Tensor]:
    return update.step(StepBatch({"update": rows}, len(rows.obs)), 0, True)


def value_gradient(module: Any) -> Tensor:
    return torch.cat([p.grad.flatten() for p in module.values.parameters()])


def parts(module: Any, rows: Batch, lam: float, eta: float) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of (1-λ) V, of the forward and of the backward term, by the definition of f*."""

    def f_star(y: Tensor) -> Tensor:
        w = (y / 2 + 1).clamp(min=0).detach()  # by the envelope theorem
        return (w * y - (w - 1) ** 2).mean()

    target, target_next = (module.target_values(x).amin(0).detach() for x in (rows.obs, rows.next_obs))
    value, next_value = module.values(rows.obs), module.values(rows.next_obs)
    discount = 0.9 * (1 - rows.terminated)
    losses = (
        (1 - lam) * value.mean(),
        lam * f_star(rows.rewards + discount * target_next - value),
        lam * eta * f_star(rows.rewards + discount * next_value - target),
    )
    params = list(module.values.parameters())
    first, forward, backward = (
        torch.cat([g.flatten() for g in torch.autograd.grad(loss, params, retain_graph=True)]) for loss in losses
    )
    return first, forward, backward


# -- the orthogonal gradient -----------------------------------------------------------------------------------------


def test_conjugate_is_the_largest_of_its_lines() -> None:
    w = np.linspace(0, 20, 200_001)
    for y in (-9.0, -2.0, -1.3, 0.0, 0.7, 5.0):
        expected = (w * y - (w - 1) ** 2).max()
        assert conjugate(torch.tensor(y, dtype=torch.float64)).item() == pytest.approx(expected, abs=1e-8)


def test_value_gradient_is_the_papers(module: Any, rows: Batch) -> None:
    first, forward, backward = parts(module, rows, 0.7, 1.3)
    update = make_update(module, lambda_=0.7, eta=1.3)
    with torch.no_grad():  # what is left in .grad by the step before does not count
        for param in module.values.parameters():
            param.grad = torch.full_like(param, 7.0)
    metrics = take(update, rows)
    found = value_gradient(module)
    kappa = (forward @ backward) / (forward @ forward)
    assert abs(kappa) > 0.01
    torch.testing.assert_close(found, first + (1 - kappa) * forward + backward)
    assert ((found - first) @ forward).item() == pytest.approx((forward @ forward).item())
    cosine = (forward @ backward) / (forward.norm() * backward.norm())
    assert metrics["gradient_cosine"].item() == pytest.approx(cosine.item())


def test_eta_0_is_the_semi_gradient(module: Any, rows: Batch) -> None:
    first, forward, _ = parts(module, rows, 0.6, 0.0)
    take(make_update(module, lambda_=0.6, eta=0.0), rows)
    torch.testing.assert_close(value_gradient(module), first + forward)


def test_without_a_forward_gradient_the_backward_one_is_whole(module: Any, rows: Batch) -> None:
    with torch.no_grad():  # V is far above the targets: f* is flat there
        module.values.net.biases[-1].add_(1000)
    first, forward, backward = parts(module, rows, 0.6, 1.0)
    assert not forward.any()
    assert backward.any()
    take(make_update(module, lambda_=0.6, eta=1.0), rows)
    torch.testing.assert_close(value_gradient(module), first + backward)
    assert orthogonal(torch.ones(3), torch.zeros(3)).tolist() == [1, 1, 1]


def test_learners_project_the_averaged_gradient(module: Any, rows: Batch) -> None:
    """Two learners with half the rows each step as one with all of them."""
    halves = [Batch(*(column[i::2] for column in rows)) for i in range(2)]
    seen: list[list[Tensor]] = []

    def record(gradients: Any) -> None:
        seen.append([gradient.clone() for gradient in gradients])

    take(make_update(copy.deepcopy(module), reduce=record), halves[0])

    def average(gradients: Any) -> None:
        if len(gradients) == 3:
            for own, other in zip(gradients, seen[0], strict=True):
                own.add_(other).div_(2)

    together, alone = copy.deepcopy(module), copy.deepcopy(module)
    update = make_update(together, reduce=average)
    update.apply = lambda *args: None  # type: ignore[method-assign]
    update.apply_gradients = lambda names: None  # type: ignore[method-assign]
    take(update, halves[1])
    take(make_update(alone), rows)
    torch.testing.assert_close(value_gradient(together), value_gradient(alone))


# -- policy and targets ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "bound"), [("residual", 100.0), ("ratio", 100.0), ("residual", 0.4)])
def test_cloning_weights_against_numpy(module: Any, rows: Batch, kind: str, bound: float) -> None:
    """They are from before V moved, and the means over both V's own."""
    with torch.no_grad():
        target_next = module.target_values(rows.next_obs).amin(0).numpy()
        value, mean = module.values(rows.obs).numpy(), module.actor.net(rows.obs).tanh().numpy()
    update = make_update(module, policy_weights=kind, max_weight=bound)
    update.optimizers["value"].param_groups[0]["lr"] = 0.5
    metrics = take(update, rows)
    y = rows.rewards.numpy() + 0.9 * (1 - rows.terminated.numpy()) * target_next - value
    weights = np.clip(y if kind == "residual" else y / 2 + 1, 0, bound).mean(0)
    assert 0 < (weights > 0).sum() < (ROWS if kind == "residual" else ROWS + 1)
    assert metrics["weight_mean"].item() == pytest.approx(weights.mean())
    assert metrics["cloned_share"].item() == pytest.approx((weights > 0).mean())
    away = rows.actions.numpy() - mean  # σ = 1 at first
    gradient = -(weights[:, None] * away * (1 - mean**2)).mean(0)
    np.testing.assert_allclose(module.actor.net[-1].bias.grad, gradient)


def test_every_network_moves_and_no_action_is_sampled(module: Any, rows: Batch) -> None:
    before, update = copy.deepcopy(module), make_update(module, lr=0.1)
    state = update.generator.get_state()
    take(update, rows)
    old = dict(before.named_parameters())
    moved = {name.split(".")[0] for name, p in module.named_parameters() if not torch.equal(p, old[name])}
    assert moved == {"actor", "values", "target_values"}
    assert torch.equal(update.generator.get_state(), state)
    for old_p, new_p, leader in zip(
        *(m.parameters() for m in (before.target_values, module.target_values, module.values)), strict=True
    ):
        torch.testing.assert_close(new_p, 0.9 * old_p + 0.1 * leader)


def test_values_are_in_the_datasets_rewards(module: Any, rows: Batch) -> None:
    plain, scaled = (make_update(copy.deepcopy(module)) for _ in range(2))
    scaled.fit(DatasetFacts(reward_scale=4.0))
    expected, metrics = take(plain, rows), take(scaled, rows)
    for name in ("value_mean", "td_error_abs"):
        assert metrics[name] == pytest.approx(expected[name].item() / 4)
    assert metrics["value_loss"] == expected["value_loss"]


# -- fixed points, with tables as networks ---------------------------------------------------------------------------


class Table(nn.Module):
    """Two V(s) of state numbers in the first column."""

    def __init__(self, values: np.ndarray):
        super().__init__()
        self.table = nn.Parameter(torch.tensor(np.stack((values, values))))

    def forward(self, obs: Tensor) -> Tensor:
        return self.table[:, obs[:, 0].long()]


class TableModule(nn.Module):
    def __init__(self, num_states: int):
        super().__init__()
        self.values = Table(np.zeros(num_states))
        self.target_values = copy.deepcopy(self.values).requires_grad_(False)
        self.actor = self

    def log_prob(self, obs: Tensor, actions: Tensor) -> Tensor:
        return 0 * self.values(obs)[0]

    def trainable(self) -> dict[str, list[nn.Parameter]]:
        return {"value": [self.values.table], "actor": [self.values.table]}

    def targets(self) -> list[tuple[nn.Module, nn.Module]]:
        return [(self.values, self.target_values)]


def water_level(q: np.ndarray, lam: float) -> float:
    """V with the mean over q of max(0, (q - V)/2 + 1) = (1-λ)/λ, by bisection."""
    low, high = q.min() - 2 / lam, q.max() + 2
    for _ in range(100):
        level = (low + high) / 2
        if np.maximum((q - level) / 2 + 1, 0).mean() > (1 - lam) / lam:
            low = level
        else:
            high = level
    return float(low)


# (s, r, s', terminated): each state has several actions, of which state 2's differ most
CHAIN = [(0, -1.0, 1, 0), (0, 0.0, 2, 0), (1, 0.5, 3, 1), (1, 0.0, 2, 0), (2, 2.0, 3, 1), (2, -2.0, 3, 1)]


def chain_rows() -> Batch:
    s, r, s_next, terminated = (torch.tensor(column, dtype=torch.float64) for column in zip(*CHAIN, strict=True))
    return Batch(s[:, None], torch.zeros(len(CHAIN), 1), s_next[:, None], r, terminated)


@pytest.mark.parametrize("lam", [0.4, 0.5, 0.6, 0.8])
def test_semi_gradient_fills_each_state_to_its_level(lam: float) -> None:
    module = TableModule(4)
    config = ODICEConfig().training(gamma=0.9, tau=1.0, lambda_=lam, eta=0.0)
    optimizers = {name: torch.optim.SGD(params, lr=lr) for (name, params), lr in
                  zip(module.trainable().items(), (4.0, 0.0), strict=True)}  # fmt: skip
    update = ODICEUpdate(module, config, optimizers=optimizers, generator=torch.Generator())
    for _ in range(600):
        take(update, chain_rows())

    value = np.zeros(4)
    for _ in range(10):
        targets = {s: np.array([r + 0.9 * (1 - end) * value[t] for n, r, t, end in CHAIN if n == s]) for s in range(3)}
        value[:3] = [water_level(targets[s], lam) for s in range(3)]
    np.testing.assert_allclose(module.values.table.detach()[:, :3], [value[:3]] * 2, atol=1e-6)
    if lam == 0.5:  # the mean, as long as no action is below the level by more than 2
        assert value[0] == pytest.approx(targets[0].mean())
    if lam == 0.8:  # and no row is cloned
        assert value[0] > targets[0].max()
        assert take(update, chain_rows())["weight_mean"] == 0


def test_both_gradients_together_are_that_of_the_convex_objective() -> None:
    """With V̄ = V, η = 1 and no projection: zero at the minimum that BFGS finds of E[(1-λ) V(s) + λ f*(y)]."""
    rng = np.random.default_rng(0)
    num, lam, gamma = 40, 0.6, 0.9
    s, t, r = rng.integers(5, size=num), rng.integers(5, size=num), rng.normal(size=num)

    def objective(v: np.ndarray) -> float:
        w = np.maximum((r + gamma * v[t] - v[s]) / 2 + 1, 0)
        return float(((1 - lam) * v[s] + lam * (w**2 - 1)).mean())

    best = minimize(objective, np.zeros(5), method="BFGS", options={"gtol": 1e-9}).x
    module = TableModule(5)
    with torch.no_grad():
        for net in (module.values, module.target_values):
            net.table.copy_(torch.tensor(best))
    rows = Batch(torch.tensor(s)[:, None], torch.zeros(num, 1), torch.tensor(t)[:, None], torch.tensor(r),
                 torch.zeros(num))  # fmt: skip
    vectors: list[Tensor] = []
    update = make_update(module, reduce=vectors.extend, lambda_=lam, eta=1.0)
    take(update, rows)
    forward, backward, first = vectors[:3]
    assert forward.abs().max() > 0.01
    torch.testing.assert_close(first + forward + backward, torch.zeros(10), atol=1e-6, rtol=0, check_dtype=False)


# -- options ---------------------------------------------------------------------------------------------------------


def test_rewards_are_scaled_as_the_option_says() -> None:
    transitions = make_transitions(lengths=(4, 7))
    returns = transitions.rewards[:4].sum(), transitions.rewards[4:].sum()
    for option, scale in (("return_range", 1000 / abs(returns[0] - returns[1])), (0.2, 0.2)):
        config = ODICEConfig().training(reward_scale=option)
        assert ODICE.reward_scale(SimpleNamespace(config=config), transitions) == pytest.approx(scale, rel=1e-5)


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({"lambda_": 1.0}, ("`lambda_` must be a number in (0, 1)", "1.0")),
        ({"eta": -1.0}, ("`eta`", ">= 0", "-1.0")),
        ({"policy_weights": "advantage"}, ("`policy_weights`", "residual, ratio", "'advantage'")),
        ({"actor_hidden_dims": 64}, ("`actor_hidden_dims`", "tuple of layer widths", "64")),
        ({"actor_weight_decay": -1e-4}, ("`actor_weight_decay`", ">= 0")),
        ({"reward_scale": "range"}, ("`reward_scale`", '"return_range" or a finite number > 0', "'range'")),
    ],
)
def test_errors_name_option_and_value(options: dict[str, Any], parts: tuple[str, ...]) -> None:
    config = ODICEConfig().environment("Pendulum-v1").offline_data(input_="pendulum-mixed").training(**options)
    with pytest.raises(ValueError, match="`") as info:
        config.validate()
    assert all(part in str(info.value) for part in parts), info.value


def test_only_the_policy_has_weight_decay_and_a_width_of_its_own() -> None:
    space = gym.spaces.Box(-1, 1, (OBS,))
    config = ODICEConfig().environment(observation_space=space, action_space=gym.spaces.Box(-1, 1, (ACT,)))
    config.training(hidden_dims=(16,), actor_hidden_dims=(24,), actor_weight_decay=0.3)
    learner = config.build_learner()
    learner.build()
    decay = {name: learner.get_optimizer("default_policy", name).param_groups[0]["weight_decay"]
             for name in ("actor", "value")}  # fmt: skip
    assert decay == {"actor": 0.3, "value": 0}
    state = learner.get_state()
    state["optimizer"] = copy.deepcopy(state["optimizer"])
    for group in state["optimizer"]["default_policy_actor"]["state"]["param_groups"]:
        group["weight_decay"] = 0.9
    learner.set_state(state)  # what a checkpoint of other settings has
    assert learner.get_optimizer("default_policy", "actor").param_groups[0]["weight_decay"] == 0.3
    module = learner.module["default_policy"]
    assert module.actor.net[0].out_features == 24
    assert module.values.net.weights[0].shape[-1] == 16
