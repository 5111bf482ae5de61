"""Every algorithm end to end in RLlib, on Pendulum: training, evaluation, checkpoints, the policy as a function."""

from __future__ import annotations

import copy
import inspect
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.tune.registry import get_trainable_cls

from rllib_damo import ALGORITHMS
from rllib_damo.core.config import ModelBasedConfig, OfflineConfig
from rllib_damo.data import sources
from rllib_damo.deploy.export import export_policy
from rllib_damo.deploy.numpy_policy import NumpyPolicy
from rllib_damo.evaluation.play import play
from rllib_damo.evaluation.policy import load_policy
from tests.small_runs import make_small, module_state, train_policy

pytestmark = pytest.mark.usefixtures("ray_cluster")


@pytest.mark.parametrize("name", ["OptiDICE", "AlgaeDICE"])
def test_the_starts_of_a_dual_are_those_of_the_selected_episodes(name: str, dataset: str, cache_dir: str) -> None:
    config: OfflineConfig = make_small(ALGORITHMS[name].get_default_config(), dataset, cache_dir)
    config.training(data_fraction=0.5).evaluation(evaluation_interval=None)
    algo: Any = config.build_algo()
    rows = algo.learner_group._learner._rows_of
    drawn, of_all, selected = rows["selected_starts"].tolist(), rows["starts"].tolist(), rows["selected"].tolist()
    assert drawn == [row for row in of_all if row in set(selected)]
    assert 0 < len(drawn) < len(of_all)
    algo.stop()


def test_are_registered_beside_rllibs_own() -> None:
    for name, algorithm in ALGORITHMS.items():
        assert get_trainable_cls(name) is algorithm
        module = sys.modules[algorithm.__module__]  # whose functions its methods still know after Tune's pickling
        methods = [value for value in vars(algorithm).values() if inspect.isfunction(value)]
        assert all(method.__globals__ is vars(module) for method in methods if method.__module__ == module.__name__)
        assert algorithm.get_default_config().algo_class is algorithm
    assert get_trainable_cls("BC").__module__.startswith("ray.")


def documented_metrics(name: str) -> set[str]:
    """Those of the table of docs/baselines.md."""
    page = (Path(__file__).parent.parent / "docs" / "baselines.md").read_text()
    cells = re.findall(rf"^\| {name} \| (`.+?`) \|", page, re.M)
    found = set(re.findall(r"`(\w+)`", " ".join(cells)))
    assert found or name in ("DAMO", "BehaviorCloning")
    return found


@pytest.mark.parametrize("name", ALGORITHMS)
def test_trains_and_goes_on_exactly_from_a_checkpoint(name: str, dataset: str, cache_dir: str, tmp_path: Path) -> None:
    config: OfflineConfig = make_small(ALGORITHMS[name].get_default_config(), dataset, cache_dir)
    # an odd number of steps: a delay of the actor has to go on where it stood
    config.training(rollout_freq=15).evaluation(evaluation_interval=1, evaluation_duration=1)
    algo: Any = config.build_algo()
    has_model = isinstance(config, ModelBasedConfig)
    first = train_policy(algo, 1)
    assert ("env_runners" in first) == has_model
    assert hasattr(algo, "dynamics") == has_model
    assert documented_metrics(name) <= first["learners"][DEFAULT_MODULE_ID].keys()
    path = algo.save_to_path(str(tmp_path / "checkpoint"))
    result = train_policy(algo, 1)
    uninterrupted = copy.deepcopy(module_state(algo))
    algo.restore_from_path(path)
    train_policy(algo, 1)
    in_place = module_state(algo)
    algo.stop()
    learner = {k: v for k, v in result["learners"][DEFAULT_MODULE_ID].items() if "diff_num" not in k}
    assert ("initial_value_mean" in learner) == any(parameter.startswith("critics") for parameter in uninterrupted)
    evaluation = result["evaluation"]["env_runners"]
    assert -2000 < evaluation["episode_return_mean"] < 0
    assert "normalized_score" in evaluation

    restored: Any = ALGORITHMS[name].from_checkpoint(path)
    again = train_policy(restored, 1)
    assert again["num_gradient_steps_lifetime"] == 30
    for metric in ("policy_loss", "bc_loss", "qf_loss", "initial_value_mean"):
        assert again["learners"][DEFAULT_MODULE_ID].get(metric) == learner.get(metric)
    continued = module_state(restored)
    path = restored.save_to_path(str(tmp_path / "second"))
    restored.stop()
    for other in (continued, in_place):
        assert uninterrupted.keys() == other.keys()
        for parameter, value in uninterrupted.items():
            np.testing.assert_array_equal(value, other[parameter], err_msg=parameter)

    (episode,) = play(path, episodes=1, seed=0)
    action = load_policy(path)(np.asarray(episode.get_observations(0)))
    assert action.shape == (1,)
    np.testing.assert_allclose(2 * np.asarray(episode.get_actions(0)), action, rtol=1e-4)

    exported = NumpyPolicy(str(export_policy(path, tmp_path / "policy.npz")))
    np.testing.assert_allclose(exported(np.asarray(episode.get_observations(0))), action, rtol=0, atol=1e-6)
    facts = exported.metadata
    assert (facts["algorithm"], facts["environment"], facts["gradient_steps"]) == (name, "Pendulum-v1", 30)
    assert facts["dataset"] == {"name": dataset, "fingerprint": sources.load(dataset).fingerprint()}
    assert facts["config"]["hidden_dims"] == [32, 32]
    assert "tau" not in facts["config"]  # the default


@pytest.mark.slow
@pytest.mark.parametrize("name", ALGORITHMS)
def test_two_learners_keep_the_same_networks(name: str, dataset: str, cache_dir: str, tmp_path: Path) -> None:
    config: OfflineConfig = make_small(ALGORITHMS[name].get_default_config(), dataset, cache_dir)
    config.learners(num_learners=2).evaluation(evaluation_interval=None)
    algo: Any = config.build_algo()
    train_policy(algo, 2)
    first, second = (result.get() for result in algo.learner_group.foreach_learner(_networks))
    assert first == second
    path = algo.save_to_path(str(tmp_path / "checkpoint"))
    train_policy(algo, 1)
    uninterrupted = module_state(algo)
    algo.restore_from_path(path)
    train_policy(algo, 1)
    continued = module_state(algo)
    algo.stop()
    for parameter, value in uninterrupted.items():
        np.testing.assert_allclose(value, continued[parameter], rtol=1e-10, atol=1e-12, err_msg=parameter)


def _networks(learner: Any) -> dict[str, bytes]:
    return {key: value.numpy().tobytes() for key, value in learner.module[DEFAULT_MODULE_ID].state_dict().items()}
