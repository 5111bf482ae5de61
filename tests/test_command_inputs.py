"""Files, JSON and names that users give to the `rllib` command."""

from __future__ import annotations

import pytest
from ray import tune
from ray.rllib.algorithms.ppo import PPOConfig

from rllib_damo.command.inputs import apply_config, check_env, check_stop
from rllib_damo.errors import UsageError


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


def test_an_environment_may_be_named_with_the_module_that_registers_it(tmp_path, monkeypatch) -> None:
    text = 'import gymnasium as gym\ngym.register("OfAModule-v0", "gymnasium.envs.classic_control:PendulumEnv")\n'
    (tmp_path / "registers_an_env.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    assert check_env("registers_an_env:OfAModule-v0") == "registers_an_env:OfAModule-v0"
    with pytest.raises(UsageError, match="unknown environment 'registers_an_env:Other-v0'"):
        check_env("registers_an_env:Other-v0")
    with pytest.raises(UsageError, match="no_such_module"):
        check_env("no_such_module:Other-v0")
