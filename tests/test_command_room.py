"""A disk that is about to be full ends a run of RLlib's own algorithms, too."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pyarrow import fs
from ray.rllib.algorithms.cql import CQLConfig

from rllib_damo import TD3BCConfig
from rllib_damo.command import room
from rllib_damo.core import sealed_checkpoints
from rllib_damo.core.sealed_checkpoints import RESERVED_BYTES
from rllib_damo.errors import DiskFullError


def test_room_is_measured_by_the_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    last = tmp_path / "checkpoint_000002" / "learner"
    trial = SimpleNamespace(
        _storage=SimpleNamespace(
            storage_filesystem=fs.LocalFileSystem(), trial_fs_path=str(tmp_path), checkpoint_fs_path=str(last.parent)
        )
    )
    check = room.with_room_check(CQLConfig()).callbacks_on_train_result[-1]
    monkeypatch.setattr(sealed_checkpoints, "free_bytes", lambda place: RESERVED_BYTES + 500)
    check(algorithm=trial, result={})  # before the first one
    last.mkdir(parents=True)
    (last / "state.pkl").write_bytes(bytes(500))
    check(algorithm=trial, result={})
    (last / "more.pkl").write_bytes(bytes(1))
    with pytest.raises(DiskFullError, match=rf"A checkpoint in {tmp_path} cannot be written: .*continue: .*--resume"):
        check(algorithm=trial, result={})
    trial._storage = None  # outside of Tune
    check(algorithm=trial, result={})


def test_own_algorithms_measure_each_checkpoint_themselves() -> None:
    config: Any = TD3BCConfig()
    assert room.with_room_check(config) is config
