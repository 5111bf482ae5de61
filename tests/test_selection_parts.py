"""The estimators beside fitted Q evaluation, each on a problem whose answer is known."""

from __future__ import annotations

from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import torch

from rllib_damo.dynamics.ensemble import DynamicsEnsemble
from rllib_damo.errors import UsageError
from rllib_damo.selection.behavior_density import BehaviorDensity, StateBox
from rllib_damo.selection.clone import clone
from rllib_damo.selection.fitting import fit, key_of
from rllib_damo.selection.model_value import (
    Judge,
    first_states,
    make_judge,
    model_values,
    open_loop_errors,
    roll_out,
    train_judge,
)
from rllib_damo.selection.rows import Rows
from rllib_damo.selection.self_tests import behavior_test, differing, order_test, thirds
from tests.faults.test_damage import changed
from tests.test_selection_fqe import POLICIES, make_rows, network, rows_of

UNIT = gym.spaces.Box(-1.0, 1.0, (1,))


def linear_rows(episodes: int = 30, length: int = 60, seed: int = 0) -> Rows:
    """s' = 0.9 s + 0.1 a, with noisy actions around -s; the reward is s."""
    rng = np.random.default_rng(seed)
    state = rng.standard_normal((episodes, 1))
    columns: list[list[np.ndarray]] = [[], [], [], []]
    for _ in range(length):
        action = np.clip(-state + 0.1 * rng.standard_normal(state.shape), -1, 1)
        following = 0.9 * state + 0.1 * action
        for column, value in zip(columns, (state, action, state[:, 0], following), strict=True):
            column.append(value)
        state = following
    obs, actions, rewards, next_obs = (np.concatenate(np.stack(column, 1)) for column in columns)
    ends = np.tile(np.arange(length) == length - 1, episodes)
    return rows_of(obs, actions, rewards, next_obs, np.zeros(len(ends), bool), ends, torch.float32)


def test_the_clone_is_the_behaviour():
    rows = linear_rows()
    everything, low = clone(rows, [torch.arange(len(rows)), torch.arange(60)], steps=600, seed=0)
    obs = torch.linspace(-0.5, 0.5, 11)[:, None]
    torch.testing.assert_close(everything(obs), -obs, rtol=0, atol=0.06)
    assert low(obs).shape == (11, 1)
    again, _ = clone(rows, [torch.arange(len(rows)), torch.arange(60)], steps=600, seed=0)
    assert torch.equal(again(obs), everything(obs))


def test_actions_that_the_data_do_not_show_are_far():
    rows = linear_rows()
    density = BehaviorDensity(rows, max_steps=300, seed=0)
    same, other = (-rows.obs).clamp(-1, 1), (1 - rows.obs).clamp(-1, 1)
    shares = density.shares_off_data(rows.obs, rows.actions, torch.stack([same, other]))
    assert shares[0] < 0.02
    assert shares[1] > 0.9
    assert abs(float(density.distances(rows.obs, same).median())) < 0.2  # the mode


def test_states_outside_the_data():
    box = StateBox.of(torch.linspace(0, 1, 1001)[:, None])
    assert box.share_outside(torch.tensor([[0.5], [1.05], [1.5], [-2.0]])) == 0.5


class LinearModel:
    """An exact model of `linear_rows`, whose members disagree where |s| > 1."""

    obs_dim, act_dim, elites = 1, 1, torch.arange(2)
    input_std = torch.ones(2)

    def __call__(self, obs: torch.Tensor, actions: torch.Tensor):
        off = torch.where(obs.abs() > 1, 1.0, 0.0)
        mean = torch.cat((0.1 * (actions - obs), obs), -1)
        return torch.stack((mean, mean + torch.cat((off, 0 * off), -1))), None

    def sampler(self):
        return lambda obs, actions, generator: (0.9 * obs + 0.1 * actions, obs[:, 0])


def never(obs: torch.Tensor, actions: torch.Tensor, following: torch.Tensor) -> torch.Tensor:
    return torch.zeros(len(obs), dtype=torch.bool)


BOX = StateBox(torch.tensor([-5.0]), torch.tensor([5.0]))
STILL = torch.zeros_like  # the policy that does nothing
JUDGE = Judge(LinearModel(), never, 3, {}, 0.25)


def test_rollouts_sum_rewards_and_end_with_q():
    """s_0 = 0.5 and a = 0: rewards 0.5, 0.45, 0.405, and Q̄ = 7 at the end."""
    rolled = roll_out(JUDGE, STILL, torch.tensor([[0.5]]), 0.9, (-5.0, 5.0), BOX)
    found = model_values([rolled], lambda obs, actions: torch.full((1, 2, obs.shape[1]), 7.0))
    assert found.shape == (1, 2)
    np.testing.assert_allclose(found, 0.5 + 0.9 * 0.45 + 0.81 * 0.405 + 0.9**3 * 7, rtol=1e-6)
    assert rolled.stopped == rolled.outside == 0


def test_a_terminal_has_no_q_after_it():
    judge = replace(JUDGE, rule=lambda obs, actions, following: following[:, 0] < 0.42)
    rolled = roll_out(judge, STILL, torch.tensor([[0.5]]), 0.9, (-5.0, 5.0), BOX)
    np.testing.assert_allclose(model_values([rolled], lambda o, a: torch.full((1, 1, o.shape[1]), 7.0)), 0.5 + 0.405)


def test_rollouts_stop_where_the_model_is_unsure():
    """With Q̄ in the place of what follows; and rewards are cut to the data's range."""
    rolled = roll_out(JUDGE, STILL, torch.tensor([[2.0], [0.5]]), 0.9, (-5.0, 0.45), BOX)
    assert rolled.stopped == 0.5
    assert rolled.discounts.reshape(5, 2)[0].tolist() == pytest.approx([1.0, 0.9**3])
    assert rolled.obs.reshape(5, 2)[0, 0] == 2.0
    narrow = roll_out(JUDGE, STILL, torch.tensor([[0.5]]), 0.9, (0.0, 0.3), StateBox(BOX.low, torch.tensor([0.42])))
    assert float(narrow.rewards[0]) == pytest.approx(0.36 * (1 + 0.9 + 0.81))
    assert narrow.outside == pytest.approx(1 / 3)


def test_the_length_follows_the_open_loop_error():
    rows = linear_rows()
    index = torch.arange(len(rows))
    exact = make_judge(LinearModel(), never, rows, index)
    assert exact.length == 50
    assert max(exact.errors.values()) < 1e-5

    class Drifting(LinearModel):
        def sampler(self):
            return lambda obs, actions, generator: (0.9 * obs + 0.1 * actions + 0.03, obs[:, 0])

    assert make_judge(Drifting(), never, rows, index).length == 10
    assert open_loop_errors(LinearModel(), linear_rows(length=15), torch.arange(450))[20] == float("inf")


def test_the_judges_model_is_trained_once(tmp_path):
    rows, lines = linear_rows(), []
    options = {"learn_terminations": False, "seed": 0, "cache_dir": tmp_path, "hidden_dims": (16, 16), "epochs": 2}
    first = train_judge(rows, "abc", UNIT, progress=lines.append, **options)
    assert len(lines) == 2
    second = train_judge(rows, "abc", UNIT, progress=lines.append, **options)
    assert len(lines) == 2
    assert isinstance(second, DynamicsEnsemble)
    assert torch.equal(first.weights[0], second.weights[0])


def test_a_judges_model_is_for_one_pair_of_action_bounds(tmp_path):
    options = {"learn_terminations": False, "seed": 0, "cache_dir": tmp_path, "hidden_dims": (8, 8), "epochs": 1}
    for space in (UNIT, gym.spaces.Box(-2.0, 2.0, (1,))):
        train_judge(linear_rows(), "abc", space, **options)
    assert len(list(tmp_path.glob("*.pt"))) == 2


def test_a_damaged_file_of_the_judges_model_is_replaced(tmp_path, caplog):
    rows = linear_rows()
    options = {"learn_terminations": False, "seed": 0, "cache_dir": tmp_path, "hidden_dims": (16, 16), "epochs": 1}
    first = train_judge(rows, "abc", UNIT, **options)
    (file,) = tmp_path.glob("*.pt")
    file.write_bytes(file.read_bytes()[:-9])
    again = train_judge(rows, "abc", UNIT, **options)
    assert torch.equal(first.weights[0], again.weights[0])
    assert len(caplog.records) == 1
    assert "is damaged" in caplog.text
    assert "The judge's model is trained again" in caplog.text
    assert torch.equal(DynamicsEnsemble.load(file).weights[0], first.weights[0])


def test_first_states_are_of_the_episodes_asked_for():
    rows = linear_rows(episodes=3)
    assert torch.equal(first_states(rows, rows.of_episodes(torch.tensor([False, True, True]))), rows.obs[[60, 120]])


# -- self-tests --------------------------------------------------------------------------------------------------------


def test_the_behaviour_must_have_its_real_value():
    returns = np.linspace(9, 11, 20)
    near, far = np.full((4, 20), 10.2), np.full((4, 20), 14.0)
    assert behavior_test(near, returns, 1.0, "episodes").passed
    assert not behavior_test(far, returns, 1.0, "episodes").passed


def test_thirds_are_by_return_and_by_rate_where_nothing_ends():
    ends = np.tile(np.arange(3) == 2, 9)
    rewards = np.repeat(np.arange(9.0), 3)
    zeros = np.zeros((27, 1))
    rows = rows_of(zeros, zeros, rewards, zeros, np.zeros(27, bool), ends, torch.float32)
    low, _, high = thirds(rows)
    assert low.tolist() == list(range(9))
    assert high.tolist() == list(range(18, 27))
    assert thirds(rows_of(zeros, zeros, 0 * rewards, zeros, np.zeros(27, bool), ends, torch.float32)) is None
    assert differing([torch.zeros_like, torch.ones_like], torch.zeros(10, 1))
    assert not differing([torch.zeros_like, torch.zeros_like], torch.zeros(10, 1))


def test_the_order_of_thirds():
    assert order_test(None).passed is None
    assert order_test(np.array([[1.0, 2], [0, 0], [3, 4]])).passed
    assert not order_test(np.array([[3.0, 4], [0, 0], [1, 2]])).passed


# -- the training -----------------------------------------------------------------------------------------------------


def test_an_interrupted_fit_goes_on(tmp_path):
    rows, names, counted = make_rows(), ["a", "b", "c"], np.array([True, True, False])
    options = {"reference": 2, "counted": counted, "names": names}
    key = key_of({"seed": 0}, rows.obs)
    whole = fit(network(rows, POLICIES), 60, **options)

    def stop(text: str) -> None:
        if "step 25" in text:
            raise KeyboardInterrupt

    file = tmp_path / "fqe.pt"
    with pytest.raises(KeyboardInterrupt):
        fit(network(rows, POLICIES), 60, state_file=file, key=key, progress=stop, **options)
    again = fit(network(rows, POLICIES), 60, state_file=file, key=key, **options)
    assert again.steps == whole.steps == list(range(5, 61, 5))
    np.testing.assert_array_equal(again.history, whole.history)
    with pytest.raises(UsageError, match="another selection"):
        fit(network(rows, POLICIES), 60, state_file=file, key="other", **options)
    for _ in changed(file, 5):
        with pytest.raises(UsageError, match=r"damaged .*\(its content does not fit its checksum\)"):
            fit(network(rows, POLICIES), 60, state_file=file, key=key, **options)
