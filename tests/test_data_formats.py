"""The registry of formats: what each reads and writes, and a format that is added from outside the package."""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rllib_damo import DAMOConfig
from rllib_damo.data.convert import convert
from rllib_damo.data.formats import registry
from rllib_damo.data.formats.flat import ArraysReader
from rllib_damo.data.formats.reader import Conventions, Format
from rllib_damo.data.offline_data import BulkOfflineData
from rllib_damo.data.schema import concatenate
from rllib_damo.data.sources import load, resolve
from rllib_damo.errors import DataError
from tests.data_helpers import (
    ACTION_SPACE,
    OBSERVATION_SPACE,
    assert_equal,
    d4rl_columns,
    make_transitions,
    write_columns,
    write_hdf5,
)

DATA = make_transitions((4, 3, 5))


def write_npz(path: Path, columns: dict[str, Any]) -> str:
    np.savez(path, **columns)
    return str(path)


def write_csv(path: Path, columns: dict[str, Any]) -> str:
    pd.DataFrame(columns).to_csv(path, index=False)
    return str(path)


WRITE: dict[str, Callable[[Path, dict[str, Any]], str]] = {
    "hdf5": write_hdf5, "parquet": write_columns, "npz": write_npz, "csv": write_csv,
}  # fmt: skip
KINDS = pytest.mark.parametrize("kind", WRITE)


def numbered(columns: dict[str, np.ndarray], start: int = 0, **names: str) -> dict[str, np.ndarray]:
    """Each vector as one column a dimension."""
    out = {}
    for key, array in columns.items():
        if array.ndim == 1:
            out[key] = array
        else:
            out |= {f"{names.get(key, key)}_{i + start}": array[:, i] for i in range(array.shape[1])}
    return out


@KINDS
@pytest.mark.parametrize("start", [0, 1])
def test_one_column_a_dimension(tmp_path, kind, start) -> None:
    names = {"observations": "obs", "actions": "action", "next_observations": "next_obs"}
    columns = numbered(d4rl_columns(DATA), start, **names)
    columns = dict(reversed(columns.items()))  # the numbers tell the order
    path = WRITE[kind](tmp_path / f"data.{kind}", columns)
    assert_equal(load(path, conventions=Conventions(ACTION_SPACE), observation_space=OBSERVATION_SPACE), DATA)
    reader = resolve(path)
    assert_equal(concatenate([reader.read(*part) for part in reader.splits(5)]), DATA)
    assert_equal(pickle.loads(pickle.dumps(reader)).read(), DATA)


@KINDS
def test_eleven_columns_are_in_the_order_of_numbers(tmp_path, kind) -> None:
    wide = np.arange(12 * 11, dtype=np.float32).reshape(12, 11)
    columns = {**numbered({"obs": wide}), "actions_0": DATA.actions[:, 0]}
    columns |= {"rewards": DATA.rewards, "timeouts": DATA.terminations | DATA.truncations}
    found = load(WRITE[kind](tmp_path / f"data.{kind}", columns))
    np.testing.assert_array_equal(found.observations[0], wide[0])
    np.testing.assert_array_equal(found.next_observations[0], wide[1])


@KINDS
def test_named_columns_make_one_vector(tmp_path, kind) -> None:
    columns = numbered(d4rl_columns(DATA))
    for old, new in (("observations_0", "pos"), ("observations_1", "vel"), ("observations_2", "load")):
        columns[new] = columns.pop(old)
        columns[f"next_{new}"] = columns.pop(f"next_{old}")
    path = WRITE[kind](tmp_path / f"data.{kind}", columns)
    schema = {"obs": ["pos", "vel", "load"], "new_obs": ["next_pos", "next_vel", "next_load"]}
    assert_equal(load(path, conventions=Conventions(input_read_schema=schema)), DATA)
    for given_, message in (
        ({"obs": ["pos", "speed"]}, r"no column 'speed', which input_read_schema has for 'obs'"),
        ({"obs": []}, "an empty list for 'obs'"),
        ({**schema, "rewards": ["rewards", "load"]}, "2 columns for 'rewards', which is one value a row"),
    ):
        with pytest.raises(DataError, match=message):
            load(path, conventions=Conventions(input_read_schema=given_))


def test_vectors_and_numbers_may_make_one_vector(tmp_path) -> None:
    columns = d4rl_columns(DATA)
    columns |= {"pos": columns.pop("observations")[:, :2], "vel": DATA.observations[:, 2].astype(np.float64)}
    path = write_columns(tmp_path / "a.parquet", columns)
    assert_equal(load(path, conventions=Conventions(input_read_schema={"obs": ["pos", "vel"]})), DATA)


@KINDS
def test_numbered_columns_that_are_not_all_there(tmp_path, kind) -> None:
    columns = numbered(d4rl_columns(DATA))
    del columns["observations_1"]
    with pytest.raises(DataError, match=r"observations_0, observations_2 are one vector, whose numbers must go on"):
        load(WRITE[kind](tmp_path / f"data.{kind}", columns))


def test_whole_numbers_in_csv_are_numbers_where_others_are_not(tmp_path) -> None:
    """The types in CSV are told by the values: one action column may hold 0 and 1 alone, by chance."""
    columns = numbered(d4rl_columns(DATA))
    columns["actions_1"] = np.tile([0, 1], 6)
    found = load(write_csv(tmp_path / "a.csv", columns))
    np.testing.assert_array_equal(found.actions[:, 1], np.tile(np.float32([0, 1]), 6))
    columns["actions_0"] = np.tile([0, 1], 6)
    with pytest.raises(DataError, match=r"actions_0, actions_1 hold int64; actions must be continuous .* \(1\.0\)"):
        load(write_csv(tmp_path / "a.csv", columns))


def test_a_csv_column_that_begins_with_whole_numbers(tmp_path) -> None:
    rows = 200_000  # more than pyarrow's block, by whose first values it tells types
    text = "".join(f"{i},0.5,{int(i < rows - 1) or 0.25},{int(i % 100 == 99)}\n" for i in range(rows))
    (tmp_path / "a.csv").write_text("obs_0,action_0,reward,timeouts\n" + text)
    assert load(tmp_path / "a.csv").rewards.min() == 1  # the last row has no successor
    (tmp_path / "a.csv").write_text("obs_0,action_0,reward,terminals\n" + text)
    assert load(tmp_path / "a.csv").rewards[-1] == 0.25


def test_csv_in_a_folder_compressed(tmp_path) -> None:
    frame = pd.DataFrame(numbered(d4rl_columns(DATA)))
    frame[:7].to_csv(tmp_path / "a.csv.gz", index=False)
    frame[7:].to_csv(tmp_path / "b.csv", index=False)
    for name in (tmp_path, tmp_path / "*.csv*"):
        assert_equal(load(name), DATA)


def test_damaged_csv_and_npz_are_named(tmp_path) -> None:
    (tmp_path / "a.csv").write_text("a,b\n1,2\n1,2,3\n")
    (tmp_path / "b.csv").write_text("")
    (tmp_path / "c.npz").write_text("nothing")
    np.savez(tmp_path / "whole.npz", **d4rl_columns(DATA))
    (tmp_path / "d.npz").write_bytes((tmp_path / "whole.npz").read_bytes()[:700])
    np.save(tmp_path / "e.npy", DATA.rewards)
    (tmp_path / "e.npy").rename(tmp_path / "e.npz")
    for name, kind in (("a.csv", "CSV"), ("b.csv", "CSV"), ("c.npz", "NPZ"), ("d.npz", "NPZ"), ("e.npz", "NPZ")):
        with pytest.raises(DataError, match=rf"{name}: not a readable {kind} file"):
            load(tmp_path / name)
    frame = pd.DataFrame(numbered(d4rl_columns(DATA)))
    frame.loc[3, "rewards"] = None
    frame.to_csv(tmp_path / "f.csv", index=False)
    with pytest.raises(DataError, match=r"'rewards' has missing values, the first in row 3"):
        load(tmp_path / "f.csv")


class _Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("ran"),)


def test_an_npz_that_asks_for_more_memory_than_there_is(tmp_path) -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": (1 << 50,)})
    np.savez(tmp_path / "a.npz", **d4rl_columns(DATA))
    with zipfile.ZipFile(tmp_path / "a.npz", "a") as file:
        file.writestr("more.npy", header.getvalue())
    with pytest.raises(DataError, match=r"a\.npz: not a readable NPZ file \(.*allocate"):
        load(tmp_path / "a.npz")


def test_hdf5_that_asks_for_more_memory_than_there_is(tmp_path) -> None:
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        for key, array in d4rl_columns(DATA).items():
            file.create_dataset(key, (1 << 45, *array.shape[1:]), array.dtype, chunks=(100, *array.shape[1:]))
    with pytest.raises(DataError, match=r"a\.hdf5: cannot be read \(.*allocate"):
        load(tmp_path / "a.hdf5")


def test_npz_runs_no_code(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    np.savez("a.npz", **{**d4rl_columns(DATA), "infos": np.array([_Evil()], object)})
    with pytest.raises(DataError, match=r"a\.npz: not a readable NPZ file"):
        load("a.npz")
    assert not Path("ran").exists()


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(episodes=st.lists(st.tuples(st.integers(1, 9), st.booleans()), min_size=1, max_size=5), seed=st.integers(0, 99))
def test_what_is_written_is_read_back(tmp_path, episodes, seed) -> None:
    data = make_transitions([length for length, _ in episodes], [ended for _, ended in episodes], seed)
    data.observations[0] *= np.float32(1e-30)
    facts = {"author": "someone"}
    for form in registry.formats():
        if not (form.write and form.suffixes):
            continue
        path = tmp_path / f"data{form.suffixes[0]}"
        form.write(data, str(path), metadata=facts, overwrite=True)
        assert_equal(load(path), data)
        assert resolve(path).metadata() == ({} if form.name == "csv" else facts)
        again = tmp_path / f"again{form.suffixes[0]}"
        convert(path, again, overwrite=True)
        assert load(again).fingerprint() == data.fingerprint()
        with pytest.raises(DataError, match="exists"):
            convert(path, again)


def test_arrow_types_that_are_numbers(tmp_path) -> None:
    columns: dict[str, Any] = {key: list(values) for key, values in d4rl_columns(DATA).items()}
    exact = [Decimal(i) / 4 for i in range(12)]
    columns["rewards"] = pa.array(exact, pa.decimal128(9, 3))
    columns["observations"] = pa.StructArray.from_arrays(list(DATA.observations.T), ["z", "b", "a"])
    columns["next_observations"] = [dict(zip("zba", row, strict=True)) for row in DATA.next_observations]
    columns["episode_id"] = pa.array(np.repeat(["x", "y", "z"], (4, 3, 5))).dictionary_encode()
    columns["actions"] = pa.array([[Decimal("0.5"), Decimal(1)]] * 12, pa.list_(pa.decimal128(5, 1)))
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    found = load(tmp_path / "a.parquet")
    np.testing.assert_array_equal(found.rewards, np.arange(12, dtype=np.float32) / 4)
    np.testing.assert_array_equal(found.observations, DATA.observations)
    np.testing.assert_array_equal(found.next_observations, DATA.next_observations)
    np.testing.assert_array_equal(found.actions, np.float32([[0.5, 1]] * 12))
    np.testing.assert_array_equal(found.episode_bounds(), DATA.episode_bounds())
    columns["rewards"] = pa.array(np.arange(12.0) % 3).dictionary_encode()
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    np.testing.assert_array_equal(load(tmp_path / "a.parquet").rewards, np.arange(12) % 3)


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (pa.array([1] * 12, pa.timestamp("ms")), r"'rewards' has the type timestamp\[ms\], which is no number.*cast\("),
        (pa.array([{"a": [1.0]}] * 12), r"'rewards' holds struct<a: list<.*one number a field"),
        (pa.array([{"a": "x"}] * 12), r"'rewards\.a' holds text"),
        (pa.array([[[1.0]]] * 12), "every row must be one flat vector"),
    ],
)
def test_arrow_types_that_are_not_are_named(tmp_path, column, message) -> None:
    columns = {key: list(values) for key, values in d4rl_columns(DATA).items()}
    pq.write_table(pa.table({**columns, "rewards": column}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=message):
        load(tmp_path / "a.parquet")


@pytest.fixture
def own_registry(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A registry without formats from outside; returns what Ray's registry is given."""
    shared: dict[str, Any] = {}
    monkeypatch.setattr(registry, "_others", {})
    monkeypatch.setattr(registry, "register_input", shared.__setitem__)
    monkeypatch.setattr(registry, "registry_contains_input", shared.__contains__)
    monkeypatch.setattr(registry, "registry_get_input", shared.__getitem__)
    return shared


class TextReader(ArraysReader):
    """Toy: lines of `name: numbers`; a vector's numbers are those of one step after the other."""

    def load(self) -> dict[str, np.ndarray]:
        lines = dict(line.split(": ") for line in Path(self.name).read_text().splitlines())
        columns = {key: np.array(text.split(), float) for key, text in lines.items()}
        rows = len(columns["rewards"])
        return {key: array.reshape(rows, -1) for key, array in columns.items()}


def write_text(transitions, target, /, *, metadata, overwrite) -> Path:
    columns = transitions.arrays().items()
    lines = [f"{key}: {' '.join(map(str, array.reshape(-1).astype(float)))}" for key, array in columns]
    Path(target).write_text("\n".join(lines))
    return Path(target)


TOY = Format("toy", "toy text", lambda place, c: TextReader(str(place.path), c), (".toy",), write=write_text)


def test_a_format_from_outside(tmp_path, own_registry, monkeypatch) -> None:
    write_text(DATA, tmp_path / "data.toy", metadata=None, overwrite=False)
    with pytest.raises(DataError, match=r"files are read that end in \.parquet"):
        load(tmp_path / "data.toy")
    registry.register_format(TOY)
    assert_equal(load(tmp_path / "data.toy"), DATA)
    assert_equal(resolve(tmp_path / "data.toy").read(4, 7), DATA.slice(4, 7))
    config = DAMOConfig().environment(observation_space=OBSERVATION_SPACE, action_space=ACTION_SPACE)
    config.offline_data(input_=str(tmp_path / "data.toy"))
    assert_equal(BulkOfflineData(config).transitions, DATA)
    convert(tmp_path / "data.toy", tmp_path / "a.npz")
    convert(tmp_path / "a.npz", tmp_path / "back.toy")
    assert_equal(load(tmp_path / "back.toy"), DATA)
    with pytest.raises(DataError, match=r"write to a path in \.toy, \.parquet"):
        convert(tmp_path / "a.npz", tmp_path / "x.txt")
    with pytest.raises(DataError, match=r"; toy text \(\.toy\);|names hopper.*toy text \(\.toy\)"):
        load("something")
    monkeypatch.setattr(registry, "_others", {})  # as in another process of the same Ray
    assert_equal(load(tmp_path / "data.toy"), DATA)


def test_a_format_must_say_what_it_reads(own_registry) -> None:
    with pytest.raises(DataError, match="Format 'x': give suffixes, a scheme or"):
        registry.register_format(Format("x", "nothing", TOY.open))


def test_a_format_may_have_a_scheme_or_know_a_folder(tmp_path, own_registry) -> None:
    reader = resolve(write_hdf5(tmp_path / "data.hdf5", d4rl_columns(DATA)))
    registry.register_format(Format("x", "x", lambda place, c: reader, scheme="lake://"))
    registry.register_format(
        Format("y", "y", lambda place, c: reader, recognises=lambda place: (place.path / "mark").exists())
    )
    assert load("lake://anything").fingerprint() == DATA.fingerprint()
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "mark").touch()
    assert load(tmp_path / "folder").fingerprint() == DATA.fingerprint()


def test_the_read_method_chooses_among_formats(tmp_path) -> None:
    write_csv(tmp_path / "a.csv", numbered(d4rl_columns(DATA)))
    write_columns(tmp_path / "b.parquet", {"nothing": [1]})
    with pytest.raises(DataError, match="no column for observations"):
        load(tmp_path)
    assert_equal(load(tmp_path, read_method="read_csv"), DATA)
    with pytest.raises(DataError, match=r"input_read_method='read_lance': there are 'read_parquet', 'read_csv'"):
        load(tmp_path, read_method="read_lance")
    config = DAMOConfig().offline_data(input_=str(tmp_path), input_read_method="read_csv")
    assert_equal(BulkOfflineData(config).transitions, DATA)


def test_hdf5_arrays_of_a_number_are_left_alone(tmp_path) -> None:
    path = write_hdf5(tmp_path / "a.hdf5", d4rl_columns(DATA))
    with h5py.File(path, "a") as file:
        file["version"] = 3
    assert_equal(load(path), DATA)
