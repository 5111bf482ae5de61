"""Sound data that is still odd: each sign is told, and ordinary data has none."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from rllib_damo.data.cautions import cautions
from rllib_damo.data.schema import Transitions
from tests.data_helpers import make_transitions


def many(**changes: np.ndarray) -> Transitions:
    return replace(make_transitions((500, 700)), **changes)


def test_ordinary_data_has_none() -> None:
    assert cautions(many()) == []


def test_rewards_that_say_nothing() -> None:
    assert cautions(many(rewards=np.zeros(1200, np.float32)))[0].startswith("every reward is 0")
    ones = np.ones(1200, np.float32)
    assert cautions(many(rewards=ones)) == []  # to live on is worth something: an episode terminates
    never = many(rewards=ones, terminations=np.zeros(1200, bool))
    assert cautions(never)[0].startswith("every reward is 1")


def test_states_that_never_change() -> None:
    data = many()
    assert "every next observation equals" in cautions(replace(data, next_observations=data.observations))[0]


def test_an_offset_that_float32_cannot_hold() -> None:
    data = many()
    data.observations[:, 1] += np.float32(1e6)  # steps of 0.06, at a standard deviation of 1
    (found,) = cautions(data)
    assert "1 column(s)" in found
    assert "first column 1: steps of 0.0625" in found
    data.observations[:, 1] = 5e6  # a constant has nothing to lose
    assert cautions(data) == []


def test_few_rows() -> None:
    assert cautions(make_transitions((3,)))[0].startswith("there are 3 transitions, which are few; record more")
