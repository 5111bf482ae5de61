"""Storages by address: pyarrow's ``file://`` stands for the remote ones, which it reads by the same calls."""

from __future__ import annotations

from pathlib import Path

import pytest
from pyarrow import fs

from rllib_damo.errors import CheckpointError, UsageError
from rllib_damo.evaluation import storage
from rllib_damo.evaluation.checkpoints import CONSTRUCTOR, checkpoint_dir
from rllib_damo.utils.uris import address


def a_run(folder: Path, name: str, *, restorable: bool = True) -> Path:
    (folder / name).mkdir()
    if restorable:
        (folder / name / "tuner.pkl").touch()
    return folder / name


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_latest_run_is_the_newest_that_can_be_restored(scheme: str, tmp_path: Path) -> None:
    folder = tmp_path / "with space" if not scheme else tmp_path
    folder.mkdir(exist_ok=True)
    a_run(folder, "damo_2026-01-01_00-00-00")
    newest = a_run(folder, "damo_2026-01-02_00-00-00")
    a_run(folder, "damo_2026-01-03_00-00-00", restorable=False)
    a_run(folder, "damo_2_2026-01-04_00-00-00x")  # of other names
    a_run(folder, "damo_hopper_2026-01-04_00-00-00")
    assert storage.latest_run(f"{scheme}{folder}", "damo") == str(newest)
    with pytest.raises(UsageError, match="has no run of the name 'dam'"):
        storage.latest_run(f"{scheme}{folder}", "dam")


def test_no_run_in_a_storage_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has no run of the name 'damo'"):
        storage.latest_run(f"file://{tmp_path}/nowhere", "damo")
    with pytest.raises(UsageError, match=r"\(--resume\): nosuch://x cannot be read"):
        storage.latest_run("nosuch://x", "damo")


@pytest.mark.parametrize(
    ("path", "place", "expected"),
    [
        ("/results/run", "/results", "/results/run"),
        ("/results/run", "file:///results", "/results/run"),
        ("bucket/run", "s3://bucket", "s3://bucket/run"),
        ("bucket/a run#1", "s3://key:secret@bucket", "s3://key:secret@bucket/a%20run%231"),
        ("cont/r/run", "abfs://cont@acc.dfs.core.windows.net/r", "abfs://cont@acc.dfs.core.windows.net/r/run"),
        ("cont/r/run", "abfs://acc.blob.core.windows.net/cont/r", "abfs://acc.blob.core.windows.net/cont/r/run"),
        ("/r/run", "hdfs://host:8020/r", "hdfs://host:8020/r/run"),
        ("bucket/run", "s3://bucket?scheme=http&endpoint_override=h:1", "s3://bucket/run?scheme=http&endpoint_override=h:1"),
    ],
)  # fmt: skip
def test_address_can_be_passed_on(path: str, place: str, expected: str) -> None:
    assert address(path, place) == expected


def test_check_makes_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert storage.check("a/b") == str(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()
    assert storage.check(f"file://{tmp_path}/c") == f"file://{tmp_path}/c"
    assert (tmp_path / "c").is_dir()
    (tmp_path / "taken").touch()
    with pytest.raises(
        UsageError, match=rf"\(--storage-path\) file://{tmp_path}/taken/d: cannot be written: .*Check the a"
    ):
        storage.check(f"file://{tmp_path}/taken/d")
    with pytest.raises(UsageError, match=r"\(--storage-path\) S3://bucket: .*\. There are s3://, gs://, "):
        storage.check("S3://bucket")


def test_local_copy(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "file").write_text("content")
    (tmp_path / CONSTRUCTOR).touch()
    with storage.local_copy(tmp_path) as folder:
        assert folder == tmp_path
    with storage.local_copy(f"file://{tmp_path}") as folder:
        assert folder != tmp_path
        assert (folder / "inner" / "file").read_text() == "content"
    assert not folder.exists()
    assert (tmp_path / "inner" / "file").exists()
    for place in (f"file://{tmp_path}/nowhere", "nosuch://x"):
        with (
            pytest.raises(CheckpointError, match=f"no checkpoint could be read at {place}"),
            storage.local_copy(place),
        ):
            pass


def test_what_is_no_checkpoint_is_not_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("run/trial 1/checkpoint_000001", "run/trial 1/checkpoint_000002"):
        (tmp_path / name / "learner_group").mkdir(parents=True)
        (tmp_path / name / "learner_group" / CONSTRUCTOR).touch()
    with monkeypatch.context() as patch:
        patch.setattr(storage.fs, "copy_files", lambda *_, **__: pytest.fail("copied"))
        with (
            pytest.raises(
                CheckpointError, match=r"file://.*/run is not a checkpoint.*\n  .*/trial 1/checkpoint_000001\n"
            ),
            storage.local_copy(f"file://{tmp_path}/run/"),
        ):
            pass
    (tmp_path / "run" / CONSTRUCTOR).touch()
    place = f"file://{tmp_path}/run"
    with pytest.raises(CheckpointError, match=f"^{place} is not a checkpoint"), storage.local_copy(place) as folder:
        checkpoint_dir(folder)


def test_a_storage_that_cannot_be_written_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def connect(path: str) -> tuple[fs.FileSystem, str]:
        raise OSError(30, "Read-only file system")

    with monkeypatch.context() as patch:
        patch.setattr(storage, "connect", connect)
        with pytest.raises(UsageError, match=rf"{tmp_path}: cannot be written: .*Read-only.*Give another"):
            storage.check(str(tmp_path))
    storage.check(str(tmp_path))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_runs_that_start_in_the_same_second_have_folders_of_their_own(
    scheme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage.time, "strftime", lambda form: "2026-01-01_00-00-00")
    names = [storage.new_run(f"{scheme}{tmp_path}", "damo") for _ in range(3)]
    assert names == ["damo_2026-01-01_00-00-00", "damo_2026-01-01_00-00-00_2", "damo_2026-01-01_00-00-00_3"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    (tmp_path / names[-1] / "tuner.pkl").touch()
    assert storage.latest_run(str(tmp_path), "damo") == str(tmp_path / names[-1])


def test_runs_on_other_storages_differ_in_their_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage.time, "strftime", lambda form: "2026-01-01_00-00-00")
    remote = fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem())
    monkeypatch.setattr(storage, "connect", lambda address: (remote, "bucket"))
    names = {storage.new_run("s3://bucket", "damo") for _ in range(3)}
    assert len(names) == 3
    for name in names:
        (tmp_path / "bucket" / name / "tuner.pkl").touch()
    assert storage.latest_run("s3://bucket", "damo") == f"s3://bucket/{max(names)}"
