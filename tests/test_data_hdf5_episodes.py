"""HDF5 and folders of others: d3rlpy, robomimic, LeRobot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from rllib_damo.command.data import invoke
from rllib_damo.data.formats.reader import Conventions
from rllib_damo.data.schema import Transitions, concatenate
from rllib_damo.data.sources import load, resolve
from rllib_damo.errors import DataError
from tests.data_helpers import ACTION_SPACE, assert_equal, make_transitions, write_columns, write_hdf5

DATA = make_transitions((4, 2, 3) * 4)
BOUNDS = DATA.episode_bounds().tolist()


def without_successors() -> Transitions:
    """What is left without next observations: a cut episode's last row has none, a terminal's is its own."""
    parts = [DATA.slice(start, stop if DATA.terminations[stop - 1] else stop - 1) for start, stop in BOUNDS]
    data = concatenate([part for part in parts if len(part)])
    ends = data.terminations
    data.next_observations[ends] = data.observations[ends]
    return data


def test_d3rlpy_version_1(tmp_path) -> None:
    columns = {
        "observations": DATA.observations, "actions": DATA.actions, "rewards": DATA.rewards,
        "terminals": DATA.terminations.astype(np.float32),
        "episode_terminals": (DATA.terminations | DATA.truncations).astype(np.float32),
        "discrete_action": False, "create_mask": False, "mask_size": 1, "version": "1.0",
    }  # fmt: skip
    found = load(write_hdf5(tmp_path / "a.h5", columns))
    expected = without_successors()
    np.testing.assert_array_equal(found.truncations & ~found.terminations, expected.truncations)
    for key in ("observations", "actions", "rewards", "next_observations", "terminations"):
        np.testing.assert_array_equal(getattr(found, key), getattr(expected, key))


def write_d3rlpy(path: Path, **changes: Any) -> str:
    columns: dict[str, Any] = {"columns": ["observations", "actions", "rewards", "terminated"], "version": "2.1"}
    columns["num_episodes"] = len(BOUNDS)
    for i, (start, stop) in enumerate(BOUNDS):
        columns[f"observations_{i}"], columns[f"actions_{i}"] = DATA.observations[start:stop], DATA.actions[start:stop]
        columns[f"rewards_{i}"], columns[f"terminated_{i}"] = (
            DATA.rewards[start:stop, None],
            DATA.terminations[stop - 1],
        )
    return write_hdf5(path, {**columns, **changes})


def test_d3rlpy_version_2(tmp_path) -> None:
    """An array an episode, by number: the twelfth comes after the second."""
    path = write_d3rlpy(tmp_path / "a.h5")
    assert_equal(load(path, conventions=Conventions(ACTION_SPACE)), without_successors())
    reader = resolve(path)
    assert_equal(concatenate([reader.read(*part) for part in reader.splits(7)]), without_successors())
    with pytest.raises(DataError, match=r"a\.h5: episode 3 has arrays of lengths .*'rewards': 2"):
        load(write_d3rlpy(tmp_path / "a.h5", rewards_3=np.zeros((2, 1), np.float32)))
    with pytest.raises(DataError, match="episodes have vectors of different widths"):
        load(write_d3rlpy(tmp_path / "a.h5", actions_3=np.zeros((4, 1), np.float32)))


def write_groups(path: Path, root: str, extra: int = 0, *, has_next: bool = False, **more: Any) -> str:
    columns: dict[str, Any] = {}
    for i, (start, stop) in enumerate(BOUNDS):
        chain = np.concatenate([DATA.observations[start:stop], DATA.next_observations[stop - 1 : stop]])
        group = {"obs": chain[: stop - start + extra], "actions": DATA.actions[start:stop]}
        group |= {"rewards": DATA.rewards[start:stop], "terminals": DATA.terminations[start:stop]}
        if has_next:
            group["next_obs"] = chain[1:]
        columns |= {f"{root}{i}/{key}": values for key, values in {**group, **more}.items()}
    return write_hdf5(path, columns)


@pytest.mark.parametrize("root", ["data/demo_", "episode_", "traj"])
def test_a_group_an_episode(tmp_path, root) -> None:
    assert_equal(load(write_groups(tmp_path / "a.hdf5", root)), without_successors())
    assert_equal(load(write_groups(tmp_path / "b.hdf5", root, extra=1)), DATA)
    assert_equal(load(write_groups(tmp_path / "c.hdf5", root, has_next=True)), DATA)


def write_robomimic(path: Path) -> str:
    columns: dict[str, Any] = {}
    for i, (start, stop) in enumerate(BOUNDS):
        rows = slice(start, stop)
        for name, array in (("obs", DATA.observations), ("next_obs", DATA.next_observations)):
            columns[f"data/demo_{i}/{name}/object"] = array[rows, 1:].astype(np.float64)
            columns[f"data/demo_{i}/{name}/eef_pos"] = array[rows, :1]
            columns[f"data/demo_{i}/{name}/image"] = np.zeros((stop - start, 2, 2, 3), np.uint8)
        columns |= {f"data/demo_{i}/actions": DATA.actions[rows], f"data/demo_{i}/rewards": DATA.rewards[rows]}
        columns |= {
            f"data/demo_{i}/dones": DATA.terminations[rows].astype(np.int64),
            f"data/demo_{i}/states": np.ones((3, 9)),
        }
    columns["mask/train"] = np.array([b"demo_0"])
    return write_hdf5(path, columns)


def test_robomimics_demonstrations(tmp_path, capsys, caplog) -> None:
    path = write_robomimic(tmp_path / "a.hdf5")
    with pytest.raises(DataError, match=r"demo_0: observations must be vectors, and they are groups\. Choose among"):
        load(path)
    with pytest.raises(DataError, match=r"found observation_keys=\['goal'\]"):
        load(path, conventions=Conventions(observation_keys=["goal"]))
    assert_equal(load(path, conventions=Conventions(observation_keys=["object", "eef_pos"])), DATA)
    assert "`dones` are taken as terminations" in caplog.text
    cut = {"truncateds": "dones"}
    found = load(path, conventions=Conventions(observation_keys=["object", "eef_pos"], input_read_schema=cut))
    assert not found.terminations.any()
    keys = ["--observation-key", "object", "--observation-key", "eef_pos"]
    assert invoke(["data", "convert", path, str(tmp_path / "b.parquet"), *keys]) == 0
    assert_equal(load(tmp_path / "b.parquet"), DATA)
    capsys.readouterr()


def test_a_group_may_not_lead_to_another_file(tmp_path) -> None:
    path = write_groups(tmp_path / "a.hdf5", "episode_")
    with h5py.File(path, "a") as file:
        file["episode_1/states"] = h5py.ExternalLink("b.hdf5", "x")
    with pytest.raises(DataError, match="'episode_1/states' is a link to another file"):
        load(path)
    with h5py.File(path, "a") as file:
        del file["episode_1/states"], file["episode_1/rewards"]
        file["episode_1"].create_dataset("rewards", (2,), np.float32, external=[("/etc/passwd", 0, 8)])
    with pytest.raises(DataError, match="'/episode_1/rewards': its values lie in other files"):
        load(path)


def test_lerobots_folders(tmp_path, caplog) -> None:
    (tmp_path / "meta" / "episodes").mkdir(parents=True)
    (tmp_path / "meta" / "info.json").write_text(json.dumps({"codebase_version": "v3.0"}))
    write_columns(tmp_path / "meta" / "episodes" / "file-000.parquet", {"episode_index": [0]})
    numbers = np.repeat(np.arange(len(BOUNDS)), np.diff(BOUNDS)[:, 0])
    columns = {
        "observation.state": DATA.observations, "action": DATA.actions, "next.reward": DATA.rewards,
        "episode_index": numbers, "next.done": DATA.terminations, "timestamp": np.zeros(len(DATA)),
    }  # fmt: skip
    for chunk in range(2):
        (tmp_path / "data" / f"chunk-{chunk:03d}").mkdir(parents=True)
        rows = slice(0, 10) if chunk == 0 else slice(10, None)
        path = tmp_path / "data" / f"chunk-{chunk:03d}" / "file-000.parquet"
        write_columns(path, {key: values[rows] for key, values in columns.items()})
    found = load(tmp_path)
    assert len(found.episode_bounds()) == len(BOUNDS)
    assert not found.terminations.any()
    assert "no column for terminations" in caplog.text
    found = load(tmp_path, conventions=Conventions(input_read_schema={"terminateds": "next.done"}))
    assert_equal(found, without_successors())
