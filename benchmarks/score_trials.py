"""One trial of `scores.py`: trains, evaluates at fixed steps, and goes on from its checkpoint after an interruption."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from along_the_path import along_the_path
from playing import play
from ray import tune
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.utils.checkpoints import Checkpointable
from score_settings import environment, make_config, start, steps_per_iteration

from rllib_damo.core.algorithm import NUM_GRADIENT_STEPS
from rllib_damo.core.config import OfflineConfig
from rllib_damo.evaluation.policy import Policy
from rllib_damo.evaluation.scores import discounted_return
from rllib_damo.tasks import normalized_score
from rllib_damo.utils.paths import atomic_write

#: Between checkpoints where no evaluation makes one (dynamics training, long intervals).
CHECKPOINT_SECONDS = 300.0
_CHECKPOINT, _ROWS, _IDENTITY, PROGRESS = "checkpoint", "evaluations.json", "trial.json", "progress.json"

#: Episodes in which the critics are asked along the policy's path.
PATHS = 2

#: One evaluation: steps, return, return_std, score, discounted_return, value_estimate (if any), seconds; and what
#: `along_the_path` says of a policy with critics.
Row = dict[str, Any]


@dataclass(frozen=True)
class Trial:
    """What one trial is. A folder holds the results of one such thing only, whatever its ``steps``."""

    task: str
    label: str  # the method's name in tables: the method itself, or a variant of it
    method: str
    seed: int
    input_: str
    fingerprint: str  # of the dataset
    overrides: dict[str, Any]
    eval_every: int
    episodes: int
    steps: int
    out: str

    @property
    def folder(self) -> Path:
        return Path(self.out) / self.task / self.label / f"seed{self.seed}"

    def config(self) -> AlgorithmConfig:
        """What to build the algorithm from."""
        return make_config(self.task, self.method, self.seed, self.input_, self.overrides, self.episodes, self.steps)

    def identity(self) -> dict[str, Any]:
        """As JSON: all that results depend on, length and place aside."""
        config = self.config()
        own = {"task", "method", "seed", "fingerprint", "eval_every", "episodes"}
        if not isinstance(config, OfflineConfig):  # of which `options` says nothing
            own.add("overrides")
        return {name: value for name, value in asdict(self).items() if name in own} | options(config)


def options(config: AlgorithmConfig) -> dict[str, Any]:
    """Those training and dynamics options of a config that its algorithm reads, as JSON; none of RLlib's own."""
    if not isinstance(config, OfflineConfig):
        return {}
    methods = [method for method in ("training", "dynamics") if method in config.option_groups]
    names = {name for method in methods for name in config.own_options(method)}
    return json.loads(json.dumps({name: getattr(config, name) for name in sorted(names)}, default=str))


def read_rows(trial: Trial) -> list[Row]:
    """The evaluations made so far, in order of steps.

    Raises:
        ValueError: the folder holds results of other settings.
    """
    if not (trial.folder / _IDENTITY).is_file():
        return []
    found, wanted = json.loads((trial.folder / _IDENTITY).read_text()), trial.identity()
    # An option that is newer than the results does not part them, so long as it is at the algorithm's default; nor does
    # one that is gone since, or that the method does not read.
    known = {**options(type(start(trial.method, trial.steps))()), **found}
    changed = sorted(key for key in wanted if known.get(key) != wanted[key])
    if changed:
        raise ValueError(f"{trial.folder} has results of other {', '.join(changed)}: give another --out, or remove it.")
    rows = trial.folder / _ROWS
    return [row for row in json.loads(rows.read_text()) if row["steps"] <= trial.steps] if rows.is_file() else []


def is_finished(trial: Trial) -> bool:
    """Whether its last evaluation, at ``trial.steps``, has been made. A checkpoint that is there must be of then."""
    rows, checkpoint = read_rows(trial), _existing_checkpoint(trial)
    is_older = checkpoint is not None and json.loads((checkpoint / PROGRESS).read_text())["steps"] < trial.steps
    return bool(rows) and rows[-1]["steps"] == trial.steps and not is_older


def run_trial(job: dict[str, Any]) -> None:
    """`train` as a function trainable of Tune: ``job["trial"]`` holds the fields of `Trial`."""
    train(Trial(**job["trial"]), tune.report)


def train(
    trial: Trial, report: Callable[[Row], Any], measure: Callable[[Any, Policy, dict[str, Any]], Row] | None = None
) -> None:
    """Trains one trial to its end, from where it was interrupted.

    Args:
        trial: what to train.
        report: called with each new evaluation.
        measure: further columns of an evaluation, from the algorithm, its policy and the result of its iteration.
    """
    torch.set_num_threads(1)
    rows = read_rows(trial)
    trial.folder.mkdir(parents=True, exist_ok=True)
    _write(trial.folder / _IDENTITY, trial.identity())
    algo = trial.config().build_algo()
    steps, before = 0, 0.0
    checkpoint = _existing_checkpoint(trial)
    if checkpoint is not None:
        # Algorithm's own looks for runners of episodes in training, which RLlib's BC, MARWIL and IQL have not
        restore = Checkpointable.restore_from_path if algo.env_runner_group is None else type(algo).restore_from_path
        restore(algo, str(checkpoint))
        progress = json.loads((checkpoint / PROGRESS).read_text())
        steps, before = progress["steps"], progress["seconds"]
    rows = [row for row in rows if row["steps"] <= steps]
    start = saved = time.monotonic()
    while steps < trial.steps:
        result = algo.train()
        taken, steps = steps, gradient_steps(algo, result)
        seconds = before + time.monotonic() - start
        if steps > taken and (steps % trial.eval_every == 0 or steps >= trial.steps):
            policy = learned_policy(algo)
            rewards = play_episodes(policy, environment(trial.task), trial.episodes, seed=steps)
            value = result["learners"]["default_policy"].get("initial_value_mean")
            rows.append(_row(trial.task, steps, rewards, algo.config.gamma, value, seconds))
            if hasattr(policy.module, "critics"):
                rows[-1] |= along_the_path(policy, environment(trial.task), algo.config.gamma, PATHS, seed=steps)
            if measure is not None:
                rows[-1] |= measure(algo, policy, result)
            _write(trial.folder / _ROWS, rows)  # before the checkpoint, which does not repeat the evaluation
            _save(algo, trial, steps, seconds)
            saved = time.monotonic()
            report(rows[-1])
        elif time.monotonic() - saved > CHECKPOINT_SECONDS:
            _save(algo, trial, steps, seconds)
            saved = time.monotonic()
    algo.stop()


def gradient_steps(algo: Any, result: dict[str, Any]) -> int:
    """Those taken so far."""
    if isinstance(algo.config, OfflineConfig):
        return int(result.get(NUM_GRADIENT_STEPS) or 0)
    return algo.iteration * steps_per_iteration(algo.config)


def play_episodes(policy: Policy, env_id: str, episodes: int, seed: int) -> list[np.ndarray]:
    """The rewards ``(T,)`` of so many whole episodes; takes about a quarter of the time of RLlib's runner."""
    envs: list[gym.Env[Any, Any]] = [gym.make(env_id) for _ in range(episodes)]
    seeds = np.random.SeedSequence(seed).generate_state(episodes)
    starts = [env.reset(seed=int(own))[0] for env, own in zip(envs, seeds, strict=True)]
    rewards = play(envs, starts, policy)
    for env in envs:
        env.close()
    return rewards


def learned_policy(algo: Any) -> Policy:
    """The policy as its Learner has it, and where."""
    learner = algo.learner_group._learner
    return Policy(learner.module["default_policy"], learner._device)


def outcome(task: str, rewards: list[np.ndarray], gamma: float) -> Row:
    """What episodes of a task gave, from the rewards ``(T,)`` of each: the columns of a row that follow from these."""
    returns = np.array([own.sum() for own in rewards])
    return {
        "return": float(returns.mean()),
        "return_std": float(returns.std()),
        "score": normalized_score(environment(task), float(returns.mean())),
        "discounted_return": float(np.mean([discounted_return(own, gamma) for own in rewards])),
    }


def _row(task: str, steps: int, rewards: list[np.ndarray], gamma: float, value: float | None, seconds: float) -> Row:
    return {
        "steps": steps,
        **outcome(task, rewards, gamma),
        "value_estimate": None if value is None else float(value),
        "seconds": round(seconds, 1),
    }


def _existing_checkpoint(trial: Trial) -> Path | None:
    """The last whole checkpoint. An interruption between the two renames of `_save` leaves it under the old name."""
    names = (_CHECKPOINT, f"{_CHECKPOINT}.old")
    return next((path for path in (trial.folder / n for n in names) if (path / PROGRESS).is_file()), None)


def _save(algo: Any, trial: Trial, steps: int, seconds: float) -> None:
    """Replaces the checkpoint; at every moment there is a whole one."""
    new, current, old = (trial.folder / f"{_CHECKPOINT}{suffix}" for suffix in (".new", "", ".old"))
    shutil.rmtree(new, ignore_errors=True)
    algo.save_to_path(str(new))
    _write(new / PROGRESS, {"steps": steps, "seconds": seconds})
    shutil.rmtree(old, ignore_errors=True)
    if current.exists():
        current.rename(old)
    new.rename(current)
    shutil.rmtree(old, ignore_errors=True)


def _write(path: Path, content: Any) -> None:
    with atomic_write(path) as file:
        file.write(json.dumps(content, indent=1).encode())
