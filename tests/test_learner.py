"""The learner that all algorithms share: the rows that it draws for an update, and the update's hooks."""

from __future__ import annotations

import itertools
import math
import re
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pyarrow as pa
import pytest
import ray
import torch
from ray.rllib.core import DEFAULT_MODULE_ID
from torch import Tensor

from rllib_damo import BehaviorCloningConfig, MOPOConfig, TD3BCConfig
from rllib_damo.core.config import OfflineConfig
from rllib_damo.core.learner import OfflineTorchLearner
from rllib_damo.core.model_based_learner import ModelBasedTorchLearner
from rllib_damo.core.option_groups import learning_rate
from rllib_damo.core.update import DatasetFacts, Draw, Metrics, RowGroup, StepBatch, Update, cosine, mixed_rows
from rllib_damo.dynamics.ensemble import DynamicsEnsemble
from rllib_damo.utils.arrow import to_arrow
from rllib_damo.utils.batch import Batch, Layout

OBS, ACT, ROWS, MODEL_ROWS = 3, 1, 60, 40
STARTS = np.arange(0, ROWS, 10)
SELECTED = np.arange(10, 50)
#: Rows whose successor is not known: terminal, and the observation repeated.
UNKNOWN = np.arange(12, 50, 5)
LAYOUT = Layout(OBS, ACT)


class Records(Update):
    """Keeps the number of every row that it is given, which is in the first column of its observation."""

    groups: dict[str, RowGroup]

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.seen: list[dict[str, np.ndarray]] = []
        self.extra: list[dict[str, np.ndarray]] = []
        self.calls: list[Any] = []

    def row_groups(self) -> dict[str, RowGroup]:
        return self.groups

    def fit(self, facts: DatasetFacts) -> None:
        self.facts = facts

    def step(self, batch: StepBatch, step: int, measure: bool) -> Metrics:
        self.calls.append(step)
        self.num_real = batch.num_real
        self.seen.append({name: rows.obs[:, 0].numpy().astype(int) for name, rows in batch.items()})
        self.extra.append({name: values.numpy().copy() for name, values in batch.extra.items()})
        return {"ones": torch.ones(())}


def dataset_rows(num: int = ROWS, first: int = 0) -> np.ndarray:
    """Rows numbered from ``first`` on; those of `UNKNOWN` end without a successor."""
    obs = np.zeros((num, OBS))
    obs[:, 0] = np.arange(first, first + num)
    terminated = np.isin(np.arange(num), UNKNOWN)
    next_obs = np.where(terminated[:, None], obs, obs + 0.5)
    return LAYOUT.pack(obs, np.zeros((num, ACT)), next_obs, np.ones(num), terminated)


def make_learner(
    groups: dict[str, RowGroup], config: OfflineConfig | None = None, rule: type[Records] = Records, **dataset: Any
) -> Any:
    """A learner with the dataset and, if it is model-based, `MODEL_ROWS` rows numbered from 1000 on."""
    config = config or MOPOConfig().training(rollout_batch_size=MODEL_ROWS, rollout_length=1, model_retain_epochs=1)
    base = ModelBasedTorchLearner if isinstance(config, MOPOConfig) else OfflineTorchLearner
    kind = type("Learner", (base,), {"update_class": type("Rule", (rule,), {"groups": groups})})
    spaces = gym.spaces.Box(-np.inf, np.inf, (OBS,)), gym.spaces.Box(-1, 1, (ACT,))
    config.environment(observation_space=spaces[0], action_space=spaces[1]).training(hidden_dims=(8,))
    config.debugging(seed=0)
    spec = config.get_multi_rl_module_spec(spaces={DEFAULT_MODULE_ID: spaces})
    learner = kind(config=config, module_spec=spec)
    learner.build()
    learner.set_dataset(dataset_rows(), STARTS, SELECTED, True, **dataset)
    if base is ModelBasedTorchLearner:
        learner.model_buffer.add(torch.from_numpy(dataset_rows(MODEL_ROWS, 1000)))
    return learner


def drawn(learner: Any) -> dict[str, np.ndarray]:
    """The numbers of all rows of all steps, by group, ``(steps, rows)``."""
    seen = learner._update.seen
    return {name: np.stack([step[name] for step in seen]) for name in seen[0]}


# -- row groups ------------------------------------------------------------------------------------------------------

GROUPS = {
    "update": RowGroup(3, 5),
    "starts": RowGroup(4, of="starts"),
    "known": RowGroup(6, of="known"),
    "model": RowGroup(0, 7),
}


@pytest.mark.parametrize("order", list(itertools.permutations(GROUPS))[::5], ids=" ".join)
def test_each_group_has_its_rows_whatever_their_order(order: tuple[str, ...]) -> None:
    """Those of the dataset first; drawn anew in each step, and all of them at some time."""
    learner = make_learner({name: GROUPS[name] for name in order})
    learner.update_many(200)
    rows = drawn(learner)
    assert {name: rows[name].shape[1] for name in rows} == {"update": 8, "starts": 4, "known": 6, "model": 7}
    assert learner._update.num_real == 3
    model = set(range(1000, 1000 + MODEL_ROWS))
    assert set(rows["update"][:, :3].flat) == set(SELECTED)
    assert set(rows["update"][:, 3:].flat) == set(rows["model"].flat) == model
    assert set(rows["starts"].flat) == set(STARTS)
    assert set(rows["known"].flat) == set(SELECTED) - set(UNKNOWN)


def test_known_rows_are_all_where_no_successor_is_recorded() -> None:
    learner = make_learner({"update": RowGroup(8), "known": RowGroup(8, of="known")})
    rows = dataset_rows()
    LAYOUT.unpack(rows).next_obs[:] = LAYOUT.unpack(rows).obs
    LAYOUT.unpack(rows).terminated[:] = 1
    learner.set_dataset(rows, STARTS, SELECTED, True)
    learner.update_many(100)
    assert set(drawn(learner)["known"].flat) == set(SELECTED)


def test_at_most_one_group_has_rows_of_both() -> None:
    with pytest.raises(ValueError, match=r"Rule.row_groups\(\): at most one group may have rows of both"):
        make_learner({"update": RowGroup(3, 5), "other": RowGroup(1, 1)})


def test_there_is_a_group_of_the_update() -> None:
    with pytest.raises(ValueError, match=r'Rule.row_groups\(\): there must be a group "update"; found \[\'other\'\]'):
        make_learner({"other": RowGroup(3)})


def test_nothing_is_drawn_or_gathered_that_is_not_asked_for() -> None:
    """The generator has moved by the indices of the one group's rows alone."""
    learner = make_learner({"update": RowGroup(5)}, BehaviorCloningConfig())
    learner._seed_generator(0)
    expected = torch.Generator()
    expected.set_state(learner._generator.get_state())
    picks = SELECTED[torch.randint(len(SELECTED), (10, 5), generator=expected).numpy()]
    learner.update_many(10)
    assert torch.equal(learner._generator.get_state(), expected.get_state())
    np.testing.assert_array_equal(drawn(learner)["update"], picks)
    assert learner._rows.shape == (5, LAYOUT.width)


@pytest.mark.parametrize("config_class", [BehaviorCloningConfig, TD3BCConfig])
def test_algorithms_without_a_model_gather_a_batch_and_no_more(config_class: type[OfflineConfig]) -> None:
    spaces = gym.spaces.Box(-np.inf, np.inf, (OBS,)), gym.spaces.Box(-1, 1, (ACT,))
    config = config_class().environment(observation_space=spaces[0], action_space=spaces[1])
    spec = config.get_multi_rl_module_spec(spaces={DEFAULT_MODULE_ID: spaces})
    learner = config.get_default_learner_class()(config=config, module_spec=spec)
    learner.build()
    assert learner._rows.shape == (256, LAYOUT.width)


@pytest.mark.parametrize(
    ("share", "expected"), [(0.0, (0, 10)), (0.05, (0, 10)), (0.19, (1, 9)), (0.5, (5, 5)), (0.99, (9, 1))]
)
def test_mixed_rows(share: float, expected: tuple[int, int]) -> None:
    group = mixed_rows(MOPOConfig().training(real_ratio=share, train_batch_size_per_learner=10))
    assert (group.num_real, group.num_model, group.of) == (*expected, "selected")


def test_without_real_rows_the_updates_are_the_models() -> None:
    learner = make_learner({"update": RowGroup(0, 5), "other": RowGroup(2)})
    learner.update_many(20)
    assert (drawn(learner)["update"] >= 1000).all()
    assert learner._update.num_real == 0


def test_there_are_no_steps_before_there_are_rows() -> None:
    learner = make_learner({"update": RowGroup(2, 2)})
    learner.model_buffer.size = 0
    with pytest.raises(RuntimeError, match="needs set_dataset and add_rollouts"):
        learner.update_many(1)
    make_learner({"update": RowGroup(2)}, BehaviorCloningConfig()).update_many(1)


# -- extra columns ---------------------------------------------------------------------------------------------------


def extra_columns(first: int = 0) -> dict[str, np.ndarray]:
    numbers = np.arange(first, first + ROWS, dtype=np.float32)[:, None]
    return {"number": numbers, "pair": np.concatenate((10 * numbers, -numbers), axis=1)}


@pytest.mark.parametrize("groups", [GROUPS, {"update": RowGroup(6)}], ids=["among others", "alone"])
def test_extra_columns_are_those_of_the_updates_real_rows(groups: dict[str, RowGroup]) -> None:
    learner = make_learner(groups, extra=extra_columns())
    learner.update_many(30)
    update = learner._update
    for seen, extra in zip(update.seen, update.extra, strict=True):
        numbers = seen["update"][: update.num_real]
        np.testing.assert_array_equal(extra["number"], numbers[:, None])
        np.testing.assert_array_equal(extra["pair"], np.stack((10 * numbers, -numbers), axis=1))


def test_extra_columns_change_with_the_dataset() -> None:
    learner = make_learner({"update": RowGroup(6)}, BehaviorCloningConfig(), extra=extra_columns())
    learner.update_many(2)
    learner.set_dataset(dataset_rows(first=500), STARTS, SELECTED, False, extra=extra_columns(500))
    learner.update_many(10)
    for seen, extra in zip(learner._update.seen[2:], learner._update.extra[2:], strict=True):
        assert (seen["update"] >= 500).all()
        np.testing.assert_array_equal(extra["number"][:, 0], seen["update"])


# -- rewards ---------------------------------------------------------------------------------------------------------


def test_facts_are_of_the_selected_rows() -> None:
    rows = dataset_rows()
    LAYOUT.unpack(rows).rewards[SELECTED] = -3
    learner = make_learner({"update": RowGroup(6)}, BehaviorCloningConfig())
    learner.set_dataset(rows, STARTS, SELECTED, False, reward_scale=0.5)
    assert learner._update.facts == DatasetFacts(reward_size=3.0, knows_terminals=False, reward_scale=0.5)
    LAYOUT.unpack(rows).next_obs[UNKNOWN[0]] += 1
    learner.set_dataset(rows, STARTS, SELECTED, False)
    assert learner._update.facts == DatasetFacts(reward_size=3.0, knows_terminals=True, reward_scale=1.0)


def test_values_are_reported_in_the_datasets_rewards() -> None:
    learner = make_learner({"update": RowGroup(6)}, TD3BCConfig(), reward_scale=4.0)
    module = learner.module[DEFAULT_MODULE_ID]
    obs = LAYOUT.unpack(torch.from_numpy(dataset_rows())).obs[STARTS]
    value = module.critics(obs, module.mean_actions(obs)).min(0).values.mean().item()
    reported = learner.update_many(1)[DEFAULT_MODULE_ID]["initial_value_mean"].peek()
    assert reported == pytest.approx(value / 4)


@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_the_rewards_of_rollouts_are_scaled_as_the_datasets(scale: float, monkeypatch: pytest.MonkeyPatch) -> None:
    learner = make_learner({"update": RowGroup(0, 6)}, reward_scale=scale)
    rows = LAYOUT.unpack(torch.from_numpy(dataset_rows(MODEL_ROWS, 2000)))._asdict()
    rows["terminated"] = rows["terminated"] > 0
    rows["rewards"] = torch.arange(float(MODEL_ROWS))
    given = rows["rewards"].clone()
    learner.add_tensors(rows)
    np.testing.assert_array_equal(LAYOUT.unpack(learner.model_buffer.rows).rewards, scale * given)
    table: pa.Table = to_arrow(rows)
    learner.model_buffer.size = 0
    monkeypatch.setattr(ray, "get", lambda refs: refs)
    assert learner.add_rollouts(_Blocks(table)) == MODEL_ROWS
    np.testing.assert_array_equal(LAYOUT.unpack(learner.model_buffer.rows).rewards, scale * given)
    assert torch.equal(rows["rewards"], given)


class _Blocks:
    """A Ray Dataset's one method that is used, without Ray."""

    def __init__(self, table: pa.Table):
        self._table = table

    def to_arrow_refs(self) -> list[pa.Table]:
        return [self._table]


# -- hooks -----------------------------------------------------------------------------------------------------------


class Phases(Records):
    """Records its phases, and the numbers of the rows that it draws in them."""

    def pretrain(self, draw: Draw) -> Metrics:
        self.calls.append("pretrain")
        return {"pretrained": self._draw(draw, RowGroup(5, of="starts")).sum()}

    def after_iteration(self, draw: Draw) -> Metrics:
        self.calls.append("after")
        return {"after": self._draw(draw, RowGroup(200, 300)).sum()}

    def _draw(self, draw: Draw, group: RowGroup) -> Tensor:
        rows = draw(group)
        assert isinstance(rows, Batch)
        self.drawn = rows.obs[:, 0]
        return self.drawn


def test_phases_come_before_and_after_the_steps_and_draw_rows_of_their_own() -> None:
    learner = make_learner({"update": RowGroup(2)}, rule=Phases)
    update = learner._update
    learner.pretrain()
    assert set(update.drawn.tolist()) <= set(STARTS)
    assert len(update.drawn) == 5
    pretrained = update.drawn.sum().item()
    learner.pretrain()  # once
    first = learner.update_many(3)[DEFAULT_MODULE_ID]
    assert len(update.drawn) == 500
    assert set(update.drawn[:200].tolist()) == set(SELECTED)
    assert set(update.drawn[200:].tolist()) == set(range(1000, 1000 + MODEL_ROWS))
    assert first["pretrained"].peek() == pretrained
    assert first["after"].peek() == update.drawn.sum().item()
    second = learner.update_many(2)[DEFAULT_MODULE_ID]
    assert "pretrained" not in second or np.isnan(second["pretrained"].peek())
    assert update.calls == ["pretrain", 0, 1, 2, "after", 3, 4, "after"]


def test_a_phase_that_fails_to_stay_finite_ends_training() -> None:
    class Diverges(Records):
        def after_iteration(self, draw: Draw) -> Metrics:
            return {"after": torch.tensor(float("nan"))}

    with pytest.raises(RuntimeError, match=r"diverged within the last 2 gradient steps: after not finite"):
        make_learner({"update": RowGroup(2)}, rule=Diverges).update_many(2)


@pytest.mark.parametrize("name", ["log_alpha", "actor.net.0.weight", "the optimiser of critic (exp_avg_sq 0)"])
def test_a_tensor_that_the_last_step_made_infinite_ends_training(name: str) -> None:
    """The loss of that step was finite, and a checkpoint would hold the tensor."""

    class Overflows(Records):
        def after_iteration(self, draw: Draw) -> Metrics:
            if name in (state := self.module.state_dict()):
                state[name].fill_(float("inf"))
            else:
                param = self.optimizers["critic"].param_groups[0]["params"][0]
                self.optimizers["critic"].state[param]["exp_avg_sq"] = torch.full_like(param, float("inf"))
            return {}

    learner = make_learner({"update": RowGroup(2)}, rule=Overflows)
    with pytest.raises(RuntimeError, match=rf"diverged within the last 2 gradient steps: {re.escape(name)} not finite"):
        learner.update_many(2)


def test_a_restored_learner_does_not_pretrain_again() -> None:
    learner, other = (make_learner({"update": RowGroup(2)}, rule=Phases) for _ in range(2))
    learner.pretrain()
    learner.update_many(3)
    other.set_state(learner.get_state())
    other.pretrain()
    other.update_many(2)
    assert other._update.calls == [3, 4, "after"]
    learner.update_many(2)
    np.testing.assert_array_equal(learner._update.seen[-1]["update"], other._update.seen[-1]["update"])


class Counts(Records):
    """Keeps a number that checkpoints need."""

    count = 0

    def step(self, batch: StepBatch, step: int, measure: bool) -> Metrics:
        self.count += 1
        return super().step(batch, step, measure)

    def get_state(self) -> dict[str, Any]:
        return {"count": self.count}

    def set_state(self, state: dict[str, Any]) -> None:
        self.count = state["count"]


def test_an_updates_state_is_in_the_learners() -> None:
    learner, other = (make_learner({"update": RowGroup(2)}, rule=Counts) for _ in range(2))
    learner.update_many(3)
    other.set_state(learner.get_state())
    assert other._update.count == 3


class Reads(Counts):
    """Reads a dynamics model, in which it counts."""

    uses_dynamics = True
    dynamics: DynamicsEnsemble

    def set_dynamics(self, dynamics: DynamicsEnsemble) -> None:
        self.calls.append("dynamics")
        self.dynamics = dynamics

    def get_state(self) -> dict[str, Any]:
        return {"dynamics": self.dynamics.state_dict()}

    def set_state(self, state: dict[str, Any]) -> None:
        assert self.calls[-1] == "dynamics"
        self.dynamics.load_state_dict(state["dynamics"])


def test_a_model_is_handed_out_once_and_again_after_a_restore(tmp_path: Path) -> None:
    paths = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        paths.append(str(tmp_path / f"{seed}.pt"))
        DynamicsEnsemble(OBS, ACT, hidden_dims=(4,), num_ensemble=2, num_elites=1).save(Path(paths[-1]))
    learner, other = (make_learner({"update": RowGroup(2)}, rule=Reads) for _ in range(2))
    untrained = learner.get_state()  # in the dynamics' training, say
    learner.set_dynamics(paths[0])
    learner.set_dynamics(paths[1])  # which is not the model that the update has
    assert learner._update.calls == ["dynamics"]
    with torch.no_grad():
        learner._update.dynamics.biases[0].add_(1.0)
    state = learner.get_state()
    other.set_state(state)
    assert other._update.calls == []
    assert other.get_state()["training"]["update"] is state["training"]["update"]  # it has not been lost meanwhile
    other.set_dynamics(paths[0])
    torch.testing.assert_close(other._update.dynamics.state_dict(), learner._update.dynamics.state_dict())
    learner.set_state(untrained)
    learner.set_dynamics(paths[0])
    torch.testing.assert_close(
        learner._update.dynamics.state_dict(), DynamicsEnsemble.load(paths[0], "cpu").state_dict()
    )


# -- schedules -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [7, 20, 1_000_000])
def test_a_cosine_falls_to_zero_as_a_schedule(steps: int) -> None:
    schedule = cosine(3e-4, steps)
    assert learning_rate.holds(schedule)
    times, rates = np.array(schedule).T
    assert (times[0], times[-1]) == (0, steps)
    assert rates[0] == 3e-4
    assert rates[-1] == pytest.approx(0, abs=1e-18)
    assert (np.diff(rates) < 0).all()
    np.testing.assert_allclose(rates, 3e-4 * (1 + np.cos(np.pi * np.arange(len(rates)) / (len(rates) - 1))) / 2)


def test_learning_rates_follow_a_cosine() -> None:
    config = BehaviorCloningConfig().training(actor_lr=cosine(1e-3, 40))
    learner = make_learner({"update": RowGroup(2)}, config)
    rates = []
    for _ in range(3):
        rates.append(learner.get_optimizer(DEFAULT_MODULE_ID, "actor").param_groups[0]["lr"])
        learner.update_many(20)
    assert rates == pytest.approx([1e-3, 5e-4, 0.0], abs=1e-9)


# -- the policy's moving average ------------------------------------------------------------------------------------


class CountsInTheActor(Records):
    """The actor's numbers are those of the step."""

    def step(self, batch: StepBatch, step: int, measure: bool) -> Metrics:
        with torch.no_grad():
            for parameter in self.module.actor.parameters():
                parameter.fill_(step)
        return super().step(batch, step, measure)


@pytest.mark.parametrize("policy_tau", [0.0001, 0.1, 1.0])
def test_the_averages_mean_age_is_a_sixth_of_the_steps_and_at_most_one_over_policy_tau(policy_tau: float) -> None:
    """Polynomial-decay averaging with η = 4: the weights of steps 0, 1, ... are as C(i + 4, 4)."""
    config = BehaviorCloningConfig().training(policy_tau=policy_tau)
    learner = make_learner({"update": RowGroup(2)}, config, CountsInTheActor)
    for _ in range(4):
        learner.update_many(30)
    parameters = learner.module[DEFAULT_MODULE_ID].averaged_actor.parameters()
    (found,) = {round(float(value), 3) for parameter in parameters for value in parameter.view(-1)}
    if policy_tau == 0.0001:
        weights = [math.comb(i + 4, 4) for i in range(120)]
        assert found == pytest.approx(sum(i * w for i, w in enumerate(weights)) / sum(weights), abs=0.02)
        assert 119 - found == pytest.approx(120 / 6, abs=1)
    else:
        assert 119 - found == pytest.approx(1 / policy_tau - 1, abs=0.1)
