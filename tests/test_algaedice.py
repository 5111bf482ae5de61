"""AlgaeDICE: it is DAMO's objective on the dataset; its gradients, its dual on a table, and who receives what."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor

from rllib_damo import AlgaeDICEConfig
from rllib_damo.baselines.algaedice import AlgaeDICEUpdate
from rllib_damo.core.update import StepBatch
from rllib_damo.damo import losses
from rllib_damo.damo.divergences import power
from rllib_damo.damo.update import DAMOUpdate
from tests.damo_steps import ACT, ROWS, SEED, STARTS, make_batch, make_config, make_module
from tests.tabular import occupancy, random_problem


def make_update(module: Any, lr: float = 0.0, **options: Any) -> AlgaeDICEUpdate:
    config = AlgaeDICEConfig().training(eta=0.7, gamma=0.9, tau=0.1, target_entropy=-2.0, max_alpha=1.0)
    config.training(policy_delay=1, **options)
    names = ("actor", "critic", "alpha")
    optimizers = {name: torch.optim.SGD(module.trainable()[name], lr=lr) for name in names}
    return AlgaeDICEUpdate(module, config, optimizers=optimizers, generator=torch.Generator().manual_seed(SEED))


def damo_step(module: Any, **options: Any) -> None:
    """DAMO on the dataset's rows alone: no classifier, no anchor, one η, half the square."""
    config = make_config(
        data_alignment=False, f_divergence="half_squared", actor_f_divergence="half_squared", actor_eta=0.7,
        max_actor_weight=float("inf"), **options,
    )  # fmt: skip
    optimizers = {name: torch.optim.SGD(params, lr=0.0) for name, params in module.trainable().items()}
    update = DAMOUpdate(module, config, optimizers=optimizers, generator=torch.Generator().manual_seed(SEED))
    update.step(make_batch(), 0, True)


def gradients(params: Any) -> list[Tensor]:
    return [p.grad for p in params]


def assert_same(first: Any, second: Any) -> None:
    for a, b in zip(first, second, strict=True):
        assert a.any()
        torch.testing.assert_close(a, b)


# -- DAMO's objective ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("residual_gradient", "target_networks"), [(0.0, True), (1.0, False)])
def test_critics_gradient_is_damos(residual_gradient: float, target_networks: bool) -> None:
    ours, damos = make_module(), make_module()
    make_update(ours, f_power=2.0, residual_gradient=residual_gradient).step(make_batch(), 0, True)
    damo_step(damos, target_networks=target_networks)
    assert_same(gradients(ours.critics.parameters()), gradients(damos.critics.parameters()))


@pytest.mark.parametrize(("residual_gradient", "target_networks"), [(0.0, True), (1.0, False)])
def test_actors_gradient_is_damos(residual_gradient: float, target_networks: bool) -> None:
    """With one critic (DAMO ascends the smaller one), and targets that equal it: DAMO's actor ascends the critic."""
    ours, damos = make_module(twin_q=False), make_module(twin_q=False)
    for module in (ours, damos):
        if target_networks:
            module.target_critics.load_state_dict(module.critics.state_dict())
    make_update(ours, f_power=2.0, residual_gradient=residual_gradient).step(make_batch(), 0, True)
    damo_step(damos, target_networks=target_networks)
    for name in ("actor", "alpha"):
        for a, b in zip(gradients(ours.trainable()[name]), gradients(damos.trainable()[name]), strict=True):
            torch.testing.assert_close(a, b)
        assert any(gradient.any() for gradient in gradients(ours.trainable()[name]))


@pytest.mark.parametrize(("p", "share"), [(1.5, 0.05), (1.2, 0.3), (2.0, 0.05)])
def test_gradients_are_the_authors_but_for_a_factor(p: float, share: float) -> None:
    """Theirs has a coefficient c = η^(p-1) before Q(s0,a0): it is ours times η^(p-2) (critics) or c (actor)."""
    eta, module = 0.7, make_module()
    old, batch = copy.deepcopy(module), make_batch()
    make_update(module, f_power=p, residual_gradient=share).step(batch, 0, True)
    rows, starts, coefficient = batch["update"], batch["initial"].obs, eta ** (p - 1)
    noise = torch.randn(ROWS + STARTS, ACT, generator=torch.Generator().manual_seed(SEED))
    next_actions, log_prob = old.actor.sample(rows.next_obs, noise[:ROWS])
    first_actions, _ = old.actor.sample(starts, noise[ROWS:])
    alpha = old.log_alpha.detach().exp()

    def objective(actions: Tensor, first: Tensor, log_density: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        residuals, initial = [], []
        smaller = old.target_critics(rows.next_obs, actions).amin(0)
        for i in range(2):
            mixed = share * old.critics(rows.next_obs, actions)[i] + (1 - share) * smaller
            target = rows.rewards + 0.9 * (1 - rows.terminated) * (mixed - alpha * log_density)
            residuals.append(target - old.critics(rows.obs, rows.actions)[i])
            initial.append(0.1 * coefficient * old.critics(starts, first)[i].mean())
        return residuals, initial

    residuals, initial = objective(next_actions.detach(), first_actions.detach(), log_prob.detach())
    critic_loss = sum((x.abs() ** p / p).mean() + q for x, q in zip(residuals, initial, strict=True))
    params = list(old.critics.parameters())
    assert_same(
        [gradient * eta ** (p - 2) for gradient in gradients(module.critics.parameters())],
        torch.autograd.grad(critic_loss, params),
    )

    residuals, initial = objective(next_actions, first_actions, log_prob)
    actor_loss = -sum(
        ((x.detach().clip(0, 1e6) ** (p - 1)) * x).mean() + q for x, q in zip(residuals, initial, strict=True)
    )
    params = list(old.actor.parameters())
    assert_same(
        [gradient * coefficient for gradient in gradients(module.actor.parameters())],
        torch.autograd.grad(actor_loss / 2, params),
    )


# -- the dual on a table ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("p", [1.5, 2.0])
def test_minimum_is_the_penalised_return(p: float) -> None:
    """For a fixed policy and deterministic dynamics: E_d[r] - η E_D[w^q/q], with w = d/D, the density ratio."""
    problem, eta, q = random_problem(4, deterministic=True), 0.6, p / (p - 1)
    num_states, num_actions = problem.policy.shape
    counts = np.random.default_rng(0).integers(1, 5, size=(num_states, num_actions))  # any distribution D of rows
    data = counts / counts.sum()
    state, action = (torch.from_numpy(index) for index in np.divmod(np.repeat(np.arange(counts.size), counts.ravel()),
                                                                    num_actions))  # fmt: skip
    next_state = torch.from_numpy(problem.real.argmax(-1))[state, action]
    rewards = torch.from_numpy(problem.rewards)[state, action, next_state]
    policy, initial, gamma = torch.from_numpy(problem.policy), torch.from_numpy(problem.initial), problem.gamma

    def residual(table: Tensor) -> Tensor:
        return rewards + gamma * (policy * table).sum(1)[next_state] - table[state, action]

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        table = torch.tensor(flat.reshape(counts.shape), requires_grad=True)
        value = (policy * table).sum(1)
        first = (initial * value).sum()[None, None]
        target = (residual(table) + table[state, action])[None]
        loss = losses.critic_loss(table[state, action][None], target, first, eta, gamma, power(p)) / eta
        loss.backward()
        return loss.item(), table.grad.numpy().ravel()

    found = minimize(objective, np.zeros(counts.size), jac=True, method="BFGS", options={"gtol": 1e-10})
    occupied = occupancy(problem.real, problem.initial, problem.policy, gamma).sum(-1)
    ratio = occupied / data
    rewards_of_pairs = np.einsum("sat,sat->sa", problem.real, problem.rewards)
    expected = (occupied * rewards_of_pairs).sum() - eta * (data * ratio**q / q).sum()
    assert found.fun == pytest.approx(expected, abs=1e-7)
    weights = losses.density_ratio(residual(torch.from_numpy(found.x.reshape(counts.shape))), eta, power(p), 1e6)
    np.testing.assert_allclose(weights, ratio[state, action], rtol=1e-3)


# -- the step --------------------------------------------------------------------------------------------------------


def test_rows_are_the_datasets_and_its_starts() -> None:
    groups = make_update(make_module()).row_groups()
    assert {name: (g.num_real, g.num_model, g.of) for name, g in groups.items()} == {
        "initial": (256, 0, "selected_starts"), "update": (256, 0, "selected"),
    }  # fmt: skip


def test_actor_and_targets_move_every_second_step() -> None:
    module, batch = make_module(), make_batch()
    update = make_update(module, lr=0.01)
    update.config.training(policy_delay=2)
    for step, expected in (
        (0, {"critics"}),
        (1, {"critics", "actor", "log_alpha", "target_critics"}),
        (2, {"critics"}),
    ):
        before = copy.deepcopy(module)
        metrics = update.step(batch, step, True)
        old = dict(before.named_parameters())
        assert {n.split(".")[0] for n, p in module.named_parameters() if not torch.equal(p, old[n])} == expected
        assert (metrics["policy_loss"] == 0) == (step == 0)
    torch.testing.assert_close(metrics["alpha_value"], before.log_alpha.detach().exp())


def test_weights_are_bounded_and_alpha_too() -> None:
    module = make_module()
    update = make_update(module, lr=10.0, max_actor_weight=0.1)
    assert 0 < update.step(make_batch(), 0, True)["density_ratio_mean"] <= 0.1
    for _ in range(3):
        update.step(make_batch(), 0, True)
    assert module.log_alpha.exp() <= 1.0


def test_terminal_rows_have_no_next_value() -> None:
    module, batch = make_module(), make_batch()
    rows = batch["update"]
    ended = StepBatch({**batch, "update": rows._replace(terminated=torch.ones(ROWS), next_obs=torch.zeros(ROWS, 3))})
    moved = StepBatch({**ended, "update": ended["update"]._replace(next_obs=torch.ones(ROWS, 3))})
    found = []
    for one in (ended, moved):
        copied = copy.deepcopy(module)
        convert = StepBatch({name: type(rows)(*(c.double() for c in part)) for name, part in one.items()})
        make_update(copied).step(convert, 0, True)
        found.append(gradients(copied.critics.parameters()))
    assert_same(*found)


# -- options ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({"eta": 0.0}, ("`eta`", "> 0", "0.0")),
        ({"f_power": 1.0}, ("`f_power` must be a number in (1, 2]", "1.0")),
        ({"residual_gradient": 1.5}, ("`residual_gradient` must be a number in [0, 1]", "1.5")),
        ({"policy_delay": 0}, ("`policy_delay`", "whole number")),
        ({"initial_alpha": 2.0, "max_alpha": 1.0}, ("`initial_alpha` (2.0)", "`max_alpha` (1.0)")),
    ],
)
def test_errors_name_option_and_value(options: dict[str, Any], parts: tuple[str, ...]) -> None:
    config = AlgaeDICEConfig().environment("Pendulum-v1").offline_data(input_="pendulum-mixed").training(**options)
    with pytest.raises(ValueError, match="`") as info:
        config.validate()
    assert all(part in str(info.value) for part in parts), info.value
