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
from rllib_damo.core import sealed_checkpoints
from rllib_damo.evaluation.checkpoints import verify


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


def test_no_room_for_a_dataset(tmp_path, disk):
    environ = {"RLLIB_DAMO_CACHE": str(tmp_path / "cache"), "MINARI_DATASETS_PATH": str(disk("40k") / "minari")}
    made = make(environ, "--workers", "0")
    assert made.returncode == 1
    assert made.stderr.count("\n") == 1
    assert f"Error: The HDF5 file cannot be written: the file system {tmp_path / 'disk'} is full" in made.stderr
    assert "MB free, 0.1 MB needed). Make room, and try again." in made.stderr
    disk("1m")
    assert make(environ, "--workers", "0").returncode == 0


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


@pytest.mark.slow
@pytest.mark.parametrize("reserved", [sealed_checkpoints.RESERVED_BYTES, -(10**9)], ids=["foreseen", "met"])
def test_no_room_for_a_checkpoint(reserved, ray_cluster, dataset, tmp_path, disk, capfd):
    """Whether the room is measured before, or a quota, say, stops the writing in its midst."""
    file = tmp_path / "td3bc.py"
    file.write_text(
        TRAIN.format(dataset=dataset)
        + f"""
from rllib_damo.core import sealed_checkpoints

config.callbacks(on_algorithm_init=lambda **kwargs: setattr(sealed_checkpoints, "RESERVED_BYTES", {reserved}))
"""
    )
    place = disk("12m")
    arguments = ["train", "file", str(file), "--storage-path", str(place), "--keep-checkpoints-num", "0"]
    assert rllib.invoke(arguments) == FAILED
    error = capfd.readouterr().err
    assert f"cannot be written: the file system {place} is full" in error
    assert "Make room, and continue: `rllib train --resume`" in error
    (trial,) = place.glob("*/TD3BC_*")
    results = [json.loads(line) for line in (trial / "result.json").read_text().splitlines()]
    checkpoints = sorted(trial.glob("checkpoint_*"))
    for checkpoint in checkpoints:
        verify(checkpoint)
    assert len(results) > len(checkpoints) > 3
    with (trial / "progress.csv").open() as rows:
        assert len(list(csv.DictReader(rows))) == len(results)

    disk("40m")
    assert rllib.invoke([*arguments, "--resume"]) == OK
    results = [json.loads(line) for line in (trial / "result.json").read_text().splitlines()]
    assert [result["training_iteration"] for result in results[-2:]] == [13, 14]
    assert len(sorted(trial.glob("checkpoint_*"))) >= 14
