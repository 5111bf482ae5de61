"""Fig. 1 and Fig. 3 of the paper: whose states and actions look like whose, from the checkpoints of `runs.py`.

    python benchmarks/paper/distributions.py hopper-medium-expert

For each variant: (1) states and actions of the dataset against those of the policy's rollouts in the dynamics model, as
in training; (2) states of the policy's real episodes against those of its episodes in the model, from the same start
states. Beside the picture (the two directions in which the dataset varies most) the numbers: a classifier's accuracy on
rows that it has not seen (0.5: it cannot tell them apart), and MMD², each with the interval that it has where the two
distributions are the same. In (2), whole episodes are exchanged for that interval. ``outside`` is the share of a
sample's rows that are farther from the nearest of the dataset than 99 % of rows of other episodes of it. Columns are in
standard deviations of the dataset.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parent.parent))

import gymnasium as gym
import numpy as np
import torch
from along_the_path import walk
from figures import panels, save
from matplotlib.figure import Figure
from runs import FOLDER, MODEL
from runs import VARIANTS as RUNS
from score_trials import PROGRESS
from torch import Tensor
from two_sample import Sample, compare, outside, plane

from rllib_damo import load_policy
from rllib_damo.data.offline_data import BulkOfflineData
from rllib_damo.dynamics.ensemble import DynamicsEnsemble
from rllib_damo.dynamics.known_range import KnownRange
from rllib_damo.dynamics.rollout import Model, rollout
from rllib_damo.dynamics.termination import rule_of_model
from rllib_damo.evaluation.checkpoints import load_config
from rllib_damo.evaluation.policy import Policy
from rllib_damo.tasks import TerminationFn
from rllib_damo.utils.spaces import to_unit

VARIANTS = ("full", "no-er", "no-ir", "mopo")
#: Rows of each sample, real episodes, and rows of the dataset to which distances are measured.
ROWS, EPISODES, REFERENCE = 1000, 20, 20_000
#: By which share of the data's range an episode in the model may leave it before it ends.
MARGIN = 0.1
COMPARISONS = {"offline_synthetic": ("dataset", "rollouts"), "real_model": ("real", "in the model")}


@torch.inference_mode()
def model_episodes(
    policy: Callable[[Tensor], Tensor],
    model: Model,
    rule: TerminationFn,
    known: KnownRange,
    starts: Tensor,
    length: int,
    seed: int,
) -> Sample:
    """The states ``(N, obs)`` of one episode in the model from each start, and which episode each is of.

    Args:
        policy: ``obs (B, obs) -> unit actions (B, act)``.
        model: the dynamics.
        rule: which transitions end an episode.
        known: range of the data; an episode ends where it leaves it.
        starts: ``(E, obs)``.
        length: of the longest episode, in steps.
        seed: of the model's noise.
    """
    step, generator = model.sampler(), torch.Generator().manual_seed(seed)
    obs, running = starts, torch.arange(len(starts))
    states, groups = [], []
    for _ in range(length):
        states.append(obs)
        groups.append(running)
        actions = policy(obs)
        next_obs, rewards = step(obs, actions, generator)
        ended = rule(obs, actions, next_obs)
        goes_on = ~(ended | known.is_left(next_obs, rewards, ended))
        obs, running = next_obs[goes_on], running[goes_on]
        if not len(running):
            break
    return Sample(torch.cat(states).numpy(), torch.cat(groups).numpy())


def real_episodes(policy: Policy, env_id: str, episodes: int, seed: int) -> tuple[Sample, np.ndarray]:
    """The states of real episodes, and the start states ``(E, obs)``."""
    paths = walk(policy, env_id, episodes, seed)
    groups = np.repeat(np.arange(len(paths)), [len(path.observations) for path in paths])
    starts = np.stack([path.observations[0] for path in paths])
    return Sample(np.concatenate([path.observations for path in paths]), groups), starts


class Task:
    """The dataset of a task, and samples of what its policies do; in standard deviations of the dataset.

    Args:
        config: of one of the variants; all have the same dataset and environment.
        seed: of everything that is drawn.
    """

    def __init__(self, config: Any, seed: int):
        config.validate()
        data = BulkOfflineData(config).transitions
        self._observations, self._rewards, self._seed = data.observations, data.rewards, seed
        self._pairs = np.concatenate((data.observations, to_unit(data.actions, config.action_space)), 1)
        self._mean, self._std = self._pairs.mean(0), self._pairs.std(0).clip(min=1e-6)
        bounds, rng = data.episode_bounds(), np.random.default_rng(seed)
        half = np.repeat(rng.permutation(len(bounds)) < len(bounds) / 2, bounds[:, 1] - bounds[:, 0])
        self._halves = [
            rng.permutation(np.flatnonzero(part))[:num] for part, num in ((half, REFERENCE), (~half, ROWS))
        ]  # of the episodes
        self.planes = {
            "offline_synthetic": plane(self._standardised(self._pairs)),
            "real_model": plane(self._standardised(self._observations)),
        }

    def _standardised(self, rows: np.ndarray) -> np.ndarray:
        width = rows.shape[1]
        return (rows - self._mean[:width]) / self._std[:width]

    def outside(self, sample: Sample) -> float:
        """The share of its rows, states with or without actions, that lie outside of the dataset."""
        rows = self._standardised(self._pairs[:, : sample.rows.shape[1]])
        reference, own = (rows[half] for half in self._halves)
        return outside(reference, own, sample.rows)

    def _known(self, margin: float | None) -> KnownRange | None:
        return None if margin is None else KnownRange.of(self._observations, self._rewards, margin)

    def offline_synthetic(self, policy: Policy, model: DynamicsEnsemble, config: Any) -> tuple[Sample, Sample]:
        """States and actions of the dataset, and of rollouts as in training."""
        rng = np.random.default_rng(self._seed)
        starts = torch.from_numpy(self._observations[rng.choice(len(self._observations), ROWS)])
        batch = rollout(
            lambda obs, generator: policy.module.sample_actions(obs, generator)[0],
            model,
            rule_of_model(config, model, policy.action_space, policy.device),
            starts,
            config.rollout_length,
            torch.Generator().manual_seed(self._seed),
            self._known(config.rollout_margin),
            config.gamma,
        )
        synthetic = torch.cat((batch["obs"], batch["actions"]), 1).numpy()
        x, y = (self._standardised(rng.permutation(rows)[:ROWS]) for rows in (self._pairs, synthetic))
        return Sample.independent(x), Sample.independent(y)

    def real_model(self, policy: Policy, model: DynamicsEnsemble, config: Any) -> tuple[Sample, Sample]:
        """States of the policy's episodes in the environment, and in the model from the same starts."""
        real, starts = real_episodes(policy, config.env, EPISODES, self._seed)
        rule = rule_of_model(config, model, policy.action_space, policy.device)
        length = gym.spec(config.env).max_episode_steps or 1000
        known = self._known(MARGIN)
        assert known is not None
        predicted = model_episodes(
            policy.module.mean_actions, model, rule, known, torch.from_numpy(starts), length, self._seed
        )
        x, y = (Sample(self._standardised(one.rows), one.groups) for one in (real, predicted))
        return x, y


def drawn(x: Sample, y: Sample, rng: np.random.Generator) -> tuple[Sample, Sample]:
    """As many rows of either, `ROWS` at most."""
    num = min(ROWS, len(x.rows), len(y.rows))
    picks = [rng.choice(len(one.rows), num, replace=False) for one in (x, y)]
    x, y = (Sample(one.rows[own], one.groups[own]) for one, own in zip((x, y), picks, strict=True))
    return x, y


def draw(content: dict[str, Any], points: dict[str, dict[str, list[np.ndarray]]], task: str) -> Figure:
    """A row a comparison, a column a variant."""
    figure, axes = panels(len(COMPARISONS), len(content))
    for row, (comparison, names) in zip(axes, COMPARISONS.items(), strict=True):
        both = np.concatenate([half for own in points.values() for half in own[comparison]])
        low, high = np.percentile(both, (0.5, 99.5), axis=0)
        for axis, (label, numbers) in zip(row, content.items(), strict=True):
            for half, name in zip(points[label][comparison], names, strict=True):
                axis.scatter(*half.T, s=3, alpha=0.4, linewidths=0, label=name)
            found = numbers[comparison]
            axis.set(
                title=f"{task}, {label}: accuracy {found['accuracy']['value']:.2f}, MMD² {found['mmd2']['value']:.3f}",
                xlim=(low[0], high[0]), ylim=(low[1], high[1]), xticks=[], yticks=[],
            )  # fmt: skip
            axis.title.set_fontsize("small")
            axis.legend(fontsize="small", markerscale=4)
    return figure


def table(task: str, content: dict[str, Any]) -> str:
    """In Markdown; in brackets what it would be if the distributions were the same."""
    lines = ["| task | variant | compared | accuracy | MMD² | outside |", "| --- | --- | --- | --- | --- | --- |"]
    for label, numbers in content.items():
        for comparison, names in COMPARISONS.items():
            cells = [
                f"{one['value']:.{digits}f} ({one['low']:.{digits}f} to {one['high']:.{digits}f})"
                for one, digits in ((numbers[comparison]["accuracy"], 2), (numbers[comparison]["mmd2"], 4))
            ]
            cells.append(", ".join(f"{share:.2f}" for share in numbers[comparison]["outside"]))
            lines.append(f"| {task} | {label} | {', '.join(names)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def same_steps(folders: Mapping[str, Path]) -> int:
    """The gradient steps of all variants' checkpoints.

    Raises:
        ValueError: one has no checkpoint, or they are of different steps.
    """
    missing = [str(folder) for folder in folders.values() if not (folder / MODEL).exists()]
    if missing:
        raise ValueError(f"there is no checkpoint in {', '.join(missing)}: run runs.py first, or give --variants.")
    steps = {
        label: json.loads((folder / "checkpoint" / PROGRESS).read_text())["steps"] for label, folder in folders.items()
    }
    if len(set(steps.values())) > 1:
        raise ValueError(f"the checkpoints are of different gradient steps, {steps}: runs.py goes on with them.")
    return next(iter(steps.values()))


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("task")
    parser.add_argument("--variants", nargs="+", default=[*VARIANTS], choices=[*RUNS])
    parser.add_argument("--seed", type=int, default=0, help="of the runs, and of what is drawn")
    parser.add_argument("--runs", type=Path, default=FOLDER, help="folder of runs.py")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    return parser.parse_args(arguments)


def main() -> int:
    """Exit code 0; 2 if there is no checkpoint."""
    args = parse()
    torch.set_num_threads(1)
    folders = {label: args.runs / args.task / label / f"seed{args.seed}" for label in args.variants}
    try:
        steps = same_steps(folders)
    except ValueError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    task: Task | None = None
    content: dict[str, dict[str, Any]] = {}
    points: dict[str, dict[str, list[np.ndarray]]] = {}
    for label, folder in folders.items():
        config, policy = load_config(folder / "checkpoint"), load_policy(folder / "checkpoint")
        model = DynamicsEnsemble.load(folder / MODEL)
        task = task or Task(config, args.seed)
        content[label], points[label] = {}, {}
        for comparison in COMPARISONS:
            found = getattr(task, comparison)(policy, model, config)
            x, y = drawn(found[0], found[1], np.random.default_rng(args.seed))
            numbers = {name: one._asdict() for name, one in compare(x, y, args.seed).items()}
            shares = [task.outside(half) for half in (x, y)]
            content[label][comparison] = {"steps": steps, "rows": len(x.rows), **numbers, "outside": shares}
            points[label][comparison] = [half.rows @ task.planes[comparison] for half in (x, y)]
        lengths = [round(len(one.rows) / EPISODES, 1) for one in found]  # of the second comparison
        content[label]["real_model"] |= dict(zip(("steps_real", "steps_model"), lengths, strict=True))
    save(args.out / f"distributions-{args.task}", draw(content, points, args.task), content)
    print(f"\n{table(args.task, content)}\n\nCheckpoints of {steps:,} gradient steps.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
