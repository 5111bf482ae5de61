"""Every option of RLlib's is read by somebody, or refused with what to use instead."""

from __future__ import annotations

import importlib
import inspect
import re
from typing import Any

import gymnasium as gym
import pytest
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig, NotProvided
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig
from ray.rllib.core.rl_module.multi_rl_module import MultiRLModuleSpec
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.offline.offline_data import OfflineData

from rllib_damo import ALGORITHMS, BehaviorCloningConfig, DAMOConfig
from rllib_damo.baselines.bc import BCTorchRLModule
from rllib_damo.core.rllib_options import RLLIB_OPTIONS, Read, Refused, Renamed
from rllib_damo.utils.ray_internals import attribute_of

OBS, ACT = gym.spaces.Box(-1, 1, (3,)), gym.spaces.Box(-2, 2, (2,))


def good(config: Any = None) -> Any:
    config = (config or DAMOConfig()).environment(observation_space=OBS, action_space=ACT)
    return config.offline_data(input_="hopper-medium").evaluation(evaluation_interval=None)


def error_of(config: Any) -> str:
    with pytest.raises(ValueError, match="`") as caught:
        config.validate()
    return str(caught.value)


def options_of_rllib() -> set[tuple[str, str]]:
    """(method, option) of all methods of RLlib's config that set options."""
    found = set()
    for method, function in inspect.getmembers(AlgorithmConfig, inspect.isfunction):
        parameters = inspect.signature(function).parameters.values()
        if any(parameter.default is NotProvided for parameter in parameters):
            found |= {(method, parameter.name) for parameter in parameters} - {(method, "self")}
    return found


OPTIONS = options_of_rllib()
FATES = {(method, option): fate for method, options in RLLIB_OPTIONS.items() for option, fate in options.items()}


def test_the_fate_of_every_option_is_known() -> None:
    """A new version of Ray with a new option fails here: say in the table who reads it, or refuse it."""
    assert sorted(OPTIONS - FATES.keys()) == []
    gone = {option for _, option in FATES.keys() - OPTIONS}
    assert gone <= {"use_env_runner_state_server", "env_runner_state_server_max_concurrency"}  # since Ray 2.57


READ = sorted((fate.by, option) for (_, option), fate in FATES.items() if isinstance(fate, Read))


@pytest.mark.parametrize(("by", "option"), READ, ids=[option for _, option in READ])
def test_what_is_said_to_read_an_option_names_it(by: str, option: str) -> None:
    reader = _find(by)
    source = inspect.getsource(reader.fget if isinstance(reader, property) else reader)
    assert re.search(rf"\b({re.escape(option)}|{re.escape(attribute_of(option))})\b", source)


def _find(path: str) -> Any:
    try:
        return importlib.import_module(path)
    except ModuleNotFoundError:
        owner, _, name = path.rpartition(".")
        return getattr(_find(owner), name)


#: Where RLlib's method takes no value but some.
_VALUES: dict[str, Any] = {
    "rollout_fragment_length": 7,
    "batch_mode": "complete_episodes",
    "count_steps_by": "agent_steps",
    "algorithm_config_overrides_per_module": {"default_policy": {"gamma": 0.5}},
    "input_config": {"a": 1},
    "exploration_config": {"type": "a"},
    "optimizer": {"type": "SGD"},
    "policies_to_train": ["a"],
}
REFUSED = sorted(key for key, fate in FATES.items() if isinstance(fate, Refused) and key in OPTIONS)


@pytest.mark.parametrize(("method", "option"), REFUSED, ids=[option for _, option in REFUSED])
def test_an_option_that_would_change_nothing_is_refused(method: str, option: str) -> None:
    value = _VALUES.get(option, "something else")
    fate = FATES[method, option]
    assert isinstance(fate, Refused)
    message = error_of(getattr(good(), method)(**{option: value}))
    assert message.startswith(f"`{option}`={value!r} is not for DAMO: leave it ")
    assert fate.instead in message


@pytest.mark.parametrize(
    ("method", "given", "instead"),
    [
        ("evaluation", {"off_policy_estimation_methods": {"is": {"type": "is"}}}, "`offline_evaluation_interval`"),
        ("env_runners", {"explore": False}, "`online_noise`"),
        ("env_runners", {"exploration_config": {"type": "EpsilonGreedy"}}, "`online_noise`"),
    ],
)
def test_what_is_refused_names_what_to_use(method: str, given: dict[str, Any], instead: str) -> None:
    message = error_of(getattr(good(), method)(**given))
    assert f"`{next(iter(given))}`" in message
    assert instead in message


@pytest.mark.parametrize(
    "key", sorted(key for key, fate in FATES.items() if isinstance(fate, Renamed)), ids=lambda k: k[1]
)
def test_an_old_name_is_told_by_rllib(key: tuple[str, str], monkeypatch) -> None:
    """It sets the option of the new name, or RLlib warns or raises."""
    method, option = key
    told: list[str] = []
    module = importlib.import_module(AlgorithmConfig.__module__)
    monkeypatch.setattr(module, "deprecation_warning", lambda **given: told.append(given["old"]))
    try:
        getattr(AlgorithmConfig(), method)(**{option: {}})
    except (TypeError, ValueError):
        assert told
    assert told


@pytest.mark.parametrize("name", ALGORITHMS)
def test_defaults_are_not_refused_and_others_are_for_every_algorithm(name: str) -> None:
    config = good(ALGORITHMS[name].get_default_config())
    config.validate()
    assert f"is not for {name}: leave it 0" in error_of(config.resources(num_gpus=1))


def test_options_survive_the_state_of_a_checkpoint() -> None:
    type(good()).from_state(good().get_state()).validate()


@pytest.mark.parametrize("switch", ["enable_rl_module_and_learner", "enable_env_runner_and_connector_v2"])
def test_the_old_api_stack_is_told_by_its_name(switch: str) -> None:
    for config in (good().api_stack(**{switch: False}), good().update_from_dict({"framework": "tf2", switch: False})):
        message = error_of(config.framework("torch"))
        assert message.startswith("DAMO runs on RLlib's new API stack alone: leave `enable_")
        assert "found False" in message
        assert "input_" not in message


def test_another_framework_is_told_before_it_is_looked_for() -> None:
    assert error_of(good().framework("tf2")).startswith("DAMO runs on PyTorch: leave `framework` 'torch'; found 'tf2'")


# -- evaluation_config -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "parts"),
    [
        ({"num_envs_per_runner": 3}, ("no option 'num_envs_per_runner'", "'num_envs_per_env_runner'")),
        ({"explore": True}, ("`explore`=True", "the mean action")),
        ({"num_env_runners": 2}, ("`num_env_runners`=2", "`evaluation_num_env_runners`")),
        ({"num_gpus_per_env_runner": 1}, ("`num_gpus_per_env_runner`=1", "CPUs")),
        ({"clip_actions": True}, ("`clip_actions`=True is not for DAMO", "within the action space")),
        ({"gamma": 0.5}, ("`gamma`=0.5", "`.training()`")),
        ({"hidden_dims": (8,)}, ("`hidden_dims`=(8,)", "`.training()`")),
        ({"evaluation_duration": 3}, ("`evaluation_duration`=3", "`.evaluation()`")),
    ],
)
def test_what_changes_nothing_in_evaluation_is_refused(given: dict[str, Any], parts: tuple[str, ...]) -> None:
    message = error_of(good().evaluation(evaluation_config=given))
    assert message.startswith("`evaluation_config`: ")
    assert all(part in message for part in parts), message


def test_what_evaluation_reads_is_taken() -> None:
    config = good().evaluation(evaluation_config={"num_envs_per_env_runner": 3, "explore": False, "seed": 1})
    config.evaluation(evaluation_config={"callbacks": config.callbacks_class, "env": "Pendulum-v1", "gamma": 0.99})
    config.evaluation(evaluation_config=AlgorithmConfig.overrides(num_cpus_per_env_runner=0.5)).validate()


def test_the_evaluations_config_is_a_dict() -> None:
    config = good()
    config.evaluation_config = PPOConfig()
    assert "`evaluation_config` must be a dict" in error_of(config)


# -- classes that may be replaced, seeds -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "found"),
    [
        (RLModuleSpec(module_class=BCTorchRLModule), "found BCTorchRLModule"),
        (RLModuleSpec(module_class=DAMOConfig), "found DAMOConfig"),
        (MultiRLModuleSpec(rl_module_specs={"default_policy": RLModuleSpec()}), "found MultiRLModuleSpec"),
    ],
)
def test_a_module_of_another_kind_is_refused(spec: Any, found: str) -> None:
    message = error_of(good().rl_module(rl_module_spec=spec))
    assert "`rl_module_spec` must be an RLModuleSpec whose module_class extends DAMOTorchRLModule" in message
    assert found in message


def test_a_module_of_ones_own_is_taken() -> None:
    class Mine(DAMOConfig.default_module_class):
        pass

    for spec in (RLModuleSpec(module_class=Mine), RLModuleSpec(), RLModuleSpec(model_config=DefaultModelConfig())):
        good().rl_module(rl_module_spec=spec).validate()


def test_other_classes_are_refused() -> None:
    assert "`offline_data_class` must extend BulkOfflineData" in error_of(
        good().offline_data(offline_data_class=OfflineData)
    )
    for config, base in ((good(), "ModelRolloutEnvRunner"), (good(BehaviorCloningConfig()), "PolicyRunner")):
        assert f"`env_runner_cls` must extend {base}; found None" in error_of(config.env_runners(env_runner_cls=None))


def test_options_for_a_learner_of_ones_own_need_one() -> None:
    class Mine(DAMOConfig.default_learner_class):
        pass

    config = good().learners(learner_config_dict={"a": 1})
    assert "`learner_config_dict`={'a': 1}" in error_of(config)
    config.learners(learner_class=Mine).validate()


@pytest.mark.parametrize("seed", ["x", -5, 1e300, 1.0, True, 2**32])
def test_a_wrong_seed_is_refused(seed: Any) -> None:
    assert f"`seed` must be None or a whole number from 0 to 4294967295; found {seed!r}" in error_of(
        good().debugging(seed=seed)
    )


def test_seeds_at_the_ends_are_taken() -> None:
    for seed in (None, 0, 2**32 - 1):
        good().debugging(seed=seed).validate()
