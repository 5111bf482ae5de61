from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.fs
import pytest
import ray
from hypothesis import given, settings
from hypothesis import strategies as st

from rllib_damo import DAMOConfig
from rllib_damo.data import offline_data
from rllib_damo.data.d4rl import write_d4rl
from rllib_damo.data.offline_data import DAMOOfflineData, from_arrow, to_arrow, windows
from rllib_damo.data.parquet import write_parquet
from rllib_damo.data.schema import DataError, Transitions, concatenate
from rllib_damo.spaces import to_unit
from tests.data_helpers import (
    ACTION_SPACE,
    OBSERVATION_SPACE,
    assert_equal,
    d4rl_columns,
    make_transitions,
    write_hdf5,
)

DATA = make_transitions((30, 1, 25, 40, 4))


def _offline(input_: object, **options: object) -> DAMOOfflineData:
    config = DAMOConfig().environment(observation_space=OBSERVATION_SPACE, action_space=ACTION_SPACE)
    config.offline_data(input_=input_)
    for key, value in options.items():
        setattr(config, key, value)
    return DAMOOfflineData(config)


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
    with pytest.raises(DataError, match=r"made: actions_in_input_normalized=True, but here .* by definition"):
        _ = _offline(DATA, actions_in_input_normalized=True).transitions
    with pytest.raises(DataError, match="made: input_read_schema names the columns of HDF5 and Parquet files"):
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
        ({"max_dataset_rows": 0}, "max_dataset_rows=0"),
        ({"max_dataset_rows": 1.5}, "max_dataset_rows=1.5"),
        ({"max_dataset_rows": True}, "max_dataset_rows=True"),
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


def _pass(offline: DAMOOfflineData, rows: int) -> list[Transitions]:
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
    table = to_arrow(DATA)
    assert_equal(from_arrow(table, "x"), DATA)
    assert_equal(from_arrow(table.slice(5, 20), "x"), DATA.slice(5, 25, mark_cut=False))


@pytest.fixture(scope="module")
def _ray() -> Iterator[None]:
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
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
