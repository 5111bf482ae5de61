from __future__ import annotations

import io
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import h5py
import minari
import numpy as np
import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq
import pytest

from rllib_damo.data.formats import files
from rllib_damo.data.formats import minari as minari_read
from rllib_damo.data.formats.hdf5 import write_hdf5 as write_d4rl
from rllib_damo.data.formats.minari_files import write_minari
from rllib_damo.data.formats.parquet import write_parquet
from rllib_damo.data.formats.reader import Conventions
from rllib_damo.data.info import report
from rllib_damo.data.schema import concatenate
from rllib_damo.data.sources import load, resolve
from rllib_damo.errors import DataError
from tests.data_helpers import (
    ACTION_SPACE,
    OBS,
    OBSERVATION_SPACE,
    WRITERS,
    assert_equal,
    d4rl_columns,
    make_transitions,
    write_columns,
    write_hdf5,
)


@pytest.fixture(autouse=True)
def _own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    monkeypatch.setenv("RLLIB_DAMO_CACHE", str(tmp_path / "cache"))


def _drop(*keys: str):
    return lambda columns: {key: values for key, values in columns.items() if key not in keys}


def _change(key: str, change):
    return lambda columns: {**columns, key: change(columns[key])}


def _nan(values: np.ndarray) -> np.ndarray:
    values = values.copy()
    values[1] = np.nan
    return values


@WRITERS
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_drop("rewards"), "no column for rewards; found .*Name them rewards: rewards or reward"),
        (_drop("observations", "actions"), "no column for observations, actions"),
        (_drop("terminals", "timeouts", "next_observations"), "neither terminations nor truncations nor episode ids"),
        (_change("observations", _nan), "observations hold values that are not finite in 1 row"),
        (_change("rewards", _nan), "rewards hold values that are not finite"),
        (_change("rewards", lambda x: np.full(len(x), 1e300)), "not finite in 12 row.*inf"),
        (_change("observations", lambda x: x[:, :2]), "observations have width 2, but next_observations 3"),
        (_change("actions", lambda x: x[:, :1]), "actions have width 1, but the environment's space has 2"),
        (_change("actions", lambda x: np.arange(len(x))), "must be continuous"),
        (_change("actions", lambda x: x * 9), "outside the action space"),
        (_change("terminals", lambda x: np.arange(len(x))), "values other than 0 and 1"),
        (
            lambda columns: {
                **_drop("next_observations")(columns), "terminals": np.zeros(12, bool), "timeouts": np.zeros(12, bool)
            },
            "no end",
        ),
    ],
)  # fmt: skip
def test_unsound_columns_are_refused(tmp_path, write, spoil, message) -> None:
    path = write(
        tmp_path / f"d.{'hdf5' if write is write_hdf5 else 'parquet'}", spoil(d4rl_columns(make_transitions()))
    )
    with pytest.raises(DataError, match=message):
        load(path, observation_space=OBSERVATION_SPACE, conventions=Conventions(ACTION_SPACE))


@WRITERS
def test_actions_that_are_not_normalised_are_not_taken_for_it(tmp_path, write) -> None:
    unit = np.random.default_rng(0).uniform(-1, 1, (12, 2)).astype(np.float32)
    for change, message in (
        ({(4, 1): 1.5, (9, 0): -2.0}, r"in \[-1, 1\], but 2 row\(s\) do not, first .*1\.5\] in row 4.*leave out"),
        ({(4, 1): np.inf}, r"actions hold values that are not finite in 1 row\(s\), first inf in row 4"),
        ({(4, 1): -np.inf}, r"first -inf in row 4"),
    ):
        actions = unit.copy()
        for place, value in change.items():
            actions[place] = value
        columns = {**d4rl_columns(make_transitions()), "actions": actions}
        path = write(tmp_path / f"d.{'hdf5' if write is write_hdf5 else 'parquet'}", columns)
        with pytest.raises(DataError, match=message):
            load(path, conventions=Conventions(ACTION_SPACE, actions_in_input_normalized=True))
    columns["actions"] = np.ones((12, 2), int)
    path = write(tmp_path / f"d.{'hdf5' if write is write_hdf5 else 'parquet'}", columns)
    with pytest.raises(DataError, match="actions have type int64; they must be continuous"):
        load(path, conventions=Conventions(ACTION_SPACE, actions_in_input_normalized=True))


def test_other_unsound_files(tmp_path) -> None:
    columns = d4rl_columns(make_transitions())
    with pytest.raises(DataError, match=r"different lengths.*rewards 11"):
        load(write_hdf5(tmp_path / "a.hdf5", {**columns, "rewards": columns["rewards"][:-1]}))
    with pytest.raises(DataError, match="one vector"):
        load(write_hdf5(tmp_path / "b.hdf5", {**columns, "observations": np.zeros((12, 4, 4), np.float32)}))
    for key in ("observations", "rewards"):
        path = write_hdf5(tmp_path / f"{key}.hdf5", {**columns, key: columns[key] > 0})
        with pytest.raises(DataError, match=rf"{key} have type bool.*\.astype\(float\)"):
            load(path)
    with pytest.raises(DataError, match="they must be floating point"):
        load(write_hdf5(tmp_path / "c.hdf5", {**columns, "rewards": np.array([b"x"] * 12)}))
    (tmp_path / "d.hdf5").write_text("version https://git-lfs.github.com/spec/v1")
    with pytest.raises(DataError, match="not a readable HDF5"):
        load(tmp_path / "d.hdf5")
    with pytest.raises(DataError, match=r"no arrays at the top of the file, only groups \(logs\)\. Put observations"):
        load(write_hdf5(tmp_path / "d2.hdf5", {f"logs/of/all/{key}": values for key, values in columns.items()}))
    (tmp_path / "e.parquet").write_bytes(io.BytesIO(b"nothing").getvalue())
    with pytest.raises(DataError, match="not a readable Parquet"):
        load(tmp_path / "e.parquet")
    ragged = [list(row) for row in columns["observations"]]
    ragged[3] = ragged[3][:2]
    with pytest.raises(DataError, match="different widths"):
        load(write_columns(tmp_path / "f.parquet", {**columns, "observations": ragged}))
    with pytest.raises(DataError, match=r"'rewards' has missing values, the first in row 2;"):
        load(
            write_columns(
                tmp_path / "g.parquet", {**columns, "rewards": [*columns["rewards"][:2], None, *columns["rewards"][3:]]}
            )
        )
    folder = write_minari(
        make_transitions(), "test/x-v0", observation_space=OBSERVATION_SPACE, action_space=ACTION_SPACE
    )
    with pytest.raises(DataError, match="inside of a Minari dataset"):
        load(folder / "main_data.hdf5")
    (folder / "main_data.hdf5").write_bytes(b"")
    with pytest.raises(DataError, match="cannot be read"):
        load("test/x-v0")


def test_hdf5_columns_of_unlike_length_are_refused_in_windows(tmp_path) -> None:
    columns = d4rl_columns(make_transitions())
    reader = resolve(write_hdf5(tmp_path / "a.hdf5", {**columns, "rewards": columns["rewards"][:-1]}))
    for read in (lambda: reader.read(0, 4), lambda: reader.splits(4)):
        with pytest.raises(DataError, match=r"a\.hdf5: the columns have different lengths.*rewards 11"):
            read()


def test_damaged_hdf5_is_named(tmp_path) -> None:
    columns = d4rl_columns(make_transitions())
    path = tmp_path / "filter.hdf5"
    write_hdf5(path, {key: values for key, values in columns.items() if key != "rewards"})
    with h5py.File(path, "a") as file:
        options = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        options.set_chunk((12,))
        options.set_filter(32001, h5py.h5z.FLAG_OPTIONAL, ())  # blosc, whose plugin h5py does not have
        space = h5py.h5s.create_simple((12,))
        rewards = h5py.h5d.create(file.id, b"rewards", h5py.h5t.IEEE_F32LE, space, options)
        rewards.write_direct_chunk((0,), columns["rewards"].tobytes(), 0)
    gzip = write_d4rl(make_transitions((500,)), tmp_path / "gzip.hdf5")
    with h5py.File(gzip) as file:
        chunk = file["rewards"].id.get_chunk_info(0)
    content = bytearray(gzip.read_bytes())
    content[chunk.byte_offset : chunk.byte_offset + chunk.size] = b"U" * chunk.size
    gzip.write_bytes(content)
    for damaged in (path, gzip):
        with pytest.raises(DataError, match=rf"{damaged.name}: cannot be read \(.*Copy or download it again; or, if"):
            load(damaged)
        assert report(damaged)[0].startswith("FAIL  readable: ")


def test_damaged_parquet_is_named(tmp_path) -> None:
    write_parquet(make_transitions((500,)), tmp_path / "plain.parquet")
    pq.write_table(pq.read_table(tmp_path / "plain.parquet"), tmp_path / "gzip.parquet", compression="gzip")
    content = bytearray((tmp_path / "gzip.parquet").read_bytes())
    content[100:500] = b"U" * 400
    (tmp_path / "gzip.parquet").write_bytes(content)
    with pytest.raises(DataError, match=r"gzip\.parquet: cannot be read \(.*Copy or download it again"):
        load(tmp_path / "gzip.parquet")
    assert report(tmp_path / "gzip.parquet")[0].startswith("FAIL  readable: ")


def test_a_flag_that_is_missing_may_mean_false(tmp_path) -> None:
    columns = {**d4rl_columns(make_transitions()), "timeouts": [None] * 11 + [True]}
    with pytest.raises(DataError, match=r"'timeouts' has missing values, the first in row 0; write false for them"):
        load(write_columns(tmp_path / "a.parquet", columns))


def test_two_ids_a_row_are_refused(tmp_path) -> None:
    path = write_hdf5(tmp_path / "a.hdf5", {**d4rl_columns(make_transitions()), "episode_id": np.zeros((12, 2))})
    for read in (lambda: load(path), lambda: resolve(path).splits(5)):
        with pytest.raises(DataError, match=r"a\.hdf5: episode ids have shape \(12, 2\)"):
            read()


def test_files_are_joined_and_must_share_their_columns(tmp_path) -> None:
    first, second = make_transitions((3, 2)), make_transitions((4,), seed=1)
    write_parquet(first, tmp_path / "parts" / "a.parquet")
    write_parquet(second, tmp_path / "parts" / "b.parquet")
    both = concatenate([first, second])
    for name in (tmp_path / "parts", str(tmp_path / "parts" / "*.parquet"), f"file://{tmp_path}/parts"):
        assert_equal(load(name), both)
    assert_equal(load([str(tmp_path / "parts" / "a.parquet"), str(tmp_path / "parts" / "b.parquet")]), both)
    columns = d4rl_columns(second)
    del columns["rewards"]
    write_columns(tmp_path / "parts" / "b.parquet", columns)
    with pytest.raises(DataError, match=r"b\.parquet: column\(s\) .*rewards.* are missing"):
        load(tmp_path / "parts")
    write_columns(
        tmp_path / "parts" / "b.parquet",
        {**d4rl_columns(second), **second.arrays(), "observations": np.zeros((4, OBS + 1))},
    )
    with pytest.raises(DataError, match="one width"):
        load(tmp_path / "parts")


def test_what_the_first_file_lacks_is_not_passed_over(tmp_path, caplog) -> None:
    columns = d4rl_columns(make_transitions((3, 2), [True, True]))
    first = {key: values for key, values in columns.items() if key not in ("timeouts", "next_observations")}
    write_columns(tmp_path / "a.parquet", first)
    write_columns(tmp_path / "b.parquet", columns)
    with pytest.raises(DataError, match=r"b\.parquet: column\(s\) \['next_observations', 'timeouts'\] are not in the"):
        load(tmp_path)
    for name in ("a", "b", "c"):
        cut = first["terminals"] if name == "a" else np.zeros(5, bool)
        write_columns(tmp_path / f"{name}.parquet", {**first, "episode_id": np.zeros(5, int), "terminals": cut})
    load(tmp_path)
    (record,) = [record for record in caplog.records if "begins with the episode id" in record.getMessage()]
    assert "c.parquet begins with the episode id that the file before ends with, 0" in record.getMessage()


def test_a_column_that_is_there_twice_is_refused(tmp_path) -> None:
    table = pa.table({key: list(values) for key, values in d4rl_columns(make_transitions()).items()})
    pq.write_table(table.append_column("rewards", table["rewards"]), tmp_path / "twice.parquet")
    with pytest.raises(DataError, match=r"twice\.parquet: there is more than one column 'rewards'"):
        load(tmp_path / "twice.parquet")


def test_the_first_files_types_do_not_decide_for_the_others(tmp_path) -> None:
    data = make_transitions((3, 2, 4))
    columns = {**d4rl_columns(data), "episode_id": np.repeat([1, 2, 3], (3, 2, 4))}
    columns["rewards"] = np.r_[[0, 1, 2], np.full(6, 0.75)]
    first, second = ({key: values[rows] for key, values in columns.items()} for rows in (slice(0, 3), slice(3, 9)))
    whole = {"rewards": np.int64, "observations": np.int16, "terminals": bool, "episode_id": np.int32}
    write_columns(tmp_path / "a.parquet", first | {key: first[key].astype(dtype) for key, dtype in whole.items()})
    write_columns(tmp_path / "b.parquet", {**second, "terminals": second["terminals"].astype(np.float64)})
    found = load(tmp_path)
    np.testing.assert_array_equal(found.rewards, columns["rewards"].astype(np.float32))
    np.testing.assert_array_equal(found.observations[3:], data.observations[3:])
    np.testing.assert_array_equal(found.terminations, data.terminations)
    for spoilt, message in (
        (
            {"episode_id": ["x"] * 6},
            r"b\.parquet: column 'episode_id' holds ids of type object after ids of type int64",
        ),
        ({"actions": np.ones((6, 2), int)}, r"b\.parquet: actions have type int64"),
        ({"episode_id": np.zeros((6, 2))}, r"b\.parquet: episode ids have shape \(6, 2\)"),
    ):
        write_columns(tmp_path / "b.parquet", second | spoilt)
        with pytest.raises(DataError, match=message):
            load(tmp_path)


def test_globs_and_names_that_look_like_one(tmp_path, monkeypatch) -> None:
    parts = {
        name: make_transitions((length,), seed=length)
        for length, name in enumerate(("a.parquet", "b.pq", "old/c.parquet", "old/er/d.parquet", "x[1].parquet"), 1)
    }
    for name, data in parts.items():
        write_parquet(data, tmp_path / "data[1]" / name)
    monkeypatch.chdir(tmp_path / "data[1]")
    for name in ("_a.parquet", ".b.parquet", "_old/c.parquet", "old/.er/d.pq"):
        write_parquet(make_transitions((6,)), tmp_path / "data[1]" / name)
    for name, lengths in (
        (tmp_path / "data[1]", [1, 2, 3, 4, 5]),
        ("_*.parquet", [6]),
        (".*.parquet", [6]),
        ("_old", [6]),
        ("**/.er/*.pq", [6]),
        (tmp_path / "data[1]" / "*.parquet", [1, 5]),
        (tmp_path / "data[[]1]" / "?.parquet", [1]),
        ("o*/*.parquet", [3]),
        ("**/*.parquet", [1, 3, 4, 5]),
        (f"file://{tmp_path}/data*/*/*/*.parquet", [4]),
        ("x[1].parquet", [5]),
    ):
        found = load(str(name))
        assert np.diff(found.episode_bounds())[:, 0].tolist() == lengths, name


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("hoper-medium", "Did you mean hopper-medium"),
        ("hopper-medium-v2", "no dataset of this name. Did you mean hopper-medium"),
        ("{tmp}/dato.hdf5", r"no such file, as this machine .* sees it.*data\.hdf5"),
        ("{tmp}/dato.parquet", "no such file"),
        ("{tmp}/*.parquet", "no Parquet file there"),
        ("{tmp}", r"HDF5 is read by the names of files, several as a list: .*data\.hdf5"),
        ("{tmp}/*.hdf5", r"HDF5 is read by the names of files, several as a list: .*data\.hdf5"),
        ("{tmp}/*.parquet/*.parquet", "no Parquet file there"),
        ("{tmp}/notes.txt", "files are read that end"),
        ("something", "There are the short names"),
        ("ftp://host/data.parquet", r"cannot be reached: .*\. There are s3://, gs://"),
        ("s3://key:secret@bucket/data.hdf5", "^s3://bucket/data.hdf5: .* a path of this machine only"),
        ("", "name a dataset as text"),
        ([], "empty list"),
        ("../../etc-v0", "no dataset of this name|downloading it failed"),
    ],
)
def test_unknown_names_list_what_is_near(tmp_path, name, message) -> None:
    write_d4rl(make_transitions(), tmp_path / "data.hdf5")
    (tmp_path / "notes.txt").write_text("x")
    write_minari(make_transitions(), "test/mine-v0", observation_space=OBSERVATION_SPACE, action_space=ACTION_SPACE)
    with pytest.raises(DataError, match=message):
        load(name.format(tmp=tmp_path) if isinstance(name, str) else name)


def test_a_minari_id_that_cannot_be_downloaded(monkeypatch) -> None:
    def fail(dataset_id: str) -> None:
        raise ConnectionError("no route to host")

    monkeypatch.setattr(minari, "download_dataset", fail)
    with pytest.raises(
        DataError, match=r"not on this machine.*ConnectionError: no route to host.*Check the id and the network"
    ):
        load("minari://D4RL/door/human-v2")


@pytest.mark.parametrize(
    "name", ["minari://D4RL/hopper/medium-v0", "mujoco/hopper/medium-v0", "minari://hopper-medium-v0"]
)
def test_an_id_near_to_a_known_name_is_downloaded(name, monkeypatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(minari, "download_dataset", lambda dataset_id: asked.append(dataset_id) or 1 / 0)
    with pytest.raises(DataError, match=r"downloading it failed \(ZeroDivisionError.* Did you mean hopper-medium"):
        load(name)
    assert asked == [name.removeprefix("minari://")]


def test_trials_that_need_one_dataset_download_it_once(tmp_path, monkeypatch) -> None:
    asked = []

    def download(dataset_id: str) -> None:
        asked.append(dataset_id)
        data = tmp_path / "minari" / dataset_id / "data"
        data.mkdir(parents=True)
        time.sleep(0.2)
        (data / "metadata.json").touch()

    monkeypatch.setattr(minari, "download_dataset", download)
    with ThreadPoolExecutor(3) as pool:
        places = list(pool.map(minari_read.download, ["some/thing-v0"] * 3))
    assert set(places) == {tmp_path / "minari" / "some" / "thing-v0" / "data"}
    assert asked == ["some/thing-v0"]


def test_a_half_downloaded_dataset_is_told(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(minari, "download_dataset", lambda dataset_id: pytest.fail("asked for"))
    (tmp_path / "minari" / "D4RL" / "door" / "human-v2" / "data").mkdir(parents=True)
    with pytest.raises(DataError, match=r"door/human-v2: an incomplete dataset, .*Delete the folder"):
        load("minari://D4RL/door/human-v2")


def test_a_short_name_is_made_once(monkeypatch) -> None:
    from rllib_damo.data.generate import datasets

    data, made = make_transitions(), []

    def make(name: str) -> str:
        made.append(name)
        dataset_id = datasets.NAMES[name].dataset_id
        write_minari(data, dataset_id, observation_space=OBSERVATION_SPACE, action_space=ACTION_SPACE)
        return dataset_id

    monkeypatch.setattr(datasets, "make", make)
    for _ in range(2):
        assert_equal(load("hopper-medium"), data)
    assert made == ["hopper-medium"]


class _Remote:
    """A filesystem where one method fails."""

    def __init__(self, method: str, error: Exception) -> None:
        self._method, self._error = method, error

    def __getattr__(self, name: str):
        if name == self._method:
            raise self._error
        return getattr(pyarrow.fs.LocalFileSystem(), name)


@pytest.mark.parametrize(
    ("method", "error", "message"),
    [
        (
            "get_file_info",
            pa.ArrowException("Failed to get token\nSee"),
            r"/x: cannot be reached: Failed to get token\. Ch",
        ),
        (
            "get_file_info",
            ConnectionError(),
            r"/x: cannot be reached: ConnectionError\. Check the address, the network",
        ),
        (
            "open_input_file",
            OSError("ACCESS_DENIED"),
            r"/x/a\.parquet: cannot be read: ACCESS_DENIED\. Check the address",
        ),
        ("open_input_file", RuntimeError("gone"), r"/x/a\.parquet: cannot be read: gone\. Check the address"),
        ("open_input_file", pa.ArrowInvalid("magic"), r"/x/a\.parquet: not a readable Parquet file \(magic\)\. Copy"),
    ],
)
def test_what_fails_at_an_address_is_named_with_it(tmp_path, monkeypatch, method, error, message) -> None:
    write_parquet(make_transitions(), tmp_path / "x" / "a.parquet")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(files, "connect", lambda address: (_Remote(method, error), "x"))
    with pytest.raises(DataError, match=f"^s3:/{message}"):
        load("s3://key:secret@x")


def test_a_file_that_may_not_be_read(tmp_path, monkeypatch) -> None:
    path = write_parquet(make_transitions(), tmp_path / "a.parquet")
    monkeypatch.setattr(pq, "ParquetFile", lambda file: (_ for _ in ()).throw(PermissionError(13, "Permission denied")))
    with pytest.raises(DataError, match=rf"^{path}: cannot be read \(.*Permission denied\)\. Check its permissions\.$"):
        load(path)


@pytest.mark.parametrize("schema", [3, {"obs": 3}, {"obs": ["a", 3]}])
def test_a_schema_that_is_none_is_named(schema: object) -> None:
    with pytest.raises(DataError, match="input_read_schema must be a dict of column names"):
        Conventions(input_read_schema=schema)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"ob": "a"}, r"there is no 'ob'\. Did you mean 'obs'"),
        ({"obs": "a", "observations": "b"}, "has both 'obs' and 'observations', which are the observations: give one"),
    ],
)
def test_a_name_that_would_change_nothing_is_refused(schema: dict[str, str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        Conventions(input_read_schema=schema)
    assert Conventions(input_read_schema={"obs": "a", "infos": "i"}).input_read_schema["infos"] == "i"


def test_near_matches_keep_the_size() -> None:
    with pytest.raises(DataError, match=r"Did you mean hopper-medium@1M"):
        load("hoper-medium@1M")
