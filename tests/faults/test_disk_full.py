"""A disk without room: what was made so far stays, the message names the file system, and with room it goes on."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rllib_damo.command import rllib
from rllib_damo.command.report import FAILED, OK
from rllib_damo.data.formats.hdf5 import write_hdf5
from rllib_damo.data.formats.npz import write_npz
from rllib_damo.data.formats.parquet import write_parquet
from rllib_damo.errors import DiskFullError
from rllib_damo.evaluation.checkpoints import verify
from tests.data_helpers import make_transitions


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """A function that gives a file system of its own the size, such as "1m", and returns its place."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = []

    def resize(size: str) -> Path:
        options = f"{'remount,' if mounted else ''}size={size}"
        if subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", place], capture_output=True).returncode:
            pytest.skip("mounting is not permitted")
        mounted.append(place)
        return place

    yield resize
    if mounted:
        subprocess.run(["umount", "-l", place], check=True)


def make(environ: dict[str, str], *options: str) -> subprocess.CompletedProcess[str]:
    """`rllib-damo data make` in a process of its own, whose end is seen, too."""
    command = [sys.executable, "-m", "rllib_damo.command.data", "data", "make", "pendulum-random", "--no-progress"]
    return subprocess.run(
        [*command, "--transitions", "2000", *options], env=os.environ | environ, capture_output=True, text=True
    )


@pytest.mark.slow
def test_no_room_for_a_dataset(tmp_path, disk):
    environ = {"RLLIB_DAMO_CACHE": str(tmp_path / "cache"), "MINARI_DATASETS_PATH": str(disk("40k") / "minari")}
    made = make(environ, "--workers", "0")
    assert made.returncode == 1
    assert made.stderr.count("\n") == 1
    assert f"Error: The HDF5 file cannot be written: the file system {tmp_path / 'disk'} is full" in made.stderr
    assert "MB free, 0.1 MB needed). Make room, and try again." in made.stderr
    disk("1m")
    assert make(environ, "--workers", "0").returncode == 0


def test_no_room_for_a_file(tmp_path, disk):
    """Fast, without the end of a process; a file is whole or not there."""
    place, data = disk("40k"), make_transitions((2000,))
    for write, name in ((write_hdf5, "a.hdf5"), (write_parquet, "a.parquet"), (write_npz, "a.npz")):
        with pytest.raises(DiskFullError, match=f"the file system {place} is full.*Make room, and try again"):
            write(data, place / name)
        assert [*place.iterdir()] == []


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["0", "1"])
def test_no_room_for_what_is_played(workers, tmp_path, disk):
    environ = {"RLLIB_DAMO_CACHE": str(disk("40k") / "cache"), "MINARI_DATASETS_PATH": str(tmp_path / "minari")}
    made = make(environ, "--workers", workers)
    assert made.returncode == 1
    assert made.stderr.count("\n") == 1
    assert f"the file system {tmp_path / 'disk'} is full" in made.stderr


TRAIN = """
from rllib_damo import TD3BCConfig

config = TD3BCConfig().environment("Pendulum-v1").offline_data(input_={dataset!r}).debugging(seed=3)
config.training(hidden_dims=(128, 128), train_batch_size_per_learner=32, rollout_freq=20)
config.evaluation(evaluation_interval=1, evaluation_duration=1)
stop = {{"training_iteration": 14}}
"""


@pytest.fixture
def arguments(dataset: str, tmp_path: Path, disk: Callable[[str], Path]) -> list[str]:
    """Of `rllib train`, for a run on a disk that has room for some of its checkpoints."""
    file = tmp_path / "td3bc.py"
    file.write_text(TRAIN.format(dataset=dataset))
    return ["train", "file", str(file), "--storage-path", str(disk("12m")), "--keep-checkpoints-num", "0"]


def read_results(trial: Path) -> list[dict]:
    return [json.loads(line) for line in (trial / "result.json").read_text().splitlines()]


@pytest.mark.slow
def test_no_room_for_a_checkpoint(ray_cluster, arguments, disk, tmp_path, capfd):
    place = tmp_path / "disk"
    assert rllib.invoke(arguments) == FAILED
    error = capfd.readouterr().err
    assert f"cannot be written: the file system {place} is full" in error
    assert "Make room, and continue: `rllib train --resume`" in error
    (trial,) = place.glob("*/TD3BC_*")
    results, checkpoints = read_results(trial), sorted(trial.glob("checkpoint_*"))
    for checkpoint in checkpoints:
        verify(checkpoint)
    assert len(results) > len(checkpoints) > 3
    with (trial / "progress.csv").open() as rows:
        assert len(list(csv.DictReader(rows))) == len(results)

    disk("40m")
    assert rllib.invoke([*arguments, "--resume"]) == OK
    assert [result["training_iteration"] for result in read_results(trial)[-2:]] == [13, 14]
    assert len(sorted(trial.glob("checkpoint_*"))) >= 14


@pytest.mark.slow
def test_a_disk_that_is_full_before_it_is_noticed(ray_cluster, arguments, disk, tmp_path, capfd):
    """By a quota, say, or by other programs: Tune's own files may have no room either, but the run can be resumed."""
    with Path(arguments[2]).open("a") as file:
        file.write(
            "from rllib_damo.core import sealed_checkpoints\n"
            "config.callbacks(on_algorithm_init=lambda **_: setattr(sealed_checkpoints, 'RESERVED_BYTES', -(10**9)))\n"
        )
    assert rllib.invoke(arguments) == FAILED
    error = capfd.readouterr().err
    assert f"cannot be written: the file system {tmp_path / 'disk'} is full" in error
    assert "--resume" in error
    (trial,) = (tmp_path / "disk").glob("*/TD3BC_*")
    before = sorted(trial.glob("checkpoint_*"))
    for checkpoint in before:
        verify(checkpoint)

    disk("40m")
    assert rllib.invoke([*arguments, "--resume"]) == OK
    last = sorted(trial.glob("checkpoint_*"))[-1]
    assert verify(last)["training_iteration"] == 14
    assert len(sorted(trial.glob("checkpoint_*"))) >= 14
