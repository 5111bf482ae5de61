"""Bytes that change at random places of a written file are noticed before anything of it is used."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from rllib_damo.data.formats import flat_cache
from rllib_damo.data.generate import units
from rllib_damo.dynamics import DynamicsEnsemble
from rllib_damo.errors import CheckpointError
from rllib_damo.evaluation.checkpoints import MANIFEST, verify
from tests.data_helpers import assert_equal, make_transitions
from tests.test_evaluation_checkpoints import write

NUM_CHANGES = 40


def changed(file: Path, num: int = NUM_CHANGES) -> Iterator[int]:
    """Yields the place of one byte that differs from what was written, again and again; at the end none does."""
    content, rng = file.read_bytes(), random.Random(0)
    for _ in range(num):
        place = rng.randrange(len(content))
        damaged = bytearray(content)
        damaged[place] ^= rng.randrange(1, 256)
        file.write_bytes(damaged)
        yield place
    file.write_bytes(content)


def test_dynamics_files(tmp_path):
    model = DynamicsEnsemble(3, 1, hidden_dims=(16, 16), learn_terminations=True)
    file = Path(model.save(tmp_path / "model.pt"))
    for _ in changed(file):
        with pytest.raises(ValueError, match=r"model\.pt is damaged.*dynamics_path"):
            DynamicsEnsemble.load(file)
    for size in range(0, len(file.read_bytes()), 997):  # truncated
        (tmp_path / "short.pt").write_bytes(file.read_bytes()[:size])
        with pytest.raises(ValueError, match=r"short\.pt is damaged"):
            DynamicsEnsemble.load(tmp_path / "short.pt")
    DynamicsEnsemble.load(file)


def test_dynamics_files_of_earlier_versions_load_and_have_their_weights_checked(tmp_path):
    model = DynamicsEnsemble(3, 1, hidden_dims=(16, 16))
    content = {"format": "rllib_damo.dynamics/1", "hparams": model.hparams, "state": model.state_dict()}
    torch.save(content, tmp_path / "old.pt")
    loaded = DynamicsEnsemble.load(tmp_path / "old.pt").state_dict()
    for name, value in model.state_dict().items():
        assert torch.equal(loaded[name], value)
    changes = 0
    for _ in changed(tmp_path / "old.pt"):
        try:
            loaded = DynamicsEnsemble.load(tmp_path / "old.pt").state_dict()
        except ValueError:
            changes += 1
        else:  # a byte that fills a gap
            assert all(torch.equal(loaded[name], value) for name, value in model.state_dict().items())
    assert changes > NUM_CHANGES // 2


def test_flat_copies_of_datasets(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("RLLIB_DAMO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(flat_cache, "_BLOCK_ROWS", 8)
    original, data = tmp_path / "main_data.hdf5", make_transitions((10, 20, 10))
    original.touch()
    stops = np.array([10, 30, 40])
    for name in ("rewards", "next_observations", "episode_stops"):
        noticed = 0
        flat_cache.store(original, data, stops)
        (file,) = tmp_path.glob(f"cache/datasets/*/{name}.npy")
        for _ in changed(file):
            caplog.clear()
            copy = flat_cache.load(original, "x")
            if copy is None:
                assert f"{file.parent} is damaged" in caplog.text
                assert f"{original} is read instead" in caplog.text
                noticed += 1
            else:  # a blank in the header
                assert_equal(copy, data)
            flat_cache.store(original, data, stops)
        assert noticed > NUM_CHANGES // 2


def test_part_of_a_flat_copy_is_checked_by_itself(tmp_path, monkeypatch):
    monkeypatch.setenv("RLLIB_DAMO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(flat_cache, "_BLOCK_ROWS", 8)
    original, data = tmp_path / "main_data.hdf5", make_transitions((10, 20, 10))
    original.touch()
    flat_cache.store(original, data, np.array([10, 30, 40]))
    (file,) = tmp_path.glob("cache/datasets/*/rewards.npy")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1  # of the last row
    file.write_bytes(content)
    assert_equal(flat_cache.load(original, "x", 0, 2), data.slice(0, 30))
    assert flat_cache.load(original, "x", 2, 3) is None
    assert not file.exists()


def test_flat_copies_of_earlier_versions_load(tmp_path, monkeypatch):
    monkeypatch.setenv("RLLIB_DAMO_CACHE", str(tmp_path / "cache"))
    original, data = tmp_path / "main_data.hdf5", make_transitions((10, 20))
    original.touch()
    flat_cache.store(original, data, np.array([10, 30]))
    for file in tmp_path.glob("cache/datasets/*/checksums.json"):
        file.unlink()
    assert_equal(flat_cache.load(original, "x"), data)


def test_work_units_are_played_again(tmp_path, caplog):
    stream = units.Stream("Pendulum-v1", "uniform", "Pendulum-v1/pendulum-random", 400, 200.0)
    stream.episodes = 2
    units.play_units([stream], tmp_path, seed=0, workers=0)
    file = stream.path(tmp_path, 0)
    expected, played = units.join([stream], tmp_path), 0
    for _ in changed(file, 8):
        units.play_units([stream], tmp_path, seed=0, workers=0)
        joined = units.join([stream], tmp_path)
        played += f"{file} is damaged" in caplog.text and "played again" in caplog.text
        caplog.clear()
        assert all(np.array_equal(joined[name], values) for name, values in expected.items())
    assert played >= 6


def test_checkpoints(tmp_path):
    folder = write(tmp_path / "checkpoint_000003")
    files = [file for file in folder.rglob("*") if file.is_file() and file.name != MANIFEST]
    for file in files:
        for _ in changed(file, 10):
            with pytest.raises(CheckpointError, match=f"{file.name} has changed"):
                verify(folder)
    verify(folder)
