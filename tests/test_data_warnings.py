"""Sound data that is still odd: each sign is told, and ordinary data has none."""

from __future__ import annotations

from dataclasses import replace

import gymnasium as gym
import numpy as np

from rllib_damo.data.schema import Transitions
from rllib_damo.data.warnings import dataset_warnings, selection_warnings, space_warnings
from tests.data_helpers import make_transitions


def many(**changes: np.ndarray) -> Transitions:
    return replace(make_transitions((500, 700)), **changes)


def test_ordinary_data_has_none() -> None:
    assert dataset_warnings(many()) == []


def box(bound: float, like: np.ndarray) -> gym.spaces.Box:
    return gym.spaces.Box(-bound, bound, like.shape[1:])


def test_observations_outside_of_the_space() -> None:
    data = many()
    largest = float(np.abs(data.observations).max())
    assert space_warnings(data, box(largest, data.observations), None) == []
    assert space_warnings(data, box(np.inf, data.observations), None) == []
    few = replace(data, observations=data.observations.copy())
    few.observations[:10] *= 100
    assert space_warnings(few, box(largest, data.observations), None) == []
    scaled = replace(data, observations=data.observations * 100)
    assert "of the observations lie outside" in space_warnings(scaled, box(largest, data.observations), None)[0]


def test_actions_in_other_units() -> None:
    unit = many(actions=np.tanh(many().actions))
    assert "actions_in_input_normalized=True" in space_warnings(unit, None, box(2, unit.actions))[0]
    assert space_warnings(unit, None, box(1, unit.actions)) == []
    wider = replace(unit, actions=unit.actions * 2)
    assert np.abs(wider.actions).max() > 1
    assert space_warnings(wider, None, box(2, unit.actions)) == []


def test_rewards_that_say_nothing() -> None:
    assert dataset_warnings(many(rewards=np.zeros(1200, np.float32)))[0].startswith("every reward is 0")
    ones = np.ones(1200, np.float32)
    assert dataset_warnings(many(rewards=ones)) == []  # to live on is worth something: an episode terminates
    never = many(rewards=ones, terminations=np.zeros(1200, bool))
    assert dataset_warnings(never)[0].startswith("every reward is 1")


def test_episodes_of_one_row() -> None:
    for every, has_warning in ((30, True), (3, False)):  # episodes of one row, and one of two in each `every` rows
        cut = np.arange(1200) % every != 0
        found = dataset_warnings(many(terminations=np.zeros(1200, bool), truncations=cut))
        assert [text[:31] for text in found] == ["1120 of 1200 rows are episodes "] * has_warning
    assert dataset_warnings(many(terminations=np.ones(1200, bool))) == []  # tasks of one step


def test_states_that_never_change() -> None:
    data = many()
    assert "every next observation equals" in dataset_warnings(replace(data, next_observations=data.observations))[0]


def test_an_offset_that_float32_cannot_hold() -> None:
    data = many()
    data.observations[:, 1] += np.float32(1e6)  # steps of 0.06, at a standard deviation of 1
    (found,) = dataset_warnings(data)
    assert "1 column(s)" in found
    assert "first column 1: steps of 0.0625" in found
    data.observations[:, 1] = 5e6  # a constant has nothing to lose
    assert dataset_warnings(data) == []


def counted(start: float, step: float) -> Transitions:
    """Data whose column 1 counts on through all rows."""
    data = many()
    count = (start + step * np.arange(1201)).astype(np.float32)
    data.observations[:, 1], data.next_observations[:, 1] = count[:-1], count[1:]
    return data


def test_changes_that_float32_cannot_hold() -> None:
    (found,) = dataset_warnings(counted(1.7e9, 60.0))  # a time stamp each minute, of changes of 0 or 128
    assert "first column 1: steps of 128 at a standard deviation of 2.08e+04 and a typical change of 87" in found
    assert "first column 1: steps of 0.0625" in dataset_warnings(counted(1e6, 0.01))[0]
    for start, step in ((0.0, 0.01), (1e6, 1.0), (3e4, 60.0)):  # clocks and counters that it holds
        assert dataset_warnings(counted(start, step)) == []
    data = many()
    data.observations[:, 1] = data.next_observations[:, 1] = np.repeat([1e3, 2e3], [500, 700])  # an episode's number
    assert dataset_warnings(data) == []


def changed(key: str, rows: list[int], value: float) -> Transitions:
    """Data with this value in these rows of a reward, or of column 2."""
    array = getattr(data := many(), key)
    (array if array.ndim == 1 else array[:, 2])[rows] = value
    return data


def test_values_far_off_the_rest() -> None:
    largest = float(np.finfo(np.float32).max)
    (found,) = dataset_warnings(changed("observations", [7], largest))
    assert found.startswith("observations, column 2: 1 value(s) far off the rest, of which 98 % lie between -2.")
    assert "the farthest is 3.4e+38 in row 7;" in found
    (found,) = dataset_warnings(changed("next_observations", [7, 8, 900], -9999))
    assert found.startswith("next_observations, column 2: 3 value(s) far")
    (found,) = dataset_warnings(changed("rewards", [1100], 1e8))
    assert found.startswith("rewards: 1 value(s) far")


def test_values_that_are_rare_but_belong_there() -> None:
    assert dataset_warnings(changed("observations", [7], 100)) == []
    data = many()
    data.rewards[:] *= 1e-3
    data.rewards[499] = 100  # small costs, and a goal
    assert dataset_warnings(data) == []
    data.rewards[:] = 0
    data.rewards[499] = 1e4
    assert dataset_warnings(data) == []
    force = data.observations[:, 2]  # at rest but for noise, and of each size in contact
    force[:] *= 1e-4
    force[600:608] = np.geomspace(1e-3, 1e3, 8)
    assert dataset_warnings(data) == []
    force[:] = 0  # or 0 mostly, small at times, and clipped at a hit
    force[::50], force[30::100] = 1e-3, -1
    assert dataset_warnings(data) == []
    force[:] = np.random.default_rng(0).standard_cauchy(1200)
    assert dataset_warnings(data) == []


def test_few_rows() -> None:
    assert dataset_warnings(make_transitions((3,)))[0].startswith("there are 3 transitions, which are few; record more")


def sessions(good: float, bad: float, seed: int = 0) -> Transitions:
    """Never terminated: long sessions, and as many rows of short ones, with these rewards a step."""
    rng = np.random.default_rng(seed)
    lengths = [*rng.integers(150, 250, 10), *rng.integers(10, 30, 100)]
    rewards = np.repeat([good] * 10 + [bad] * 100, lengths) + 0.1 * rng.standard_normal(sum(lengths))
    data = make_transitions(lengths, terminated=[False] * len(lengths))
    return replace(data, rewards=rewards.astype(np.float32))


def chosen(data: Transitions, fraction: float = 0.5) -> list[str]:
    return selection_warnings(data, data.best_rows(fraction))


def test_short_sessions_chosen_for_their_small_costs() -> None:
    data = sessions(good=-1.02, bad=-3.45)
    (found,) = chosen(data)
    assert found.startswith("the rows that data_fraction chooses have a mean reward of -3.4")
    assert "below the -1." in found
    assert "data_fraction=1" in found
    assert chosen(data, 1.0) == []


def test_choices_that_are_what_they_should_be() -> None:
    assert chosen(many()) == []
    assert chosen(sessions(good=1.0, bad=0.1)) == []
    assert chosen(sessions(good=1.0, bad=2.0)) == []  # to live on is worth more than a step's reward
    assert chosen(sessions(good=-1.0, bad=-1.0)) == []
    reached = sessions(good=-1.0, bad=-2.0)  # the short ones ended at their goal
    ends = reached.truncations
    assert chosen(replace(reached, terminations=ends, truncations=np.zeros_like(ends))) == []
