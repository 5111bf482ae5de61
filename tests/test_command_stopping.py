"""Stop conditions, and the evaluation when they are reached."""

from __future__ import annotations

from typing import Any

import pytest
from ray.rllib.algorithms.ppo import PPOConfig

from rllib_damo import DAMOConfig
from rllib_damo.command.stopping import CheckedStopper, check_metrics, late_metrics, with_last_evaluation
from rllib_damo.errors import UsageError

TRAINED = {"training_iteration": 1, "learners": {"default_policy": {"loss": 1.0}}}
PLAYED = ["evaluation/"]  # what is waited for
EVALUATED = {**TRAINED, "evaluation": {"env_runners": {"episode_return_mean": 5.0}}}


def test_stopper_stops_at_any_of_its_metrics() -> None:
    stopper = CheckedStopper({"training_iteration": 9, "evaluation/env_runners/episode_return_mean": 5}, PLAYED)
    assert not stopper("a", TRAINED)
    assert stopper("a", EVALUATED)
    assert not stopper.stop_all()


def test_stopper_finds_a_lost_metric_at_the_first_evaluation() -> None:
    stopper = CheckedStopper({"episode_return_mean": 5}, PLAYED)
    assert not stopper("a", {"phase": "dynamics", "dynamics": {"epoch": 1}})
    assert not stopper("a", TRAINED)
    assert not stopper.stop_all()
    assert not stopper("a", EVALUATED)
    assert stopper.stop_all()
    assert "Did you mean 'evaluation/env_runners/episode_return_mean'" in str(stopper.error)


def test_stopper_waits_for_episodes_while_evaluation_runners_fail() -> None:
    failed = {**TRAINED, "evaluation": {"num_healthy_workers": 0}, "dataset": {"episode_return_mean": 1.0}}
    stopper = CheckedStopper({"evaluation/env_runners/episode_return_mean": 5}, PLAYED)
    assert not stopper("a", failed)
    assert not stopper.stop_all()
    assert stopper("a", EVALUATED)
    misspelt = CheckedStopper({"evaluation/env_runners/episode_return_men": 5}, PLAYED)
    misspelt("a", failed)
    assert not misspelt.stop_all()
    misspelt("a", EVALUATED)
    assert misspelt.stop_all()


def test_stopper_without_evaluation_checks_the_first_training_result() -> None:
    stopper = CheckedStopper({"los": 5}, [])
    stopper("a", TRAINED)
    assert stopper.stop_all()


def test_metrics_that_other_options_name_must_exist_too() -> None:
    others = {"--checkpoint-score-attr": ["normalized_scor"], "--scheduler-config": ["training_iteration"]}
    stopper = CheckedStopper({}, PLAYED, others)
    stopper("a", TRAINED)
    assert not stopper.stop_all()
    stopper("a", EVALUATED)
    assert stopper.error == "--checkpoint-score-attr: no result has a metric 'normalized_scor'."
    sound = CheckedStopper({}, PLAYED, {"--checkpoint-score-attr": ["evaluation/env_runners/episode_return_mean"]})
    assert not sound("a", EVALUATED)
    assert not sound.stop_all()


def test_stopper_remembers_metrics_of_earlier_results() -> None:
    stopper = CheckedStopper({"dynamics/epoch": 50}, PLAYED)
    stopper("a", {"dynamics": {"epoch": 1}})
    stopper("a", EVALUATED)
    assert not stopper.stop_all()


LATE = {
    "policy_check/kept_return": DAMOConfig().training(policy_check_freq=5000),
    "evaluation/offline_eval_runners/fqe_value": DAMOConfig().evaluation(offline_evaluation_interval=5),
    "online/episode_return_mean": DAMOConfig().online(online_steps_per_iteration=1000),
}


@pytest.mark.parametrize("interval", [None, 1])
@pytest.mark.parametrize("key", LATE)
def test_metrics_that_come_later_are_waited_for(key: str, interval: int | None) -> None:
    late = late_metrics(LATE[key].copy().evaluation(evaluation_interval=interval))
    first = {**(EVALUATED if interval else TRAINED), "online": {"buffer_size": 1}}
    later = {**TRAINED, key: 5.0}
    stopper, scored = CheckedStopper({key: 5}, late), CheckedStopper({}, late, {"--checkpoint-score-attr": [key]})
    assert not stopper("a", first)
    assert stopper("a", later)
    assert not scored("a", first)
    assert not scored("a", later)
    assert not stopper.stop_all()
    assert not scored.stop_all()
    misspelt = CheckedStopper({f"{key}s": 5}, late)
    misspelt("a", first)
    assert not misspelt.stop_all()
    misspelt("a", later)
    assert f"Did you mean {key!r}" in str(misspelt.error)


def test_an_offline_evaluation_before_the_first_other_one_ends_no_waiting() -> None:
    config = DAMOConfig().evaluation(offline_evaluation_interval=1, evaluation_interval=2)
    stopper = CheckedStopper({"evaluation/num_healthy_workers": 9, "at_evaluations": 9}, late_metrics(config))
    stopper("a", {**TRAINED, "evaluation/offline_eval_runners/fqe_value": 1.0})
    stopper("a", {**EVALUATED, "evaluation/num_healthy_workers": 1, "at_evaluations": 1})
    assert not stopper.stop_all()


@pytest.mark.parametrize("key", [*LATE, "evaluation/env_runners/episode_return_mean"])
def test_metrics_of_options_that_are_off_are_refused_at_the_start(key: str) -> None:
    off = DAMOConfig().evaluation(evaluation_interval=None)
    with pytest.raises(UsageError, match=rf"^--checkpoint-score-attr: no result will have '{key}', since `\w+` is"):
        check_metrics(off, {"stop (--stop)": {"training_iteration": 1}, "--checkpoint-score-attr": [key]})
    check_metrics(LATE.get(key, DAMOConfig()), {"--checkpoint-score-attr": [key]})


@pytest.mark.parametrize(
    ("stop", "iteration", "evaluates"),
    [
        ({"training_iteration": 5}, 4, True),
        ({"training_iteration": 6}, 4, False),
        ({"num_gradient_steps_lifetime": 100, "training_iteration": 99}, 4, True),
        ({"learners/default_policy/qf_mean": 7.5, "unknown": 1}, 4, False),
    ],
)
def test_a_run_that_stops_is_evaluated(stop: dict[str, float], iteration: int, evaluates: bool) -> None:
    class Fake:
        def __init__(self) -> None:
            self.iteration = iteration

        def _run_one_evaluation(self) -> dict[str, Any]:
            return {"evaluation": {"env_runners": {"episode_return_mean": 3.0}}}

    config = with_last_evaluation(PPOConfig().evaluation(evaluation_interval=2), stop)
    (callback,) = config.callbacks_on_train_result
    result: dict[str, Any] = {
        "num_gradient_steps_lifetime": 100, "learners": {"default_policy": {"qf_mean": 7.0}},
    }  # fmt: skip
    callback(algorithm=Fake(), metrics_logger=None, result=result)
    assert ("evaluation" in result) == evaluates
    made = {"evaluation": {"env_runners": {"episode_return_mean": 1.0}}}
    callback(algorithm=Fake(), metrics_logger=None, result=made)  # one is enough
    assert made["evaluation"]["env_runners"]["episode_return_mean"] == 1.0
    offline: dict[str, Any] = {**result, "evaluation": {"offline_eval_runners": {"fqe_value": 1.0}}}
    callback(algorithm=Fake(), metrics_logger=None, result=offline)
    assert ("env_runners" in offline["evaluation"]) == evaluates
    assert offline["evaluation"]["offline_eval_runners"] == {"fqe_value": 1.0}


def test_without_evaluation_there_is_no_last_one() -> None:
    config = with_last_evaluation(PPOConfig(), {"training_iteration": 5})
    assert not config.callbacks_on_train_result
    assert not with_last_evaluation(PPOConfig().evaluation(evaluation_interval=2), None).callbacks_on_train_result
