"""Configs are checked before Ray starts."""

from __future__ import annotations

from pathlib import Path

import pytest
from ray import tune
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.algorithms.sac import SACConfig

from rllib_damo import DAMOConfig, OfflineIQLConfig
from rllib_damo.command.checks import check_config, has_search_space, variants
from rllib_damo.command.inputs import load_file
from rllib_damo.command.offline import read_datasets
from rllib_damo.errors import DataError, UsageError


@pytest.mark.parametrize("task", ["hopper", "halfcheetah", "halfcheetah_expert", "walker2d", "pendulum"])
def test_tuned_examples_are_valid(task: str) -> None:
    config, stop = load_file(Path(__file__).parent.parent / "tuned_examples" / f"damo_{task}.py")
    config.copy(copy_frozen=False).validate()
    assert "num_gradient_steps_lifetime" in stop
    assert config.evaluation_interval


def test_the_example_of_a_search_is_valid() -> None:
    config, _ = load_file(Path(__file__).parent.parent / "tuned_examples" / "damo_hopper_search.py")
    points = list(variants(config))
    assert {(point.eta, point.rollout_length) for point in points} == {
        (eta, length) for eta in (0.5, 1.0, 2.0, 3.0) for length in (1, 3, 5)
    }
    for point in points:
        point.validate()


def test_every_point_of_a_search_is_checked_before_ray_starts() -> None:
    config = DAMOConfig().environment("Pendulum-v1").offline_data(input_="nowhere.parquet")
    with pytest.raises(UsageError, match="`tau` must be a number in"):
        check_config(config.training(eta=tune.uniform(1, 2), tau=tune.grid_search([0.1, 1.1])))
    with pytest.raises(DataError, match=r"nowhere.parquet: no such file"):
        read_datasets(check_config(config.training(tau=0.1)))


def test_options_that_are_numbers_or_words_pass() -> None:
    config = OfflineIQLConfig().environment("Pendulum-v1").offline_data(input_="pendulum-mixed")
    check_config(config.training(reward_scale="return_range"))
    check_config(PPOConfig().environment("Pendulum-v1").env_runners(rollout_fragment_length="auto"))
    check_config(SACConfig().environment("Pendulum-v1").training(target_entropy="auto", alpha_lr=3e-4))


def test_has_search_space() -> None:
    assert not has_search_space(PPOConfig())
    assert has_search_space(PPOConfig().training(gamma=tune.grid_search([0.9, 0.99])))
    assert has_search_space(PPOConfig().training(lr=tune.loguniform(1e-5, 1e-3)))
