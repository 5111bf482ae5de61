"""Folders of files: Hive's partitions, and the order in which files are read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest

from rllib_damo.data.formats.files import in_natural_order
from rllib_damo.data.formats.reader import Conventions
from rllib_damo.data.schema import concatenate
from rllib_damo.data.sources import load, resolve
from rllib_damo.errors import DataError
from tests.data_helpers import assert_equal, d4rl_columns, make_transitions, write_columns

LENGTHS = (4, 2, 3) * 5
DATA = make_transitions(LENGTHS, terminated=[False] * 15)
NUMBERS = np.repeat(np.arange(15), LENGTHS)
STEPS = {"observations": list(DATA.observations), "actions": list(DATA.actions), "rewards": DATA.rewards}


def without_last_rows() -> Any:
    """What is left without next observations: the last row of each episode has no successor."""
    return concatenate([DATA.slice(start, stop - 1) for start, stop in DATA.episode_bounds()])


def write_hive(folder: Path, columns: dict[str, Any], by: list[str]) -> None:
    flavor = pa.dataset.partitioning(pa.table(columns).select(by).schema, flavor="hive")
    pa.dataset.write_dataset(pa.table(columns), folder, format="parquet", partitioning=flavor, max_partitions=100)


@pytest.mark.parametrize(
    "ids",
    [NUMBERS, NUMBERS + 0.5, [f"run {i}/é=ü%" for i in NUMBERS], [f"{2000 + i}-01-01" for i in NUMBERS]],
)
def test_partitions_of_each_type_are_episode_ids(tmp_path, ids) -> None:
    write_hive(tmp_path, {**STEPS, "episode_id": list(ids)}, ["episode_id"])
    assert len(list(tmp_path.rglob("*.parquet"))) == 15
    found = load(tmp_path)
    assert len(found.episode_bounds()) == 15
    if "run" not in str(ids[0]):  # text with folders in it is written in another order
        assert_equal(found, without_last_rows())
    assert sorted(found.rewards) == sorted(without_last_rows().rewards)
    reader = resolve(tmp_path)
    assert_equal(concatenate([reader.read(*part) for part in reader.splits(10)]), found)


def test_partitions_may_have_other_names_and_be_nested(tmp_path) -> None:
    columns = {**STEPS, "robot": np.where(NUMBERS < 8, "a", "b"), "traj": NUMBERS % 8}
    write_hive(tmp_path, columns, ["robot", "traj"])
    with pytest.raises(DataError, match=r"episodes have no end.*found \['actions', .*'robot', 'traj'\]"):
        load(tmp_path)
    named = Conventions(input_read_schema={"eps_id": "traj"})
    assert_equal(load(tmp_path, conventions=named), without_last_rows())  # robot=a/traj=3 is not robot=b/traj=3
    assert_equal(load(str(tmp_path / "robot=*" / "**" / "*.parquet"), conventions=named), without_last_rows())
    one = load(tmp_path / "robot=b" / "traj=0", conventions=named)
    np.testing.assert_array_equal(one.rewards, DATA.rewards[NUMBERS == 8][:-1])


def test_partitions_may_be_values_of_the_transitions(tmp_path) -> None:
    mass = np.where(NUMBERS < 8, 1.5, 2.0)
    columns = {**STEPS, "mass": mass, "episode_id": NUMBERS, "failed": NUMBERS == 1}
    write_hive(tmp_path, columns, ["mass", "failed", "episode_id"])
    found = load(tmp_path, conventions=Conventions(input_read_schema={"obs": ["observations", "mass"]}))
    assert set(found.observations[:, 3]) == {1.5, 2.0}
    assert len(found.episode_bounds()) == 15


def test_a_partition_that_is_missing(tmp_path) -> None:
    write_hive(tmp_path, {**STEPS, "episode_id": [None if i == 3 else int(i) for i in NUMBERS]}, ["episode_id"])
    assert len(load(tmp_path).episode_bounds()) == 15
    with pytest.raises(DataError, match="column 'episode_id' has missing values"):
        load(tmp_path, conventions=Conventions(input_read_schema={"obs": ["observations", "episode_id"]}))


def test_a_column_of_the_file_goes_before_its_folders(tmp_path) -> None:
    """Folders of batches, say, whose name is also that of a column within."""
    for batch in range(2):
        (tmp_path / f"episode_id={batch}").mkdir()
        rows = (NUMBERS < 8) if batch == 0 else (NUMBERS >= 8)
        columns = {"observations": DATA.observations[rows], "actions": DATA.actions[rows]}
        columns |= {"rewards": DATA.rewards[rows], "episode_id": NUMBERS[rows]}
        write_columns(tmp_path / f"episode_id={batch}" / "part.parquet", columns)
    assert_equal(load(tmp_path), without_last_rows())


def test_csv_may_be_partitioned(tmp_path) -> None:
    for i in range(15):
        frame = pd.DataFrame({f"obs_{k}": DATA.observations[i == NUMBERS, k] for k in range(3)})
        frame["action_0"], frame["reward"] = DATA.actions[i == NUMBERS, 0], DATA.rewards[i == NUMBERS]
        (tmp_path / f"episode_id={i}").mkdir()
        frame.to_csv(tmp_path / f"episode_id={i}" / "part.csv", index=False)
    np.testing.assert_array_equal(load(tmp_path).observations, without_last_rows().observations)


def test_numbers_in_names_are_ordered_by_value() -> None:
    names = ["b/10.parquet", "b/2.parquet", "a-12/x", "a-3/x", "b/002.parquet", "part", "part1", "part.x"]
    assert in_natural_order(names) == [
        "a-3/x", "a-12/x", "b/2.parquet", "b/002.parquet", "b/10.parquet", "part", "part.x", "part1",
    ]  # fmt: skip
    padded = [f"part-{i:05d}.c000.parquet" for i in range(0, 30000, 777)]
    assert in_natural_order(padded[::-1]) == sorted(padded)


def test_parts_without_padding_are_read_in_their_order(tmp_path, caplog) -> None:
    data = make_transitions((30,), terminated=[True])
    columns = {key: values for key, values in d4rl_columns(data).items() if key != "next_observations"}
    for i in range(12):
        rows = slice(i * 5 // 2, (i + 1) * 5 // 2)
        write_columns(tmp_path / f"{i}.parquet", {key: values[rows] for key, values in columns.items()})
    found = load(tmp_path)
    np.testing.assert_array_equal(found.observations, data.observations)
    np.testing.assert_array_equal(found.next_observations[:-1], data.observations[1:])
    told = [record.getMessage() for record in caplog.records if "are read in the order" in record.getMessage()]
    assert "0.parquet, 1.parquet, 2.parquet, 3.parquet, 4.parquet, 5.parquet, ..." in told[0]
    assert f"the file before {tmp_path}/1.parquet does not end with an episode's end" in told[0]


def test_the_order_is_not_told_where_it_does_not_matter(tmp_path, caplog) -> None:
    for i, length in enumerate((3, 4)):
        columns = d4rl_columns(make_transitions((length,)))
        del columns["next_observations"]
        write_columns(tmp_path / f"{i}.parquet", columns)
    load(tmp_path)
    assert not [record for record in caplog.records if "are read in the order" in record.getMessage()]


def test_an_empty_part_is_passed_over(tmp_path) -> None:
    write_hive(tmp_path, {**STEPS, "episode_id": NUMBERS}, ["episode_id"])
    (tmp_path / "episode_id=99").mkdir()
    empty = pa.table({key: list(values) for key, values in STEPS.items()}).slice(0, 0)
    pq.write_table(empty, tmp_path / "episode_id=99" / "part-0.parquet")
    assert_equal(load(tmp_path), without_last_rows())
