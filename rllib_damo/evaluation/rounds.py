"""One evaluation on remote runners: every episode asked for is played once, whichever runners die meanwhile.

RLlib's own loop gives the episodes of a dead runner to the others without new seeds, so that these repeat their start
states; it may wait forever for a runner that is gone; and the cause of a failure stays in the log of a worker.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ray.rllib.env.env_runner_group import EnvRunnerGroup

from rllib_damo.utils import ray_internals

logger = logging.getLogger(__name__)


@dataclass
class Part:
    """What one runner answers to `EvaluationEnvRunner.try_play`.

    Attributes:
        runner: index of the runner.
        units: whole episodes, or environment steps, that it played.
        env_steps: environment steps, those of unfinished episodes included.
        metrics: of RLlib's MetricsLogger.
        error: the traceback, if the environment or the policy raised; nothing was played then.
    """

    runner: int
    units: int = 0
    env_steps: int = 0
    metrics: Any = None
    error: str = ""


@dataclass
class Evaluation:
    """What all runners played together.

    Attributes:
        wanted: episodes, or environment steps, that were asked for.
        parts: of runners that played.
        errors: tracebacks of environments or policies that raised, when a runner started or played.
        losses: what is known of runners that died or did not answer in time.
    """

    wanted: int
    parts: list[Part] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    losses: list[str] = field(default_factory=list)

    def add_errors_of(self, group: EnvRunnerGroup) -> None:
        """Adds what is known of runners that could not start, or died."""
        errors, losses = ray_internals.runner_errors(group)
        self.errors += errors
        self.losses += losses

    @property
    def played(self) -> int:
        return sum(part.units for part in self.parts)

    @property
    def env_steps(self) -> int:
        return sum(part.env_steps for part in self.parts)


def play_in_rounds(
    group: EnvRunnerGroup, *, duration: int, unit: str, force_reset: bool, timeout_s: float | None
) -> Evaluation:
    """Plays an evaluation on the healthy remote runners of a group.

    In each round what is left is divided among the runners that are healthy and have not raised. A later round has
    seeds of its own. It always ends: each round completes the rest, or loses a runner, or is the last.

    Args:
        group: of `EvaluationEnvRunner`s, whose weights are current.
        duration: episodes or environment steps in all.
        unit: "episodes" or "timesteps".
        force_reset: whether the first round begins with a reset.
        timeout_s: seconds to wait for the answers of a round; None: no limit.
    """
    evaluation = Evaluation(duration)
    raised: set[int] = set()
    attempt = 0
    while evaluation.played < duration:
        runners = [index for index in group.healthy_worker_ids() if index not in raised]
        if not runners:
            break
        shares = share(duration - evaluation.played, runners)
        answers: list[Part] = group.foreach_env_runner(
            "try_play",
            kwargs={"shares": shares, "unit": unit, "force_reset": force_reset and attempt == 0, "attempt": attempt},
            remote_worker_ids=list(shares),
            local_env_runner=False,
            timeout_seconds=timeout_s,
        )
        evaluation.parts += [answer for answer in answers if not answer.error]
        evaluation.errors += [answer.error for answer in answers if answer.error]
        raised |= {answer.runner for answer in answers if answer.error}
        silent = set(shares) - {answer.runner for answer in answers}
        late = silent & set(group.healthy_worker_ids())
        if late:
            evaluation.losses.append(
                f"{len(late)} evaluation runners did not answer in evaluation_sample_timeout_s={timeout_s} seconds; "
                "set it higher, or play fewer episodes."
            )
            break
        attempt += 1
    if evaluation.played < duration:
        evaluation.add_errors_of(group)
    return evaluation


def share(amount: int, runners: Sequence[int]) -> dict[int, int]:
    """Divides an amount among runners, the first ones getting the rest; runners without a share are left out."""
    each, rest = divmod(amount, len(runners))
    shares = {runner: each + (position < rest) for position, runner in enumerate(runners)}
    return {runner: own for runner, own in shares.items() if own}


class MissedEvaluations:
    """Decides what follows from evaluations that played too little, and names the cause."""

    def __init__(self) -> None:
        self._in_a_row = 0

    def check(self, evaluation: Evaluation, tolerance: int | None) -> None:
        """To be called after each evaluation.

        Args:
            evaluation: what was played; with ``wanted=0`` and no parts if there was no healthy runner to ask.
            tolerance: RLlib's `evaluation_error_after_n_consecutive_skips`: so many evaluations in a row without
                anything played are an error; None: never. An exception of the environment or the policy in every
                runner is an error at once, since it would be raised again.

        Raises:
            RuntimeError: with the first cause.
        """
        causes = [*evaluation.errors, *evaluation.losses]
        if evaluation.played:
            self._in_a_row = 0
            if causes:
                logger.warning(
                    f"An evaluation played {evaluation.played} of {evaluation.wanted}, since runners were lost: "
                    f"{_last_line(causes[0])}"
                )
            return
        self._in_a_row += 1
        cause = causes[0] if causes else "all evaluation runners died; their logs say why."
        if tolerance is not None and (evaluation.errors or self._in_a_row >= tolerance):
            raise RuntimeError(
                f"No evaluation runner could play, for {self._in_a_row} evaluations in a row (see "
                f"`evaluation_error_after_n_consecutive_skips`={tolerance}; None continues without evaluation). "
                f"The cause:\n{cause}"
            )
        logger.warning(f"No evaluation runner could play; the run continues without evaluation: {_last_line(cause)}")


def _last_line(text: str) -> str:
    return text.strip().rpartition("\n")[2]
