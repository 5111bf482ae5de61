"""Checkpoints that are damaged, half-written, or of version 0.1."""

from __future__ import annotations

import json
import pickle
import sys
from pathlib import Path
from types import ModuleType

import pytest
from pyarrow import fs

from rllib_damo import DAMO
from rllib_damo.errors import CheckpointError
from rllib_damo.evaluation import checkpoints
from rllib_damo.evaluation.checkpoints import (
    ANNOUNCEMENT,
    MANIFEST,
    METADATA,
    load_config,
    newest_whole,
    read_pickle,
    seal,
    verify,
)
from rllib_damo.evaluation.policy import load_policy

MODULE = "learner_group/learner/rl_module/default_policy/module_state.pkl"


def write(folder: Path, *, announced: bool = True, metrics: dict | None = None) -> Path:
    """A folder with the files that matter; sealed if it is announced."""
    (folder / MODULE).parent.mkdir(parents=True)
    (folder / METADATA).write_text(json.dumps({"ray_version": "x", **(ANNOUNCEMENT if announced else {})}))
    (folder / "class_and_ctor_args.pkl").write_bytes(pickle.dumps({"class": None}))
    (folder / MODULE).write_bytes(b"0123456789")
    (folder / "algorithm_state.pkl").write_bytes(b"state")
    if announced:
        seal(folder, metrics=metrics)
    return folder


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    return write(tmp_path / "checkpoint_000003", metrics={"a": {"b": 2.5}, "training_iteration": 7, "done": False})


def test_a_whole_checkpoint_passes(whole: Path) -> None:
    assert verify(whole) == {"a": {"b": 2.5}, "training_iteration": 7}
    assert verify((whole / MODULE).parent) == {"a": {"b": 2.5}, "training_iteration": 7}
    (whole / "notes.txt").write_text("files of the user are no damage")
    verify(whole)


def rewrite(file: Path, old: bytes, new: bytes) -> None:
    content = file.read_bytes()
    assert old in content
    file.write_bytes(content.replace(old, new))


def test_a_manifest_of_an_earlier_version_has_no_checksum_of_its_own(whole: Path) -> None:
    manifest = json.loads((whole / MANIFEST).read_text())
    del manifest["sha256"]
    (whole / MANIFEST).write_text(json.dumps(manifest))
    assert verify(whole)["training_iteration"] == 7


def flip(file: Path) -> None:
    file.write_bytes(b"1" + file.read_bytes()[1:])


DAMAGES = {
    "flipped": (lambda c: flip(c / MODULE), f"the content of {MODULE} has changed"),
    "truncated": (lambda c: (c / MODULE).write_bytes(b"0123"), f"{MODULE} has 4 bytes instead of 10"),
    "emptied": (lambda c: (c / "algorithm_state.pkl").write_bytes(b""), "algorithm_state.pkl has 0 bytes instead of 5"),
    "a file missing": (lambda c: (c / MODULE).unlink(), f"{MODULE} is missing"),
    "no manifest": (lambda c: (c / MANIFEST).unlink(), f"{MANIFEST} is missing, since writing it was interrupted"),
    "half a manifest": (lambda c: (c / MANIFEST).write_bytes((c / MANIFEST).read_bytes()[:30]), MANIFEST),
    "no metadata": (lambda c: (c / METADATA).unlink(), f"{METADATA} is missing"),
    "another metric": (lambda c: rewrite(c / MANIFEST, b"2.5", b"3.5"), f"the content of {MANIFEST} has changed"),
    "neither": (lambda c: ((c / METADATA).unlink(), (c / MANIFEST).unlink()), f"{METADATA} is missing"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_named(name: str, whole: Path) -> None:
    damage, message = DAMAGES[name]
    damage(whole)
    with pytest.raises(CheckpointError, match=f"{whole} is damaged: {message}.* Take another checkpoint"):
        verify(whole)
    if name not in ("emptied", "no metadata"):
        with pytest.raises(CheckpointError, match=message):  # the module alone is checked, too
            load_policy(whole)


def test_sizes_alone_do_not_show_a_flipped_byte(whole: Path) -> None:
    flip(whole / MODULE)
    verify(whole, contents=False)
    (whole / MODULE).write_bytes(b"")
    with pytest.raises(CheckpointError, match="0 bytes"):
        verify(whole, contents=False)


def test_other_algorithms_have_no_manifest(tmp_path: Path) -> None:
    other = write(tmp_path / "other", announced=False)
    assert verify(other) == {}
    (other / "algorithm_state.pkl").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"algorithm_state\.pkl is missing or empty"):
        verify(other)


def test_the_newest_whole_checkpoint_of_a_trial(tmp_path: Path) -> None:
    local = fs.LocalFileSystem()
    assert newest_whole(str(tmp_path / "nowhere"), local) is None
    for index in (1, 9, 10, 11):
        write(tmp_path / f"checkpoint_{index:06d}", metrics={"training_iteration": index})
    (tmp_path / "checkpoint_000011" / MANIFEST).unlink()
    flip(tmp_path / "checkpoint_000010" / MODULE)
    assert newest_whole(str(tmp_path), local) == (str(tmp_path / "checkpoint_000009"), {"training_iteration": 9})


@pytest.fixture
def of_version_0_1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """A pickle that refers to a module of the package which is gone."""
    gone = ModuleType("rllib_damo.gone")
    gone.Config = type("Config", (), {"__module__": "rllib_damo.gone"})  # type: ignore[attr-defined]
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "rllib_damo.gone", gone)
        return pickle.dumps(gone.Config())  # type: ignore[attr-defined]


def test_a_checkpoint_of_version_0_1_says_so(tmp_path: Path, of_version_0_1: bytes) -> None:
    old = write(tmp_path / "old", announced=False)
    (old / "class_and_ctor_args.pkl").write_bytes(of_version_0_1)
    with pytest.raises(CheckpointError, match=r"written by rllib_damo 0\.1\. Install that version"):
        load_config(old)
    module = (old / MODULE).parent
    (module / "class_and_ctor_args.pkl").write_bytes(of_version_0_1)
    with pytest.raises(CheckpointError, match=r"written by rllib_damo 0\.1\. Install that version"):
        load_policy(old)
    with pytest.raises(CheckpointError, match=r"written by rllib_damo 0\.1\. Install that version"):
        DAMO.from_checkpoint(old)


def test_code_of_the_user_that_is_missing_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.pkl").write_bytes(b"cno_such_module_here\nThing\n.")
    with pytest.raises(CheckpointError, match=r"x\.pkl cannot be read: No module named 'no_such_module_here'.*--file"):
        read_pickle(tmp_path / "x.pkl")


@pytest.mark.parametrize("content", [b"", b"\x80\x04}", b"garbage", b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7f"])
def test_a_damaged_pickle_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.pkl").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"x\.pkl cannot be read .* damaged: take another"):
        read_pickle(tmp_path / "x.pkl")


def test_files_beside_a_checkpoint_are_not_its_own(tmp_path: Path) -> None:
    for name in (checkpoints.METADATA, checkpoints.STATES[0], "learner_group/state.pkl", "run.log", "inner/state.pkl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}")
    checkpoints.seal(tmp_path, components=["learner_group"])
    (tmp_path / "run.log").write_text("more")
    (tmp_path / "inner" / "state.pkl").write_text("more")
    checkpoints.verify(tmp_path)
    (tmp_path / "learner_group" / "state.pkl").write_text("[]")
    with pytest.raises(CheckpointError, match=r"learner_group/state\.pkl"):
        checkpoints.verify(tmp_path)
