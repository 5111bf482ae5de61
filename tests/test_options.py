"""Options of all algorithms: each has a default, a check and a meaning; errors name the option and what takes it."""

from __future__ import annotations

import ast
import inspect
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, TypedDict

import gymnasium as gym
import pytest
from typing_extensions import Unpack

import rllib_damo
from rllib_damo import ALGORITHMS, BehaviorCloningConfig, DAMOConfig, MOPOConfig, TD3BCConfig
from rllib_damo.core.config import OfflineConfig
from rllib_damo.core.option_groups import OfflineTraining
from rllib_damo.core.options import Check, Option, count, options_of, positive

CONFIGS = {name: type(algorithm.get_default_config()) for name, algorithm in ALGORITHMS.items()}
every_algorithm = pytest.mark.parametrize("config_class", CONFIGS.values(), ids=CONFIGS)


def valid(config_class: type[OfflineConfig]) -> OfflineConfig:
    spaces = gym.spaces.Box(-1, 1, (3,)), gym.spaces.Box(-2, 2, (2,))
    config = config_class().environment(observation_space=spaces[0], action_space=spaces[1])
    return config.offline_data(input_="hopper-medium").evaluation(evaluation_interval=None)


def error_of(config: OfflineConfig) -> str:
    with pytest.raises(ValueError, match="`") as caught:
        config.validate()
    return str(caught.value)


class Wrong:
    """What no option takes."""

    def __repr__(self) -> str:
        return "<something wrong>"


# -- every option of every algorithm ---------------------------------------------------------------------------------


@every_algorithm
def test_defaults_are_valid(config_class: type[OfflineConfig]) -> None:
    valid(config_class).validate()
    config_class().environment("Pendulum-v1").offline_data(input_="pendulum-mixed").validate()
    for name, option in config_class.own_options().items():
        assert option.check.holds(option.default) != (name == "input_"), name  # the one that has to be set


@every_algorithm
def test_a_config_has_its_options_with_their_defaults_in_copies(config_class: type[OfflineConfig]) -> None:
    config, other = config_class(), config_class()
    for name, option in config_class.own_options().items():
        assert getattr(config, name) == option.default
        if isinstance(option.default, dict):
            assert getattr(config, name) is not getattr(other, name)


@every_algorithm
def test_every_option_has_a_check_and_a_meaning(config_class: type[OfflineConfig]) -> None:
    for name, option in config_class.own_options().items():
        assert isinstance(option.check, Check), name
        assert option.check.expected, name
        assert option.meaning.endswith("."), name


@every_algorithm
def test_every_option_refuses_a_wrong_value_and_is_named(config_class: type[OfflineConfig]) -> None:
    for name in config_class.own_options():
        config = valid(config_class)
        setattr(config, name, Wrong())
        message = error_of(config)
        assert f"`{name}` must be {config_class.own_options()[name].check.expected}" in message
        assert "found <something wrong>." in message


@every_algorithm
def test_an_option_of_another_method_is_told_with_the_method(config_class: type[OfflineConfig]) -> None:
    for method in config_class.option_groups:
        own = config_class.own_options(method)
        for other in config_class.option_groups:
            for name in config_class.own_options(other).keys() - own.keys():
                with pytest.raises(TypeError, match=rf"`\.{other}\({name}=\.\.\.\)` takes it"):
                    getattr(config_class(), method)(**{name: 1})
    with pytest.raises(TypeError, match=r"\.env_runners\(num_env_runners=\.\.\.\)` takes it"):
        config_class().training(num_env_runners=1)


@every_algorithm
def test_methods_tell_their_options(config_class: type[OfflineConfig]) -> None:
    """For `help()` and for editors that run the code; others read the `TypedDict`."""
    for method in config_class.option_groups:
        function = getattr(config_class, method)
        own = config_class.own_options(method)
        assert own.keys() <= inspect.signature(function).parameters.keys()
        for name, option in own.items():
            assert f"{name}: {option.meaning} Default: {option.default!r}." in function.__doc__


def test_the_dynamics_options_are_told_with_their_method() -> None:
    with pytest.raises(TypeError, match=r"`\.dynamics\(dynamics_max_epochs=\.\.\.\)` takes it"):
        DAMOConfig().training(dynamics_max_epochs=1)


@pytest.mark.parametrize(
    ("config", "option", "message"),
    [
        (TD3BCConfig(), {"eta": 0.5}, r"`TD3BCConfig.training\(\)` has no option 'eta'"),
        (TD3BCConfig(), {"real_ratio": 0.5}, "has no option 'real_ratio'"),
        (TD3BCConfig(), {"dynamics_lr": 0.1}, "has no option 'dynamics_lr'"),
        (
            BehaviorCloningConfig(),
            {"critic_lr": 1.0},
            "`BehaviorCloningConfig.training.* no option 'critic_lr'",
        ),
        (MOPOConfig(), {"label_smoothing": 0.2}, "`MOPOConfig.training.* no option 'label_smoothing'"),
    ],
)
def test_an_option_that_the_algorithm_does_not_read_is_refused(
    config: OfflineConfig, option: dict[str, Any], message: str
) -> None:
    with pytest.raises(TypeError, match=message):
        config.training(**option)


# -- an algorithm's own ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config_class", "options", "parts"),
    [
        (TD3BCConfig, {"bc_alpha": -1.0}, ("`bc_alpha`", ">= 0", "-1.0")),
        (TD3BCConfig, {"noise_clip": math.inf}, ("`noise_clip`", "finite")),
        (TD3BCConfig, {"policy_delay": 0}, ("`policy_delay`", "whole number", "0")),
        (BehaviorCloningConfig, {"actor_lr": 0.0}, ("`actor_lr`", "> 0")),
        (MOPOConfig, {"uncertainty": "pairwise"}, ("`uncertainty`", "pairwise-diff", "'pairwise'")),
        (MOPOConfig, {"penalty_coef": "1"}, ("`penalty_coef`", "number")),
    ],
)
def test_errors_name_option_and_value(
    config_class: type[OfflineConfig], options: dict[str, Any], parts: tuple[str, ...]
) -> None:
    message = error_of(valid(config_class).training(**options))
    assert all(part in message for part in parts), message


def test_without_a_model_there_are_no_rollouts_to_set() -> None:
    message = error_of(valid(TD3BCConfig).env_runners(num_env_runners=1))
    assert message.startswith("TD3BC has no rollouts: leave `num_env_runners` 0; found 1")
    assert not hasattr(TD3BCConfig(), "dynamics")


@pytest.mark.parametrize(
    ("config_class", "own"),
    [
        (
            TD3BCConfig,
            {"actor_lr": 3e-4, "bc_alpha": 2.5, "policy_noise": 0.2, "noise_clip": 0.5, "policy_delay": 2},
        ),
        (MOPOConfig, {"actor_lr": 1e-4, "alpha_lr": 1e-4, "initial_alpha": 1.0, "real_ratio": 0.05}),
    ],
)
def test_defaults_are_the_papers_and_not_damos(config_class: type[OfflineConfig], own: dict[str, Any]) -> None:
    config = config_class()
    shared = {"tau": 0.005, "gamma": 0.99, "critic_lr": 3e-4, "train_batch_size_per_learner": 256, "data_fraction": 1.0}
    expected = shared | own
    assert {name: getattr(config, name) for name in expected} == expected


# -- how options are written -----------------------------------------------------------------------------------------


def test_a_group_s_bases_are_read_too_and_options_may_be_replaced() -> None:
    class Base(TypedDict, total=False):
        width: Annotated[int, Option(3, count, "Units.")]

    class Derived(Base, total=False):
        depth: Annotated[int, Option(2, count, "Layers.")]

    assert {name: option.default for name, option in options_of(Derived).items()} == {"width": 3, "depth": 2}


def test_a_key_without_an_option_is_refused_where_the_config_is_defined() -> None:
    class Training(OfflineTraining, total=False):
        width: int

    with pytest.raises(TypeError, match=r"Training.width has no Option: write Annotated"):

        class Config(OfflineConfig):
            option_groups = {**OfflineConfig.option_groups, "training": Training}  # noqa: RUF012

            def training(self, **options: Unpack[Training]) -> Any:
                return super().training(**options)


def test_an_option_without_a_check_is_refused() -> None:
    with pytest.raises(TypeError, match="meaning"):
        Option(3, "Units.")  # type: ignore[arg-type, call-arg]
    with pytest.raises(TypeError, match="Check"):
        Option(3, None, "Units.")  # type: ignore[arg-type]


def test_a_default_of_no_option_is_refused() -> None:
    with pytest.raises(TypeError, match=r"Config.defaults: there is no option 'gama'. Did you mean 'gamma'"):

        class Config(OfflineConfig):
            defaults = {"gama": 0.9}  # noqa: RUF012


def test_an_algorithms_own_default_is_checked_like_any_value() -> None:
    class Config(BehaviorCloningConfig):
        defaults = {"gamma": 2.0}  # noqa: RUF012

    assert "`gamma` must be a number in [0, 1); found 2.0" in error_of(valid(Config))
    assert Config.own_options()["gamma"].check is BehaviorCloningConfig.own_options()["gamma"].check


def test_the_check_of_a_positive_number() -> None:
    assert positive.holds(0.1)
    assert not any(map(positive.holds, (0.0, -1.0, math.nan, math.inf, True, "1", None)))


# -- the neutral core ------------------------------------------------------------------------------------------------


def test_no_algorithm_is_a_damo_but_damo() -> None:
    for algorithm, config_class in zip(ALGORITHMS.values(), CONFIGS.values(), strict=True):
        for kind in (algorithm, config_class, config_class.default_module_class, config_class.default_learner_class):
            names = [base.__name__ for base in kind.__mro__[1:]]
            assert not any(name.startswith("DAMO") for name in names), kind


def strings_of(file: Path) -> Iterator[str]:
    """All texts in a file but its docstrings and comments."""
    tree = ast.parse(file.read_text())
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    docs = [node.body[0] for node in ast.walk(tree) if isinstance(node, documented) and node.body]
    texts = {id(node.value) for node in docs if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in texts:
            yield node.value


@pytest.mark.parametrize("room", ["core", "data", "dynamics", "evaluation", "nn", "utils"])
def test_no_message_that_users_of_other_algorithms_see_says_damo(room: str) -> None:
    files = sorted((Path(rllib_damo.__file__).parent / room).rglob("*.py"))
    assert files
    for file in files:
        for text in strings_of(file):
            assert "DAMO" not in text.replace("RLLIB_DAMO_CACHE", ""), (file, text)
