"""The `rllib` command: what is run, and the messages for mistakes; nothing is trained here."""

from __future__ import annotations

import json
import pickle
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from ray.rllib.algorithms.ppo import PPOConfig

from rllib_damo import ALGORITHMS
from rllib_damo.command import rllib
from rllib_damo.command import run as experiment
from rllib_damo.command.report import OK, USAGE
from rllib_damo.command.run import RunOptions
from rllib_damo.errors import UsageError
from tests.ppo_pendulum import PENDULUM_PPO


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
    assert options.keep_checkpoints_num is None


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
    assert options.keep_checkpoints_num == 0


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_algorithm_by_name(name: str, runs: list) -> None:
    assert rllib.invoke(["train", "--algo", name, "--env", "Pendulum-v1", "--input", "pendulum-mixed"]) == OK
    config = runs[0][0]
    assert type(config).__name__ == f"{name}Config"
    assert (config.algo_class, config.env, config.input_) == (ALGORITHMS[name], "Pendulum-v1", "pendulum-mixed")
    config.validate()


def write_run(folder: Path, settings: dict[str, Any]) -> None:
    """What Tune keeps of a run of one trial, as far as it is read here."""
    (folder / "trial").mkdir(parents=True)
    (folder / "tuner.pkl").touch()
    record = {"trial_data": [[json.dumps({"trainable_name": "DAMO", "relative_logdir": "trial"}), "{}"]]}
    (folder / "experiment_state-2026.json").write_text(json.dumps(record))
    (folder / "trial" / "params.pkl").write_bytes(pickle.dumps(settings))


def test_a_run_is_resumed_by_its_name_alone(tmp_path: Path, runs: list, capfd: pytest.CaptureFixture) -> None:
    """Also where the checkpoint that it went on from is gone."""
    settings = {"env": "Pendulum-v1", "input_": "pendulum-mixed", "eta": 0.5, "start_from": str(tmp_path / "gone")}
    write_run(tmp_path / "mine_2026-01-31_12-00-00", settings)
    arguments = ["train", "--resume", "--name", "mine", "--storage-path", str(tmp_path)]
    for more in ([], ["--from", str(tmp_path / "gone")]):
        assert rllib.invoke([*arguments, *more]) == OK
        config, _, options = runs.pop()
        assert (type(config).__name__, config.eta, options.name, options.resume) == ("DAMOConfig", 0.5, "mine", True)
        assert config.start_from == str(tmp_path / "gone")
    (tmp_path / "mine_2026-01-31_12-00-00" / "trial" / "params.pkl").write_bytes(b"?")
    assert rllib.invoke(arguments) == USAGE
    assert "does not tell what was trained" in capfd.readouterr().err


def test_a_damaged_record_is_passed_over_where_a_copy_is_kept(tmp_path: Path, runs: list) -> None:
    run = tmp_path / "mine_2026-01-31_12-00-00"
    write_run(run, {"env": "Pendulum-v1", "input_": "pendulum-mixed", "eta": 0.5})
    (run / "experiment_state-2026.json").rename(run / "experiment_state-0.json")  # as `RecordCopy` names it
    (run / "experiment_state-2026.json").write_text('{"trial_da')
    assert rllib.invoke(["train", "--resume", "--name", "mine", "--storage-path", str(tmp_path)]) == OK
    assert runs[0][0].eta == 0.5


def test_offline_an_environment_for_evaluation_is_enough(runs: list, capfd: pytest.CaptureFixture) -> None:
    arguments = ["train", "--algo", "DAMO", "--input", "pendulum-mixed", "--config"]
    assert rllib.invoke([*arguments, '{"evaluation_config": {"env": "Pendulum-v1"}}']) == OK
    config = runs[0][0]
    assert config.env is None
    assert config.get_evaluation_config_object().env == "Pendulum-v1"
    assert rllib.invoke([*arguments, '{"evaluation_config": {"env": "Pendulm-v1"}}']) == USAGE
    assert "Did you mean 'Pendulum-v1'" in capfd.readouterr().err


def test_run_config_makes_a_script_of_a_file(runs: list, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["my_script.py", "--name", "mine", "-c", '{"gamma": 0.5}'])
    with pytest.raises(SystemExit) as end:
        rllib.run_config(PPOConfig().environment("Pendulum-v1"), {"training_iteration": 7})
    config, stop, options = runs[0]
    assert end.value.code == OK
    assert (config.gamma, stop, options.name) == (0.5, {"training_iteration": 7}, "mine")


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
    ("train", "file", "FILE", "--stop", "{}"): "--stop is empty",
    ("train", "file", "FILE", "--name", ""): "--name ''",
    ("train", "file", "FILE", "--name", "../x"): "--name '../x': give a name of a folder",
    ("train", "file", "FILE", "--storage-path", ""): "storage_path (--storage-path) is empty",
    ("train", "file", "FILE", "--scheduler", "pbt"): "--scheduler pbt: You must specify",
    ("train", "file", "FILE", "--stop", "3"): "must be a JSON object",
    ("train", "file", "FILE", "--stop", '{"training_iteration": true}'): "must be a number",
    ("train", "file", "FILE", "--stop", '{"training_iteration": NaN}'): "must be a number",
    ("train", "file", "FILE", "--config", '{"gama": 0.9}'): "Did you mean 'gamma'",
    (
        "train",
        "file",
        "FILE",
        "--config",
        '{"algo_class": null}',
    ): "cannot set 'algo_class': name the",
    ("train", "file", "FILE", "--config", '{"lr": {"grid_search": 3}}'): "'lr': \"grid_search\" must be a list",
    ("train", "file", "FILE", "--config", '{"lr": {"grid_search": []}}'): "'lr': \"grid_search\" must be a list",
    ("train", "file", "FILE", "--config", '{"grid_search": 3}'): "has no setting 'grid_search'",
    ("train", "file", "FILE", "--config", '{"seed": "x"}'): "`seed` must be None or a whole number from 0",
    ("train", "file", "FILE", "--config", '{"seed": -5}'): "`seed` must be None or a whole number from 0",
    ("train", "file", "FILE", "--config", '{"seed": 1e300}'): "`seed` must be None or a whole number from 0",
    ("train", "file", "FILE", "--config", '{"seed": {"grid_search": [1, true]}}'): "found True",
    ("train", "file", "FILE", "--config", '{"num_env_runners": "x"}'): "`num_env_runners` must be a whole number",
    ("train", "file", "FILE", "--config", '{"gamma": "x"}'): "`gamma` must be a number; found 'x'",
    ("train", "file", "FILE", "--config", '{"gamma": NaN}'): "`gamma` must be a number; found nan",
    ("train", "file", "FILE", "--config", '{"num_cpus_per_learner": "x"}'): "`num_cpus_per_learner` must be a number",
    (
        "train",
        "file",
        "FILE",
        "--config",
        '{"num_gpus_per_learner": -1}',
    ): "must not be negative; found -1",
    ("train", "file", "FILE", "--config", '{"restart_failed_env_runners": "x"}'): "must be True or False; found 'x'",
    ("train", "file", "FILE", "--config", '{"evaluation_duration_unit": "x"}'): "must be one of episodes, timesteps",
    ("train", "file", "FILE", "--config", '{"gamma": 0.9, "env_config": 3}'): "--config: 'env_config' cannot be 3",
    ("train", "file", "FILE", "--config", '{"env": 3}'): "env (--env) must be the name of an environment",
    ("train", "file", "FILE", "--env", "Pendulm-v1"): "Did you mean 'Pendulum-v1'",
    ("train", "file", "FILE", "--env", "nopkg_xyz:Env-v0"): "environment 'nopkg_xyz:Env-v0'",
    ("train", "file", "FILE", "--scheduler", "ashaa"): "--scheduler: unknown 'ashaa'",
    ("train", "file", "FILE", "--scheduler-config", "{}x"): "--scheduler-config is not valid JSON",
    ("train", "file", "FILE", "--scheduler-config", '{"a": 1}'): "needs --scheduler",
    ("train", "file", "FILE", "--checkpoint-freq", "-1"): "--checkpoint-freq",
    ("train", "file", "FILE", "--max-failures", "-1"): "--max-failures",
    ("train", "file", "FILE", "--wandb-project", "p"): "pip install wandb",
    ("train", "file", "FILE", "--storage-path", "FILE/under"): "cannot be written",
    ("train", "file", "FILE", "--storage-path", "nosuch://x"): "There are s3://, gs://",
    ("train", "file", "FILE", "--storage-path", "FOLDER", "--resume"): "has no run of the name 'ppo_pendulum'",
    ("train", "--resume"): "name the run by --name",
    ("train", "--resume", "--name", "r", "--storage-path", "FOLDER"): "has no run of the name 'r'",
    ("train", "--resume", "--from", "FOLDER/gone"): "name the run: --name NAME --resume",
    ("train", "--algo", "damo", "--env", "Pendulum-v1"): "Did you mean 'DAMO'",
    ("train", "--algo", "PPPO", "--env", "Pendulum-v1"): "Did you mean 'PPO'",
    ("train", "--algo", "PPO"): "give one with --env",
    ("train", "--algo", "DAMO", "--env", "Pendulum-v1"): "input_",
    ("train", "--algo", "DAMO", "--env", "Pendulum-v1", "--input", "pendulum-mixd"): "pendulum-mixed",
    ("train", "--algo", "DAMO", "--env", "Pendulum-v1", "--input", "p", "-c", '{"eta": -1}'): "`eta`",
    ("train", "-a", "DAMO", "-e", "Pendulum-v1", "-i", "p", "-s", '{"policy_check/kept_return": 1}'): (
        "stop (--stop): no result will have 'policy_check/kept_return', since `policy_check_freq` is 0"
    ),
    ("train", "--algo", "DAMO", "-e", "Pendulum-v1", "-i", "p", "--from", "FOLDER"): "no checkpoint at FOLDER",
    ("evaluate", "nowhere"): "no such folder",
    ("evaluate", "FOLDER", "--seed", "-1"): "--seed",
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
    expected = re.sub("FOLDER", places["FOLDER"], BAD_COMMANDS[command])
    assert expected in re.sub(r"\x1b\[[0-9;]*m", "", error)
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
    assert "since `evaluation_interval` is None" in capfd.readouterr().err


@pytest.mark.parametrize("words", [["--help"], ["train", "--help"], ["evaluate", "--help"]])
def test_help(words: list[str], capfd: pytest.CaptureFixture) -> None:
    assert rllib.invoke(words) == OK
    assert "Usage" in capfd.readouterr().out


def test_evaluate_asks_for_an_environment_where_the_checkpoint_has_none(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr("rllib_damo.command.rllib.load_config", lambda *args: PPOConfig())
    tmp_path.joinpath("rllib_checkpoint.json").write_text("{}")
    assert rllib.invoke(["evaluate", str(tmp_path)]) == USAGE
    assert "trained without an environment: name one with --env" in capsys.readouterr().err
