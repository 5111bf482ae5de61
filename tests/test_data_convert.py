from __future__ import annotations

from pathlib import Path

import minari
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rllib_damo.data.convert import convert
from rllib_damo.data.formats.hdf5 import write_hdf5 as write_d4rl
from rllib_damo.data.formats.minari_files import write_minari
from rllib_damo.data.formats.reader import Conventions
from rllib_damo.data.info import describe, plot, report
from rllib_damo.data.sources import load, resolve
from rllib_damo.errors import DataError, UserError
from tests.data_helpers import ACTION_SPACE, OBSERVATION_SPACE, assert_equal, make_transitions

ENV = "Pendulum-v1"  # three observations; its one action is not ours, so the tests name it only where spaces are unused


@pytest.fixture(autouse=True)
def _own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    monkeypatch.setenv("RLLIB_DAMO_CACHE", str(tmp_path / "cache"))


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    episodes=st.lists(st.tuples(st.integers(1, 9), st.booleans()), min_size=1, max_size=5),
    order=st.permutations(["minari://test/there-v0", "there.hdf5", "there.parquet"]),
)
def test_every_round_trip_is_lossless(tmp_path, episodes, order) -> None:
    data = make_transitions([length for length, _ in episodes], [ended for _, ended in episodes])
    facts = {"ref_min_score": -1.5, "ref_max_score": 99.0, "author": ["a", "b"], "description": "made for a test"}
    spaces = {"observation_space": OBSERVATION_SPACE, "action_space": ACTION_SPACE}
    write_minari(data, "test/start-v0", **spaces, metadata=facts, overwrite=True)
    src = "minari://test/start-v0"
    for dst in [*order, "minari://test/back-v0"]:
        target = dst if dst.startswith("minari") else str(tmp_path / dst)
        convert(src, target, overwrite=True)
        assert_equal(load(target), data)
        assert load(target).fingerprint() == data.fingerprint()
        src = target
    back = minari.load_dataset("test/back-v0")
    assert minari.get_normalized_score(back, np.array([99.0]))[0] == 1.0
    assert back.action_space == ACTION_SPACE
    first, last = resolve("test/start-v0").metadata(), resolve("test/back-v0").metadata()
    assert {**last, "dataset_id": "test/start-v0"} == first


def test_the_environment_gives_what_the_file_does_not(tmp_path) -> None:
    data = make_transitions((5,))
    data = type(data)(**{**data.arrays(), "actions": data.actions[:, :1]})
    src = write_d4rl(data, tmp_path / "plain.hdf5")
    with pytest.raises(DataError, match="name the environment"):
        convert(src, "test/plain-v0")
    assert convert(src, "test/plain-v0", env_id=ENV) == "test/plain-v0"
    assert minari.load_dataset("test/plain-v0").env_spec.id == ENV
    assert_equal(load("test/plain-v0"), data)
    with pytest.raises(UserError, match=r"env='Nothing-v9' .--env."):
        convert(src, "test/other-v0", env_id="Nothing-v9")
    with pytest.raises(DataError, match="exists"):
        convert(src, "test/plain-v0", env_id=ENV)


@pytest.mark.parametrize("dst", ["x.txt", "/some/folder", "s3://bucket/x.parquet", "minari://x.hdf5/y", "no version"])
def test_unknown_destinations_are_refused(tmp_path, dst) -> None:
    src = write_d4rl(make_transitions((2,)), tmp_path / "x.hdf5", metadata={})
    with pytest.raises(DataError, match=r"write to a path in \.parquet, \.hdf5, \.npz or \.csv|name the environment"):
        convert(src, dst)


def test_unsound_data_is_not_converted(tmp_path) -> None:
    data = make_transitions((4,))
    data.rewards[2] = np.nan
    with pytest.raises(DataError, match="not finite"):
        convert(write_d4rl(data, tmp_path / "x.hdf5"), tmp_path / "y.parquet")
    assert not (tmp_path / "y.parquet").exists()


def test_describe_and_plot(tmp_path) -> None:
    data = make_transitions((40, 20, 1))
    found = describe(data)
    assert found["num_episodes"] == 3
    assert found["fingerprint"] == data.fingerprint()
    assert sum(found["return_histogram"]["counts"]) == sum(found["length_histogram"]["counts"]) == 3
    assert found["return_quantiles"][-1] == pytest.approx(data.episode_returns().max())
    assert 0 < found["coverage"]["effective_cells"] <= found["coverage"]["cells"] <= 1
    assert 0 < found["action_saturation"] < 1
    assert plot(data, tmp_path / "x.png").read_bytes()[:4] == b"\x89PNG"


def test_columns_that_were_clipped_are_described() -> None:
    data = make_transitions((400,))
    assert describe(data)["clipped_columns"] == []
    at_high, at_low = data.next_observations[:, 1] > 0.5, data.next_observations[:, 2] < -1
    for states in (data.observations, data.next_observations):
        states[:, 0] = states[:, 0] > 0  # a flag, and no limit
        states[:, 1] = states[:, 1].clip(max=0.5)
        states[:, 2] = states[:, 2].clip(min=-1)
    assert min(at_high.sum(), at_low.sum()) > 10
    assert describe(data)["clipped_columns"] == [
        {"column": 1, "low": None, "high": 0.5, "share": pytest.approx(at_high.mean(), abs=1e-6)},
        {"column": 2, "low": -1.0, "high": None, "share": pytest.approx(at_low.mean(), abs=1e-6)},
    ]


def test_episodes_of_one_length_fill_one_bar() -> None:
    assert describe(make_transitions((5, 5, 5)))["length_histogram"] == {"counts": [3], "edges": [4.5, 5.5]}


def test_a_constant_dataset_can_be_described(tmp_path) -> None:
    data = make_transitions((3,))
    for array in (data.observations, data.next_observations, data.actions, data.rewards):
        array[...] = 0.5
    assert describe(data)["coverage"]["explained"] == 0
    plot(data, tmp_path / "x.png")


def test_report_tells_each_check(tmp_path) -> None:
    data = make_transitions()
    lines = report(write_d4rl(data, tmp_path / "good.hdf5"), conventions=Conventions(ACTION_SPACE))
    assert [line for line in lines if not line.startswith("ok")] == [lines[-1]]
    assert lines[-1].startswith("warn  there are 12 transitions, which are few")
    assert any("3 episodes, each with an end: 2 terminated, 1 truncated" in line for line in lines)
    data.actions[0] = 5
    data.rewards[1] = np.inf
    lines = report(write_d4rl(data, tmp_path / "bad.hdf5"), conventions=Conventions(ACTION_SPACE))
    assert sum(line.startswith("FAIL") for line in lines) == 2
    assert report(tmp_path / "none.hdf5")[0].startswith("FAIL  readable: ")
