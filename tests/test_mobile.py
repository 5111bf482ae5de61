"""MOBILE: the inconsistency in closed form, which rows it lowers, where gradients go; a small run with its restore."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from ray.rllib.core import DEFAULT_MODULE_ID

from rllib_damo import MOBILEConfig
from rllib_damo.baselines.mobile import MOBILEUpdate
from rllib_damo.core.sac import SACUpdate
from tests.small_runs import module_state, train_policy
from tests.update_parts import (
    NUM_REAL,
    OBS,
    LinearCritics,
    linear_dynamics,
    make_batch,
    make_module,
    make_rows,
    make_update,
    noise,
    small_run,
)

ZERO_VARIANCE = -80.0
COEFFICIENTS = torch.tensor([[1.0, -2.0, 0.5], [1.0, -2.0, 0.5]], dtype=torch.float64)


def mobile(dynamics: Any = None, lr: float = 0.0, critics: Any = None, **options: Any) -> MOBILEUpdate:
    update = make_update(MOBILEUpdate, MOBILEConfig().training(gamma=0.9, **options), make_module(), lr)
    update.set_dynamics(linear_dynamics(4, 0.0) if dynamics is None else dynamics)
    if critics is not None:
        update.module.target_critics = critics
    return update


def next_means(dynamics: Any, elites: list[int]) -> np.ndarray:
    """s' of each elite by NumPy, ``(E, B, obs)``."""
    rows = make_rows()
    inputs = np.concatenate((rows.obs, rows.actions), 1)
    changes = [inputs @ dynamics.weights[0][j].numpy() + dynamics.biases[0][j].numpy() for j in elites]
    return rows.obs.numpy() + np.stack(changes)[..., :OBS]


# -- U ---------------------------------------------------------------------------------------------------------------


def test_of_linear_members_without_variance_is_the_spread_of_the_elites_values() -> None:
    dynamics, rows = linear_dynamics(5, ZERO_VARIANCE, elites=(0, 2, 3)), make_rows()
    found = mobile(dynamics, critics=LinearCritics(COEFFICIENTS)).inconsistency(rows.obs, rows.actions)
    values = next_means(dynamics, [0, 2, 3]) @ COEFFICIENTS[0].numpy()
    np.testing.assert_allclose(found, values.std(0, ddof=1), rtol=1e-12)


def test_next_states_are_within_the_limits_of_the_data() -> None:
    dynamics, rows = linear_dynamics(5, ZERO_VARIANCE, elites=(0, 2, 3)), make_rows()
    dynamics.obs_low[:], dynamics.obs_high[:] = -0.2, 0.3
    found = mobile(dynamics, critics=LinearCritics(COEFFICIENTS)).inconsistency(rows.obs, rows.actions)
    values = next_means(dynamics, [0, 2, 3]).clip(-0.2, 0.3) @ COEFFICIENTS[0].numpy()
    np.testing.assert_allclose(found, values.std(0, ddof=1), rtol=1e-6, atol=1e-9)


def test_takes_the_smaller_critic_of_each_next_state_and_then_the_mean() -> None:
    dynamics, rows = linear_dynamics(3, 0.0), make_rows()
    coefficients = torch.cat((COEFFICIENTS[:1], -COEFFICIENTS[:1]))
    found = mobile(dynamics, critics=LinearCritics(coefficients), num_samples=6).inconsistency(rows.obs, rows.actions)
    means = next_means(dynamics, [0, 1, 2])
    states = means + torch.randn((6, *means.shape), generator=noise(), dtype=torch.float64).numpy()
    q = np.stack([states @ c for c in coefficients.numpy()])
    np.testing.assert_allclose(found, q.min(0).mean(0).std(0, ddof=1), rtol=1e-12)
    assert not np.allclose(found, q.mean(1).min(0).std(0, ddof=1), rtol=0.05)


def test_actions_at_the_next_states_are_samples_of_the_policy() -> None:
    dynamics, rows, slopes = linear_dynamics(3, 0.0), make_rows(), (3.0, -1.0)
    update = mobile(dynamics, critics=LinearCritics(COEFFICIENTS, slopes=slopes), num_samples=6)
    with torch.no_grad():
        for p in update.module.averaged_actor.parameters():
            p += 1.0  # another policy, which plays and is not asked here
    found = update.inconsistency(rows.obs, rows.actions)
    means, generator = next_means(dynamics, [0, 1, 2]), noise()
    states = torch.from_numpy(means) + torch.randn((6, *means.shape), generator=generator, dtype=torch.float64)
    with torch.no_grad():
        mean, log_std = update.module.actor(states)
    draws = torch.randn(mean.flatten(0, 2).shape, generator=generator).view(mean.shape)

    def u(actions: torch.Tensor) -> torch.Tensor:
        q = states @ COEFFICIENTS[0] + actions @ torch.tensor(slopes, dtype=torch.float64)
        return q.mean(0).std(0)

    torch.testing.assert_close(found, u((mean + log_std.exp() * draws).tanh()))
    assert not torch.allclose(found, u(mean.tanh()), rtol=0.05)


def test_is_zero_for_equal_members_scales_with_q_and_ignores_constants() -> None:
    rows, dynamics = make_rows(), linear_dynamics(3, ZERO_VARIANCE)

    def u(critics: LinearCritics) -> torch.Tensor:
        return mobile(dynamics, critics=critics).inconsistency(rows.obs, rows.actions)

    base = u(LinearCritics(COEFFICIENTS))
    torch.testing.assert_close(u(LinearCritics(-3 * COEFFICIENTS)), 3 * base)
    torch.testing.assert_close(u(LinearCritics(COEFFICIENTS, (50.0, 50.0))), base)
    dynamics.weights[0].copy_(dynamics.weights[0][:1].expand(3, -1, -1).clone())
    dynamics.biases[0].copy_(dynamics.biases[0][:1].expand(3, -1, -1).clone())
    assert u(LinearCritics(COEFFICIENTS)).max() < 1e-12


def test_few_samples_raise_it_and_many_approach_the_closed_form() -> None:
    rows, dynamics = make_rows(), linear_dynamics(5, 2.0)
    exact = torch.from_numpy(next_means(dynamics, [*range(5)]) @ COEFFICIENTS[0].numpy()).std(0)

    def error(n: int) -> tuple[float, float]:
        update = mobile(dynamics, critics=LinearCritics(COEFFICIENTS), num_samples=n)
        draws = torch.stack([update.inconsistency(rows.obs, rows.actions) for _ in range(40)])
        return float((draws.square().mean(0) - exact.square()).mean()), float((draws - exact).abs().mean())

    variance = float(COEFFICIENTS[0].square().sum()) * float(np.exp(2.0))
    (bias, few), (_, many) = error(1), error(400)
    assert bias == pytest.approx(variance, rel=0.25)  # the draws' variance over n
    assert many < few / 10  # 1 / 20, up to chance


# -- targets ---------------------------------------------------------------------------------------------------------


def test_lowers_the_targets_of_model_rows_alone() -> None:
    batch, alpha = make_batch(), torch.tensor(0.3, dtype=torch.float64)
    rows, plain, penalized = batch["update"], mobile(penalty_coef=0.0), mobile(penalty_coef=2.0)
    base, found = plain.target(batch, alpha), penalized.target(batch, alpha)
    torch.testing.assert_close(found[:NUM_REAL], base[:NUM_REAL], rtol=0, atol=0)
    u = plain.inconsistency(rows.obs[NUM_REAL:], rows.actions[NUM_REAL:])  # whose noise now stands where theirs did
    assert u.min() > 0
    torch.testing.assert_close(found[NUM_REAL:], base[NUM_REAL:] - 2 * u)


def test_rows_of_the_dataset_that_are_far_off_have_no_penalty() -> None:
    obs = make_rows().obs
    obs[:NUM_REAL] += 100
    batch = make_batch(obs=obs)
    penalized, plain = (mobile(penalty_coef=beta).target(batch, torch.tensor(0.3)) for beta in (5.0, 0.0))
    assert torch.equal(penalized[:NUM_REAL], plain[:NUM_REAL])
    assert (penalized[NUM_REAL:] < plain[NUM_REAL:]).all()


def test_targets_leave_the_entropy_out_unless_asked_for_it() -> None:
    batch, alpha = make_batch(), torch.tensor(0.3, dtype=torch.float64)
    rows, update = batch["update"], mobile(penalty_coef=0.0)
    actions, log_prob = update.module.sample_actions(rows.next_obs, noise())
    next_q = update.module.target_critics(rows.next_obs, actions).min(0).values
    for is_deterministic, entropy in ((True, 0.0), (False, -alpha * log_prob)):
        found = mobile(penalty_coef=0.0, deterministic_backup=is_deterministic).target(batch, alpha)
        torch.testing.assert_close(found, rows.rewards + 0.9 * (1 - rows.terminated) * (next_q + entropy))


def test_negative_returns_stay_negative_unless_a_bound_is_set() -> None:
    batch, alpha = make_batch(rewards=torch.full((12,), -10.0, dtype=torch.float64)), torch.tensor(0.3)
    assert MOBILEConfig().min_target is None
    free = mobile().target(batch, alpha)
    assert free.max() < 0
    bound = float(free.mean())
    torch.testing.assert_close(mobile(min_target=bound).target(batch, alpha), free.clamp(min=bound))
    assert (mobile(min_target=0.0).target(batch, alpha) == 0).all()  # what the authors' code does of such rewards


# -- steps -----------------------------------------------------------------------------------------------------------


def test_without_penalty_a_step_is_sacs_bit_for_bit() -> None:
    ours = mobile(lr=1e-2, penalty_coef=0.0, deterministic_backup=False)
    theirs = make_update(SACUpdate, MOBILEConfig().training(gamma=0.9), make_module(), 1e-2)
    for step in range(3):
        found, expected = ours.step(make_batch(), step, True), theirs.step(make_batch(), step, True)
        assert found.pop("inconsistency_mean") == 0
        assert found == expected
    for name, value in theirs.module.state_dict().items():
        assert torch.equal(ours.module.state_dict()[name], value), name


def test_a_step_changes_neither_model_nor_targets_even_if_they_could_learn() -> None:
    update = mobile(lr=1e-2, tau=0.0)  # tau alone may move the targets
    frozen = (update._elites, update.module.target_critics)
    before = [copy.deepcopy(module.requires_grad_(True).state_dict()) for module in frozen]
    assert update.step(make_batch(), 0, True)["inconsistency_mean"] > 0
    for module, state in zip(frozen, before, strict=True):
        for name, value in module.state_dict().items():
            assert torch.equal(value, state[name]), name
        assert all(p.grad is None for p in module.parameters())
    assert not update.target(make_batch(), torch.tensor(0.3)).requires_grad


def test_the_actors_gradient_has_no_penalty_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    gradients = []
    for size in (0.0, 1e6):
        monkeypatch.setattr(MOBILEUpdate, "inconsistency", lambda self, obs, actions, size=size: obs[:, 0] * 0 + size)
        update = mobile()
        update.step(make_batch(), 0, True)
        gradients.append([p.grad.clone() for p in update.module.actor.parameters()])
    for first, second in zip(*gradients, strict=True):
        assert torch.equal(first, second)


# -- configuration and runs ------------------------------------------------------------------------------------------


def test_names_what_is_wrong_with_options(tmp_path: Any) -> None:
    def config() -> MOBILEConfig:
        return small_run(MOBILEConfig(), "pendulum-mixed", str(tmp_path))

    config().validate()
    for options, message in (
        ({"penalty_coef": -1.0}, "`penalty_coef` must be a finite number >= 0; found -1.0"),
        ({"num_samples": 0}, "`num_samples` must be a whole number >= 1; found 0"),
        ({"min_target": "zero"}, "`min_target` must be None or a number; found 'zero'"),
        ({"deterministic_backup": 1}, "`deterministic_backup` must be True or False; found 1"),
    ):
        with pytest.raises(ValueError, match=message):
            config().training(**options).validate()
    with pytest.raises(ValueError, match=r"`num_elites` must be 2 or more.*found 1 with penalty_coef=0.5"):
        config().dynamics(num_elites=1).validate()
    config().dynamics(num_elites=1).training(penalty_coef=0.0).validate()


@pytest.mark.usefixtures("ray_cluster")
def test_trains_and_continues_exactly_from_a_checkpoint(dataset: str, cache_dir: str, tmp_path: Any) -> None:
    algo = small_run(MOBILEConfig(), dataset, cache_dir).build_algo()
    train_policy(algo, 1)
    path = algo.save_to_path(str(tmp_path / "checkpoint"))
    result = train_policy(algo, 1)["learners"][DEFAULT_MODULE_ID]
    assert result["inconsistency_mean"] > 0
    uninterrupted = module_state(algo)
    algo.restore_from_path(path)
    train_policy(algo, 1)
    for name, value in module_state(algo).items():
        np.testing.assert_array_equal(value, uninterrupted[name], err_msg=name)
    algo.stop()
    restored = algo.from_checkpoint(path)
    train_policy(restored, 1)
    for name, value in module_state(restored).items():
        np.testing.assert_array_equal(value, uninterrupted[name], err_msg=name)
    restored.stop()
