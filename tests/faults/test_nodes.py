"""Nodes of a cluster, all on this machine: one is killed in the middle of a search, or does not see the folders."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster

from rllib_damo import DAMOConfig
from rllib_damo.command import rllib
from rllib_damo.command.report import FAILED, OK
from rllib_damo.evaluation.checkpoints import verify
from tests.small_runs import make_small, train_policy

pytestmark = pytest.mark.slow
NUM_ITERATIONS = 8
LIMIT_SECONDS = 240

START = """
import ray._private.utils
from ray.scripts.scripts import cli

ray._private.utils.write_ray_address = lambda *args, **kwargs: None
cli()
"""
TRAIN = """
import time

from ray import tune

from rllib_damo import DAMOConfig
from tests.small_runs import make_small


def slow_down(*, result, **kwargs):  # so that all trials run at the same time
    time.sleep(0.5)


config = make_small(DAMOConfig(), {dataset!r}, {cache_dir!r}).callbacks(on_train_result=slow_down)
config.training(eta=tune.grid_search({etas}))
stop = {{"training_iteration": {iterations}}}
"""


def make_cluster(monkeypatch: pytest.MonkeyPatch, num_cpus: int) -> Cluster:
    """A cluster of one node, which this process is on."""
    # Otherwise all programs that start Ray on this machine meanwhile would join.
    monkeypatch.setattr(ray._private.utils, "write_ray_address", lambda *args, **kwargs: None)
    head = {"num_cpus": num_cpus, "include_dashboard": False}
    return Cluster(initialize_head=True, connect=True, head_node_args=head)


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """Three nodes of a CPU each."""
    cluster = make_cluster(monkeypatch, 1)
    for _ in range(2):
        cluster.add_node(num_cpus=1)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def arguments(folder: Path, dataset: str, *etas: float) -> list[str]:
    """Of `rllib train`, for a search."""
    file = folder / "search.py"
    text = TRAIN.format(dataset=dataset, cache_dir=str(folder / "cache"), etas=list(etas), iterations=NUM_ITERATIONS)
    file.write_text(text)
    return ["train", "file", str(file), "--storage-path", str(folder / "runs")]


def kill_a_node(cluster: Cluster, runs: Path) -> None:
    """Once all three trials that have room have a second checkpoint."""
    end = time.monotonic() + LIMIT_SECONDS
    while time.monotonic() < end and len({file.parent for file in runs.glob("*/*/checkpoint_00000[1-9]")}) < 3:
        time.sleep(0.1)
    cluster.remove_node(min(cluster.worker_nodes, key=lambda node: node.node_id), allow_graceful=False)


def test_a_node_that_is_killed_in_mid_search(cluster, dataset, tmp_path):
    thread = threading.Thread(target=kill_a_node, args=(cluster, tmp_path / "runs"))
    thread.start()
    code = rllib.invoke([*arguments(tmp_path, dataset, 0.5, 1.0, 1.5, 2.0), "--max-failures", "3"])
    thread.join()
    assert code == OK
    restored = []
    for trial in tmp_path.glob("runs/*/DAMO_*"):
        lines = [json.loads(line) for line in (trial / "result.json").read_text().splitlines()]
        assert [line["training_iteration"] for line in lines] == [*range(1, NUM_ITERATIONS + 1)]
        last = max(trial.glob("checkpoint_*"), key=lambda path: path.name)
        assert verify(last)["training_iteration"] == NUM_ITERATIONS
        if lines[-1]["iterations_since_restore"] < NUM_ITERATIONS:
            assert lines[-1]["iterations_since_restore"] <= NUM_ITERATIONS - 2  # not from its beginning
            restored.append(trial)
    assert len(restored) == 1
    assert (restored[0] / "error.txt").exists()


@pytest.fixture
def blind_node(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A folder that is empty for a second node, which has the only CPU for trials."""
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    if subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode:
        pytest.skip("mounting is not permitted")
    cluster = make_cluster(monkeypatch, 0)
    mount = f'mount -t tmpfs tmpfs {hidden} && exec "$@"'
    process = subprocess.Popen(
        ["unshare", "-m", "sh", "-c", mount, "sh", sys.executable, "-c", START, "start", "--address", cluster.address,
         "--num-cpus", "1", "--block"], start_new_session=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    end = time.monotonic() + LIMIT_SECONDS
    while time.monotonic() < end and ray.cluster_resources().get("CPU", 0) < 1:
        time.sleep(0.1)
    yield hidden
    os.killpg(process.pid, signal.SIGTERM)
    process.wait()
    ray.shutdown()
    cluster.shutdown()


def test_a_node_that_does_not_see_the_folders(blind_node, dataset, tmp_path, capfd):
    """Each of results, dataset and dynamics model."""
    seen = arguments(tmp_path, dataset, 1.0)
    assert rllib.invoke([*seen[:4], str(blind_node / "runs")]) == FAILED
    error = capfd.readouterr().err
    assert str(blind_node / "runs") in error
    assert "all nodes in the cluster have read/write access to the configured storage path" in error
    copy = blind_node / "data.parquet"
    copy.write_bytes(Path(dataset).read_bytes())
    assert rllib.invoke([*seen, "--input", str(copy)]) == FAILED
    error = capfd.readouterr().err
    assert f"{copy}: no such file, as this machine" in error

    config = make_small(DAMOConfig(), dataset, str(blind_node / "cache")).env_runners(num_env_runners=1)
    algo = config.evaluation(evaluation_interval=None).build_algo()
    with pytest.raises(RuntimeError, match=r"No dynamics file at .*as this machine .* sees it.*dynamics_cache_dir"):
        train_policy(algo, 1)
    algo.stop()
