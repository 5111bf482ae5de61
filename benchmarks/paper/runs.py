"""Trains the variants of DAMO that the paper compares, and MOPO beside them: what the other files here are made from.

    python benchmarks/paper/runs.py hopper-medium-expert --steps 100000

All variants of a task and a seed have the same dataset, networks, rollouts and dynamics model, and no anchor to the
data. Each has a folder OUT/TASK/VARIANT/seedN with an evaluation of ten real episodes every ``--eval-every`` gradient
steps, the last checkpoint and the dynamics model. OUT is benchmarks/paper/runs by default, which keeps the recorded
evaluations. Variants run one after another in this process, on one thread. The same command goes on where it was
interrupted, and with more ``--steps`` where it had ended.
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parent.parent))

import ray
import torch
from score_settings import add_options, environment
from score_tables import Dataset
from score_trials import Row, Trial, is_finished, outcome, play_episodes, train
from scores import describe, make_trials
from torch import Tensor

from rllib_damo.core.algorithm import NUM_GRADIENT_STEPS
from rllib_damo.data.offline_data import BulkOfflineData
from rllib_damo.errors import UsageError
from rllib_damo.evaluation.policy import Policy
from rllib_damo.utils.names import near
from rllib_damo.utils.paths import atomic_write
from rllib_damo.utils.spaces import to_unit

#: Beside the 1 of "full", where `actor_eta` fixed (1) and free (η) are the same.
ETAS = (0.1, 0.5, 2.0, 3.0, 5.0)
#: MOPO's λ, searched as widely as η; "mopo" has the one of public code, which is among these.
PENALTIES = (0.5, 1.0, 2.5, 5.0, 10.0, 20.0)
#: Variant -> method of `score_settings.py` and options over its settings. Those with "zero-terminals" and the averages,
#: which have no choice among policies, either, are of before `terminal_alignment`.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "full": ("damo-long", {}),
    "no-er": ("damo-long", {"data_alignment": False}),
    "no-ir": ("damo-long", {"behavior_alignment": False}),
    "inconsistent": ("damo-long", {"policy_improvement": "inconsistent"}),
    "mopo": ("mopo-long", {}),
    "zero-terminals": ("damo-long", {"terminal_alignment": False}),
    "eta-5-zero-terminals": ("damo-long", {"terminal_alignment": False, "eta": 5.0}),
    "average": ("damo-long", {"terminal_alignment": False, "policy_check_freq": 0}),
    "mopo-average": ("mopo-long", {"policy_check_freq": 0}),
    **{f"eta-{eta:g}": ("damo-long", {"eta": eta}) for eta in ETAS},
    **{f"eta-{eta:g}-free": ("damo-long", {"eta": eta, "actor_eta": None}) for eta in ETAS},
    **{f"mopo-{penalty:g}": ("mopo-long", {"penalty_coef": penalty}) for penalty in PENALTIES},
}
#: What `--variants` may say for several.
GROUPS = {
    "ablations": ["full", "no-er", "no-ir", "inconsistent", "mopo"],
    "eta": [f"eta-{eta:g}" for eta in ETAS],
    "free": [f"eta-{eta:g}-free" for eta in ETAS],
    "penalty": [f"mopo-{penalty:g}" for penalty in PENALTIES],
}
#: Of the learner's metrics, those that go into a row where they are.
LEARNER = (
    "density_ratio_mean", "classifier_accuracy", "logit_offline_mean", "logit_synthetic_mean", "qf_mean", "alpha_value",
)  # fmt: skip
#: Before the columns of the policy of the gradient step; those without are of the one that is evaluated.
NEWEST = "newest_"
#: States of the dataset whose actions' values are asked for.
STATES = 5_000
#: Of its episodes, the start states that the learner's own estimate is of, too.
STARTS = 1_000
MODEL, DATASET = "dynamics.pt", "dataset.json"
FOLDER = Path(__file__).parent / "runs"


@torch.no_grad()
def action_values(
    critics: Callable[[Tensor, Tensor], Tensor], obs: Tensor, actions: Tensor, generator: torch.Generator
) -> dict[str, float]:
    """What the critics think of actions that are not in the data (the paper's Fig. 4).

    Args:
        critics: ``(obs (N, obs), unit actions (N, act)) -> (C, N)``.
        obs: ``(N, obs)`` states of the dataset.
        actions: ``(N, act)`` unit actions that the dataset has there.
        generator: of the others.

    Returns:
        ``value_data`` and ``value_random``: means over states of the smallest critic, at the dataset's actions and at
        actions drawn uniformly from [-1, 1].
    """
    uniform = 2 * torch.rand(actions.shape, generator=generator).to(actions) - 1
    return {
        "value_data": float(critics(obs, actions).amin(0).mean()),
        "value_random": float(critics(obs, uniform).amin(0).mean()),
    }


class Measure:
    """The columns of a row that `train` does not have; keeps the dynamics model beside the rows, too."""

    def __init__(self, trial: Trial):
        self._folder, self._task, self._episodes = trial.folder, trial.task, trial.episodes
        config = trial.config()
        config.validate()
        self._gamma = config.gamma
        data = BulkOfflineData(config).transitions
        starts = data.episode_bounds()[:STARTS, 0]
        self._starts = torch.from_numpy(data.observations[starts])
        rows = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))[:STATES].numpy()
        self._obs, self._actions = torch.from_numpy(data.observations[rows]), data.actions[rows]

    def __call__(self, algo: Any, policy: Policy, result: dict[str, Any]) -> Row:
        if not (self._folder / MODEL).exists():
            with atomic_write(self._folder / MODEL) as file:
                file.write(algo.dynamics.file().read_bytes())
        actions = torch.from_numpy(to_unit(self._actions, policy.action_space))
        generator = torch.Generator().manual_seed(0)  # the same actions at each evaluation
        obs, actions = self._obs.to(policy.device), actions.to(policy.device)
        learner = result["learners"]["default_policy"]
        known = {name: round(float(learner[name]), 4) for name in LEARNER if name in learner}
        known |= self._newest(policy, result[NUM_GRADIENT_STEPS])
        return action_values(policy.module.critics, obs, actions, generator) | known

    def _newest(self, policy: Policy, steps: int) -> Row:
        """Of the policy of the last gradient step, where other columns are of the one that is evaluated."""
        module = copy.deepcopy(policy.module)
        starts = self._starts.to(policy.device)
        with torch.no_grad():
            value = module.critics(starts, module.mean_actions(starts, module.actor)).amin(0).mean()
        for played in {"averaged_actor", "kept_actor"} & {name for name, _ in module.named_children()}:
            setattr(module, played, module.actor)
        rewards = play_episodes(Policy(module, policy.device), environment(self._task), self._episodes, seed=steps)
        found = outcome(self._task, rewards, self._gamma) | {"value_estimate": float(value)}
        return {NEWEST + name: found[name] for name in ("score", "discounted_return", "value_estimate")}


def trials(args: argparse.Namespace, task: str, dataset: Dataset) -> list[Trial]:
    """Those of one task, seed by seed. What a variant is keeps its option, whatever ``--options`` says."""
    one = argparse.Namespace(**{**vars(args), "tasks": [task], "methods": args.variants, "input": {}})
    one.variants = {label: (VARIANTS[label][0], {**args.options, **VARIANTS[label][1]}) for label in args.variants}
    return sorted(make_trials(one, {task: dataset}), key=lambda trial: trial.seed)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; groups of variants are resolved."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("tasks", nargs="+", help="datasets by short name: hopper-medium-expert ...")
    parser.add_argument(
        "--variants", nargs="+", default=[*GROUPS], help=f"groups ({', '.join(GROUPS)}) or of {', '.join(VARIANTS)}"
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--steps", type=int, default=100_000, help="gradient steps of a variant")
    parser.add_argument("--eval-every", type=int, default=5_000, help="steps between evaluations")
    parser.add_argument("--episodes", type=int, default=10, help="of an evaluation")
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder of results and checkpoints")
    add_options(parser)
    args = parser.parse_args(arguments)
    if min(args.steps, args.eval_every, args.episodes) < 1 or args.steps % args.eval_every:
        parser.error(
            f"--steps ({args.steps}) must be a multiple of --eval-every ({args.eval_every}), and all at least 1."
        )
    known = [*GROUPS, *VARIANTS]
    for label in args.variants:
        if label not in known:
            parser.error(f"--variants: unknown {label!r}.{near(label, known)} Known: {', '.join(known)}.")
    for task in args.tasks:
        try:
            environment(task)
        except UsageError as error:
            parser.error(str(error).removeprefix("--tasks: "))
    args.variants = list(dict.fromkeys(name for label in args.variants for name in GROUPS.get(label, [label])))
    return args


def run(trial: Trial) -> bool:
    """Trains one variant, with a line for each evaluation; False if it failed."""
    name = f"{trial.task} {trial.label} seed {trial.seed}"

    def say(row: Row) -> None:
        print(
            f"{time.strftime('%T')} {name:45} {row['steps']:>9,} steps  score {row['score']:6.1f}  "
            f"newest policy's {row['newest_score']:6.1f}  estimate {row['value_estimate']:7.1f}  "
            f"real value {row['discounted_return']:7.1f}  of random actions {row['value_random']:7.1f}",
            flush=True,
        )

    try:
        train(trial, say, Measure(trial))
    except Exception:  # a variant that diverges does not keep the others from running
        traceback.print_exc()
        print(f"FAILED: {name}", flush=True)
        return False
    return True


def main() -> int:
    """Exit code 0; 1 if a variant failed: the others run all the same. 2 if the command was wrong."""
    args = parse()
    for name in ("ray", "ray.rllib", "ray.tune", "ray.train"):
        logging.getLogger(name).setLevel(logging.ERROR)
    waiting = []
    try:
        for task in args.tasks:
            dataset = describe(task, task)
            waiting += [trial for trial in trials(args, task, dataset) if not is_finished(trial)]
            (args.out / task).mkdir(parents=True, exist_ok=True)
            (args.out / task / DATASET).write_text(json.dumps(asdict(dataset), indent=1))
    except ValueError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    ray.init("local", num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    done = [run(trial) for trial in waiting]
    ray.shutdown()
    return 0 if all(done) else 1


if __name__ == "__main__":
    sys.exit(main())
