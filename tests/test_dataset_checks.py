"""What an algorithm says of its dataset before any work. Small, on Pendulum."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
from ray.rllib.connectors.env_to_module import MeanStdFilter

from rllib_damo.data.generate import datasets
from tests.small_runs import train_policy

pytestmark = pytest.mark.usefixtures("ray_cluster")


@pytest.mark.parametrize(
    "options",
    [{"eta": 1.0}, {"eta": 50.0}, {"eta": 50.0, "terminal_alignment": True}, {"eta": 50.0, "data_alignment": False}],
)
def test_an_eta_above_the_rewards_is_warned_of(config, options, caplog):
    """Pendulum's rewards are about -5 a step."""
    config.training(**options).evaluation(evaluation_interval=None).build_algo().stop()
    warned = [message for message in caplog.messages if "eta=50 is larger than the rewards" in message]
    assert len(warned) == (config.eta == 50 and config.data_alignment)
    if warned:
        assert re.search(r"pendulum.*\(\d\.\d+ in the mean.*set eta to a third of that \([12]\.\d\)", warned[0])
        assert ("terminal_alignment=True" in warned[0]) == (not config.terminal_alignment)


@pytest.mark.parametrize(("scale", "classifier"), [(1, True), (1000, True), (1000, False)])
def test_values_that_the_critics_do_not_reach_are_warned_of(config, scale, classifier, caplog):
    """Pendulum's rewards are about -4 a step."""
    data = datasets.generate("pendulum-mixed", 2000, seed=0)
    config.offline_data(input_=replace(data, rewards=scale * data.rewards)).evaluation(evaluation_interval=None)
    config.training(data_alignment=classifier).build_algo().stop()
    warned = [message for message in caplog.messages if "rewards are" in message]
    assert len(warned) == (scale == 1000)
    if warned:
        assert re.search(r"a value of \d\.\d+e\+05, .* by 1,000", warned[0])
    advice = [message for message in caplog.messages if "with rewards divided by 1,000, set eta to a third" in message]
    assert len(advice) == (scale == 1000 and classifier)
    if advice:
        assert re.search(r"third of theirs \(1\.\d\)\.$", advice[0])


def test_episodes_chosen_for_their_shortness_are_warned_of_once(config, caplog):
    data = datasets.generate("pendulum-mixed", 2000, seed=0)
    late, tenth = np.arange(2000) >= 1000, np.arange(2000) % 10 == 9
    rewards = np.where(late, -3.45, -1.02).astype(np.float32)  # and ten rows an episode in place of 200
    data = replace(data, rewards=rewards, truncations=data.truncations | (late & tenth))
    config.offline_data(input_=data).training(data_fraction=0.5).evaluation(evaluation_interval=None)
    config.build_algo().stop()
    assert sum("the rows that data_fraction chooses have a mean" in message for message in caplog.messages) == 1


def test_a_connector_that_changes_observations_is_warned_of(config, caplog):
    """It is used where the policy plays."""
    config.env_runners(env_to_module_connector=lambda env, spaces, device: MeanStdFilter())
    algo = config.build_algo()
    assert any("`env_to_module_connector` changes the obser" in message for message in caplog.messages)
    assert np.isfinite(train_policy(algo, 1)["evaluation"]["env_runners"]["episode_return_mean"])
    algo.stop()
