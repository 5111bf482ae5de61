"""COMBO: the conservative term against quadrature and NumPy, which rows it reads; a small run with its restore."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from ray.rllib.core import DEFAULT_MODULE_ID
from torch import Tensor, nn

from rllib_damo import COMBOConfig
from rllib_damo.baselines.combo import COMBOUpdate
from rllib_damo.core.sac import SACUpdate
from rllib_damo.core.update import StepBatch
from tests.small_runs import module_state, train_policy
from tests.update_parts import ACT, NUM_REAL, ROWS, make_batch, make_module, make_rows, make_update, noise, small_run

N = 3


def combo(lr: float = 0.0, critics: Any = None, **options: Any) -> COMBOUpdate:
    options = {"gamma": 0.9, "num_actions": N} | options
    update = make_update(COMBOUpdate, COMBOConfig().training(**options), make_module(), lr)
    if critics is not None:
        update.module.critics = critics
    return update


class Quadratic(nn.Module):
    """Q(s, a) = b - (a - c)² of one action for one critic, or, with ``num`` of them, their sum over the actions."""

    def forward(self, obs: Tensor, actions: Tensor) -> Tensor:
        return (1.5 - 2 * (actions - 0.3).square()).sum(-1)[None]


def draws(update: COMBOUpdate, batch: StepBatch, first: int = 0) -> tuple[Tensor, Tensor]:
    """The sampled actions ``(3, N, S, act)`` and their log densities, drawn with the generator of a new update."""
    rows, generator = batch["update"], noise()
    states = rows.obs[first:], rows.next_obs[first:]
    shape = N, len(states[0]), ACT
    normal = torch.randn((2, *shape), generator=generator, dtype=torch.float64)
    uniform = 2 * torch.rand(shape, generator=generator, dtype=torch.float64) - 1
    actions, densities = [], []
    for obs, drawn in zip(states, normal, strict=True):
        mean, log_std = update.module.actor(obs)
        u = mean + log_std.exp() * drawn
        log_normal = torch.distributions.Normal(mean, log_std.exp()).log_prob(u)
        actions.append(u.tanh())
        densities.append((log_normal - torch.log(1 - u.tanh() ** 2)).sum(-1))
    half = torch.full(shape[:2], ACT * np.log(0.5), dtype=torch.float64)
    return torch.stack([*actions, uniform]).detach(), torch.stack([*densities, half]).detach()


# -- the log-sum-exp -------------------------------------------------------------------------------------------------


def test_the_mean_of_the_weighted_values_is_the_integral_of_exp_q() -> None:
    update = combo(critics=Quadratic(), num_actions=20_000)
    z = update.weighted_values(make_batch()).detach()
    assert z.shape == (1, 3, 20_000, ROWS)
    a = np.linspace(-1, 1, 2001)
    integral = np.trapezoid(np.exp(1.5 - 2 * (a - 0.3) ** 2), a) ** ACT
    for kind, tolerance in ((0, 0.15), (1, 0.15), (2, 0.03)):  # π's and π's at s', and uniform
        found = z[0, kind].exp().mean(0).numpy()
        np.testing.assert_allclose(found, integral, rtol=tolerance)
    whole = z.logsumexp((1, 2)).exp().numpy()[0] / (3 * 20_000)
    np.testing.assert_allclose(whole, integral, rtol=0.05)


def test_its_gradient_is_the_softmax_weighted_one_less_the_datas() -> None:
    update, batch = combo(conservative_weight=2.0), make_batch()
    rows, critics = batch["update"], update.module.critics
    q = critics(rows.obs, rows.actions)
    loss = update.critic_loss(q, q.detach(), batch)  # no TD error: the conservative term alone
    found = torch.autograd.grad(loss, list(critics.parameters()))
    actions, densities = draws(update, batch)
    obs = rows.obs.expand(3, N, *rows.obs.shape)
    values = critics(obs.flatten(0, 2), actions.flatten(0, 2)).view(2, 3 * N, ROWS)
    z = values.detach().numpy() - densities.reshape(3 * N, ROWS).numpy()
    weights = np.exp(z - z.max(1, keepdims=True))
    weights /= weights.sum(1, keepdims=True)
    of_data = critics(rows.obs, rows.actions)[:, :NUM_REAL].sum() / NUM_REAL
    pushed = (torch.from_numpy(weights) * values).sum() / ROWS - of_data
    expected = torch.autograd.grad(2.0 * pushed / 2, list(critics.parameters()))
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)
    level = np.log(np.exp(z).sum(1)).mean() - float(critics(rows.obs, rows.actions)[:, :NUM_REAL].detach().mean())
    assert float(update._gap) == pytest.approx(level)


class HugeAt(nn.Module):
    """Q is 0, and ``size`` in one place."""

    def __init__(self, place: int, size: float):
        super().__init__()
        self.place, self.size = place, size

    def forward(self, obs: Tensor, actions: Tensor) -> Tensor:
        q = obs.new_zeros(1, len(obs))
        q[0, self.place] = self.size
        return q


def test_one_huge_value_raises_the_term_of_its_state_alone() -> None:
    row, batch = 4, make_batch()
    place = 1 * ROWS + row  # the second action of π(·|s) there

    def terms(size: float, over: str) -> Tensor:
        z = combo(critics=HugeAt(place, size)).weighted_values(batch)
        mean = combo(critics=HugeAt(place, size), logsumexp_over=over).soft_maximum(batch)
        state = z.logsumexp((1, 2))[0] if over == "all" else z.logsumexp(1).mean(1)[0]
        torch.testing.assert_close(state.mean(), mean[0])
        return state

    raised = terms(1000.0, "all") - terms(0.0, "all")
    assert raised[row] > 900
    assert raised[torch.arange(ROWS) != row].abs().max() == 0
    assert (terms(1000.0, "triples") - terms(0.0, "triples"))[row] == pytest.approx(float(raised[row]) / N, rel=0.02)


def test_triples_lie_lower_by_about_log_n() -> None:
    batch = make_batch()
    found, alike = (combo(logsumexp_over=over).soft_maximum(batch) for over in ("all", "triples"))
    assert ((found - alike) >= np.log(N)).all()  # by Jensen's inequality


# -- which rows ------------------------------------------------------------------------------------------------------


def gap(update: COMBOUpdate, batch: StepBatch) -> Tensor:
    rows = batch["update"]
    q = update.module.critics(rows.obs, rows.actions)
    return update.critic_loss(q, q.detach(), batch)


def test_the_data_term_reads_the_datasets_rows_alone() -> None:
    base, actions = gap(combo(), make_batch()), make_rows().actions
    moved = {row: actions.clone() for row in (NUM_REAL - 1, NUM_REAL)}
    for row, changed in moved.items():
        changed[row] *= -1
    assert gap(combo(), make_batch(actions=moved[NUM_REAL])) == base
    assert gap(combo(), make_batch(actions=moved[NUM_REAL - 1])) != base


@pytest.mark.parametrize(("rho_s", "first"), [("mix", 0), ("model", NUM_REAL)])
def test_pushes_down_the_states_of_rho(rho_s: str, first: int) -> None:
    update, batch = combo(rho_s=rho_s), make_batch()
    actions, densities = draws(update, batch, first)
    obs = batch["update"].obs[first:]
    z = torch.stack([torch.stack([update.module.critics(obs, a) for a in kind]) for kind in actions])  # (3, N, C, S)
    torch.testing.assert_close(update.weighted_values(batch), z.movedim(2, 0) - densities)


# -- steps -----------------------------------------------------------------------------------------------------------


def test_without_weight_a_step_is_sacs_bit_for_bit() -> None:
    ours = combo(lr=1e-2, conservative_weight=0.0, deterministic_backup=False)
    theirs = make_update(SACUpdate, COMBOConfig().training(gamma=0.9), make_module(), 1e-2)
    for step in range(3):
        found, expected = ours.step(make_batch(), step, True), theirs.step(make_batch(), step, True)
        assert found.pop("conservative_gap") == 0
        assert found == expected
    for name, value in theirs.module.state_dict().items():
        assert torch.equal(ours.module.state_dict()[name], value), name


def test_the_term_moves_critics_alone_and_lowers_the_gap() -> None:
    update, batch = combo(), make_batch()
    gap(update, batch).backward()
    assert all(p.grad is None for p in update.module.actor.parameters())
    assert update.module.log_alpha.grad is None
    update = combo(lr=1e-2, conservative_weight=50.0)
    for name in ("actor", "alpha"):
        update.optimizers[name].param_groups[0]["lr"] = 0.0
    gaps = [float(update.step(batch, step, True)["conservative_gap"]) for step in range(60)]
    assert gaps[-1] < gaps[0] - 1  # some public code stops the gradient of what is pushed down


def test_targets_leave_the_entropy_out_unless_asked_for_it() -> None:
    batch, alpha = make_batch(), torch.tensor(0.3, dtype=torch.float64)
    rows, update = batch["update"], combo()
    actions, log_prob = update.module.sample_actions(rows.next_obs, noise())
    next_q = update.module.target_critics(rows.next_obs, actions).min(0).values
    for is_deterministic, entropy in ((True, 0.0), (False, -alpha * log_prob)):
        found = combo(deterministic_backup=is_deterministic).target(batch, alpha)
        torch.testing.assert_close(found, rows.rewards + 0.9 * (1 - rows.terminated) * (next_q + entropy))


def test_saturated_policies_have_finite_terms() -> None:
    update = combo()
    with torch.no_grad():
        update.module.actor.net[-1].bias[:ACT] = 40.0  # tanh is 1 in floating point there
    assert update.weighted_values(make_batch()).isfinite().all()


# -- configuration and runs ------------------------------------------------------------------------------------------


def test_names_what_is_wrong_with_options(tmp_path: Any) -> None:
    def config() -> COMBOConfig:
        return small_run(COMBOConfig(), "pendulum-mixed", str(tmp_path))

    config().validate()
    for options, message in (
        ({"conservative_weight": -1.0}, "`conservative_weight` must be a finite number >= 0; found -1.0"),
        ({"num_actions": 0}, "`num_actions` must be a whole number >= 1; found 0"),
        ({"rho_s": "real"}, "`rho_s` must be one of mix, model; found 'real'"),
        ({"logsumexp_over": "pairs"}, "`logsumexp_over` must be one of all, triples; found 'pairs'"),
        ({"real_ratio": 0.01}, "`real_ratio` must leave a row of the dataset in each batch.*found 0.01 of .*=32 rows"),
    ):
        with pytest.raises(ValueError, match=message):
            config().training(**options).validate()


@pytest.mark.usefixtures("ray_cluster")
def test_trains_and_continues_exactly_from_a_checkpoint(dataset: str, cache_dir: str, tmp_path: Any) -> None:
    algo = small_run(COMBOConfig(), dataset, cache_dir).build_algo()
    train_policy(algo, 1)
    path = algo.save_to_path(str(tmp_path / "checkpoint"))
    result = train_policy(algo, 1)["learners"][DEFAULT_MODULE_ID]
    assert result["conservative_gap"] != 0
    uninterrupted = module_state(algo)
    algo.stop()
    restored = algo.from_checkpoint(path)
    train_policy(restored, 1)
    for name, value in module_state(restored).items():
        np.testing.assert_array_equal(value, uninterrupted[name], err_msg=name)
    restored.stop()
