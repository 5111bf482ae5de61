from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.fs
import pyarrow.parquet as pq
import pytest
import ray
import ray.data
from hypothesis import given, settings
from hypothesis import strategies as st
from ray.exceptions import RayTaskError
from ray.util.placement_group import placement_group

from rllib_damo import DAMOConfig
from rllib_damo.data import offline_data
from rllib_damo.data.formats.hdf5 import write_hdf5 as write_d4rl
from rllib_damo.data.formats.parquet import ParquetReader, write_parquet
from rllib_damo.data.offline_data import BulkOfflineData, windows
from rllib_damo.data.schema import Transitions, concatenate
from rllib_damo.errors import DataError
from rllib_damo.utils.arrow import from_arrow, to_arrow
from rllib_damo.utils.spaces import to_unit
from tests.data_helpers import (
    ACTION_SPACE,
    OBSERVATION_SPACE,
    assert_equal,
    d4rl_columns,
    make_transitions,
    write_hdf5,
)

DATA = make_transitions((30, 1, 25, 40, 4))


def _offline(input_: object, **options: object) -> BulkOfflineData:
    config = DAMOConfig().environment(observation_space=OBSERVATION_SPACE, action_space=ACTION_SPACE)
    config.offline_data(input_=input_)
    for key, value in options.items():
        setattr(config, key, value)
    return BulkOfflineData(config)


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(write_d4rl(DATA, tmp_path / "data.hdf5"))


def test_nothing_is_read_before_it_is_asked_for(tmp_path) -> None:
    offline = _offline(str(tmp_path / "later.hdf5"))
    write_d4rl(DATA, tmp_path / "later.hdf5")
    assert_equal(offline.transitions, DATA)
    assert offline.transitions is offline.transitions
    assert offline.refresh() is None


def test_the_schema_is_checked(tmp_path) -> None:
    data = make_transitions()
    data.actions[3] = 7
    with pytest.raises(DataError, match="outside the action space"):
        _ = _offline(str(write_d4rl(data, tmp_path / "bad.hdf5"))).transitions
    with pytest.raises(DataError, match="Did you mean hopper-medium"):
        _ = _offline("hoper-medium").transitions


def test_lists_and_transitions_are_inputs(tmp_path, path) -> None:
    other = make_transitions((3,), seed=4)
    more = str(write_parquet(other, tmp_path / "more.parquet"))
    assert_equal(_offline([path, more]).transitions, concatenate([DATA, other]))
    assert_equal(_offline(DATA).transitions, DATA)


def test_the_configs_conventions_are_those_of_the_files(tmp_path) -> None:
    columns = d4rl_columns(DATA)
    columns = {"o_t": columns.pop("observations"), **columns, "actions": to_unit(DATA.actions, ACTION_SPACE)}
    file = write_hdf5(tmp_path / "data.hdf5", columns)
    options = {"input_read_schema": {"obs": "o_t"}, "actions_in_input_normalized": True}
    found = _offline(file, **options).transitions
    np.testing.assert_array_equal(found.observations, DATA.observations)
    np.testing.assert_allclose(found.actions, DATA.actions, atol=1e-6)
    window = _offline(file, **options, max_dataset_rows=35).transitions
    np.testing.assert_array_equal(window.actions, found.actions[:31])
    with pytest.raises(DataError, match=r"made: actions_in_input_normalized=True: here .* by definition"):
        _ = _offline(DATA, actions_in_input_normalized=True).transitions
    with pytest.raises(DataError, match=r"made: input_read_schema=.*: it names the columns of tables and arrays"):
        _ = _offline(DATA, input_read_schema={"obs": "o_t"}).transitions


def test_an_address_reaches_the_named_filesystem(tmp_path) -> None:
    write_parquet(DATA, tmp_path / "bucket" / "data.parquet")
    bucket = pyarrow.fs.SubTreeFileSystem(str(tmp_path), pyarrow.fs.LocalFileSystem())
    offline = _offline("s3://bucket/data.parquet", input_filesystem=bucket)
    assert_equal(offline.transitions, DATA)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"input_filesystem": "nfs"}, "must be None, a pyarrow filesystem"),
        ({"input_filesystem": "s3", "input_filesystem_kwargs": {"nonsense": 1}}, "cannot be set up"),
        ({"actions_in_input_normalized": True, "action_space": None}, "mapped back by the environment's action space"),
        (
            {"input_read_schema": {"obs": "o_t"}},
            r"no column 'o_t', which input_read_schema has for 'obs'; found \['acti",
        ),
    ],
)
def test_bad_options_are_named(path, options, message) -> None:
    with pytest.raises(DataError, match=message):
        _ = _offline(path, **options).transitions


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=8),
    cap=st.integers(1, 15),
    cuts=st.lists(st.integers(0, 90), max_size=5),
)
def test_windows_regroup_any_stream(lengths, cap, cuts) -> None:
    data = make_transitions(lengths)
    edges = sorted({0, len(data), *(min(cut, len(data)) for cut in cuts)})
    parts = [data.slice(a, b, mark_cut=False) for a, b in zip(edges[:-1], edges[1:], strict=True)]
    found = list(windows(parts, cap))
    assert all(1 <= len(window) <= cap for window in found)
    joined = concatenate(found)
    for key in ("observations", "actions", "rewards", "next_observations", "terminations"):
        np.testing.assert_array_equal(getattr(joined, key), getattr(data, key))
    assert all(window.truncations[-1] or window.terminations[-1] for window in found)
    if cap >= max(lengths):
        np.testing.assert_array_equal(joined.truncations, data.truncations)


def test_the_cost_of_windows_does_not_grow_with_the_number_of_parts(monkeypatch) -> None:
    """Joined at every part, a window's rows would be copied as often as it has parts."""
    copied = []

    def counted(parts, name):
        copied.append(sum(map(len, parts)))
        return concatenate(parts, name)

    monkeypatch.setattr(offline_data, "concatenate", counted)
    parts = [DATA.slice(row, row + 1, mark_cut=False) for row in range(100)]
    assert [len(window) for window in windows(parts, 60)] == [56, 44]
    assert sum(copied) <= 2 * len(DATA)


def _pass(offline: BulkOfflineData, rows: int) -> list[Transitions]:
    found = [offline.transitions]
    while sum(map(len, found)) < rows:
        window = offline.refresh()
        assert window is not None
        assert offline.transitions is window
        found.append(window)
    return found


def test_capped_data_comes_in_windows_and_starts_again(path) -> None:
    offline = _offline(path, max_dataset_rows=45)
    found = _pass(offline, len(DATA))
    assert [len(window) for window in found] == [31, 25, 44]
    assert_equal(concatenate(found), DATA)
    again = offline.refresh()
    assert again is not None
    assert_equal(again, found[0])
    assert offline.window == 1
    assert_equal(offline.skip_to(3), found[2])
    assert_equal(offline.transitions, found[2])
    assert offline.window == 3
    assert_equal(offline.refresh(), found[0])
    assert _offline(path, max_dataset_rows=100).refresh() is None


def test_arrow_and_back() -> None:
    table = to_arrow(DATA.arrays())
    assert_equal(Transitions(**from_arrow(table)), DATA)
    assert_equal(Transitions(**from_arrow(table.slice(5, 20))), DATA.slice(5, 25, mark_cut=False))


def test_a_row_group_is_read_by_one_task_and_splits_are_made_once(tmp_path, monkeypatch) -> None:
    write_parquet(DATA, tmp_path / "all.parquet")
    pq.write_table(pq.read_table(tmp_path / "all.parquet"), tmp_path / "a.parquet", row_group_size=60)
    asked = []
    splits = ParquetReader.splits
    monkeypatch.setattr(ParquetReader, "splits", lambda *arguments: asked.append(arguments) or splits(*arguments))
    monkeypatch.setattr(ray.data, "read_datasource", lambda source, **options: (source, options))
    source, options = _offline(str(tmp_path / "a.parquet"), max_dataset_rows=40).data  # type: ignore[misc]
    read = [list(task()) for task in source.get_read_tasks(options["override_num_blocks"])]
    assert [[len(block) for block in blocks] for blocks in read] == [[31, 25, 40], [4]]
    assert_equal(concatenate([Transitions(**from_arrow(block)) for blocks in read for block in blocks]), DATA)
    assert len(asked) == 1


def test_what_stops_a_stream_is_told_in_a_line(path, monkeypatch) -> None:
    cause = DataError(
        "s3://b/x.parquet: cannot be read: curlCode 7.\nFailed to apply UDF\nTo change retry attempts, ..."
    )

    class Dataset:
        def iter_batches(self, **options: object) -> Iterator[object]:
            raise RayTaskError("read", "a long traceback", cause)
            yield

    offline = _offline(path, max_dataset_rows=60)
    offline._dataset = Dataset()  # type: ignore[assignment]
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    with pytest.raises(DataError) as caught:
        _ = offline.transitions
    assert str(caught.value) == (
        f"{path}: reading stopped: s3://b/x.parquet: cannot be read: curlCode 7. Once that is fixed, "
        "`rllib train --resume` goes on from the last checkpoint."
    )


@pytest.fixture(scope="module")
def _ray() -> Iterator[None]:
    """A Ray whose CPUs are all taken, as by a trial."""
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    ray.get(placement_group([{"CPU": 2}]).ready())
    yield
    ray.shutdown()


@pytest.mark.usefixtures("_ray")
def test_ray_data_streams_the_same_windows(path, tmp_path) -> None:
    more = write_parquet(make_transitions((10, 60), seed=3), tmp_path / "more.parquet")
    everything = concatenate([DATA, make_transitions((10, 60), seed=3)])
    offline = _offline([path, str(more)], max_dataset_rows=60)
    found = _pass(offline, len(everything))
    assert [len(window) for window in found] == [56, 54, 60]
    assert_equal(concatenate(found), everything)
    assert offline.data.count() == len(everything)
