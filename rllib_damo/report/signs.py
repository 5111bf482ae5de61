"""Signs in a trial's results that something went wrong: those of the documentation's page on troubleshooting."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from rllib_damo.report.runs import Trial
from rllib_damo.report.svg import number

_LEARNER = "learners/default_policy"
_MIN_RESULTS = 4  # with fewer, a quarter says nothing


class Sign(NamedTuple):
    """A sign, and what to do; texts as in docs/troubleshooting.md.

    Attributes:
        found: gives what was found in a trial, or None.
        meaning, fix: what it means, and what helps.
    """

    found: Callable[[Trial], str | None]
    meaning: str
    fix: str


def _quarters(trial: Trial, metric: str) -> tuple[float, float] | None:
    """The means of a metric over the third and the last quarter of the training."""
    values = [value for _, value in trial.points(metric)]
    size = len(values) // 4
    if len(values) < _MIN_RESULTS:
        return None
    return sum(values[-2 * size : -size]) / size, sum(values[-size:]) / size


def _runaway_values(trial: Trial) -> str | None:
    value = _quarters(trial, f"{_LEARNER}/initial_value_mean")
    data = trial.last("dataset/discounted_return_mean")
    if value is None or data is None or value[1] <= data + 0.1 * abs(data) or value[1] <= value[0]:
        return None
    return (
        f"`initial_value_mean` rises and is {number(value[1])}; the discounted return of the episodes that it learns "
        f"from is {number(data)}"
    )


def _implausible_value(trial: Trial) -> str | None:
    name = "evaluation/offline_eval_runners"
    if trial.last(f"{name}/implausible") != 1:
        return None
    value = trial.last(f"{name}/fqe_value")
    return "`implausible` is 1 in the last offline evaluation" + ("" if value is None else f" of {number(value)}")


def _saturated_classifier(trial: Trial) -> str | None:
    accuracy = _quarters(trial, f"{_LEARNER}/classifier_accuracy")
    if accuracy is None or accuracy[1] < 0.95:
        return None
    return f"`classifier_accuracy` is {number(accuracy[1])}"


def _unlikely_ratio(trial: Trial) -> str | None:
    ratio = _quarters(trial, f"{_LEARNER}/density_ratio_mean")
    if ratio is None or 0.5 <= ratio[1] <= 2:
        return None
    return f"`density_ratio_mean` is {number(ratio[1])}"


def _unfinished_model(trial: Trial) -> str | None:
    losses = [loss for _, loss in trial.points("dynamics/holdout_loss", "dynamics/epoch")]
    limit = trial.config.get("dynamics_max_epochs")
    if not isinstance(limit, int) or not 3 <= limit <= len(losses) or losses[-1] > min(losses):
        return None
    return f"`dynamics/holdout_loss` was lowest, {number(losses[-1])}, in the last epoch"


def _falls_in_the_model(trial: Trial) -> str | None:
    share = _quarters(trial, "env_runners/rollout/terminated_frac")
    data = trial.last("dataset/terminated_frac")
    if share is None or data is None or share[1] <= 3 * data + 0.01:
        return None
    return (
        f"`env_runners/rollout/terminated_frac` is {number(share[1])}; of the data's rows {number(data)} are terminal"
    )


def _worse_than_the_data(trial: Trial) -> str | None:
    score, data = trial.score("evaluation/env_runners/episode_return_mean"), trial.last("dataset/episode_return_mean")
    if score is None or data is None or score >= data:
        return None
    return f"the return is {number(score)}, and that of the episodes that it learns from {number(data)}"


def _diverged(trial: Trial) -> str | None:
    has_ended = trial.state == "failed" and "Training diverged" in trial.error
    return "the run ended: training diverged" if has_ended else None


SIGNS = (
    Sign(_diverged, "a loss or a weight is not finite", "what the error names, such as smaller learning rates"),
    Sign(_runaway_values, "values run away", "keep `critic_layer_norm`, raise `bc_weight`, lower `tau`"),
    Sign(
        _implausible_value, "the policy's value is beyond what the data make credible",
        "as for values that run away; do not choose this policy",
    ),
    Sign(
        _saturated_classifier, "the classifier is saturated; ℓ is no ratio any more",
        "more `label_smoothing`, shorter rollouts, a better model",
    ),
    Sign(
        _unlikely_ratio, "the actor's weights are no ratio",
        '`actor_f_divergence="chi_squared"`, or a larger `actor_eta`',
    ),
    Sign(_unfinished_model, "the model is not done, and will be exploited", "raise `dynamics_max_epochs`"),
    Sign(
        _falls_in_the_model, "the policy falls in the model",
        "more `bc_weight`, less `eta`; without an anchor, `terminal_alignment=True`",
    ),
    Sign(
        _worse_than_the_data, "the policy is worse than the episodes that it learns from",
        "train longer, or more `bc_weight`",
    ),
)  # fmt: skip
