from __future__ import annotations

from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest

from rllib_damo.data.schema import check, concatenate, problems
from rllib_damo.errors import DataError
from tests.data_helpers import ACT, ACTION_SPACE, OBS, OBSERVATION_SPACE, assert_equal, make_transitions


def test_episode_facts_follow_from_the_flags() -> None:
    data = make_transitions((4, 1, 7))
    np.testing.assert_array_equal(data.episode_bounds(), [[0, 4], [4, 5], [5, 12]])
    assert data.episode_bounds().dtype == np.int64
    expected = [data.rewards[a:b].sum(dtype=np.float64) for a, b in data.episode_bounds()]
    np.testing.assert_allclose(data.episode_returns(), expected)
    discounted = [sum(0.9**t * float(r) for t, r in enumerate(data.rewards[a:b])) for a, b in data.episode_bounds()]
    np.testing.assert_allclose(data.episode_returns(0.9), discounted)


def test_best_rows_are_whole_episodes_in_order_of_return() -> None:
    data = make_transitions((4, 1, 7))
    rewards = np.repeat([1.0, 100.0, 2.0], (4, 1, 7)).astype(np.float32)  # returns 4, 100, 14
    data = replace(data, rewards=rewards)
    np.testing.assert_array_equal(data.best_rows(1 / 12), [4])
    np.testing.assert_array_equal(data.best_rows(0.5), range(4, 12))
    np.testing.assert_array_equal(data.best_rows(8 / 12), range(4, 12))
    np.testing.assert_array_equal(data.best_rows(0.7), range(12))
    np.testing.assert_array_equal(data.best_rows(1), range(12))


def test_statistics_equal_numpys() -> None:
    data = make_transitions((70_000, 30))  # more rows than one piece of the sum
    found = data.statistics()
    np.testing.assert_allclose(found["observations"]["mean"], data.observations.mean(0, dtype=np.float64))
    np.testing.assert_allclose(found["observations"]["std"], data.observations.std(0, dtype=np.float64))
    assert found["rewards"]["max"] == data.rewards.max()
    assert (found["num_episodes"], found["num_terminations"], found["num_truncations"]) == (2, 1, 1)
    assert found["episode_lengths"]["mean"] == 35_015


def test_the_fingerprint_is_of_the_content_alone() -> None:
    data = make_transitions()
    assert data.fingerprint() == replace(make_transitions(), name="other").fingerprint()
    for key, array in data.arrays().items():
        changed = array.copy()
        changed.reshape(-1)[2] = 1 - changed.reshape(-1)[2]
        assert replace(data, **{key: changed}).fingerprint() != data.fingerprint(), key


def test_a_slice_through_an_episode_ends_truncated() -> None:
    data = make_transitions((4, 4))
    part = data.slice(0, 6)
    assert part.truncations[-1]
    assert not data.truncations[5]
    np.testing.assert_array_equal(part.episode_bounds(), [[0, 4], [4, 6]])


def test_concatenation_keeps_episodes_and_refuses_other_widths() -> None:
    first, second = make_transitions((2,)), make_transitions((3,), seed=1)
    joined = concatenate([first, second])
    assert_equal(joined.slice(2, 5), second)
    with pytest.raises(DataError, match="width 1, but those of made have width 3"):
        concatenate([first, replace(second, observations=second.observations[:, :1], name="other")])
    with pytest.raises(DataError, match="empty"):
        concatenate([])


def test_sound_data_has_no_problems() -> None:
    check(make_transitions(), OBSERVATION_SPACE, ACTION_SPACE)


def _with(key: str, value: object, row: int | None = None):
    def change(data):
        array = getattr(data, key).copy()
        if row is None:
            array = value(array)
        else:
            array[row] = value
        return replace(data, **{key: array})

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_with("observations", np.nan, 3), "observations hold values that are not finite in 1 row.*nan in row 3"),
        (_with("rewards", np.inf, 2), "rewards hold values that are not finite.*inf in row 2"),
        (_with("actions", -np.inf, 0), "actions hold values that are not finite"),
        (_with("next_observations", np.nan, 0), "next_observations hold"),
        (_with("actions", 2.5, 5), "outside the action space in 1 row.*row 5"),
        (_with("rewards", lambda x: x[:-1]), "different lengths.*rewards 11"),
        (_with("observations", lambda x: x[:, :2]), "observations have width 2, but next_observations 3"),
        (_with("actions", lambda x: x[:, :0]), "width 0"),
        (_with("actions", lambda x: x[:, :1]), "actions have width 1, but the environment's space has 2"),
        (_with("observations", lambda x: x.astype(np.float64)), "must be float32, but found float64"),
        (_with("terminations", lambda x: x.astype(np.int8)), "terminations must be bool"),
        (_with("rewards", lambda x: x[:, None]), "rewards must be a numpy array of 1"),
        (_with("observations", lambda x: x[:, :, None]), "2 dimension"),
    ],
)
def test_each_problem_is_named(change, message) -> None:
    with pytest.raises(DataError, match=message):
        check(change(make_transitions()), OBSERVATION_SPACE, ACTION_SPACE)


def test_ends_are_needed() -> None:
    data = make_transitions((5,), terminated=[True])
    nothing = np.zeros(5, bool)
    with pytest.raises(DataError, match="episodes have no end"):
        check(replace(data, terminations=nothing, truncations=nothing))
    early = nothing.copy()
    early[2] = True
    with pytest.raises(DataError, match="last row is neither"):
        check(replace(data, terminations=early))


def test_all_problems_are_listed_at_once() -> None:
    data = _with("rewards", np.nan, 1)(_with("actions", 9.0, 5)(make_transitions()))
    assert len(problems(data, OBSERVATION_SPACE, ACTION_SPACE)) == 2
    with pytest.raises(DataError, match=r"made: 2 problem"):
        check(data, OBSERVATION_SPACE, ACTION_SPACE)


def test_spaces_that_do_not_fit() -> None:
    data = make_transitions()
    with pytest.raises(DataError, match="another environment"):
        check(data, gym.spaces.Box(-1, 1, (OBS + 1,)))
    with pytest.raises(DataError, match="one-dimensional Box"):
        check(data, None, gym.spaces.Discrete(ACT))
    empty = data.slice(0, 0)
    with pytest.raises(DataError, match="no transitions"):
        check(empty)


def test_actions_may_miss_the_bounds_by_rounding() -> None:
    check(_with("actions", np.float32([2.0000002, 1.0]), 0)(make_transitions()), None, ACTION_SPACE)
