"""Whole runs of the `rllib` command, and playing their checkpoints."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from ray.rllib.algorithms.ppo import PPOConfig
from ray.train._internal.checkpoint_manager import _CheckpointManager
from ray.train._internal.session import _TrainingResult
from ray.tune import Checkpoint, CheckpointConfig
from ray.tune.registry import get_trainable_cls

from rllib_damo import DAMOConfig
from rllib_damo.command import rllib
from rllib_damo.command import run as experiment
from rllib_damo.command.report import FAILED, OK, USAGE
from rllib_damo.command.run import RunOptions, with_flat_score
from rllib_damo.data.rllib_input import RLlibOfflineData
from rllib_damo.errors import DiskFullError, UsageError
from rllib_damo.evaluation.play import play
from rllib_damo.evaluation.policy import load_policy
from tests.ppo_pendulum import PENDULUM_PPO


@pytest.fixture
def ppo_file(tmp_path: Path) -> Path:
    file = tmp_path / "ppo_pendulum.py"
    file.write_text(PENDULUM_PPO)
    return file


@pytest.fixture(scope="module")
def trained(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """A run of two iterations of PPO: (folder of the results, exit code)."""
    folder = tmp_path_factory.mktemp("run")
    file = folder / "ppo_pendulum.py"
    file.write_text(PENDULUM_PPO)
    stop = '{"training_iteration": 2, "from_a_function_of_the_file": 2}'
    return folder, rllib.invoke(["train", "file", str(file), "--storage-path", str(folder / "results"), "--stop", stop])


def test_run_keeps_checkpoints_that_play(trained: tuple[Path, int], capfd: pytest.CaptureFixture) -> None:
    folder, code = trained
    assert code == OK
    checkpoints = sorted(folder.glob("results/ppo_pendulum_*/*/checkpoint_*"))
    assert len(checkpoints) == 2
    out = folder / "episodes.jsonl"
    assert rllib.invoke(["evaluate", str(checkpoints[-1]), "--episodes", "2", "--out", str(out)]) == OK
    printed = capfd.readouterr().out
    records = [json.loads(line) for line in out.read_text().splitlines()]
    assert [record["length"] for record in records] == [200, 200]
    assert f"{np.mean([record['return'] for record in records]):.2f}" in printed
    assert "normalised score" in printed


def test_evaluate_takes_an_address(trained: tuple[Path, int], capfd: pytest.CaptureFixture) -> None:
    checkpoint = sorted(trained[0].glob("results/*/*/checkpoint_*"))[-1]
    assert rllib.invoke(["evaluate", f"file://{checkpoint}", "--episodes", "1"]) == OK
    assert "length            200.0" in capfd.readouterr().out


def test_a_simulator_that_is_not_installed(
    trained: tuple[Path, int], capfd: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = sorted(trained[0].glob("results/*/*/checkpoint_*"))[-1]
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    monkeypatch.setitem(sys.modules, "pygame", None)
    assert rllib.invoke(["evaluate", str(checkpoint), "--render"]) == USAGE
    error = capfd.readouterr().err
    assert "environment Pendulum-v1 with --render: pygame is not installed" in error


def test_evaluate_names_the_checkpoints_below(trained: tuple[Path, int], capfd: pytest.CaptureFixture) -> None:
    (trial,) = {path.parent for path in trained[0].glob("results/*/*/checkpoint_*")}
    assert rllib.invoke(["evaluate", str(trial)]) == USAGE
    assert "checkpoint_000000" in capfd.readouterr().err


def test_npz_has_every_step(trained: tuple[Path, int]) -> None:
    checkpoint = sorted(trained[0].glob("results/*/*/checkpoint_*"))[-1]
    out = trained[0] / "steps.npz"
    assert rllib.invoke(["evaluate", str(checkpoint), "--steps", "250", "--out", str(out)]) == OK
    with np.load(out) as steps:
        assert steps["observations"].shape == steps["next_observations"].shape == (250, 3)
        assert np.abs(steps["actions"]).max() <= 1.0
        assert steps["truncations"].sum() == 2
        assert not steps["terminations"].any()
        np.testing.assert_array_equal(steps["observations"][1], steps["next_observations"][0])


def test_policy_acts_as_rllib_does(trained: tuple[Path, int]) -> None:
    checkpoint = sorted(trained[0].glob("results/*/*/checkpoint_*"))[-1]
    (episode,) = play(checkpoint, episodes=1, seed=3)
    actions = load_policy(checkpoint)(np.asarray(episode.get_observations())[:-1])
    np.testing.assert_allclose(actions, 2.0 * np.asarray(episode.get_actions()).clip(-1, 1), atol=1e-5)


def test_policy_of_another_environment_is_refused(trained: tuple[Path, int], capfd: pytest.CaptureFixture) -> None:
    checkpoint = sorted(trained[0].glob("results/*/*/checkpoint_*"))[-1]
    assert rllib.invoke(["evaluate", str(checkpoint), "--env", "MountainCarContinuous-v0"]) == USAGE
    assert "doesn't fit the environment" in capfd.readouterr().err


def test_an_environment_that_a_file_registers(
    trained: tuple[Path, int], tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    checkpoint = sorted(trained[0].glob("results/*/*/checkpoint_*"))[-1]
    arguments = ["evaluate", str(checkpoint), "--env", "of-a-file", "--episodes", "1"]
    assert rllib.invoke(arguments) == USAGE
    assert "`rllib evaluate --file X.py`" in capfd.readouterr().err
    file = tmp_path / "mine.py"
    file.write_text(
        "import gymnasium as gym\nfrom ray.tune import register_env\n"
        "register_env('of-a-file', lambda context: gym.make('Pendulum-v1'))\n"
    )
    assert rllib.invoke([*arguments, "--file", str(file)]) == OK
    assert "episodes          1" in capfd.readouterr().out
    assert rllib.invoke([*arguments, "--file", str(tmp_path / "mien.py")]) == USAGE
    assert f"Did you mean '{file}'" in capfd.readouterr().err


def rllibs_own(name: str, place: Path) -> list[str]:
    config = {"dataset_num_iters_per_learner": 3, "train_batch_size_per_learner": 64}
    options = ["--config", json.dumps(config), "--stop", '{"training_iteration": 1}', "--storage-path", str(place)]
    return ["train", "--algo", name, "--env", "Pendulum-v1", "--input", "pendulum-mixed", *options]


def test_rllibs_own_on_a_short_name(ray_cluster: None, tmp_path: Path) -> None:
    assert rllib.invoke(rllibs_own("IQL", tmp_path)) == OK
    (checkpoint,) = tmp_path.glob("IQL_*/*/checkpoint_*")
    result = json.loads((checkpoint.parent / "result.json").read_text())
    assert result["learners"]["default_policy"]["num_module_steps_trained"] == 3 * 64
    assert load_policy(checkpoint)(np.zeros((2, 3), np.float32)).shape == (2, 1)


@pytest.mark.parametrize("name", ["BC", "MARWIL", "CQL", "IQL"])
def test_configs_of_rllibs_own_on_a_short_name(
    name: str, ray_cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    """As Tune gets them."""
    made: list[Any] = []

    def make(config: Any, *arguments: Any) -> None:
        made.append(config)
        raise UsageError("far enough")

    monkeypatch.setattr(experiment, "_new_tuner", make)
    assert rllib.invoke(rllibs_own(name, tmp_path)) == USAGE
    captured = capfd.readouterr()
    assert "far enough" in captured.err
    assert "30,000 transitions" in " ".join(captured.out.split())
    (config,) = made
    config.validate()
    assert (config.algo_class, config.input_) == (get_trainable_cls(name), "pendulum-mixed")
    assert (config.offline_data_class, config.dataset_num_iters_per_learner) == (RLlibOfflineData, 3)


def test_lost_stop_key_ends_the_run(
    ray_cluster: None, ppo_file: Path, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    stop = '{"normalized_score": 50}'
    assert rllib.invoke(["train", "file", str(ppo_file), "--storage-path", str(tmp_path), "--stop", stop]) == USAGE
    assert "Did you mean 'evaluation/env_runners/normalized_score'" in capfd.readouterr().err


def test_failing_trial_is_told_in_short(
    ray_cluster: None, ppo_file: Path, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    ppo_file.write_text(PENDULUM_PPO.replace('result["from', 'raise RuntimeError("deliberate"); result["from'))
    assert rllib.invoke(["train", "file", str(ppo_file), "--storage-path", str(tmp_path)]) == FAILED
    captured = capfd.readouterr()
    assert "deliberate" in captured.err
    assert "Traceback" not in captured.err
    assert f" in {tmp_path}\n" in captured.out  # where the results go
    assert "Configuration for experiment" not in captured.out  # Tune's header


def test_more_cpus_than_ray_has(ray_cluster: None, ppo_file: Path, capfd: pytest.CaptureFixture) -> None:
    assert rllib.invoke(["train", "file", str(ppo_file), "-c", '{"num_env_runners": 7}']) == USAGE
    assert "asks for 8 CPU, but Ray has 2" in capfd.readouterr().err


def test_the_best_checkpoint_is_kept_though_its_metric_is_nested(tmp_path: Path) -> None:
    metric = experiment.EVALUATION_RETURN
    config = with_flat_score(PPOConfig().callbacks(on_train_result=lambda **kwargs: None), metric)
    callback = config.callbacks_on_train_result[-1]
    assert len(config.callbacks_on_train_result) == 2
    keeper = _CheckpointManager(CheckpointConfig(num_to_keep=1, checkpoint_score_attribute=metric))
    for i, value in enumerate((10.0, 30.0, 20.0, float("nan"))):
        result: dict[str, Any] = {"evaluation": {"env_runners": {"episode_return_mean": value}}}
        callback(algorithm=None, metrics_logger=None, result=result)
        assert (metric in result) == (i < 3)
        if metric in result:
            folder = tmp_path / str(i)
            folder.mkdir()
            keeper.register_checkpoint(_TrainingResult(Checkpoint(str(folder)), result))
    assert (tmp_path / "1").exists()  # the best
    assert not (tmp_path / "0").exists()
    missing: dict[str, Any] = {"evaluation": None}
    callback(algorithm=None, metrics_logger=None, result=missing)
    assert missing == {"evaluation": None}


def test_a_scheduler_bears_results_that_did_not_evaluate(monkeypatch) -> None:
    strict = "TUNE_DISABLE_STRICT_METRIC_CHECKING"
    monkeypatch.setenv(strict, "0")
    monkeypatch.delenv(strict)
    assert experiment._scheduler(RunOptions(scheduler="asynchyperband"), PPOConfig()) is not None
    assert os.environ[strict] == "1"


def test_without_a_score_all_checkpoints_are_kept() -> None:
    def kept(config: Any, **options: Any) -> tuple[int, int | None]:
        found = experiment._checkpoint_config(config, RunOptions(**options))
        return found.checkpoint_frequency, found.num_to_keep

    evaluated = DAMOConfig().offline_data(input_="pendulum-mixed").evaluation(evaluation_interval=5)
    assert kept(evaluated) == (5, 2)
    assert kept(evaluated, keep_checkpoints_num=0) == (5, None)
    alone = evaluated.copy(copy_frozen=False).evaluation(evaluation_interval=None)
    assert kept(alone, checkpoint_freq=20) == (20, None)
    assert kept(alone, checkpoint_freq=20, keep_checkpoints_num=3) == (20, 3)
    assert kept(PPOConfig(), checkpoint_freq=20) == (20, 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            RunOptions(ray_num_cpus=1),
            r"--ray-num-cpus .* leave them out to join it.*--ray-address local\. \(one runs",
        ),
        (RunOptions(ray_address="10.0.0.9:1"), r"--ray-address 10\.0\.0\.9:1: one runs"),
        (RunOptions(), r"--ray-address \(none\), RAY_ADDRESS='10\.0\.0\.8:1': one runs"),
    ],
)
def test_a_ray_that_cannot_be_reached(options: RunOptions, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**given: Any) -> None:
        assert ("num_cpus" in given) == (options.ray_address is None)
        raise ValueError("one runs")

    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.8:1")
    monkeypatch.setattr(experiment.ray, "init", fail)
    with pytest.raises(UsageError, match=message):
        experiment._init_ray(options)


def test_a_cluster_that_is_joined_unasked_is_named(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(experiment.ray, "init", lambda **_: SimpleNamespace(address_info={"gcs_address": "10.0.0.8:1"}))
    monkeypatch.setattr(experiment.ray_internals, "started_ray", lambda: False)
    experiment._init_ray(RunOptions())
    assert "Runs on the Ray cluster at 10.0.0.8:1, which was there already" in capsys.readouterr().out


@pytest.mark.parametrize("free", [1000, 10**9])
def test_files_of_tune_that_have_no_room(free: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty error.pkl, say; of another algorithm than this package's, which does not look for room before."""

    class FullTuner:
        def fit(self) -> None:
            raise EOFError("Ran out of input")

    monkeypatch.setattr(experiment, "free_bytes", lambda place: free)
    with pytest.raises(DiskFullError if free == 1000 else EOFError, match=r"The results .* --resume|Ran out"):
        experiment._fit(FullTuner(), str(tmp_path))  # type: ignore[arg-type]
