"""How an Algorithm evaluates: each episode once, none of an untrained policy, and failures with their cause."""

from __future__ import annotations

from typing import Any

from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.utils.annotations import override
from ray.rllib.utils.metrics import ENV_RUNNER_RESULTS, EVALUATION_RESULTS, NUM_EPISODES_LIFETIME

from rllib_damo.evaluation.rounds import Evaluation, MissedEvaluations, play_in_rounds
from rllib_damo.utils import ray_internals


class EvaluatedAlgorithm(Algorithm):
    """The evaluation of an Algorithm, by `evaluation.rounds`."""

    _num_gradient_steps = 0  # taken so far

    @override(Algorithm)
    def setup(self, config: AlgorithmConfig) -> None:
        self._missed_evaluations = MissedEvaluations()
        super().setup(config)

    @override(Algorithm)
    def _run_one_evaluation(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """No evaluation before the first gradient step: the policy is still the initial one.

        Where no episode ended (all evaluation runners died, say), RLlib gives the last evaluation's numbers again.
        """
        if not self._num_gradient_steps:
            return {}
        before = self._num_evaluation_episodes()
        results = super()._run_one_evaluation(*args, **kwargs)
        if self._num_evaluation_episodes() == before and self.config.custom_evaluation_function is None:
            results[EVALUATION_RESULTS].pop(ENV_RUNNER_RESULTS, None)
        return results

    @override(Algorithm)
    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """As RLlib's.

        Raises:
            RuntimeError: no evaluation runner could play, for more evaluations than are tolerated; with the cause.
        """
        group, self._has_checked = self.eval_env_runner_group, False
        ray_internals.forget_skipped_evaluations(self)  # which are counted here
        results = super().evaluate(*args, **kwargs)
        is_remote = group is not None and group.num_remote_env_runners() and not self.config.custom_evaluation_function
        if is_remote and not self._has_checked and not group.num_healthy_remote_workers():
            missed = Evaluation(wanted=0)
            missed.add_errors_of(group)
            self._check_evaluation(missed)
        return results

    @override(Algorithm)
    def _evaluate_with_fixed_duration(self) -> tuple[None, int, int, list[Any]]:
        config = self.config
        evaluation = play_in_rounds(
            self.eval_env_runner_group,
            duration=config.evaluation_duration,
            unit=config.evaluation_duration_unit,
            force_reset=config.evaluation_force_reset_envs_before_iteration,
            timeout_s=config.evaluation_sample_timeout_s,
        )
        self.metrics.aggregate(
            [part.metrics for part in evaluation.parts], key=(EVALUATION_RESULTS, ENV_RUNNER_RESULTS)
        )
        self._check_evaluation(evaluation)
        return None, evaluation.env_steps, evaluation.env_steps, []

    def _check_evaluation(self, evaluation: Evaluation) -> None:
        self._has_checked = True
        self._missed_evaluations.check(evaluation, self.config.evaluation_error_after_n_consecutive_skips)

    def _num_evaluation_episodes(self) -> float:
        return self.metrics.peek((EVALUATION_RESULTS, ENV_RUNNER_RESULTS, NUM_EPISODES_LIFETIME), default=0)
