"""Rollouts in the model, their Arrow form, and the runner that RLlib drives."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from ray.rllib.core import DEFAULT_MODULE_ID

from rllib_damo import DAMOConfig
from rllib_damo.dynamics import DynamicsEnsemble, never_terminates
from rllib_damo.dynamics import rollout as rollout_module
from rllib_damo.dynamics.known_range import KnownRange
from rllib_damo.dynamics.rollout import rollout
from rllib_damo.dynamics.rollout_runner import ModelRolloutEnvRunner
from rllib_damo.utils.arrow import from_arrow, to_arrow

OBS, ACT = 3, 2


def counting_model() -> DynamicsEnsemble:
    """Deterministic: s' = s + (1, 0, 0); the reward is the number of the member that answered (0, 2 or 4)."""
    model = DynamicsEnsemble(OBS, ACT, hidden_dims=(4,), num_ensemble=5, num_elites=3)
    with torch.no_grad():
        model.elites.copy_(torch.tensor([0, 2, 4]))
        for weight in model.weights:
            weight.zero_()
        model.min_logvar.fill_(-80.0)
        model.max_logvar.fill_(-60.0)
        model.biases[-1][:, 0, 0] = 1.0
        model.biases[-1][:, 0, OBS] = torch.arange(5.0)
    return model


def policy(obs: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return torch.rand(len(obs), ACT, generator=generator) * 2 - 1


def ends_at_three(obs: torch.Tensor, actions: torch.Tensor, next_obs: torch.Tensor) -> torch.Tensor:
    return next_obs[:, 0] > 2.5


def run(starts: torch.Tensor, length: int = 5, termination=never_terminates, seed: int = 0, model=None, known=None):
    generator = torch.Generator().manual_seed(seed)
    return rollout(policy, model or counting_model(), termination, starts, length, generator, known, gamma=0.9)


def marked_starts(num: int) -> torch.Tensor:
    """The second column tells the rows apart; the model leaves it as it is."""
    return torch.stack((torch.zeros(num), torch.arange(float(num)), torch.zeros(num)), dim=1)


def row_of(batch: dict[str, torch.Tensor]) -> torch.Tensor:
    return batch["obs"][:, 1].round()


def test_ends_where_the_range_of_the_data_is_left():
    states = torch.tensor([[0.0, 0.0, -1.0], [2.0, 10.0, 1.0]])
    known = KnownRange.of(states, torch.tensor([-2.0, 5.0]), margin=0.1)
    torch.testing.assert_close(known.low, torch.tensor([-0.2, -1.0, -1.2]))
    torch.testing.assert_close(known.high, torch.tensor([2.2, 11.0, 1.2]))
    batch = run(marked_starts(10), length=6, known=known)
    assert len(batch["rewards"]) == 30  # the third step leads to 3
    last = batch["obs"][:, 0] == 2
    assert torch.equal(batch["terminated"], last)
    torch.testing.assert_close(batch["rewards"][last], torch.full((10,), -20.0))  # -2 for ever
    torch.testing.assert_close(batch["next_obs"][last, 0], torch.full((10,), 2.2))
    assert (batch["rewards"][~last] > -1).all()


def test_what_is_not_finite_has_left_the_range():
    model = counting_model()
    with torch.no_grad():
        model.biases[-1][:, 0, 1] = float("nan")
    known = KnownRange.of(torch.zeros(2, OBS), torch.ones(2), margin=0.0)
    batch = run(marked_starts(4), length=6, model=model, known=known)
    assert batch["terminated"].all()
    assert batch["next_obs"].isfinite().all()
    torch.testing.assert_close(batch["rewards"], torch.zeros(4))  # and not the data's 1 for ever


def test_a_terminal_state_outside_the_range_keeps_its_reward():
    known = KnownRange.of(torch.tensor([[0.0, 0.0, -1.0], [2.0, 10.0, 1.0]]), torch.tensor([-2.0, 5.0]), margin=0.1)
    batch = run(marked_starts(10), length=6, termination=ends_at_three, known=known)
    last = batch["obs"][:, 0] == 2
    assert torch.equal(batch["terminated"], last)
    assert (batch["rewards"] > -1).all()
    torch.testing.assert_close(batch["next_obs"][last, 0], torch.full((10,), 3.0))


def test_leaving_is_no_better_than_a_penalised_stay_and_bounded():
    known = KnownRange.of(torch.zeros(2, OBS), torch.tensor([-2.0, 5.0]), margin=0.0)
    given = torch.tensor([3.0, -4.0, -1e20, float("nan"), float("inf"), -float("inf")])
    assert known.leaving_reward(given).tolist() == [-2, -4, -9, -2, -2, -2]


def test_follows_each_row_for_all_steps():
    batch = run(marked_starts(10), length=4)
    assert {k: tuple(v.shape) for k, v in batch.items()} == {
        "obs": (40, OBS), "actions": (40, ACT), "rewards": (40,), "next_obs": (40, OBS), "terminated": (40,),
    }  # fmt: skip
    torch.testing.assert_close(batch["next_obs"][:, 0], batch["obs"][:, 0] + 1)
    for row in range(10):
        torch.testing.assert_close(batch["obs"][row_of(batch) == row, 0].sort().values, torch.arange(4.0))
    assert not batch["terminated"].any()


def test_stops_rows_at_their_terminal_state():
    starts = marked_starts(6)
    starts[:3, 0] = 2.0  # the next state is terminal
    batch = run(starts, length=5, termination=ends_at_three)
    steps = [int((row_of(batch) == row).sum()) for row in range(6)]
    assert steps == [1, 1, 1, 3, 3, 3]
    assert int(batch["terminated"].sum()) == 6
    assert (batch["terminated"] == (batch["next_obs"][:, 0] > 2.5)).all()
    assert (batch["obs"][:, 0] < 2.5).all()  # nothing starts from a terminal state


def test_rows_draw_their_elites_anew_at_each_step():
    batch = run(marked_starts(3000), length=2)
    members, counts = batch["rewards"].round().unique(return_counts=True)
    assert members.tolist() == [0, 2, 4]
    assert (counts - 2000).abs().max() < 50
    first, second = (batch["rewards"][batch["obs"][:, 0].round() == step] for step in (0, 1))
    order = [row_of(batch)[batch["obs"][:, 0].round() == step].argsort() for step in (0, 1)]
    same = (first[order[0]].round() == second[order[1]].round()).float().mean()
    assert 0.28 < same < 0.39


def test_the_generator_decides_everything():
    starts = marked_starts(50)
    a, b, c = run(starts, seed=1), run(starts, seed=1), run(starts, seed=2)
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert not torch.equal(a["actions"], c["actions"])


def test_chunks_cover_all_rows(monkeypatch):
    monkeypatch.setattr(rollout_module, "_CHUNK_ROWS", 7)
    batch = run(marked_starts(50), length=2)
    assert row_of(batch).unique().tolist() == list(range(50))


def test_predictions_that_are_not_finite_end_the_row_and_are_left_out():
    model = counting_model()

    def stepwise(obs: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        return torch.where((obs[:, :1] > 0.5) & (obs[:, 1:2] < 2), torch.nan, 0.0).expand(-1, ACT)

    batch = rollout(stepwise, model, never_terminates, marked_starts(5), 3, torch.Generator())
    assert batch["next_obs"].isfinite().all()
    assert [int((row_of(batch) == row).sum()) for row in range(5)] == [1, 1, 3, 3, 3]


@pytest.mark.parametrize(
    ("termination", "match"),
    [
        (lambda o, a, n: torch.zeros(1, dtype=torch.bool), r"shape \(5,\).*returned shape \(1,\)"),
        (lambda o, a, n: n > 0, r"returned shape \(5, 3\)"),
        (lambda o, a, n: None, "NoneType"),
    ],
)
def test_wrong_termination_results_are_refused(termination, match):
    with pytest.raises(ValueError, match=match):
        run(marked_starts(5), termination=termination)


def test_arrow_round_trip():
    batch = run(marked_starts(20), termination=ends_at_three)
    back = from_arrow(to_arrow(batch))
    assert set(back) == set(batch)
    for name, column in batch.items():
        assert back[name].dtype == column.numpy().dtype
        np.testing.assert_array_equal(back[name], column.numpy())


# -- the runner ------------------------------------------------------------------------------------------------------


def make_config(**kwargs) -> DAMOConfig:
    space = gym.spaces.Box(-np.inf, np.inf, (OBS,), np.float32)
    actions = gym.spaces.Box(np.array([-2.0, 0.0], np.float32), np.array([2.0, 1.0], np.float32))
    config = (
        DAMOConfig()
        .environment(observation_space=space, action_space=actions)
        .training(rollout_batch_size=40, rollout_length=3, hidden_dims=(8, 8))
        .dynamics(termination_fn=kwargs.pop("termination_fn", never_terminates))
        .debugging(seed=kwargs.pop("seed", 5))
    )
    config.update_from_dict(kwargs)
    return config


@pytest.fixture(scope="module", autouse=True)
def restore_torch_settings():
    before = torch.are_deterministic_algorithms_enabled()
    yield
    torch.use_deterministic_algorithms(before)


def make_runner(**kwargs) -> ModelRolloutEnvRunner:
    runner = ModelRolloutEnvRunner(config=make_config(**kwargs), worker_index=0)
    runner.set_dynamics(counting_model())
    runner.set_start_states(marked_starts(30).numpy())
    return runner


def test_runner_samples_tables_and_metrics():
    runner = make_runner()
    runner.assert_healthy()
    (table,) = runner.sample()
    batch = from_arrow(table)
    assert len(table) == 40 * 3
    assert np.abs(batch["actions"]).max() <= 1
    metrics = runner.get_metrics()["rollout"]
    assert set(metrics) == {"num_transitions", "reward_mean", "terminated_frac"}
    assert runner.num_env_steps_sampled_lifetime == 120


def test_user_termination_gets_actions_in_the_environments_units():
    seen = []

    def rule(obs, actions, next_obs):
        seen.append(actions.clone())
        return torch.zeros(len(obs), dtype=torch.bool)

    runner = make_runner(termination_fn=rule)
    for _ in range(5):
        runner.sample()
    actions = torch.cat(seen)
    assert actions[:, 1].min() >= 0
    assert actions[:, 0].min() < -1
    assert actions[:, 0].max() > 1


def test_a_termination_function_that_returns_no_flags_is_an_error():
    runner = make_runner(termination_fn=lambda obs, actions, next_obs: torch.full((len(obs),), 0.3))
    with pytest.raises(ValueError, match=r"bool tensor, but returned torch.float32: compare"):
        runner.sample()


def test_runner_state_restores_bit_for_bit():
    runner = make_runner()
    runner.sample()
    state = runner.get_state()
    expected = from_arrow(runner.sample()[0])
    other = make_runner(seed=99)
    other.set_state(state)
    got = from_arrow(other.sample()[0])
    for name in expected:
        np.testing.assert_array_equal(got[name], expected[name])


def test_iteration_and_weights_fix_a_round(tmp_path):
    runner, other = make_runner(), make_runner()
    weights = {DEFAULT_MODULE_ID: runner.module.get_state()}
    with torch.no_grad():
        for parameter in other.module.parameters():
            parameter.add_(1.0)
    other.sample()
    path = counting_model().save(tmp_path / "dynamics.pt")
    job = {
        "weights": weights,
        "dynamics_path": path,
        "start_states": marked_starts(30).numpy(),
        "iteration": 7,
    }
    (a,) = runner.sample(**job)
    (b,) = other.sample(**job)
    assert a.equals(b)
    assert not runner.sample(**(job | {"iteration": 8}))[0].equals(a)


def test_rows_of_the_start_states_stand_for_their_copy():
    runner, starts, rows = make_runner(), marked_starts(30), np.array([3, 17, 4])
    runner.set_start_states(starts, rows)
    (by_rows,) = runner.sample(iteration=0)
    runner.set_start_states(starts[rows])
    assert runner.sample(iteration=0)[0].equals(by_rows)
    assert set(row_of(from_arrow(by_rows)).tolist()) == {3.0, 17.0, 4.0}
    runner.set_start_states(starts, rows[:1])
    runner.set_start_states(starts)
    assert len(set(row_of(from_arrow(runner.sample(iteration=0)[0])).tolist())) > 3


def test_workers_share_the_batch_and_differ():
    config = make_config(num_env_runners=3)
    runners = [ModelRolloutEnvRunner(config=config, worker_index=index) for index in (1, 2, 3)]
    assert [runner._share() for runner in runners] == [14, 13, 13]
    draws = []
    for runner in runners[:2]:
        runner.set_dynamics(counting_model())
        runner.set_start_states(marked_starts(30))
        draws.append(from_arrow(runner.sample(iteration=0)[0])["obs"][:39])
    assert not np.array_equal(*draws)


def test_dynamics_come_from_the_config_when_none_are_set(tmp_path):
    path = counting_model().save(tmp_path / "dynamics.pt")
    runner = ModelRolloutEnvRunner(config=make_config(dynamics_path=path), worker_index=0)
    runner.set_start_states(marked_starts(30))
    assert len(runner.sample()[0]) == 120


def test_missing_pieces_are_named():
    runner = ModelRolloutEnvRunner(config=make_config(), worker_index=0)
    with pytest.raises(RuntimeError, match="no dynamics yet"):
        runner.sample()
    runner.set_dynamics(counting_model())
    with pytest.raises(RuntimeError, match="no start states yet"):
        runner.sample()
    with pytest.raises(ValueError, match=r"matrix \(N, 3\).*\(4, 2\)"):
        runner.set_start_states(np.zeros((4, 2), np.float32))
    with pytest.raises(ValueError, match=r"matrix \(N, 3\).*NoneType"):
        runner.sample(start_rows=np.arange(2))
    with pytest.raises(ValueError, match="for 4 observations"):
        runner.set_dynamics(DynamicsEnsemble(4, ACT, hidden_dims=(4,)))
    with pytest.raises(ValueError, match=r"dynamics_state must be .* size mismatch for max_logvar"):
        make_runner().sample(dynamics_state=DynamicsEnsemble(4, ACT, hidden_dims=(4,)).state_dict())


def test_a_state_of_the_dynamics_replaces_the_files_until_another_file_is_named(tmp_path):
    runner, trained = make_runner(), counting_model()
    with torch.no_grad():
        trained.biases[-1][:, 0, OBS] = 7.0
    files = [counting_model().save(tmp_path / f"{name}.pt") for name in "ab"]

    def rewards(**job) -> set[float]:
        return set(from_arrow(runner.sample(**job)[0])["rewards"].round().tolist())

    arrays = {name: value.numpy() for name, value in trained.state_dict().items()}  # as the object store returns them
    for array in arrays.values():
        array.setflags(write=False)
    assert rewards(dynamics_path=files[0], dynamics_state=arrays) == {7.0}
    assert rewards(dynamics_path=files[0]) == {7.0}
    assert rewards(dynamics_path=files[0], dynamics_state=counting_model().state_dict()) == {0.0, 2.0, 4.0}
    assert rewards(dynamics_state=trained.state_dict()) == {7.0}
    assert rewards(dynamics_path=files[1]) == {0.0, 2.0, 4.0}


class HookedRunner(ModelRolloutEnvRunner):
    """All that a subclass may change: rewards, actions, ends of rows, metrics."""

    def model(self, dynamics):
        self.rounds = getattr(self, "rounds", 0) + 1
        return DoubledReward(dynamics)

    def actions(self, obs, generator):
        return torch.full((len(obs), ACT), 0.25)

    def terminated(self, obs, unit_actions, next_obs):
        assert (unit_actions == 0.25).all()
        return super().terminated(obs, unit_actions, next_obs) | (next_obs[:, 0] > 1.5)

    def _log(self, batch):
        super()._log(batch)
        self.metrics.log_value(("rollout", "reward_max"), float(batch["rewards"].max()), window=1)


class DoubledReward:
    act_dim = ACT

    def __init__(self, dynamics):
        self._sample = dynamics.sampler()

    def sampler(self):
        def sample(obs, actions, generator):
            next_obs, rewards = self._sample(obs, actions, generator)
            return next_obs, 2 * rewards

        return sample


def test_a_subclass_changes_rewards_actions_ends_and_metrics():
    runner = HookedRunner(config=make_config(termination_fn=ends_at_three), worker_index=0)
    runner.set_dynamics(counting_model())
    (table,) = runner.sample(start_states=marked_starts(30))
    batch = from_arrow(table)
    assert set(batch["rewards"].round().tolist()) == {0.0, 4.0, 8.0}
    assert (batch["actions"] == 0.25).all()
    assert len(table) == 40 * 2  # not three steps
    np.testing.assert_array_equal(batch["terminated"], batch["next_obs"][:, 0] > 1.5)
    assert runner.rounds == 1
    metrics = runner.get_metrics()["rollout"]
    assert set(metrics) == {"num_transitions", "reward_mean", "terminated_frac", "reward_max"}
    assert metrics["reward_max"].peek() == batch["rewards"].max()


def test_an_environment_without_a_rule_needs_a_learned_one():
    runner = ModelRolloutEnvRunner(config=make_config(termination_fn=None), worker_index=0)
    with pytest.raises(ValueError, match="no known termination rule"):
        runner.set_dynamics(counting_model())
    model = DynamicsEnsemble(OBS, ACT, hidden_dims=(4,), learn_terminations=True)
    assert model.termination is not None
    torch.nn.init.zeros_(model.termination.net[-1].weight)
    model.termination.offset.fill_(1.0)
    runner.set_dynamics(model)
    runner.set_start_states(marked_starts(30))
    batch = from_arrow(runner.sample()[0])
    assert len(batch["obs"]) == 40  # all end at the first step
    assert batch["terminated"].all()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_rollout_on_a_gpu():
    starts, generator = marked_starts(100).cuda(), torch.Generator("cuda").manual_seed(0)
    batch = rollout(
        lambda obs, g: torch.rand(len(obs), ACT, generator=g, device="cuda"),
        counting_model().cuda(),
        ends_at_three,
        starts,
        5,
        generator,
    )
    assert len(batch["obs"]) == 300
    assert len(to_arrow(batch)) == 300
