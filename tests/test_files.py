"""The cache's place, and files that appear whole or not at all."""

import numpy as np
import pytest

from rllib_damo.data import behavior, flat_cache
from rllib_damo.dynamics import cache
from rllib_damo.files import atomic_write
from tests.data_helpers import make_transitions


@pytest.mark.parametrize(("given", "place"), [("~/x", "home/x"), ("x", "here/x"), (None, "home/.cache/rllib_damo")])
def test_all_caches_are_in_one_place(tmp_path, monkeypatch, given, place):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    if given is None:
        monkeypatch.delenv("RLLIB_DAMO_CACHE", raising=False)
    else:
        monkeypatch.setenv("RLLIB_DAMO_CACHE", given)
    root = tmp_path / place
    assert cache.directory() == root
    with behavior._work_folder(behavior.NAMES["pendulum-random"], 0) as folder:
        assert folder.parent == root / "behavior"
    (tmp_path / "original").touch()
    flat_cache.store(tmp_path / "original", make_transitions((2,)), np.array([2]))
    assert len(list(root.glob("datasets/*/rewards.npy"))) == 1


def test_a_dynamics_cache_of_its_own_goes_first(tmp_path, monkeypatch):
    monkeypatch.setenv("RLLIB_DAMO_CACHE", str(tmp_path / "all"))
    assert cache.path("k", tmp_path / "given").parent == tmp_path / "given"


def test_a_failed_write_leaves_the_old_file(tmp_path):
    target = tmp_path / "file"
    target.write_bytes(b"old")

    def fail() -> None:
        with atomic_write(target) as file:
            file.write(b"new")
            raise RuntimeError("half-way")

    with pytest.raises(RuntimeError, match="half-way"):
        fail()
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]
