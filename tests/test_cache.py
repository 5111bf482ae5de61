"""Keys, folders and locks of the dynamics cache."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from filelock import Timeout

from rllib_damo.dynamics import DynamicsEnsemble, cache


def test_key_depends_on_all_of_its_parts():
    base = cache.key("data", {"lr": 1e-3, "hidden_dims": (200, 200)}, 0)
    assert base == cache.key("data", {"hidden_dims": [200, 200], "lr": 1e-3}, 0)
    assert base == cache.key("data", {"hidden_dims": [np.int64(200), 200], "lr": np.float64(1e-3)}, 0)
    others = [
        cache.key("other", {"lr": 1e-3, "hidden_dims": (200, 200)}, 0),
        cache.key("data", {"lr": 2e-3, "hidden_dims": (200, 200)}, 0),
        cache.key("data", {"lr": 1e-3, "hidden_dims": (200, 200)}, 1),
    ]
    assert len({base, *others}) == 4


def test_key_refuses_what_has_no_stable_text():
    with pytest.raises(ValueError, match="plain numbers"):
        cache.key("data", {"fn": print}, 0)


def test_an_unusable_directory_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"file/sub.*dynamics_cache_dir"):
        cache.directory(tmp_path / "file" / "sub")


def test_lock_excludes_and_can_give_up(tmp_path):
    with cache.lock("k", tmp_path), pytest.raises(Timeout):
        cache.lock("k", tmp_path).acquire(timeout=0.01)
    with cache.lock("k", tmp_path):
        pass


def test_a_lock_is_held_in_every_thread(tmp_path):
    lock = cache.lock("k", tmp_path)
    with ThreadPoolExecutor(1) as other:
        other.submit(lock.acquire, timeout=0.01).result()
    assert lock.is_locked
    lock.release()
    with cache.lock("k", tmp_path):
        pass


def test_a_directory_that_is_not_writable_is_named(tmp_path, monkeypatch):
    cache.check_writable(tmp_path)
    monkeypatch.setattr(cache.os, "access", lambda place, mode: False)
    with pytest.raises(ValueError, match=f"{tmp_path} is not writable.*dynamics_cache_dir"):
        cache.check_writable(tmp_path)


def test_save_and_write_round_trip(tmp_path):
    model = DynamicsEnsemble(2, 1, hidden_dims=(4,), num_ensemble=2, num_elites=1)
    path = cache.path(cache.key("data", {}, 0), tmp_path)
    model.save(path)
    copy = cache.write(path.read_bytes(), tmp_path)
    assert copy != path
    assert copy == cache.write(path.read_bytes(), tmp_path)
    assert DynamicsEnsemble.load(copy).hparams == model.hparams
