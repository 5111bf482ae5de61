"""A run that is killed at random moments, again and again, ends with the same numbers as one that is not.

``FAULT_KILLS=20 pytest -m slow -s tests/faults/test_kills.py`` kills 20 times.
"""

from __future__ import annotations

import json
import os
import pickle
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from rllib_damo.evaluation.checkpoints import verify

NUM_KILLS = int(os.environ.get("FAULT_KILLS", "2"))
NUM_ITERATIONS = 10 + 15 * NUM_KILLS
RAY = "--ray-address", "local", "--ray-num-cpus", "1"
LIMIT_SECONDS = 120  # for an iteration, the start of Ray included

TRAIN = """
from rllib_damo import DAMOConfig
from tests.small_runs import make_small

config = make_small(DAMOConfig(), {dataset!r}, {cache_dir!r}).training(eta=1.0)
stop = {{"training_iteration": {iterations}}}
"""


class Run:
    """`rllib train` of one file, in processes of their own."""

    def __init__(self, folder: Path, dataset: str):
        folder.mkdir()
        self.folder, self.file = folder, folder / "kills.py"
        self.file.write_text(TRAIN.format(dataset=dataset, cache_dir=str(folder / "cache"), iterations=NUM_ITERATIONS))

    def start(self, *options: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "rllib_damo.command.rllib", "train", "file", str(self.file)]
        with (self.folder / "log").open("ab") as log:
            return subprocess.Popen(
                [*command, "--storage-path", str(self.folder / "runs"), *RAY, *options],
                stdout=log,
                stderr=log,
            )

    def results(self) -> list[dict]:
        """All lines of the results, those of iterations that were repeated, too."""
        (file,) = self.folder.glob("runs/*/DAMO_*/result.json")
        return [json.loads(line) for line in file.read_text().splitlines()]

    def checkpoints(self) -> list[str]:
        return sorted(path.name for path in self.folder.glob("runs/*/DAMO_*/checkpoint_*"))

    def can_be_resumed(self) -> bool:
        return any(self.folder.glob("runs/*/tuner.pkl")) and any(self.folder.glob("runs/*/experiment_state-*.json"))

    def weights(self) -> dict[str, np.ndarray]:
        (trial,) = self.folder.glob("runs/*/DAMO_*")
        last = trial / self.checkpoints()[-1]
        assert verify(last)["training_iteration"] == NUM_ITERATIONS
        file = last / "learner_group/learner/rl_module/default_policy/module_state.pkl"
        return pickle.loads(file.read_bytes())


def wait_for_a_checkpoint(run: Run, process: subprocess.Popen[bytes], before: list[str]) -> None:
    end = time.monotonic() + LIMIT_SECONDS
    while process.poll() is None and time.monotonic() < end and run.checkpoints() == before:
        time.sleep(0.1)


@pytest.mark.slow
def test_a_killed_run_ends_as_one_that_was_not(dataset, tmp_path):
    quiet, killed = Run(tmp_path / "quiet", dataset), Run(tmp_path / "killed", dataset)
    assert quiet.start().wait() == 0, (quiet.folder / "log").read_text()[-2000:]

    rng, kills = random.Random(0), 0
    while kills < NUM_KILLS:
        before = killed.checkpoints()
        process = killed.start(*["--resume"] * killed.can_be_resumed())
        if rng.random() < 0.75 or not killed.can_be_resumed():
            wait_for_a_checkpoint(killed, process, before)
            time.sleep(rng.uniform(0, 5))
        else:  # while it starts
            time.sleep(rng.uniform(0, 15))
        if process.poll() is not None:
            break
        process.kill()
        process.wait()
        kills += 1
        print(f"kill {kills}: checkpoints {before[-1:]} to {killed.checkpoints()[-1:]}")
    assert kills
    if process.returncode != 0:
        process = killed.start("--resume")
    assert process.wait() == 0, (killed.folder / "log").read_text()[-2000:]

    expected, found = quiet.weights(), killed.weights()
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)
    returns = {line["training_iteration"]: _return(line) for line in quiet.results()}
    lines = killed.results()
    assert all(returns[line["training_iteration"]] == _return(line) for line in lines)
    print(f"{kills} kills, {NUM_ITERATIONS} iterations, {len(lines)} results: equal bit for bit")


def _return(result: dict) -> float | None:
    return result.get("evaluation", {}).get("env_runners", {}).get("episode_return_mean")
