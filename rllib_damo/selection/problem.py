"""What is to be judged on: the task's spaces and its termination rule, and the dataset with its split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import gymnasium as gym

from rllib_damo.data.formats.reader import Conventions
from rllib_damo.data.in_memory import InMemory
from rllib_damo.data.offline_data import BulkOfflineData
from rllib_damo.data.schema import Transitions
from rllib_damo.data.sources import Input
from rllib_damo.data.sources import load as load_data
from rllib_damo.data.splits import split_episodes
from rllib_damo.errors import DataError, UsageError
from rllib_damo.evaluation.play import evaluated_env
from rllib_damo.selection.candidates import Candidate
from rllib_damo.selection.rows import Rows
from rllib_damo.tasks import TerminationFn
from rllib_damo.utils.environments import make_env
from rllib_damo.utils.spaces import check_spaces

_FEWEST_EPISODES = 10


def make_task(config: Any, env: Any, termination_fn: TerminationFn | None) -> SimpleNamespace:
    """Spaces, environment and termination rule: ``env``, ``env_config``, ``termination_fn``, the two spaces, gamma."""
    task = SimpleNamespace(
        env=getattr(config, "env", None), env_config=getattr(config, "env_config", {}),
        termination_fn=termination_fn or getattr(config, "termination_fn", None),
        observation_space=getattr(config, "observation_space", None),
        action_space=getattr(config, "action_space", None), gamma=getattr(config, "gamma", 0.5),
    )  # fmt: skip
    if env is not None:
        task.env, task.observation_space = env, None
    if task.observation_space is None or task.action_space is None:
        if task.env is None:
            raise UsageError("the spaces are not known: name the environment by env (--env). It is not stepped.")
        made = make_env(task.env, task.env_config)
        task.observation_space, task.action_space = made.observation_space, made.action_space
        made.close()
    check_spaces(task.observation_space, task.action_space)
    return task


def played_env(config: Any, task: SimpleNamespace) -> tuple[Any, dict[str, Any]]:
    """Where real episodes are played: the task's environment, or else that of the config's evaluation."""
    if task.env is not None or config is None:
        return task.env, dict(task.env_config or {})
    return evaluated_env(config), {**task.env_config, **(config.evaluation_config or {}).get("env_config", {})}


def read(config: Any, input_: Input | None, task: SimpleNamespace) -> Transitions:
    """The whole dataset, read as the first candidate's training did."""
    if config is None:
        if input_ is None:
            raise UsageError("no dataset: give the one that the policies were trained on, input_ (--input).")
        return load_data(input_, observation_space=task.observation_space, conventions=Conventions(task.action_space))
    config = config.copy(copy_frozen=False)
    if input_ is not None:
        config.input_ = input_
    if isinstance(config.input_, InMemory) and config.input_.transitions is None:
        raise UsageError(
            f"the policies were trained on {config.input_!r}, which no checkpoint holds: give it by input_."
        )
    config.observation_space, config.action_space = task.observation_space, task.action_space
    return BulkOfflineData(config).whole()


@dataclass(frozen=True)
class Data:
    """The rows to fit on, and those to test on.

    Attributes:
        rows: of the episodes that the policies were trained on.
        held_out: of the others; the same rows where none are held out.
        training_fingerprint: of the former's content.
        record: the split; None: trained on all.
        warnings: reasons for a low confidence.
    """

    rows: Rows
    held_out: Rows
    training_fingerprint: str
    record: Mapping[str, Any] | None
    warnings: tuple[str, ...]

    @classmethod
    def of(cls, whole: Transitions, own: Sequence[Candidate], space: gym.Space) -> Data:
        """Checks that all candidates were trained on this data, with one split."""
        fingerprint = whole.fingerprint()
        splits: list[Any] = []
        for candidate in own:
            record = candidate.record
            if record is None:
                splits.append(None)
                continue
            if record["dataset_fingerprint"] != fingerprint:
                max_rows = getattr(candidate.config, "max_dataset_rows", None)
                if max_rows is not None and max_rows < len(whole):
                    raise DataError(
                        f"{candidate.name} was trained with max_dataset_rows={max_rows} and {whole.name} has "
                        f"{len(whole):,} rows: policies trained with max_dataset_rows below the data's size cannot be "
                        "judged, since only their first window's fingerprint is known. Train with a larger one."
                    )
                raise DataError(
                    f"{candidate.name} was trained on {record['dataset']} (fingerprint "
                    f"{record['dataset_fingerprint'][:12]}), and {whole.name} is other data ({fingerprint[:12]}): give "
                    "the dataset it was trained on by input_ (--input)."
                )
            splits.append(record["holdout"])
        known = [split for split in splits if split is not None]
        if any(split != known[0] for split in known):
            raise DataError(
                "the candidates were trained with different holdout_episodes or holdout_seed: choose among those that "
                "share one split."
            )
        if known and len(known) == len(splits):
            split = split_episodes(whole, known[0]["holdout_episodes"], known[0]["holdout_seed"])
            if split.record != known[0]:
                raise DataError(
                    f"{whole.name}: holding out its episodes anew gives other ones than the checkpoints record."
                )
            rows, held_out, warnings = Rows.of(split.training, space), Rows.of(split.holdout, space), _went_on(own)
            training = split.record["train_fingerprint"]
        else:
            rows, training = Rows.of(whole, space), fingerprint
            held_out, known = rows, [None]
            warnings = (
                "in sample: the candidates were fitted to the noise of the episodes that judge them; train with "
                ".offline_data(holdout_episodes=0.1)",
            )
        if rows.num_episodes < _FEWEST_EPISODES:
            raise DataError(
                f"{whole.name}: {rows.num_episodes} episodes are too few to judge policies by; {_FEWEST_EPISODES} are "
                "needed beside those that are held out."
            )
        return cls(rows, held_out, training, known[0], warnings)

    @property
    def num_held_out(self) -> int:
        return 0 if self.record is None else self.held_out.num_episodes

    @property
    def where(self) -> str:
        return "held-out episodes" if self.record is not None else "episodes"

    def describe(self) -> str:
        return f"{self.rows.num_episodes:,} episodes to fit on, {self.num_held_out:,} held out"


def _went_on(own: Sequence[Candidate]) -> tuple[str, ...]:
    """A warning for each candidate that has learned from a run on other episodes."""
    return tuple(
        f"in sample: {candidate.name} went on from a run that may have seen the held-out episodes"
        for candidate in own
        if candidate.record
        and (candidate.record.get("in_sample") or candidate.record.get("earlier_dataset_fingerprints"))
    )
