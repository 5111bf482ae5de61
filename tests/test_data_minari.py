"""Minari datasets of others: observations that are dictionaries, bad episodes, files that point elsewhere."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import gymnasium as gym
import h5py
import minari
import numpy as np
import pytest
from gymnasium.wrappers import FilterObservation, FlattenObservation
from minari.data_collector import EpisodeBuffer

from rllib_damo.command.data import invoke
from rllib_damo.data.convert import convert
from rllib_damo.data.formats.minari_files import MAIN_FILE, write_minari
from rllib_damo.data.formats.reader import Conventions
from rllib_damo.data.schema import concatenate
from rllib_damo.data.sources import load, resolve
from rllib_damo.errors import DataError
from tests.data_helpers import ACTION_SPACE, OBSERVATION_SPACE, assert_equal, make_transitions, write_hdf5

BOX = gym.spaces.Box(-np.inf, np.inf, (2,), np.float64)
GOAL_SPACE = gym.spaces.Dict({
    "observation": gym.spaces.Box(-np.inf, np.inf, (3,), np.float64),
    "desired_goal": BOX,
    "achieved_goal": gym.spaces.Dict({"z": gym.spaces.Box(-1, 1, (1, 2)), "a": BOX}),
})  # fmt: skip
OTHER = h5py.ExternalLink("other.hdf5", "rewards")
DATA = make_transitions((4, 3, 5))


@pytest.fixture(autouse=True)
def _own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    monkeypatch.setenv("RLLIB_DAMO_CACHE", str(tmp_path / "cache"))


def write_goals(data_format: str, space: gym.spaces.Dict) -> list[list[dict[str, Any]]]:
    """Three episodes of observations sampled from the space, which are returned."""
    space.seed(0)
    episodes, buffers = [], []
    for start, stop in DATA.episode_bounds():
        chain = [space.sample() for _ in range(stop - start + 1)]
        episodes.append(chain)
        buffers.append(
            EpisodeBuffer(
                observations=_stacked(chain),
                actions=DATA.actions[start:stop],
                rewards=DATA.rewards[start:stop],
                terminations=DATA.terminations[start:stop],
                truncations=DATA.truncations[start:stop],
                infos=None,
            )
        )
    minari.create_dataset_from_buffers(
        "test/goal-v0", buffers, observation_space=space, action_space=ACTION_SPACE, data_format=data_format
    )
    return episodes


def _stacked(values: list[Any]) -> Any:
    if isinstance(values[0], dict):
        return {key: _stacked([value[key] for value in values]) for key in values[0]}
    return np.stack(values)


class GoalEnv(gym.Env):
    observation_space = GOAL_SPACE
    action_space = ACTION_SPACE


@pytest.mark.parametrize("data_format", ["hdf5", "arrow", "parquet"])
@pytest.mark.parametrize(
    "keys", [["observation", "desired_goal", "achieved_goal"], ["desired_goal"], ["achieved_goal"]]
)
def test_dictionaries_are_flattened_as_gymnasium_does(data_format, keys) -> None:
    episodes = write_goals(data_format, GOAL_SPACE)
    with pytest.raises(DataError, match=r"must be vectors, and they are dictionaries. Choose among \['ach"):
        load("test/goal-v0")
    env = FlattenObservation(FilterObservation(GoalEnv(), keys))
    found = load(
        "test/goal-v0", conventions=Conventions(observation_keys=keys), observation_space=env.observation_space
    )
    expected = [np.float32([env.observation(env.env.observation(obs)) for obs in chain]) for chain in episodes]
    np.testing.assert_array_equal(found.observations, np.concatenate([chain[:-1] for chain in expected]))
    np.testing.assert_array_equal(found.next_observations, np.concatenate([chain[1:] for chain in expected]))
    np.testing.assert_array_equal(found.actions, DATA.actions)
    reader = resolve("test/goal-v0", conventions=Conventions(observation_keys=keys))
    assert_equal(concatenate([reader.read(*part) for part in reader.splits(4)]), found)
    convert("test/goal-v0", "test/flat-v0", conventions=Conventions(observation_keys=keys))
    assert_equal(load("test/flat-v0"), found)
    assert minari.load_dataset("test/flat-v0").observation_space.shape == env.observation_space.shape


def test_keys_that_are_not_there(tmp_path) -> None:
    write_goals("hdf5", GOAL_SPACE)
    with pytest.raises(DataError, match=r"found observation_keys=\['goal'\]\. Choose among"):
        load("test/goal-v0", conventions=Conventions(observation_keys=["goal"]))
    write_minari(DATA, "test/flat-v0", observation_space=OBSERVATION_SPACE, action_space=ACTION_SPACE)
    with pytest.raises(DataError, match=r"observation_keys=\['goal'\]: its observations are Box"):
        load("test/flat-v0", conventions=Conventions(observation_keys=["goal"]))
    convert("test/flat-v0", tmp_path / "a.npz")
    with pytest.raises(DataError, match=r"observation_keys=\['a'\]: it chooses among the entries of dictionaries"):
        load(tmp_path / "a.npz", conventions=Conventions(observation_keys=["a"]))


def _nan(file: h5py.File) -> None:
    file["episode_1/rewards"][1] = np.nan


def _shorter(file: h5py.File) -> None:
    rewards = file["episode_1/rewards"][:-1]
    del file["episode_1/rewards"]
    file["episode_1/rewards"] = rewards


def _gone(file: h5py.File) -> None:
    del file["episode_1"]


def _narrower(file: h5py.File) -> None:
    observations = file["episode_1/observations"][:, :2]
    del file["episode_1/observations"]
    file["episode_1/observations"] = observations


def _elsewhere(file: h5py.File) -> None:
    del file["episode_1/rewards"]
    file["episode_1/rewards"] = h5py.ExternalLink("other.hdf5", "rewards")


def _behind(file: h5py.File) -> None:
    file["other"] = h5py.ExternalLink("other.hdf5", "/")
    del file["episode_1/rewards"]
    file["episode_1/rewards"] = h5py.SoftLink("/other/rewards")


def _virtual(file: h5py.File) -> None:
    del file["episode_1/rewards"]
    layout = h5py.VirtualLayout((3,), np.float32)
    layout[:] = h5py.VirtualSource("other.hdf5", "rewards", (3,))
    file["episode_1"].create_virtual_dataset("rewards", layout)


def _raw(file: h5py.File) -> None:
    del file["episode_1/rewards"]
    file["episode_1"].create_dataset("rewards", (3,), np.float32, external=[("/etc/passwd", 0, 12)])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_nan, "has rewards that are not finite"),
        (_shorter, "has arrays of lengths .*'rewards': 2"),
        (_gone, r"cannot be read \("),
        (_narrower, r"has observations and actions of the shapes \(\(2,\), \(2,\)\), and the others \(\(3,\)"),
        (_elsewhere, r"cannot be read \('rewards' is a link"),
        (_behind, r"cannot be read \('rewards' is a link"),
        (_virtual, r"cannot be read \(" + "'rewards': its values lie in other files"),
        (_raw, r"cannot be read \(" + "'rewards': its values lie in other files"),
    ],
)
def test_a_bad_episode_is_named_and_may_be_left_out(spoil, message, tmp_path, caplog, capsys) -> None:
    folder = write_minari(DATA, "test/bad-v0", observation_space=OBSERVATION_SPACE, action_space=ACTION_SPACE)
    write_hdf5(folder / "other.hdf5", {"rewards": np.ones(3, np.float32)})
    with h5py.File(folder / MAIN_FILE, "a") as file:
        spoil(file)
    with pytest.raises(DataError, match=rf"minari://test/bad-v0: episode 1 {message}.*skip_bad_episodes=True"):
        load("test/bad-v0")
    reader = resolve("test/bad-v0", conventions=Conventions(skip_bad_episodes=True))
    rest = concatenate([DATA.slice(0, 4), DATA.slice(7, 12)])
    assert_equal(reader.read(), rest)
    assert reader.skipped == [1]
    parts = [reader.read(*part) for part in reader.splits(4)]
    assert_equal(concatenate([part for part in parts if len(part)]), rest)
    assert "episode 1 is left out: it" in caplog.text
    assert invoke(["data", "check", "test/bad-v0", "--skip-bad-episodes"]) == 0
    assert "warn  1 bad episode(s) left out: 1" in capsys.readouterr().out


@pytest.mark.parametrize("data_format", ["hdf5", "arrow", "parquet"])
def test_fewer_episodes_than_the_metadata_say(data_format, tmp_path) -> None:
    write_goals(data_format, GOAL_SPACE)
    folder = tmp_path / "minari" / "test" / "goal-v0" / "data"
    place = folder
    if data_format == "hdf5":
        place = folder / MAIN_FILE
        with h5py.File(place, "a") as file:
            del file["episode_2"]
    else:
        shutil.rmtree(folder / "2")
    expected = f"episode 2 cannot be read ({place} holds 2 episodes, and metadata.json beside them says 3)"
    with pytest.raises(DataError, match=re.escape(expected)):
        load("test/goal-v0", conventions=Conventions(observation_keys=["desired_goal"]))


def test_what_is_left_out_is_not_left_out_for_others(monkeypatch) -> None:
    monkeypatch.setattr("rllib_damo.data.formats.minari.CACHE_ABOVE_EPISODES", 2)
    folder = write_minari(DATA, "test/bad-v0", observation_space=OBSERVATION_SPACE, action_space=ACTION_SPACE)
    with h5py.File(folder / MAIN_FILE, "a") as file:
        _gone(file)
    assert len(load("test/bad-v0", conventions=Conventions(skip_bad_episodes=True))) == 9
    with pytest.raises(DataError, match="episode 1 cannot be read"):
        load("test/bad-v0")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda file: file.__setitem__("rewards", h5py.ExternalLink("other.hdf5", "rewards")),
            "'rewards' is a link to",
        ),
        (
            lambda file: file.__setitem__("infos/x", h5py.ExternalLink("other.hdf5", "rewards")),
            "'infos/x' is a link to",
        ),
        (
            lambda file: file.create_dataset("rewards", (12,), np.float32, external=[("/etc/passwd", 0, 48)]),
            "'rewards': its values lie in other files",
        ),
        (
            lambda file: file.create_virtual_dataset("rewards", _layout()),
            "'rewards': its values lie in other files",
        ),
    ],
)
def test_hdf5_reads_no_other_file(tmp_path, make, message) -> None:
    columns = DATA.arrays()
    write_hdf5(tmp_path / "other.hdf5", {"rewards": columns["rewards"]})
    write_hdf5(tmp_path / "a.hdf5", {key: values for key, values in columns.items() if key != "rewards"})
    with h5py.File(tmp_path / "a.hdf5", "a") as file:
        make(file)
    with pytest.raises(DataError, match=rf"a\.hdf5: {message}.*Copy the values into the file itself"):
        load(tmp_path / "a.hdf5")


def _layout() -> h5py.VirtualLayout:
    layout = h5py.VirtualLayout((12,), np.float32)
    layout[:] = h5py.VirtualSource("other.hdf5", "rewards", (12,))
    return layout


def test_hdf5_may_have_links_within(tmp_path) -> None:
    path = write_hdf5(tmp_path / "a.hdf5", {f"data/{key}": values for key, values in DATA.arrays().items()})
    with h5py.File(path, "a") as file:
        for key in DATA.arrays():
            file[key] = h5py.SoftLink(f"/data/{key}")
    assert_equal(load(path), DATA)
