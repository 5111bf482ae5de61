"""Files that RLlib's old JsonWriter wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ray.rllib.offline.io_context import IOContext
from ray.rllib.offline.json_writer import JsonWriter
from ray.rllib.policy.sample_batch import MultiAgentBatch, SampleBatch

from rllib_damo import DAMOConfig
from rllib_damo.data.formats.reader import Conventions
from rllib_damo.data.offline_data import BulkOfflineData
from rllib_damo.data.schema import concatenate
from rllib_damo.data.sources import load, resolve
from rllib_damo.errors import DataError
from rllib_damo.utils.spaces import from_unit
from tests.data_helpers import ACTION_SPACE, OBSERVATION_SPACE, assert_equal, make_transitions

DATA = make_transitions((4, 5, 2))
UNIT = np.random.default_rng(0).uniform(-1, 1, (11, 2)).astype(np.float32)
IDS = np.repeat([987654321987654321, 5, 2**63 - 1], (4, 5, 2))
PLAIN = Conventions(actions_in_input_normalized=False)


def batch(rows: slice | list[int], **changes: Any) -> SampleBatch:
    columns = {
        "obs": DATA.observations, "new_obs": DATA.next_observations, "actions": DATA.actions, "rewards": DATA.rewards,
        "terminateds": DATA.terminations, "truncateds": DATA.truncations, "eps_id": IDS,
        "infos": np.array([{}] * 11), "t": np.arange(11), **changes,
    }  # fmt: skip
    return SampleBatch({key: values[rows] for key, values in columns.items() if values is not None})


def write(folder: Path, batches: list[Any], compress: list[str] | None = None, worker: int = 0) -> None:
    writer = JsonWriter(
        str(folder),
        IOContext(worker_index=worker),
        compress_columns=["obs", "new_obs"] if compress is None else compress,
    )
    for each in batches:
        writer.write(each)


@pytest.mark.parametrize("compress", [["obs", "new_obs"], [], ["obs", "actions", "rewards"]])
@pytest.mark.parametrize("multi_agent", [False, True])
def test_what_the_old_writer_wrote(tmp_path, compress, multi_agent) -> None:
    batches: list[Any] = [batch(slice(0, 3)), batch(slice(3, 9)), batch(slice(9, 11))]
    if multi_agent:
        batches = [MultiAgentBatch({"default_policy": each}, len(each)) for each in batches]
    write(tmp_path, batches, compress)
    assert_equal(load(tmp_path, conventions=PLAIN), DATA)
    reader = resolve(tmp_path, conventions=PLAIN)
    assert_equal(concatenate([reader.read(*part) for part in reader.splits(5)]), DATA)


def test_actions_are_normalised_as_rllib_records_them(tmp_path, caplog) -> None:
    write(tmp_path, [batch(slice(0, 11), actions=UNIT)])
    found = load(tmp_path, conventions=Conventions(ACTION_SPACE))
    np.testing.assert_array_equal(found.actions, from_unit(UNIT, ACTION_SPACE))
    assert "actions are taken to be normalised to [-1, 1], as RLlib records them" in caplog.text
    with pytest.raises(DataError, match="mapped back by the environment's action space"):
        load(tmp_path)


def test_interleaved_episodes_are_put_together(tmp_path) -> None:
    """Two environments at a time: pieces of one episode lie apart, by its id."""
    write(tmp_path, [batch([0, 1, 4, 5]), batch([2, 3, 6]), batch([7, 8, 9, 10])])
    assert_equal(load(tmp_path, conventions=PLAIN), DATA)


def test_the_config_reads_them(tmp_path) -> None:
    write(tmp_path, [batch(slice(0, 11))])
    (tmp_path / "other.parquet").write_text("x")
    config = DAMOConfig().environment(observation_space=OBSERVATION_SPACE, action_space=ACTION_SPACE)
    config.offline_data(input_=str(tmp_path), input_read_method="read_json", actions_in_input_normalized=False)
    assert_equal(BulkOfflineData(config).transitions, DATA)


def test_dones_of_older_versions_are_terminations(tmp_path, caplog) -> None:
    dones = DATA.terminations | DATA.truncations
    write(tmp_path, [batch(slice(0, 11), terminateds=None, truncateds=None, dones=dones)])
    np.testing.assert_array_equal(load(tmp_path, conventions=PLAIN).terminations, dones)
    assert "`dones` are taken as terminations" in caplog.text
    named = Conventions(actions_in_input_normalized=False, input_read_schema={"truncateds": "dones"})
    found = load(tmp_path, conventions=named)
    np.testing.assert_array_equal(found.truncations, dones)
    assert not found.terminations.any()


def test_a_row_a_line(tmp_path) -> None:
    columns = {key: array.tolist() for key, array in DATA.arrays().items()}
    lines = [json.dumps({key: values[row] for key, values in columns.items()}) for row in range(11)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    assert_equal(load(tmp_path / "a.jsonl", conventions=Conventions(ACTION_SPACE)), DATA)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "there is no line"),
        ('{"a"', r"a\.json, line 1: no JSON object"),
        ("[1]", r"line 1: holds '\[1\]', where an object"),
        ('{"type": "MultiAgentBatch", "policy_batches": {"a": {}, "b": {}}}', r"policies \['a', 'b'\]"),
        ('{"type": "SampleBatch", "obs": [[1]], "rewards": [1, 2]}', "different lengths"),
        ('{"obs": [1], "rewards": 1}\n{"obs": [1]}', r"line 2: columns \['obs'\], where the first line has"),
        ('{"type": "SampleBatch", "obs": [[1], [1, 2]], "rewards": [1, 2]}', "vectors of different widths"),
        ('{"type": "SampleBatch", "obs": "aGVsbG8=", "rewards": [1]}', r"line 1: column 'obs' holds text"),
        ('{"name": "x", "version": 3}', "no column for observations"),
    ],
)  # fmt: skip
def test_other_json_is_refused(tmp_path, text, message) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(DataError, match=message):
        load(tmp_path / "a.json", conventions=PLAIN)
