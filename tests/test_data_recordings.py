from __future__ import annotations

import base64
import os
import pickle
import zlib
from typing import Any

import lz4.frame
import msgpack
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rllib_damo.data.formats.parquet import write_parquet
from rllib_damo.data.formats.reader import Conventions
from rllib_damo.data.formats.rllib_packed import unpack_array
from rllib_damo.data.schema import Transitions, check, concatenate
from rllib_damo.data.sources import load, resolve
from rllib_damo.errors import DataError
from rllib_damo.utils.spaces import from_unit
from tests.data_helpers import (
    ACT,
    ACTION_SPACE,
    OBSERVATION_SPACE,
    assert_equal,
    make_transitions,
)


def _encode(value: object) -> dict[bytes, object]:
    """The msgpack encoding of numpy values in RLlib's recordings."""
    assert isinstance(value, (np.ndarray, np.generic))
    if isinstance(value, np.ndarray):
        return {b"nd": True, b"type": value.dtype.str, b"kind": b"", b"shape": value.shape, b"data": value.tobytes()}
    return {b"nd": False, b"type": value.dtype.str, b"data": value.tobytes()}


def _recorded(unit_actions: np.ndarray, data: Transitions, finished: bool, episode: Any) -> bytes:
    for row in range(len(data)):
        episode.add_env_step(
            observation=data.next_observations[row],
            action=unit_actions[row],
            reward=float(data.rewards[row]),
            terminated=finished and bool(data.terminations[row]),
            truncated=finished and bool(data.truncations[row]),
        )
    return msgpack.packb(episode.get_state(), default=_encode)


def test_recorded_episodes(tmp_path) -> None:
    from ray.rllib.env.single_agent_episode import SingleAgentEpisode

    data = make_transitions((4, 5), terminated=[True, False])
    unit = np.random.default_rng(0).uniform(-1.5, 1.5, (9, ACT)).astype(np.float32)  # RLlib clips when it acts
    bounds = {"observation_space": OBSERVATION_SPACE, "action_space": ACTION_SPACE}
    first = SingleAgentEpisode(observations=[data.observations[0]], **bounds)
    second = SingleAgentEpisode(observations=[data.observations[4]], **bounds)
    items = [_recorded(unit[4:6], data.slice(4, 6), False, second)]
    continued = second.cut(len_lookback_buffer=1)
    items += [
        _recorded(unit[:4], data.slice(0, 4), True, first),
        _recorded(unit[6:], data.slice(6, 9), True, continued),
    ]
    folder = tmp_path / "recorded" / "run-000000-00001"
    folder.mkdir(parents=True)
    pq.write_table(pa.table({"item": pa.array(items[:2], pa.binary())}), folder / "0.parquet")
    pq.write_table(pa.table({"item": pa.array(items[2:], pa.binary())}), folder / "1.parquet")

    found = load(str(tmp_path / "recorded"))
    rows = np.r_[4:9, 0:4]  # the episode seen first comes first, its pieces together
    for key in ("observations", "rewards", "next_observations", "terminations", "truncations"):
        np.testing.assert_array_equal(getattr(found, key), getattr(data, key)[rows])
    np.testing.assert_allclose(found.actions, from_unit(unit.clip(-1, 1), ACTION_SPACE)[rows])
    check(found, OBSERVATION_SPACE, ACTION_SPACE)
    raw = Conventions(actions_in_input_normalized=False)
    np.testing.assert_array_equal(load(str(tmp_path / "recorded"), conventions=raw).actions, unit[rows])
    with pytest.raises(DataError, match=r"input_read_schema=.*: it names the columns of tables and arrays"):
        load(str(tmp_path / "recorded"), conventions=Conventions(input_read_schema={"obs": "o"}))


def test_recorded_pieces_without_a_step(tmp_path) -> None:
    from ray.rllib.env.single_agent_episode import SingleAgentEpisode

    data = make_transitions((4,))
    bounds = {"observation_space": OBSERVATION_SPACE, "action_space": ACTION_SPACE}
    episodes = [SingleAgentEpisode(observations=[data.observations[0]], **bounds) for _ in range(34)]
    items = [_recorded(data.actions * 0, data, True, episodes[0])]
    items += [_recorded(data.actions, data.slice(0, 0), False, episode) for episode in episodes[1:]]
    pq.write_table(pa.table({"item": pa.array(items, pa.binary())}), tmp_path / "a.parquet")
    assert len(load(str(tmp_path / "a.parquet"))) == 4
    reader = resolve(str(tmp_path / "a.parquet"))
    assert [len(reader.read(*part)) for part in reader.splits(100)] == [4, 0]
    pq.write_table(pa.table({"item": pa.array(items[1:], pa.binary())}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="no recorded episode has a step"):
        load(str(tmp_path / "a.parquet"))


def test_recorded_numbers_of_actions_are_refused(tmp_path) -> None:
    from ray.rllib.env.single_agent_episode import SingleAgentEpisode

    data = make_transitions((4,))
    episode = SingleAgentEpisode(
        observations=[data.observations[0]], observation_space=OBSERVATION_SPACE, action_space=ACTION_SPACE
    )
    items = [_recorded(np.ones((4, ACT), np.int64), data, True, episode)]
    pq.write_table(pa.table({"item": pa.array(items, pa.binary())}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="they must be continuous"):
        load(str(tmp_path / "a.parquet"))


def _pack(array: np.ndarray) -> str:
    return _pack_bytes(pickle.dumps(array))


def _recorded_columns(data: Transitions, unit: np.ndarray) -> dict[str, Any]:
    ids = np.repeat([f"e{i}" for i in range(len(data.episode_bounds()))], np.diff(data.episode_bounds())[:, 0])
    return {
        "eps_id": list(ids), "module_id": [None] * len(data), "obs": [_pack(x) for x in data.observations],
        "actions": list(unit), "rewards": data.rewards.astype(np.float64),
        "new_obs": [_pack(x) for x in data.next_observations],
        "terminateds": data.terminations, "truncateds": data.truncations,
    }  # fmt: skip


def test_recordings_in_columns(tmp_path) -> None:
    data = make_transitions((4, 5, 2))
    unit = np.random.default_rng(0).uniform(-1, 1, (11, ACT)).astype(np.float32)
    columns = _recorded_columns(data, unit)
    order = np.argsort(np.r_[0, 1, 2, 8, 0.5, 1.5, 2.5, 3.5, 4.5, 9, 10], kind="stable")  # two episodes interleaved
    columns = {key: [values[row] for row in order] for key, values in columns.items()}
    pq.write_table(pa.table(columns), tmp_path / "x.parquet")
    found = load(str(tmp_path / "x.parquet"), conventions=Conventions(ACTION_SPACE))
    for key in ("observations", "rewards", "next_observations", "terminations", "truncations"):
        np.testing.assert_array_equal(getattr(found, key), getattr(data, key))
    np.testing.assert_allclose(found.actions, from_unit(unit, ACTION_SPACE))
    with pytest.raises(DataError, match="mapped back by the environment's action space"):
        load(str(tmp_path / "x.parquet"))


class _Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("ran",)


def _pack_bytes(content: bytes) -> str:
    return base64.b64encode(lz4.frame.compress(content)).decode()


_HUGE = b"cnumpy\nndarray\n((L1000000000000L\nltR."
_RECONSTRUCT = b"cnumpy._core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(L1000000000000L\ntS'b'\ntR."


@pytest.mark.parametrize(
    "content",
    [
        pickle.dumps(_Evil()),
        b"cnumpy.f2py.__main__\nndarray\n.",  # runs and exits when it is imported
        b"cnumpy.f2py.__main__\nscalar\n.",
        b"cnumpy.testing._private.utils\nruncstring\n(S'import os; os.mkdir(\"ran\")'\nd(dtR.",
        b"cnumpy.lib.npyio\nload\n(S'/etc/passwd'\ntR.",
        _HUGE,
        _RECONSTRUCT,
        b"cnumpy._core.numeric\n_frombuffer\n(S'x'\ncnumpy\ndtype\n(S'u1'\ntR(L1000000000000L\ntS'C'\ntR.",
        b"\x80\x04\x95",
        b"",
    ],
)
def test_a_packed_value_is_an_array_or_nothing(tmp_path, monkeypatch, content) -> None:
    monkeypatch.chdir(tmp_path)
    data = make_transitions((2,))
    columns = _recorded_columns(data, data.actions)
    columns["obs"][1] = _pack_bytes(content)
    pq.write_table(pa.table(columns), tmp_path / "x.parquet")
    with pytest.raises(DataError, match="where numbers are expected"):
        load(str(tmp_path / "x.parquet"), conventions=Conventions(ACTION_SPACE))
    assert not (tmp_path / "ran").exists()


def test_a_packed_value_that_unpacks_to_gigabytes(tmp_path) -> None:
    data = make_transitions((2,))
    columns = _recorded_columns(data, data.actions)
    columns["obs"][1] = _pack_bytes(b"0" * (200 << 20))
    assert len(columns["obs"][1]) < 2 << 20
    pq.write_table(pa.table(columns), tmp_path / "x.parquet")
    with pytest.raises(DataError, match="larger than 64 MiB when it is unpacked"):
        load(str(tmp_path / "x.parquet"), conventions=Conventions(ACTION_SPACE))


@pytest.mark.parametrize("protocol", [3, 4, 5])
@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("value", [np.float32([1, 2]), np.arange(6.0).reshape(2, 3).T, np.float64(3), np.bool_(True)])
def test_arrays_of_each_pickle_are_unpacked(protocol, old, value) -> None:
    content = pickle.dumps(value, protocol)
    if old:  # of numpy 1
        content = content.replace(b"numpy._core.multiarray", b"numpy.core.multiarray") if protocol < 4 else content
    found = unpack_array("x", "obs", _pack_bytes(content))
    np.testing.assert_array_equal(found, value)
    assert found.dtype == value.dtype


def test_recordings_and_other_files_in_one_folder_are_refused(tmp_path) -> None:
    pq.write_table(pa.table({"item": pa.array([b"x"], pa.binary())}), tmp_path / "b.parquet")
    for name, message in (
        ("c", r"c\.parquet: columns \['actions'.* folders of their own"),
        ("a", r"b\.parquet: column"),
    ):
        path = write_parquet(make_transitions(), tmp_path / f"{name}.parquet")
        with pytest.raises(DataError, match=message):
            load(str(tmp_path))
        path.unlink()


def test_a_row_group_is_decoded_once_for_its_windows(tmp_path, monkeypatch) -> None:
    data, decoded = make_transitions([10] * 20), []
    read = pq.ParquetFile.read_row_group
    monkeypatch.setattr(pq.ParquetFile, "read_row_group", lambda *a, **k: decoded.append(1) or read(*a, **k))
    write_parquet(data, tmp_path / "flat.parquet")
    reader = resolve(str(tmp_path / "flat.parquet"))
    splits = reader.splits(50)
    assert len(splits) == 4
    decoded.clear()
    assert_equal(concatenate([reader.read(*part) for part in splits]), data)
    assert len(decoded) == 1
    reader.read(*splits[0])
    assert len(pickle.dumps(reader)) < 1000


def test_an_item_that_is_no_episode(tmp_path) -> None:
    for index, item in enumerate((b"\xc1", msgpack.packb({"id_": "x"}), zlib.compress(b"nothing"))):
        path = tmp_path / f"{index}.parquet"
        pq.write_table(pa.table({"item": pa.array([item], pa.binary())}), path)
        with pytest.raises(DataError, match="not an episode as RLlib"):
            load(str(path))
