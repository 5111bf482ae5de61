from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ray import tune
from ray.rllib.algorithms.ppo import PPOConfig
from ray.train._internal.checkpoint_manager import _CheckpointManager
from ray.train._internal.session import _TrainingResult
from ray.tune import Checkpoint, CheckpointConfig

from rllib_damo import DAMOConfig
from rllib_damo.command import rllib
from rllib_damo.command import run as experiment
from rllib_damo.command.inputs import apply_config, check_env, check_stop, load_file
from rllib_damo.command.progress import ProgressTable
from rllib_damo.command.report import FAILED, OK, USAGE
from rllib_damo.command.results import with_flat_score, with_last_evaluation
from rllib_damo.command.run import RunOptions, has_search_space
from rllib_damo.command.stopping import CheckedStopper
from rllib_damo.errors import DataError, UsageError
from rllib_damo.evaluation.checkpoints import play
from rllib_damo.evaluation.policy import load_policy
from rllib_damo.utils.names import flatten, near

PENDULUM_PPO = """
from ray.rllib.algorithms.ppo import PPOConfig
from rllib_damo.command.rllib import run_config
from rllib_damo.evaluation.scores import DAMOCallbacks

def bonus(algorithm, result, **kwargs):
    result["from_a_function_of_the_file"] = 1.0

config = (
    PPOConfig()
    .environment("Pendulum-v1")
    .env_runners(num_env_runners=0)
    .training(train_batch_size=200, minibatch_size=200, num_epochs=1)
    .evaluation(evaluation_interval=1, evaluation_duration=1)
    .callbacks(DAMOCallbacks, on_train_result=bonus)
)
stop = {"training_iteration": 2}
if __name__ == "__main__":
    run_config(config, stop)
"""


@pytest.fixture
def ppo_file(tmp_path: Path) -> Path:
    file = tmp_path / "ppo_pendulum.py"
    file.write_text(PENDULUM_PPO)
    return file


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, Any, RunOptions]]:
    """Collects what would be run, and runs nothing."""
    collected: list[tuple[Any, Any, RunOptions]] = []

    def run(config: Any, stop: Any, options: RunOptions) -> int:
        collected.append((config, stop, options))
        return OK

    monkeypatch.setattr(rllib, "run", run)
    return collected


# -- what is run -------------------------------------------------------------------------------------------------------


def test_train_file_takes_config_and_stop(ppo_file: Path, runs: list) -> None:
    assert rllib.invoke(["train", "file", str(ppo_file), "--storage-path", "/x", "-vv", "--ray-num-cpus", "2"]) == OK
    config, stop, options = runs[0]
    assert isinstance(config, PPOConfig)
    assert stop == {"training_iteration": 2}
    assert (options.name, options.storage_path, options.verbosity, options.ray_num_cpus) == (
        "ppo_pendulum",
        "/x",
        2,
        2,
    )
    assert options.keep_checkpoints_num == 2


def test_options_go_before_the_file(ppo_file: Path, runs: list) -> None:
    arguments = ["--stop", '{"a": {"b": 3}}', "--config", '{"gamma": 0.5}', "--env", "CartPole-v1"]
    assert rllib.invoke(["train", "file", str(ppo_file), *arguments]) == OK
    config, stop, _ = runs[0]
    assert stop == {"a/b": 3}
    assert (config.gamma, config.env) == (0.5, "CartPole-v1")


def test_train_by_name(runs: list) -> None:
    arguments = ["--env", "Pendulum-v1", "--input", "pendulum-mixed", "--config", '{"eta": 0.5}']
    assert rllib.invoke(["train", "--algo", "DAMO", *arguments, "--keep-checkpoints-num", "0"]) == OK
    config, stop, options = runs[0]
    assert type(config).__name__ == "DAMOConfig"
    assert (config.env, config.input_, config.eta, stop) == ("Pendulum-v1", "pendulum-mixed", 0.5, None)
    assert options.keep_checkpoints_num is None


def test_run_config_makes_a_script_of_a_file(runs: list, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["my_script.py", "--name", "mine", "-c", '{"gamma": 0.5}'])
    with pytest.raises(SystemExit) as end:
        rllib.run_config(PPOConfig().environment("Pendulum-v1"), {"training_iteration": 7})
    config, stop, options = runs[0]
    assert end.value.code == OK
    assert (config.gamma, stop, options.name) == (0.5, {"training_iteration": 7}, "mine")


@pytest.mark.parametrize("task", ["hopper", "halfcheetah", "halfcheetah_expert", "walker2d", "pendulum"])
def test_tuned_examples_are_valid(task: str) -> None:
    config, stop = load_file(Path(__file__).parent.parent / "tuned_examples" / f"damo_{task}.py")
    config.copy(copy_frozen=False).validate()
    assert "num_gradient_steps_lifetime" in stop
    assert config.evaluation_interval


def test_the_example_of_a_search_is_valid() -> None:
    config, _ = load_file(Path(__file__).parent.parent / "tuned_examples" / "damo_hopper_search.py")
    variants = list(experiment._variants(config))
    assert {(variant.eta, variant.rollout_length) for variant in variants} == {
        (eta, length) for eta in (0.5, 1.0, 2.0, 3.0) for length in (1, 3, 5)
    }
    for variant in variants:
        variant.validate()


def test_every_point_of_a_search_is_checked_before_ray_starts() -> None:
    config = DAMOConfig().environment("Pendulum-v1").offline_data(input_="nowhere.parquet")
    with pytest.raises(UsageError, match="`tau` must lie in"):
        experiment._check_before(config.training(eta=tune.uniform(1, 2), tau=tune.grid_search([0.1, 1.1])), None)
    with pytest.raises(DataError, match=r"nowhere.parquet: no such file"):
        experiment._check_before(config.training(tau=0.1), None)


# -- mistakes ----------------------------------------------------------------------------------------------------------

BAD_FILES = {
    "no_config": ("x = 1", "no `config`"),
    "algo_built": ("class A:\n    def train(self): ...\nconfig = A()", "without .build_algo()"),
    "a_dict": ("config = {'env': 'x'}", "AlgorithmConfig"),
    "no_algorithm": (
        "from ray.rllib.algorithms.algorithm_config import AlgorithmConfig\nconfig = AlgorithmConfig()",
        "of no algorithm",
    ),
    "syntax": ("config = (", "syntax.py, line 1"),
    "raises": ("x = 1\nraise KeyError('lost')", "line 2: KeyError"),
    "bad_stop": (PENDULUM_PPO + "\nstop = {'training_iteration': 'ten'}", "must be a number"),
    "stop_list": (PENDULUM_PPO + "\nstop = [1]", "dict of metric"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_file(name: str, tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    text, message = BAD_FILES[name]
    file = tmp_path / f"{name}.py"
    file.write_text(text)
    assert rllib.invoke(["train", "file", str(file)]) == USAGE
    error = capfd.readouterr().err
    assert message in error
    assert "Traceback" not in error


BAD_COMMANDS = {
    ("train",): "nothing to train",
    ("train", "damo.py"): "write `rllib train file damo.py`",
    ("train", "file"): "write `rllib train file X.py`",
    ("train", "file", "FILE", "--algo", "PPO"): "exclude each other",
    ("train", "file", "nowhere.py"): "no file 'nowhere.py'",
    ("train", "file", "FILE", "--stop", "{training_iteration: 1}"): "not valid JSON",
    ("train", "file", "FILE", "--stop", "3"): "must be a JSON object",
    ("train", "file", "FILE", "--stop", '{"training_iteration": true}'): "must be a number",
    ("train", "file", "FILE", "--stop", '{"training_iteration": NaN}'): "must be a number",
    ("train", "file", "FILE", "--config", '{"gama": 0.9}'): "Did you mean 'gamma'",
    ("train", "file", "FILE", "--env", "Pendulm-v1"): "Did you mean 'Pendulum-v1'",
    ("train", "file", "FILE", "--env", "nopkg_xyz:Env-v0"): "environment 'nopkg_xyz:Env-v0'",
    ("train", "file", "FILE", "--scheduler", "ashaa"): "--scheduler: unknown 'ashaa'",
    ("train", "file", "FILE", "--scheduler-config", "{}x"): "--scheduler-config is not valid JSON",
    ("train", "file", "FILE", "--scheduler-config", '{"a": 1}'): "needs --scheduler",
    ("train", "file", "FILE", "--checkpoint-freq", "-1"): "--checkpoint-freq",
    ("train", "file", "FILE", "--wandb-project", "p"): "pip install wandb",
    ("train", "file", "FILE", "--storage-path", "FILE/under"): "can't be made",
    ("train", "file", "FILE", "--storage-path", "nosuch://x"): "There are s3://, gs://",
    ("train", "file", "FILE", "--storage-path", "FOLDER", "--resume"): "has no run of the name 'ppo_pendulum'",
    ("train", "--algo", "damo", "--env", "Pendulum-v1"): "Did you mean 'DAMO'",
    ("train", "--algo", "PPPO", "--env", "Pendulum-v1"): "Did you mean 'PPO'",
    ("train", "--algo", "PPO"): "give one with --env",
    ("train", "--algo", "DAMO", "--env", "Pendulum-v1"): "input_",
    ("train", "--algo", "DAMO", "--env", "Pendulum-v1", "--input", "pendulum-mixd"): "pendulum-mixed",
    ("train", "--algo", "DAMO", "--env", "Pendulum-v1", "--input", "p", "-c", '{"eta": -1}'): "`eta`",
    ("evaluate", "nowhere"): "no such folder",
    ("evaluate", "FILE"): "is a file",
    ("evaluate", "file://FOLDER/nowhere"): "no checkpoint could be read at file://",
    ("evaluate", "FOLDER"): "holds no RLlib checkpoint",
    ("evaluate", "FOLDER", "--out", "x.csv"): ".jsonl",
    ("evaluate", "FOLDER", "--episodes", "0"): "episodes",
    ("evaluate", "FOLDER", "--render"): "no display",
    ("evaluate", "FOLDER", "--algo", "PPPO"): "Did you mean 'PPO'",
    ("trian",): "trian",
}


@pytest.mark.parametrize("command", BAD_COMMANDS, ids=" ".join)
def test_bad_command(
    command: tuple[str, ...], ppo_file: Path, capfd: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ppo_file.parent)
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.setattr(experiment, "_init_ray", lambda options: pytest.fail("Ray was started"))
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("sys.platform", "linux")
    places = {"FILE": str(ppo_file), "FOLDER": str(ppo_file.parent)}
    arguments = [re.sub("FILE|FOLDER", lambda found: places[found.group()], word) for word in command]
    if "wandb" in " ".join(command):
        monkeypatch.setitem(sys.modules, "wandb", None)
    assert rllib.invoke(arguments) == USAGE
    error = capfd.readouterr().err
    assert BAD_COMMANDS[command] in re.sub(r"\x1b\[[0-9;]*m", "", error)
    assert "Traceback" not in error
    assert "_validate_config=False" not in error  # RLlib's advice to look away


def test_a_display_that_does_not_answer(
    ppo_file: Path, capfd: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("WAYLAND_DISPLAY", "SDL_VIDEODRIVER"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DISPLAY", ":987")
    monkeypatch.setattr("sys.platform", "linux")
    assert rllib.invoke(["evaluate", str(ppo_file.parent), "--render"]) == USAGE
    assert "DISPLAY=:987 cannot be opened" in capfd.readouterr().err


def test_the_users_mistakes_are_told_in_a_line(
    ppo_file: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    def fail(*arguments: Any) -> None:
        raise UsageError("wrong")

    monkeypatch.setattr(rllib, "run", fail)
    assert rllib.invoke(["train", "file", str(ppo_file)]) == USAGE
    assert capfd.readouterr().err == "Error: wrong\n"


def test_stop_on_evaluation_that_never_happens(ppo_file: Path, capfd: pytest.CaptureFixture) -> None:
    stop = '{"evaluation/env_runners/episode_return_mean": 1}'
    arguments = ["train", "file", str(ppo_file), "--config", '{"evaluation_interval": null}', "--stop", stop]
    assert rllib.invoke(arguments) == USAGE
    assert "has no evaluation" in capfd.readouterr().err


@pytest.mark.parametrize("words", [["--help"], ["train", "--help"], ["evaluate", "--help"]])
def test_help(words: list[str], capfd: pytest.CaptureFixture) -> None:
    assert rllib.invoke(words) == OK
    assert "Usage" in capfd.readouterr().out


# -- parts -------------------------------------------------------------------------------------------------------------


def test_check_stop_passes_what_tune_takes() -> None:
    stopper = tune.stopper.MaximumIterationStopper(3)
    assert check_stop(stopper) is stopper
    assert check_stop(None) is None
    assert check_stop({"evaluation": {"env_runners": {"x": 1}}, "y": 2.5}) == {"evaluation/env_runners/x": 1, "y": 2.5}


def test_near_finds_a_name_without_its_folders() -> None:
    known = ["evaluation/env_runners/normalized_score", "training_iteration"]
    assert near("normalized_score", known) == " Did you mean 'evaluation/env_runners/normalized_score'?"
    assert near("training_iterations", known) == " Did you mean 'training_iteration'?"
    assert near("zzz", known) == ""


def test_apply_config_leaves_the_given_one() -> None:
    config = PPOConfig()
    assert apply_config(config, {"gamma": 0.5}).gamma == 0.5
    assert config.gamma == 0.99
    with pytest.raises(UsageError, match="has no setting 'build_algo'"):
        apply_config(config, {"build_algo": 1})


def test_apply_config_knows_settings_that_rllib_has_as_properties() -> None:
    assert apply_config(PPOConfig(), {"train_batch_size_per_learner": 128}).train_batch_size_per_learner == 128


def test_has_search_space() -> None:
    assert not has_search_space(PPOConfig())
    assert has_search_space(PPOConfig().training(gamma=tune.grid_search([0.9, 0.99])))
    assert has_search_space(PPOConfig().training(lr=tune.loguniform(1e-5, 1e-3)))


TRAINED = {"training_iteration": 1, "learners": {"default_policy": {"loss": 1.0}}}
EVALUATED = {**TRAINED, "evaluation": {"env_runners": {"episode_return_mean": 5.0}}}


def test_stopper_stops_at_any_of_its_metrics() -> None:
    stopper = CheckedStopper({"training_iteration": 9, "evaluation/env_runners/episode_return_mean": 5}, True)
    assert not stopper("a", TRAINED)
    assert stopper("a", EVALUATED)
    assert not stopper.stop_all()


def test_stopper_finds_a_lost_metric_at_the_first_evaluation() -> None:
    stopper = CheckedStopper({"episode_return_mean": 5}, True)
    assert not stopper("a", {"phase": "dynamics", "dynamics": {"epoch": 1}})
    assert not stopper("a", TRAINED)
    assert not stopper.stop_all()
    assert not stopper("a", EVALUATED)
    assert stopper.stop_all()
    assert "Did you mean 'evaluation/env_runners/episode_return_mean'" in str(stopper.error)


def test_stopper_without_evaluation_checks_the_first_training_result() -> None:
    stopper = CheckedStopper({"los": 5}, False)
    stopper("a", TRAINED)
    assert stopper.stop_all()


def test_stopper_remembers_metrics_of_earlier_results() -> None:
    stopper = CheckedStopper({"dynamics/epoch": 50}, True)
    stopper("a", {"dynamics": {"epoch": 1}})
    stopper("a", EVALUATED)
    assert not stopper.stop_all()


def test_progress_columns_join_when_their_numbers_do() -> None:
    table = ProgressTable()
    header, row = table.lines("t", {"training_iteration": 1, "phase": "dynamics", "dynamics": {"holdout_loss": -3.2}})
    assert "holdout loss" in header
    assert "score" not in header
    assert "-3.200" in row
    evaluation = {"env_runners": {"episode_return_mean": 1234.5, "normalized_score": 38.56}}
    header, row = table.lines(
        "t", {"training_iteration": 2, "num_gradient_steps_lifetime": 1000, "evaluation": evaluation}
    )
    assert "score" in header
    assert "1234.5" in row
    assert "38.6" in row
    assert len(header) == len(row)
    assert len(table.lines("t", {"training_iteration": 3, "time_total_s": 3671.0})) == 2  # the column of the time joins
    (row,) = table.lines("t", {"training_iteration": 4, "time_total_s": 3671.0})
    assert "1:01:11" in row


def test_flatten() -> None:
    assert flatten({"a": {"b": {"c": 1}}, "d/e": 2}) == {"a/b/c": 1, "d/e": 2}


# -- with Ray ----------------------------------------------------------------------------------------------------------


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
    assert "Did you mean 'mine.py'" in capfd.readouterr().err


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


@pytest.mark.parametrize(
    ("stop", "iteration", "evaluates"),
    [
        ({"training_iteration": 5}, 4, True),
        ({"training_iteration": 6}, 4, False),
        ({"num_gradient_steps_lifetime": 100, "training_iteration": 99}, 4, True),
        ({"learners/default_policy/qf_mean": 7.5, "unknown": 1}, 4, False),
    ],
)
def test_a_run_that_stops_is_evaluated(stop: dict[str, float], iteration: int, evaluates: bool) -> None:
    class Fake:
        def __init__(self) -> None:
            self.iteration = iteration

        def _run_one_evaluation(self) -> dict[str, Any]:
            return {"evaluation": {"env_runners": {"episode_return_mean": 3.0}}}

    config = with_last_evaluation(PPOConfig().evaluation(evaluation_interval=2), stop)
    (callback,) = config.callbacks_on_train_result
    result: dict[str, Any] = {
        "num_gradient_steps_lifetime": 100, "learners": {"default_policy": {"qf_mean": 7.0}},
    }  # fmt: skip
    callback(algorithm=Fake(), metrics_logger=None, result=result)
    assert ("evaluation" in result) == evaluates
    made = {"evaluation": {"env_runners": {"episode_return_mean": 1.0}}}
    callback(algorithm=Fake(), metrics_logger=None, result=made)  # one is enough
    assert made["evaluation"]["env_runners"]["episode_return_mean"] == 1.0


def test_without_evaluation_there_is_no_last_one() -> None:
    config = with_last_evaluation(PPOConfig(), {"training_iteration": 5})
    assert not config.callbacks_on_train_result
    assert not with_last_evaluation(PPOConfig().evaluation(evaluation_interval=2), None).callbacks_on_train_result


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


def test_an_environment_may_be_named_with_the_module_that_registers_it(tmp_path, monkeypatch) -> None:
    text = 'import gymnasium as gym\ngym.register("OfAModule-v0", "gymnasium.envs.classic_control:PendulumEnv")\n'
    (tmp_path / "registers_an_env.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    assert check_env("registers_an_env:OfAModule-v0") == "registers_an_env:OfAModule-v0"
    with pytest.raises(UsageError, match="unknown environment 'registers_an_env:Other-v0'"):
        check_env("registers_an_env:Other-v0")
    with pytest.raises(UsageError, match="no_such_module"):
        check_env("no_such_module:Other-v0")


def test_a_scheduler_bears_results_that_did_not_evaluate(monkeypatch) -> None:
    strict = "TUNE_DISABLE_STRICT_METRIC_CHECKING"
    monkeypatch.setenv(strict, "0")
    monkeypatch.delenv(strict)
    assert experiment._scheduler(RunOptions(scheduler="asynchyperband"), PPOConfig()) is not None
    assert os.environ[strict] == "1"


def test_evaluate_asks_for_an_environment_where_the_checkpoint_has_none(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr("rllib_damo.command.rllib.load_config", lambda *args: PPOConfig())
    tmp_path.joinpath("rllib_checkpoint.json").write_text("{}")
    assert rllib.invoke(["evaluate", str(tmp_path)]) == USAGE
    assert "trained without an environment: name one by --env" in capsys.readouterr().err
