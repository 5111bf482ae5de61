"""Files, JSON and names that users give to the `rllib` command."""

from __future__ import annotations

from pathlib import Path

import gymnasium as gym
import pytest
from ray import cloudpickle, tune
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.env.env_context import EnvContext

from rllib_damo.command.inputs import apply_config, check_env, check_stop, run_file, share_env
from rllib_damo.errors import UsageError, UserError
from rllib_damo.utils import ray_internals
from rllib_damo.utils.environments import make_env


def test_check_stop_passes_what_tune_takes() -> None:
    stopper = tune.stopper.MaximumIterationStopper(3)
    assert check_stop(stopper) is stopper
    assert check_stop(None) is None
    assert check_stop({"evaluation": {"env_runners": {"x": 1}}, "y": 2.5}) == {"evaluation/env_runners/x": 1, "y": 2.5}


def test_apply_config_leaves_the_given_one() -> None:
    config = PPOConfig()
    assert apply_config(config, {"gamma": 0.5}).gamma == 0.5
    assert config.gamma == 0.99
    with pytest.raises(UsageError, match="has no setting 'build_algo'"):
        apply_config(config, {"build_algo": 1})


def test_apply_config_knows_settings_that_rllib_has_as_properties() -> None:
    assert apply_config(PPOConfig(), {"train_batch_size_per_learner": 128}).train_batch_size_per_learner == 128


def test_a_misspelt_file_is_suggested_with_its_folder(tmp_path: Path) -> None:
    (tmp_path / "damo_hopper.py").touch()
    with pytest.raises(UsageError, match=f"no file .*Did you mean '{tmp_path}/damo_hopper.py'"):
        run_file(tmp_path / "damo_hoper.py")
    with pytest.raises(UsageError, match=r"damo_hoper\.py'\.$"):
        run_file(tmp_path / "no_folder" / "damo_hoper.py")


def test_an_environment_may_be_named_with_the_module_that_registers_it(tmp_path, monkeypatch) -> None:
    text = 'import gymnasium as gym\ngym.register("OfAModule-v0", "gymnasium.envs.classic_control:PendulumEnv")\n'
    (tmp_path / "registers_an_env.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    assert check_env("registers_an_env:OfAModule-v0") == "registers_an_env:OfAModule-v0"
    with pytest.raises(UsageError, match="unknown environment 'registers_an_env:Other-v0'"):
        check_env("registers_an_env:Other-v0")
    with pytest.raises(UsageError, match="no_such_module"):
        check_env("no_such_module:Other-v0")


def test_an_environment_that_the_file_registers_with_gymnasium_is_known_to_trials(tmp_path: Path) -> None:
    file = tmp_path / "registers.py"
    file.write_text(
        "import gymnasium as gym\n"
        "from gymnasium.envs.classic_control import PendulumEnv\n"
        "class Mine(PendulumEnv):\n"
        "    def __init__(self, gravity=1.0, **kwargs): super().__init__(g=gravity, **kwargs)\n"
        "gym.register('OfTheFile-v0', Mine, max_episode_steps=7)\n"
    )
    run_file(file)
    share_env("OfTheFile-v0")
    creator = cloudpickle.loads(cloudpickle.dumps(ray_internals.env_creator("OfTheFile-v0")))
    del gym.registry["OfTheFile-v0"]  # as in another process
    env = creator(EnvContext({"gravity": 3.0}, worker_index=0))
    assert (env.unwrapped.g, env.spec.max_episode_steps) == (3.0, 7)
    for other in ("Pendulum-v1", "nowhere:Id-v0", "Nobodys-v0", gym.Env, None):
        share_env(other)
    assert not ray_internals.is_env("Pendulum-v1")


def test_an_environment_that_only_one_process_knows_has_a_hint() -> None:
    with pytest.raises(UserError, match=r"env='Nobodys-v0'.*ray\.tune\.register_env, or write 'module:Id-v0'"):
        make_env("Nobodys-v0")
