"""Parquet with a row an episode."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rllib_damo.data.formats.reader import Conventions
from rllib_damo.data.schema import Transitions, concatenate
from rllib_damo.data.sources import load, resolve
from rllib_damo.errors import DataError
from tests.data_helpers import ACTION_SPACE, assert_equal, make_transitions, write_columns

DATA = make_transitions((4, 1, 3, 2))
BOUNDS = DATA.episode_bounds().tolist()


def nested(data: Transitions = DATA, *keys: str, drop: tuple[str, ...] = ()) -> dict[str, list[Any]]:
    """A row an episode."""
    arrays = {key: array for key, array in data.arrays().items() if key not in drop}
    return {key: [array[start:stop].tolist() for start, stop in BOUNDS] for key, array in arrays.items()}


def write(path: Path, columns: dict[str, Any], rows: int = 1 << 20) -> str:
    pq.write_table(pa.table(columns), path, row_group_size=rows)
    return str(path)


@pytest.mark.parametrize("rows", [1, 3, 100])
def test_a_row_an_episode(tmp_path, rows) -> None:
    path = write(tmp_path / "a.parquet", nested(), rows)
    assert_equal(load(path, conventions=Conventions(ACTION_SPACE)), DATA)
    reader = resolve(path)
    assert reader.num_rows() == 10
    assert_equal(concatenate([reader.read(*part) for part in reader.splits(4)]), DATA)


def test_episodes_need_no_other_mark(tmp_path) -> None:
    """Rows end episodes; two files share no episode; the rest is as with ids in a column."""
    columns = nested(drop=("terminations", "truncations"))
    for name in ("a", "b"):
        write(tmp_path / f"{name}.parquet", columns)
    found = load(tmp_path)
    assert len(found.episode_bounds()) == 8
    assert found.truncations.sum() == 8
    columns = nested(drop=("next_observations", "truncations"))
    found = load(write(tmp_path / "c.parquet", columns))
    assert len(found.episode_bounds()) == 3 + DATA.terminations[4]
    np.testing.assert_array_equal(found.rewards[:4], DATA.rewards[:4])


def test_one_observation_more_than_rewards(tmp_path) -> None:
    columns = nested(drop=("next_observations",))
    for row, (_, stop) in enumerate(BOUNDS):
        columns["observations"][row].append(DATA.next_observations[stop - 1].tolist())
    assert_equal(load(write(tmp_path / "a.parquet", columns, 2)), DATA)


def test_one_value_an_episode(tmp_path) -> None:
    """Ids, and whether the episode terminated."""
    columns: dict[str, Any] = nested(drop=("terminations", "truncations"))
    columns["terminated"] = [bool(DATA.terminations[stop - 1]) for _, stop in BOUNDS]
    columns["episode_id"] = ["d", "b", "c", "a"]
    assert_equal(load(write(tmp_path / "a.parquet", columns, 2)), DATA)


def test_lists_of_one_column_a_dimension(tmp_path) -> None:
    columns: dict[str, Any] = nested(drop=("observations", "next_observations"))
    for i in range(3):
        columns[f"obs_{i}"] = [DATA.observations[start:stop, i].tolist() for start, stop in BOUNDS]
        columns[f"next_obs_{i}"] = [DATA.next_observations[start:stop, i].tolist() for start, stop in BOUNDS]
    assert_equal(load(write(tmp_path / "a.parquet", columns)), DATA)


def test_a_row_whose_columns_differ_in_length(tmp_path) -> None:
    columns = nested()
    columns["actions"][2].pop()
    with pytest.raises(DataError, match=r"a\.parquet: row 2 has 3 rewards, but 2 values in column 'actions'"):
        load(write(tmp_path / "a.parquet", columns))


def test_rewards_that_are_lists_of_one_are_rows_of_a_step(tmp_path) -> None:
    columns = {key: list(array) for key, array in DATA.arrays().items()}
    columns["rewards"] = [[reward] for reward in DATA.rewards]
    assert_equal(load(write_columns(tmp_path / "a.parquet", columns)), DATA)
