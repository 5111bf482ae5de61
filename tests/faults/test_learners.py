"""Learners that die: one error that says what to do, and in Tune a trial that goes on from its checkpoint.

`tests/test_guarded_learners.py` has fast tests of the error.
"""

from __future__ import annotations

import re

import pytest
import ray
from ray import tune

from rllib_damo import TD3BC, TD3BCConfig
from rllib_damo.utils.ray_internals import learner_actors
from tests.small_runs import make_small, train_policy

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_cluster")]
CAUSE = r" \(The actor died.* killed by `ray\.kill`\.\)"
LOST = "A learner died or failed{}.* make a new one by " + re.escape(
    "TD3BC.from_checkpoint(...). In Tune, FailureConfig(max_failures=1)"
)


def make_config(dataset: str, num_learners: int) -> TD3BCConfig:
    config = make_small(TD3BCConfig(), dataset, "").learners(num_learners=num_learners)
    return config.evaluation(evaluation_interval=None)


@pytest.mark.parametrize("num_learners", [1, 2])
def test_an_algorithm_without_one_of_its_learners_says_so_whatever_is_asked(num_learners, dataset, tmp_path):
    algo = make_config(dataset, num_learners).build_algo()
    train_policy(algo, 1)
    saved = algo.save_to_path(tmp_path / "before")
    ray.kill(learner_actors(algo.learner_group)[-1])
    save, restore = (lambda: algo.save_to_path(tmp_path / "after")), (lambda: algo.restore_from_path(saved))
    for use in (algo.train, algo.train, save, restore, algo.get_state, algo.get_module):
        with pytest.raises(RuntimeError, match=LOST.format(CAUSE)):
            use()
    algo.stop()
    again = TD3BC.from_checkpoint(saved)
    assert train_policy(again, 1)["num_gradient_steps_lifetime"] == 40
    again.stop()


@pytest.mark.parametrize("method", ["save_to_path", "restore_from_path"])
def test_a_death_that_something_else_than_training_meets_first(method, dataset, tmp_path):
    algo = make_config(dataset, 1).build_algo()
    saved = algo.save_to_path(tmp_path / "before")
    ray.kill(learner_actors(algo.learner_group)[0])
    with pytest.raises(RuntimeError, match=LOST.format("")):
        getattr(algo, method)(saved)
    algo.stop()


def kill_once(*, algorithm, result, **kwargs):
    """Kills the learner after the third iteration of a trial that has not been restored."""
    if result["training_iteration"] == result["iterations_since_restore"] == 3:
        ray.kill(learner_actors(algorithm.learner_group)[0])


def test_a_trial_goes_on_from_its_checkpoint(dataset, tmp_path):
    config = make_config(dataset, 1).callbacks(on_train_result=kill_once)
    tuner = tune.Tuner(
        TD3BC,
        param_space=config,
        run_config=tune.RunConfig(
            storage_path=str(tmp_path),
            stop={"training_iteration": 5},
            failure_config=tune.FailureConfig(max_failures=1),
            checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=2),
            verbose=0,
        ),
    )
    (result,) = tuner.fit()
    assert result.error is None
    assert result.metrics["num_gradient_steps_lifetime"] == 100
    assert result.metrics["iterations_since_restore"] == 3
    (trial,) = tmp_path.glob("*/TD3BC_*")
    assert "A learner died or failed" in (trial / "error.txt").read_text()
