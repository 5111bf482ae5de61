from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import gymnasium as gym
import h5py
import minari
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from minari.data_collector import EpisodeBuffer

from rllib_damo.data.formats import flat_cache
from rllib_damo.data.formats import minari as minari_read
from rllib_damo.data.formats.columns import match_names
from rllib_damo.data.formats.hdf5 import write_hdf5 as write_d4rl
from rllib_damo.data.formats.minari_files import local_ids, write_minari
from rllib_damo.data.formats.parquet import write_parquet
from rllib_damo.data.formats.reader import Conventions, split_at_ends
from rllib_damo.data.schema import Transitions, concatenate
from rllib_damo.data.sources import load, resolve
from rllib_damo.errors import DataError
from rllib_damo.utils.spaces import from_unit
from tests.data_helpers import (
    ACTION_SPACE,
    OBSERVATION_SPACE,
    WRITERS,
    assert_equal,
    d4rl_columns,
    make_transitions,
    write_hdf5,
)

# Ragged lengths (single steps included) and how each ends: all terminal, none, and mixed.
EPISODES = st.lists(st.tuples(st.integers(1, 9), st.booleans()), min_size=1, max_size=6)
_SCHEMA_ORDER = ("observations", "next_observations", "actions", "rewards", "terminations", "truncations")
FAST = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


@pytest.fixture(autouse=True)
def _own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    monkeypatch.setenv("RLLIB_DAMO_CACHE", str(tmp_path / "cache"))


def _made(episodes: list[tuple[int, bool]], seed: int = 0) -> Transitions:
    return make_transitions([length for length, _ in episodes], [ended for _, ended in episodes], seed)


@WRITERS
@FAST
@given(episodes=EPISODES, wide=st.booleans(), seed=st.integers(0, 3))
def test_flat_columns_are_read_as_they_are(tmp_path, write, episodes, wide, seed) -> None:
    data = _made(episodes, seed)
    columns = d4rl_columns(data)
    if wide:  # float64 and flags as numbers
        columns = {
            key: array.astype(np.float64 if array.dtype == np.float32 else np.uint8) for key, array in columns.items()
        }
    suffix = "hdf5" if write is write_hdf5 else "parquet"
    assert_equal(load(write(tmp_path / f"data.{suffix}", columns), conventions=Conventions(ACTION_SPACE)), data)


@WRITERS
def test_columns_of_other_names_are_found_by_the_schema_of_rllib(tmp_path, write) -> None:
    data, suffix = make_transitions((4, 3, 5)), "hdf5" if write is write_hdf5 else "parquet"
    schema = {"obs": "o", "new_obs": "o'", "actions": "a", "rewards": "r", "terminateds": "d", "truncateds": "cut"}
    arrays = zip(schema.values(), (getattr(data, key) for key in _SCHEMA_ORDER), strict=True)
    ids = np.repeat([b"x", b"y", b"z"], (4, 3, 5))
    columns = {**dict(arrays), "episode": ids, "obs": np.zeros((12, 1), np.float32)}  # the name that was given wins
    path = write(tmp_path / f"data.{suffix}", columns)
    given = Conventions(ACTION_SPACE, input_read_schema={**schema, "eps_id": "episode", "infos": "i"})
    assert_equal(load(path, conventions=given), data)
    reader = resolve(path, conventions=given)
    assert_equal(concatenate([reader.read(*part) for part in reader.splits(6)]), data)
    with pytest.raises(
        DataError, match=r"no column 'r2', which input_read_schema has for 'rewards'; found \['a', 'cut'"
    ):
        load(path, conventions=Conventions(input_read_schema={**schema, "rewards": "r2"}))


@WRITERS
def test_normalised_actions_are_mapped_to_the_environments(tmp_path, write) -> None:
    data, suffix = make_transitions(), "hdf5" if write is write_hdf5 else "parquet"
    unit = np.random.default_rng(0).uniform(-1, 1, data.actions.shape).astype(np.float32)
    path = write(tmp_path / f"data.{suffix}", {**d4rl_columns(data), "actions": unit})
    for normalized, expected in ((True, from_unit(unit, ACTION_SPACE)), (False, unit), (None, unit)):
        conventions = Conventions(ACTION_SPACE, actions_in_input_normalized=normalized)
        reader = resolve(path, conventions=conventions)
        np.testing.assert_array_equal(reader.read().actions, expected)
        np.testing.assert_array_equal(reader.read(1, 5).actions, expected[1:5])


@WRITERS
def test_one_normalised_action_may_be_a_number_a_row(tmp_path, write) -> None:
    unit = np.linspace(-1.00001, 1, 12, dtype=np.float32)
    space = gym.spaces.Box(-3, 5, (1,))
    columns = {**d4rl_columns(make_transitions()), "actions": unit}
    path = write(tmp_path / f"data.{'hdf5' if write is write_hdf5 else 'parquet'}", columns)
    found = load(path, conventions=Conventions(space, actions_in_input_normalized=True))
    np.testing.assert_array_equal(found.actions, from_unit(unit[:, None].clip(-1, 1), space))


def test_minari_says_itself_what_its_columns_are(tmp_path) -> None:
    write_minari(make_transitions(), "test/said-v0", observation_space=OBSERVATION_SPACE, action_space=ACTION_SPACE)
    for options in ({"actions_in_input_normalized": True}, {"input_read_schema": {"obs": "o"}}):
        with pytest.raises(DataError, match=f"minari://test/said-v0: {next(iter(options))}"):
            load("test/said-v0", conventions=Conventions(**options))
    load("test/said-v0", conventions=Conventions(actions_in_input_normalized=False))


@WRITERS
@FAST
@given(episodes=EPISODES, marked_end=st.booleans())
def test_without_next_observations_nothing_is_stitched(tmp_path, write, episodes, marked_end) -> None:
    data = _made(episodes)
    columns = d4rl_columns(data)
    del columns["next_observations"]
    if not marked_end:  # the recording stops within the last episode
        columns = {key: array.copy() for key, array in columns.items()}
        columns["terminals"][-1] = columns["timeouts"][-1] = False
    has_end = bool((columns["terminals"] | columns["timeouts"]).any())
    path = write(tmp_path / f"data.{'hdf5' if write is write_hdf5 else 'parquet'}", columns)

    expected = []
    for index, (start, stop) in enumerate(data.episode_bounds()):
        terminated = data.terminations[stop - 1] and (marked_end or index < len(episodes) - 1)
        part = data.slice(start, stop if terminated else stop - 1)
        if terminated:
            part.next_observations[-1] = part.observations[-1]
        if len(part):
            expected.append(part)
    if not has_end or not expected:
        with pytest.raises(DataError, match=r"no end|no transition is left"):
            load(path)
    else:
        assert_equal(load(path), concatenate(expected))


@WRITERS
@FAST
@given(episodes=EPISODES)
def test_without_timeouts_the_seams_end_episodes(tmp_path, write, episodes) -> None:
    data = _made([*episodes, (2, True)])
    columns = d4rl_columns(data)
    del columns["timeouts"]
    assert_equal(load(write(tmp_path / f"data.{'hdf5' if write is write_hdf5 else 'parquet'}", columns)), data)


@WRITERS
@FAST
@given(episodes=EPISODES, has_next=st.booleans(), has_terminals=st.booleans(), names=st.booleans())
def test_where_the_episode_id_changes_an_episode_ends(
    tmp_path, write, episodes, has_next, has_terminals, names
) -> None:
    """Ids alone are enough; without next observations a cut episode loses its last row, and nothing is stitched."""
    data = _made(episodes)
    bounds = data.episode_bounds()
    columns = d4rl_columns(data)
    ids = np.repeat(np.arange(len(bounds)) + 2**24, bounds[:, 1] - bounds[:, 0])  # which float32 can't tell apart
    columns["episode_id"] = np.char.mod("%d", ids).astype("S") if names else ids.astype(np.float64)
    for key, is_there in (("timeouts", False), ("terminals", has_terminals), ("next_observations", has_next)):
        if not is_there:
            del columns[key]
    path = write(tmp_path / f"data.{'hdf5' if write is write_hdf5 else 'parquet'}", columns)
    terminations = data.terminations & has_terminals
    expected = replace(
        data, terminations=terminations, truncations=(data.truncations | data.terminations) & ~terminations
    )
    if not has_next:
        kept = [
            expected.slice(start, stop - (not terminations[stop - 1]))
            for start, stop in bounds
            if stop - start > 1 or terminations[stop - 1]
        ]
        if not kept:
            with pytest.raises(DataError, match="no transition is left"):
                load(path)
            return
        expected = concatenate(kept)
        ends = expected.terminations
        expected.next_observations[ends] = expected.observations[ends]
    assert_equal(load(path), expected)
    reader = resolve(path)
    assert [stop for _, stop in reader.splits(1000)] == [len(data)]
    most = int((bounds[:, 1] - bounds[:, 0]).max())
    assert {stop for _, stop in reader.splits(most)} <= set(bounds[:, 1])


@WRITERS
@FAST
@given(episodes=EPISODES, cap=st.integers(1, 12), has_next=st.booleans())
def test_pieces_make_up_the_whole(tmp_path, write, episodes, cap, has_next) -> None:
    columns = d4rl_columns(_made([*episodes, (3, True)]))
    if not has_next:
        del columns["next_observations"]
    reader = resolve(write(tmp_path / f"data.{'hdf5' if write is write_hdf5 else 'parquet'}", columns))
    pieces = [reader.read(*ends) for ends in reader.splits(cap)]
    whole, joined = reader.read(), concatenate([piece for piece in pieces if len(piece)])
    assert all(len(piece) <= cap for piece in pieces)
    for key in ("observations", "actions", "rewards", "next_observations", "terminations"):
        np.testing.assert_array_equal(getattr(joined, key), getattr(whole, key))
    assert (joined.truncations >= whole.truncations).all()  # cuts are added where an episode is longer than the cap


@FAST
@given(ends=st.lists(st.booleans(), min_size=1, max_size=40), cap=st.integers(1, 10))
def test_splits_cover_the_rows_and_prefer_ends(ends, cap) -> None:
    ranges = split_at_ends(np.array(ends), cap)
    assert [row for start, stop in ranges for row in range(start, stop)] == list(range(len(ends)))
    for start, stop in ranges:
        assert 1 <= stop - start <= cap
        if stop < len(ends) and not ends[stop - 1]:
            assert not any(ends[start:stop])


@FAST
@given(episodes=EPISODES, data_format=st.sampled_from(["hdf5", "arrow", "parquet"]), ended=st.booleans())
def test_minaris_own_files(tmp_path, episodes, data_format, ended) -> None:
    data = _made(episodes)
    dataset_id = f"test/{os.urandom(6).hex()}-v0"
    buffers = []
    for start, stop in data.episode_bounds():
        flags = {
            key: getattr(data, key)[start:stop] & (ended or stop < len(data)) for key in ("terminations", "truncations")
        }
        observations = np.concatenate([data.observations[start:stop], data.next_observations[stop - 1 : stop]])
        buffers.append(
            EpisodeBuffer(
                observations=observations.astype(np.float64),
                actions=data.actions[start:stop],
                rewards=data.rewards[start:stop].astype(np.float64),
                infos=None,
                **flags,
            )
        )
    minari.create_dataset_from_buffers(
        dataset_id, buffers, observation_space=OBSERVATION_SPACE, action_space=ACTION_SPACE, data_format=data_format
    )
    found = load(f"minari://{dataset_id}", observation_space=OBSERVATION_SPACE, conventions=Conventions(ACTION_SPACE))
    if not ended:  # an unfinished episode ends truncated
        data.terminations[-1], data.truncations[-1] = False, True
    assert_equal(found, data)
    reader = resolve(dataset_id)
    assert_equal(concatenate([reader.read(*ends) for ends in reader.splits(5)]), data)


@FAST
@given(episodes=EPISODES)
def test_minari_reads_what_is_written(episodes) -> None:
    data = _made(episodes)
    dataset_id = f"test/{os.urandom(6).hex()}-v0"
    write_minari(
        data,
        dataset_id,
        observation_space=OBSERVATION_SPACE,
        action_space=ACTION_SPACE,
        metadata={"ref_min_score": 10, "ref_max_score": 20},
    )
    dataset = minari.load_dataset(dataset_id)
    assert (dataset.total_episodes, dataset.total_steps) == (len(episodes), len(data))
    for episode, (start, stop) in zip(dataset.iterate_episodes(), data.episode_bounds(), strict=True):
        np.testing.assert_array_equal(episode.observations[:-1], data.observations[start:stop])
        np.testing.assert_array_equal(episode.observations[1:], data.next_observations[start:stop])
        np.testing.assert_array_equal(episode.truncations, data.truncations[start:stop])
    assert minari.get_normalized_score(dataset, np.array([15.0]))[0] == 0.5
    assert dataset.storage.metadata["fingerprint"] == data.fingerprint()
    assert_equal(load(dataset_id), data)


def test_written_datasets_are_byte_equal_and_whole(tmp_path) -> None:
    data = make_transitions((5, 3, 1))
    spaces = {"observation_space": OBSERVATION_SPACE, "action_space": ACTION_SPACE}
    contents = []
    for _ in range(2):
        folder = write_minari(data, "test/same-v0", overwrite=True, **spaces)
        contents.append([path.read_bytes() for path in sorted(folder.iterdir())])
    assert contents[0] == contents[1]
    for write, path in ((write_d4rl, "a.hdf5"), (write_parquet, "a.parquet")):
        twice = [write(data, tmp_path / path, overwrite=True).read_bytes() for _ in range(2)]
        assert twice[0] == twice[1]
        with pytest.raises(DataError, match="exists"):
            write(data, tmp_path / path)
    with pytest.raises(DataError, match="exists"):
        write_minari(data, "test/same-v0", **spaces)
    with pytest.raises(DataError, match="no Minari dataset id"):
        write_minari(data, "no version", **spaces)
    assert local_ids() == ["test/same-v0"]


def test_minari_refuses_transitions_that_are_not_chained() -> None:
    data = make_transitions((5,))
    data.next_observations[1] += 1
    with pytest.raises(DataError, match=r"1 row\(s\), first 1"):
        write_minari(data, "test/x-v0", observation_space=OBSERVATION_SPACE, action_space=ACTION_SPACE)


def test_many_short_episodes_are_cached_flat(monkeypatch) -> None:
    monkeypatch.setattr(minari_read, "CACHE_ABOVE_EPISODES", 2)
    data = make_transitions((1, 2, 3, 1))
    folder = write_minari(data, "test/many-v0", observation_space=OBSERVATION_SPACE, action_space=ACTION_SPACE)
    assert flat_cache.load(folder / "main_data.hdf5", "x") is None
    assert_equal(load("test/many-v0"), data)
    assert_equal(flat_cache.load(folder / "main_data.hdf5", "x"), data)
    reader = resolve("test/many-v0")
    assert_equal(concatenate([reader.read(*ends) for ends in reader.splits(3)]), data)
    other = make_transitions((2, 2, 2), seed=5)
    write_minari(other, "test/many-v0", observation_space=OBSERVATION_SPACE, action_space=ACTION_SPACE, overwrite=True)
    assert_equal(load("test/many-v0"), other)


def test_episodes_of_minari_are_those_of_its_file(monkeypatch) -> None:
    """A flag within an episode ends none of the file's; an episode without a step is one of them."""
    data = make_transitions((2, 3, 2, 4))
    folder = write_minari(data, "test/odd-v0", observation_space=OBSERVATION_SPACE, action_space=ACTION_SPACE)
    with h5py.File(folder / "main_data.hdf5", "a") as file:
        file["episode_1/terminations"][0] = True
        for key, array in file["episode_2"].items():
            del file[f"episode_2/{key}"]
            file[f"episode_2/{key}"] = array[: key == "observations"]
    data.terminations[2] = True
    expected = [data.slice(*rows) for rows in ((0, 2), (2, 5), (5, 5), (7, 11))]
    for above in (10, 2):  # without a flat copy and with it
        monkeypatch.setattr(minari_read, "CACHE_ABOVE_EPISODES", above)
        reader = resolve("test/odd-v0")
        assert_equal(reader.read(), concatenate(expected))
        for index, part in enumerate(expected):
            assert_equal(reader.read(index, index + 1), part)
    stops = next(Path(os.environ["RLLIB_DAMO_CACHE"]).glob("datasets/*/episode_stops.npy"))
    stops.unlink()  # as in copies of earlier versions
    assert_equal(reader.read(1, 2), expected[1])
    assert not stops.exists()
    assert_equal(reader.read(), concatenate(expected))
    assert stops.exists()


def test_flags_that_a_file_does_not_have_are_warned_of_once(caplog) -> None:
    rest = ["observations", "actions", "rewards"]
    for _ in range(2):
        match_names("no-terminals.hdf5", [*rest, "timeouts", "is_terminal"])
        match_names("no-cuts.hdf5", [*rest, "terminals"])
        match_names("whole.hdf5", [*rest, "terminals", "next_observations"])
    first, second = (record.getMessage() for record in caplog.records)
    assert "no-terminals.hdf5: no column for terminations" in first
    assert "is_terminal" in first
    assert "terminals" in first
    assert "no-cuts.hdf5: without truncations, next observations or episode ids" in second
    assert "timeouts" in second


def test_interleaved_episodes_are_warned_of(tmp_path, caplog) -> None:
    columns = d4rl_columns(make_transitions((2, 2)))
    for name, ids in (("sorted", [7, 7, 5, 5]), ("interleaved", [7, 5, 7, 5])):
        columns["episode_id"] = np.array(ids)
        load(write_hdf5(tmp_path / f"{name}.hdf5", columns))
    (record,) = [record for record in caplog.records if "interleaved" in record.getMessage()]
    assert "interleaved.hdf5: 2 episode ids occur in 4 runs" in record.getMessage()


@WRITERS
@FAST
@given(episodes=EPISODES, flags=st.sampled_from([(), ("terminals",), ("terminals", "timeouts")]))
def test_tasks_that_never_terminate_are_told_by_their_seams(tmp_path, write, episodes, flags) -> None:
    """D4RL's q-learning form: next observations, and no end flag, or none that is ever set."""
    data = make_transitions([length for length, _ in episodes], [False] * len(episodes))
    columns = d4rl_columns(data)
    for key in ("terminals", "timeouts"):
        del columns[key]
    columns |= {key: np.zeros(len(data), bool) for key in flags}
    path = write(tmp_path / f"data.{'hdf5' if write is write_hdf5 else 'parquet'}", columns)
    assert_equal(load(path), data)
    reader = resolve(path)
    pieces = concatenate([reader.read(*part) for part in reader.splits(4)])
    np.testing.assert_array_equal(pieces.next_observations, data.next_observations)
    assert (pieces.truncations >= data.truncations).all()
