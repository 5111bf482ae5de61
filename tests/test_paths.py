"""The cache's place, and files that appear whole or not at all."""

import numpy as np
import pytest

from rllib_damo import DAMOConfig
from rllib_damo.data.formats import flat_cache
from rllib_damo.data.formats.minari_files import local_path
from rllib_damo.data.generate import datasets
from rllib_damo.dynamics import cache
from rllib_damo.errors import DataError, UsageError
from rllib_damo.utils.paths import atomic_write, check_new_file
from tests.data_helpers import make_transitions


def test_a_file_that_cannot_be_written_is_told_before_work(tmp_path):
    (tmp_path / "file").touch()
    check_new_file(tmp_path / "file")
    check_new_file(tmp_path / "new" / "folder" / "file")
    assert [*(tmp_path / "new" / "folder").iterdir()] == []
    for place, message in (
        (tmp_path / "file" / "below", "cannot be written .*name a file in another folder"),
        (tmp_path / "new", "is a folder: name a file"),
        ("/proc/file", "cannot be written"),
        ("s3://key:secret@bucket/file", r"^s3://bucket/file: a file of this machine is written"),
    ):
        with pytest.raises(UsageError, match=message):
            check_new_file(place)


@pytest.mark.parametrize(
    ("given", "place"), [("~/x", "home/x"), ("x", "here/x"), (None, "home/.cache/rllib_damo"), ("file://{tmp}/y", "y")]
)
def test_all_caches_are_in_one_place(tmp_path, monkeypatch, given, place):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    if given is None:
        monkeypatch.delenv("RLLIB_DAMO_CACHE", raising=False)
    else:
        monkeypatch.setenv("RLLIB_DAMO_CACHE", given.format(tmp=tmp_path))
    root = tmp_path / place
    assert cache.directory() == root
    with datasets._work_folder(datasets.NAMES["pendulum-random"], 0) as folder:
        assert folder.parent == root / "behavior"
    (tmp_path / "original").touch()
    flat_cache.store(tmp_path / "original", make_transitions((2,)), np.array([2]))
    assert len(list(root.glob("datasets/*/rewards.npy"))) == 1


def test_an_address_is_no_place_of_a_cache(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RLLIB_DAMO_CACHE", "s3://bucket/cache")
    for use in (
        cache.directory,
        lambda: DAMOConfig().dynamics(dynamics_cache_dir="s3://key:secret@bucket/cache"),
        lambda: DAMOConfig().dynamics(dynamics_path="gs://bucket/model.pt"),
        lambda: DAMOConfig().environment("Pendulum-v1").offline_data(input_="pendulum-mixed").validate(),
    ):
        with pytest.raises(
            ValueError, match=r"^(s3|gs)://bucket/.*must be a folder or file of this machine; for several"
        ):
            use()
    with pytest.raises(ValueError, match=r"^file://elsewhere/a: .*hostname"):
        DAMOConfig().dynamics(dynamics_cache_dir="file://elsewhere/a")
    config = DAMOConfig().dynamics(dynamics_cache_dir=f"file://{tmp_path}/%61").offline_data(input_="s3://bucket/x")
    assert (config.dynamics_cache_dir, config.input_) == (str(tmp_path / "a"), "s3://bucket/x")
    assert list(tmp_path.iterdir()) == []


def test_places_that_cannot_be_made_are_named(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("RLLIB_DAMO_CACHE", str(tmp_path / "file"))
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "file" / "minari"))
    with (
        pytest.raises(DataError, match=r"file/behavior cannot be made or written .*variable RLLIB_DAMO_CACHE"),
        datasets._work_folder(datasets.NAMES["pendulum-random"], 0),
    ):
        pass
    with pytest.raises(DataError, match=r"datasets cannot be made .*minari.*variable MINARI_DATASETS_PATH"):
        local_path("x-v0")


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
