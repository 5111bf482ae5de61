"""Episodes that are held out: which ones, and that no part of training sees them."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from rllib_damo import BehaviorCloningConfig, DAMOConfig
from rllib_damo.core.config import OfflineConfig
from rllib_damo.data.offline_data import BulkOfflineData
from rllib_damo.data.schema import Transitions, concatenate
from rllib_damo.data.splits import split_episodes
from rllib_damo.errors import DataError
from rllib_damo.utils.ray_internals import local_learner
from rllib_damo.utils.spaces import to_unit
from tests.data_helpers import ACTION_SPACE, OBSERVATION_SPACE, make_transitions
from tests.small_runs import make_small

EPISODES = make_transitions([3] * 40)


def _starts(transitions: Transitions) -> set[bytes]:
    return {transitions.observations[start].tobytes() for start in transitions.episode_bounds()[:, 0]}


def _by_episode(transitions: Transitions, order: np.ndarray) -> Transitions:
    bounds = transitions.episode_bounds()[order]
    return transitions.rows(np.concatenate([np.arange(start, stop) for start, stop in bounds]))


def test_the_content_decides_whatever_the_order():
    split = split_episodes(EPISODES, 0.2)
    assert (split.record["episodes"], split.record["rows"]) == (8, 24)
    assert len(split.training) + len(split.holdout) == len(EPISODES)
    assert not _starts(split.training) & _starts(split.holdout)
    shuffled = split_episodes(_by_episode(EPISODES, np.random.default_rng(0).permutation(40)), 0.2)
    assert _starts(shuffled.holdout) == _starts(split.holdout)
    assert _starts(split_episodes(EPISODES, 8).holdout) == _starts(split.holdout)
    assert _starts(split_episodes(EPISODES, 0.2, seed=1).holdout) != _starts(split.holdout)


def test_copies_of_an_episode_are_on_one_side():
    split = split_episodes(concatenate([EPISODES, EPISODES]), 0.2)
    assert not _starts(split.training) & _starts(split.holdout)


def test_of_many_episodes_each_falls_by_itself():
    many = make_transitions([1] * 2000)
    split = split_episodes(many, 0.1)
    assert 150 < split.record["episodes"] < 250
    held_out, part = _starts(split.holdout), many.slice(0, 1000)
    assert _starts(split_episodes(part, 0.1).holdout) == held_out & _starts(part)


@pytest.mark.parametrize("share", [0.95, 40])
def test_too_few_episodes_are_refused(share):
    with pytest.raises(DataError, match=r"holdout_episodes=.*leaves [0-4];"):
        split_episodes(EPISODES, share)


def _config(**options: object) -> OfflineConfig:
    config = BehaviorCloningConfig().environment(observation_space=OBSERVATION_SPACE, action_space=ACTION_SPACE)
    return config.offline_data(**{"input_": EPISODES} | options).evaluation(evaluation_interval=None)


@pytest.mark.parametrize("wrong", [1, -0.1, 1.5, True, "0.1"])
def test_wrong_values_are_refused(wrong):
    with pytest.raises(ValueError, match="`holdout_episodes` must be a share in"):
        _config(holdout_episodes=wrong).validate()


def test_the_offline_data_are_the_training_part():
    data = BulkOfflineData(_config(holdout_episodes=0.2, holdout_seed=0))
    split = split_episodes(EPISODES, 0.2)
    assert data.transitions.fingerprint() == split.training.fingerprint() != data.fingerprint
    assert data.holdout == split.record
    assert data.fingerprint == EPISODES.fingerprint() == BulkOfflineData(_config()).fingerprint


def test_a_split_of_data_larger_than_memory_is_refused(dataset):
    config = _config(input_=dataset, holdout_episodes=0.2, max_dataset_rows=500).environment("Pendulum-v1")
    with pytest.raises(DataError, match="raise max_dataset_rows"):
        _ = BulkOfflineData(config).transitions


@pytest.mark.usefixtures("ray_cluster")
def test_no_part_of_training_sees_them(dataset, cache_dir, tmp_path):
    """Of the learner's rows, its statistics, the start states, the model's rows and the figures of the dataset."""
    algorithms = []
    for share in (0.0, 0.3):
        config = make_small(DAMOConfig(), dataset, cache_dir).offline_data(holdout_episodes=share)
        algorithms.append(config.evaluation(evaluation_interval=None).training(data_fraction=1.0).build_algo())
    whole, algo = algorithms
    split = split_episodes(whole.offline_data.transitions, 0.3)
    unit = to_unit(split.training.actions, algo.config.action_space)
    learner = local_learner(algo.learner_group)
    columns = algo.dynamics.columns
    np.testing.assert_array_equal(columns.obs, split.training.observations)
    np.testing.assert_array_equal(columns.actions, unit)
    np.testing.assert_array_equal(algo._starts["start_states"], split.training.observations)
    expected = torch.from_numpy(split.training.observations).mean(0)
    torch.testing.assert_close(learner.module["default_policy"].actor.standardize.mean, expected)
    assert algo._dataset_metrics["episode_return_mean"] == split.training.episode_returns().mean()
    assert algo.dynamics.key != whole.dynamics.key
    held_out_states = {row.tobytes() for row in split.holdout.observations}  # the model is measured on them
    assert {row.tobytes() for row in algo.dynamics._tracks.states.flatten(0, 1).numpy()} <= held_out_states
    assert algo.offline_data.held_out is None  # let go of
    rows = learner._offline
    assert len(rows) == len(split.training)
    assert not held_out_states & {row[:3].tobytes() for row in rows.numpy()}

    path = algo.save_to_path(tmp_path / "split")
    written = json.loads((tmp_path / "split" / "selection.json").read_text())
    assert written["holdout"] == split.record
    assert written["dataset_fingerprint"] == whole.offline_data.fingerprint
    algo.restore_from_path(path)
    with pytest.raises(ValueError, match=r"trained with holdout_episodes=0.3, .* has holdout_episodes=0:"):
        whole.restore_from_path(path)
    for each in algorithms:
        each.stop()
