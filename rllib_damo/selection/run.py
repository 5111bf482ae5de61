"""`select`: from checkpoints and their data to a choice among them, or to none."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from rllib_damo.data.formats.reader import Conventions
from rllib_damo.data.offline_data import BulkOfflineData
from rllib_damo.data.schema import Transitions
from rllib_damo.data.sources import Input
from rllib_damo.data.sources import load as load_data
from rllib_damo.data.splits import split_episodes
from rllib_damo.dynamics.ensemble import DynamicsEnsemble
from rllib_damo.dynamics.termination import resolve_termination, rule_of_model
from rllib_damo.errors import CheckpointError, DataError, UsageError
from rllib_damo.nn.standardize import input_scales
from rllib_damo.selection import candidates as candidates_
from rllib_damo.selection import model_value, rule, self_tests
from rllib_damo.selection.behavior_density import BehaviorDensity, StateBox
from rllib_damo.selection.candidates import Act, Candidate, Place
from rllib_damo.selection.clone import Policy, clone, default_steps
from rllib_damo.selection.critic import NetworkCritic
from rllib_damo.selection.fitting import Fit, fit, key_of
from rllib_damo.selection.fqe import FQE, Bounds, default_gamma, episode_weights
from rllib_damo.selection.result import Selection, make_selection
from rllib_damo.selection.rows import Rows
from rllib_damo.tasks import TerminationFn
from rllib_damo.utils.environments import make_env
from rllib_damo.utils.ray_internals import given_connector
from rllib_damo.utils.spaces import check_spaces, from_unit

_FEWEST_EPISODES = 10
_FEW_ROWS, _FEW_INPUTS = 50_000, 4  # with which the learning rate is the higher one
_STATES_TRIED = 5_000
CLONE = "clone"


@dataclass(frozen=True)
class Settings:
    """What a selection was asked for; `select` explains each."""

    gamma: float | None = None
    heads: int = 4
    steps: int = 30_000
    judge_model: str = "train"
    seed: int = 0


def select(
    checkpoints: Sequence[Place] | Mapping[str, Place],
    input_: Input | None = None,
    *,
    env: Any = None,
    termination_fn: TerminationFn | None = None,
    which: str = "last",
    default: str | Path | None = None,
    gamma: float | None = None,
    heads: int = 4,
    steps: int = 30_000,
    judge_model: str = "train",
    seed: int = 0,
    out: str | Path | None = None,
    progress: Callable[[str], None] = lambda text: None,
) -> Selection:
    """Chooses among trained policies by their dataset alone; or finds that nothing is credibly better than a clone.

    Loading a checkpoint executes its pickles: give only those that you trust.

    Args:
        checkpoints: folders or addresses of checkpoints or of runs, and functions ``observations (B, obs) -> actions
            (B, act)`` in the environment's units; or these by names.
        input_: the dataset they were trained on; None: that of the first checkpoint's config.
        env: the environment's id, for its spaces and its termination rule; it is never stepped. None: the first
            checkpoint's.
        termination_fn: the termination rule, as in ``.dynamics(termination_fn=...)``.
        which: of each trial's checkpoints: "last", "all", or "every:N".
        default: the checkpoint that would be used otherwise; the choice must be better than it. None: the candidate
            whose options are all defaults, if there is one, else a clone of the data's behaviour.
        gamma: the discount; None: 1 - 3/T for episodes of up to T steps, at least the training's, at most 0.997.
        heads: bootstraps of the episodes, 2 to 16.
        steps: of fitted Q evaluation, at most.
        judge_model: "train", "none", or the path of a dynamics model.
        seed: of all that is random.
        out: a folder for the state, from which an interrupted selection goes on.
        progress: gets lines of text.

    Raises:
        CheckpointError: no checkpoint, a damaged one, or a policy that cannot be judged.
        DataError: data that cannot be used, or other data than a candidate was trained on.
        UsageError: wrong arguments.
    """
    start = time.perf_counter()
    chosen = Settings(gamma, heads, steps, judge_model, seed)
    _check_settings(chosen)
    own = candidates_.load(checkpoints, which)
    if not own:
        raise UsageError("no policy to choose among: give the folder of a run, or checkpoints.")
    reference = _default(own, default)
    config = next((candidate.config for candidate in own if candidate.config is not None), None)
    task = _task(config, env, termination_fn)
    whole = _read(config, input_, task)
    data = _Data.of(whole, own, task.action_space)
    progress(f"{len(own)} candidates; {data.describe()}")
    work = _Work(own, data, task, chosen, Path(out) if out is not None else None, progress)
    evidence, fitted, tests, columns = work.evaluate(reference)
    against = rule.vetoes(evidence)
    evidence, notes = rule.sound_reference(evidence, against)
    failed = [f"self-test of the {test.name} failed: {test.text}" for test in tests if test.passed is False]
    cautions = [*data.cautions, *connected(own)]
    cautions += [f"{test.name} {test.text}" for test in tests if test.passed is None]
    if not fitted.settled:
        cautions.append(f"the ranking did not settle within {fitted.steps[-1]:,} steps: give more --steps")
    decision = rule.decide(evidence, against, failed=failed, cautions=cautions)
    decision.reasons.extend(notes)
    facts = {
        "env": task.env if isinstance(task.env, str) else None, "env_config": dict(task.env_config or {}),
        "dataset": whole.name, "fingerprint": whole.fingerprint(), "split": data.record,
        "episodes": int(data.rows.num_episodes), "held_out": data.num_held_out, "seconds": time.perf_counter() - start,
        "settings": asdict(chosen) | {"gamma": work.gamma},
    } | columns.pop("facts")  # fmt: skip
    return make_selection(work.names, own, evidence, against, decision, tests, fitted, columns, facts)


def connected(own: Sequence[Candidate]) -> list[str]:
    """A sentence on candidates whose observations pass through a connector that is not applied here."""
    names = [one.name for one in own if one.config is not None and given_connector(one.config) is not None]
    text = "`env_to_module_connector` may change the observations that these policies see, and is not applied here: "
    return [text + ", ".join(names)] if names else []


def _check_settings(settings: Settings) -> None:
    if not 2 <= settings.heads <= 16:
        raise UsageError(f"heads (--heads) must be from 2 to 16; found {settings.heads}.")
    if settings.steps < 1:
        raise UsageError(f"steps (--steps) must be at least 1; found {settings.steps}.")
    if settings.gamma is not None and not 0 < settings.gamma < 1:
        raise UsageError(f"gamma (--gamma) must be in (0, 1); found {settings.gamma}.")


def _default(own: list[Candidate], given: str | Path | None) -> int | None:
    """The candidate that would be used otherwise, added to ``own`` if it is not among them; None: the clone."""
    if given is not None:
        found = candidates_.load({"default": given})
        if len(found) != 1:
            raise UsageError(f"default (--default) {given} holds {len(found)} checkpoints: give one of them.")
        added = found[0]
        paths = [candidate.path for candidate in own]
        if added.path in paths:
            return paths.index(added.path)
        own.append(added)
        return len(own) - 1
    plain = [i for i, candidate in enumerate(own) if candidate.config and candidates_.is_default(candidate.config)]
    return plain[0] if len(plain) == 1 and len(own) > 1 else None


def _task(config: Any, env: Any, termination_fn: TerminationFn | None) -> SimpleNamespace:
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


def _read(config: Any, input_: Input | None, task: SimpleNamespace) -> Transitions:
    """The whole dataset, read as the first candidate's training did."""
    if config is None:
        if input_ is None:
            raise UsageError("no dataset: give the one that the policies were trained on, input_ (--input).")
        return load_data(input_, observation_space=task.observation_space, conventions=Conventions(task.action_space))
    config = config.copy(copy_frozen=False)
    if input_ is not None:
        config.input_ = input_
    config.observation_space, config.action_space = task.observation_space, task.action_space
    return BulkOfflineData(config).whole()


@dataclass(frozen=True)
class _Data:
    """The rows to fit on, and those to test on.

    Attributes:
        rows: of the episodes that the policies were trained on.
        held_out: of the others; the same rows where none are held out.
        training_fingerprint: of the former's content.
        record: the split; None: trained on all.
        cautions: reasons for a low confidence.
    """

    rows: Rows
    held_out: Rows
    training_fingerprint: str
    record: Mapping[str, Any] | None
    cautions: tuple[str, ...]

    @classmethod
    def of(cls, whole: Transitions, own: Sequence[Candidate], space: gym.Space) -> _Data:
        """Checks that all candidates were trained on this data, with one split."""
        fingerprint = whole.fingerprint()
        splits: list[Any] = []
        for candidate in own:
            record = candidate.record
            if record is None:
                splits.append(None)
                continue
            if record["dataset_fingerprint"] != fingerprint:
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
            rows, held_out, cautions = Rows.of(split.training, space), Rows.of(split.holdout, space), ()
            training = split.record["train_fingerprint"]
        else:
            rows, training = Rows.of(whole, space), fingerprint
            held_out, known = rows, [None]
            cautions = (
                "in sample: the candidates were fitted to the noise of the episodes that judge them; train with "
                ".offline_data(holdout_episodes=0.1)",
            )  # type: ignore[assignment]
        if rows.num_episodes < _FEWEST_EPISODES:
            raise DataError(
                f"{whole.name}: {rows.num_episodes} episodes are too few to judge policies by; {_FEWEST_EPISODES} are "
                "needed beside those that are held out."
            )
        return cls(rows, held_out, training, known[0], cautions)

    @property
    def num_held_out(self) -> int:
        return 0 if self.record is None else self.held_out.num_episodes

    @property
    def where(self) -> str:
        return "held-out episodes" if self.record is not None else "episodes"

    def describe(self) -> str:
        return f"{self.rows.num_episodes:,} episodes to fit on, {self.num_held_out:,} held out"


class _Work:
    """The estimators of one selection, on policies in this order: candidates, clone, behaviour, clones of thirds."""

    def __init__(
        self, own: list[Candidate], data: _Data, task: SimpleNamespace, settings: Settings, out: Path | None,
        progress: Callable[[str], None],
    ):  # fmt: skip
        self.own, self.data, self.task, self.settings = own, data, task, settings
        self.out, self.progress = out, progress
        rows = data.rows
        longest = int((rows.stops - rows.starts).max())
        self.gamma = settings.gamma or default_gamma(longest, task.gamma)
        self.names = [candidate.name for candidate in own] + [CLONE]
        self.clone = len(own)

    def evaluate(self, default: int | None) -> tuple[rule.Evidence, Fit, list[self_tests.SelfTest], dict[str, Any]]:
        """All that the rule and the table need."""
        rows, held_out, seed = self.data.rows, self.data.held_out, self.settings.seed
        reference = self.clone if default is None else default
        self.progress("clones of the data's behaviour")
        parts = self_tests.thirds(rows) or []
        clones = clone(rows, [torch.arange(len(rows)), *parts], steps=default_steps(len(rows)), seed=seed)
        policies = [candidate.unit_policy(self.task.action_space) for candidate in self.own] + clones[:1]
        some = self._some(held_out)
        parts_differ = bool(parts) and self_tests.differing(clones[1:], held_out.obs[some])
        others = clones[1:] if parts_differ else []
        fqe, fitted = self._fit(policies, clones[0], others, reference)
        num = len(self.names)
        last = fitted.history[-1][..., 0]
        tails = fqe.critic.values(
            held_out.next_obs[held_out.stops - 1].masked_fill(held_out.terminated[held_out.stops - 1][:, None], 0.0),
            self._stacked(policies, clones[0], others, held_out.next_obs[held_out.stops - 1]),
        )[..., 0]
        returns = held_out.discounted_returns(self.gamma, tails[self.clone].mean(0)).numpy()
        started = fqe.critic.values(
            held_out.obs[held_out.starts],
            held_out.actions[held_out.starts].expand(len(tails), -1, -1),
        )[num, :, :, 0].double().numpy()  # fmt: skip
        behavior_returns = held_out.discounted_returns(self.gamma, tails[num].mean(0)).numpy()
        low, high = np.quantile(returns, (0.05, 0.95))
        tests = [
            self_tests.behavior_test(started, behavior_returns, float(high - low), self.data.where),
            self_tests.order_test(last[num + 1 :] if parts_differ else None),
        ]
        self.progress("distance to the data's actions")
        density = BehaviorDensity(rows, seed=seed)
        actions = torch.stack([policy(held_out.obs[some]) for policy in policies])
        off_data = density.shares_off_data(held_out.obs[some], held_out.actions[some], actions)
        opinion = self._second_opinion(fqe, policies)
        evidence = rule.Evidence(
            fqe=last[:num], model=opinion["model"], clone=self.clone, reference=reference, returns=returns,
            diverged=fitted.diverged[:num], moved=rule.has_moved(fitted.history[..., 0], reference)[:num],
            off_data=off_data, off_states=opinion["outside"], stopped=opinion["stopped"],
            own_minus_judge=opinion["own"],
        )  # fmt: skip
        survival = (1 - self.gamma) * fitted.history[-1][:num, :, 1].mean(-1) if fitted.history.shape[-1] > 1 else None
        return (
            evidence,
            fitted,
            tests,
            {"survival": survival, "facts": opinion["facts"], "policies": self._acts(clones[0])},
        )

    def _acts(self, own_clone: Policy) -> dict[str, Act]:
        space = self.task.action_space

        def act(observations: np.ndarray) -> np.ndarray:
            unit = own_clone(torch.from_numpy(np.asarray(observations, np.float32))).numpy()
            return np.clip(from_unit(unit.astype(space.dtype), space), space.low, space.high)

        return {candidate.name: candidate.act for candidate in self.own} | {CLONE: act}

    def _some(self, rows: Rows) -> Tensor:
        rng = np.random.default_rng((self.settings.seed, 8))
        return torch.from_numpy(np.sort(rng.choice(len(rows), min(len(rows), _STATES_TRIED), replace=False)))

    def _stacked(self, policies: list[Policy], own_clone: Policy, others: list[Policy], obs: Tensor) -> Tensor:
        """Actions of all policies of the evaluation, ``(K, B, act)``; the behaviour's place has the clone's."""
        return torch.stack([*(policy(obs) for policy in policies), own_clone(obs), *(other(obs) for other in others)])

    def _fit(self, policies: list[Policy], own_clone: Policy, others: list[Policy], reference: int) -> tuple[FQE, Fit]:
        rows, settings = self.data.rows, self.settings
        next_actions = self._stacked(policies, own_clone, others, rows.next_obs)
        start_actions = self._stacked(policies, own_clone, others, rows.obs[rows.starts])
        behavior, inner = len(policies), torch.ones(len(rows), dtype=torch.bool)
        inner[rows.stops - 1] = False
        where = inner.nonzero().squeeze(-1)
        next_actions[behavior, where] = rows.actions[where + 1]
        start_actions[behavior] = rows.actions[rows.starts]
        signals = rows.rewards[:, None]
        if rows.terminated.any():  # the survival: a 1 for each step
            signals = torch.cat((signals, torch.ones_like(signals)), 1)
        bounds = Bounds.of(rows, signals, self.gamma)
        scales = input_scales(rows.obs)
        is_small = len(rows) < _FEW_ROWS and rows.obs.shape[1] + rows.actions.shape[1] <= _FEW_INPUTS
        critic = NetworkCritic(
            len(next_actions), settings.heads, scales, rows.actions.shape[1], bounds.center, bounds.scale,
            1e-3 if is_small else 3e-4, settings.seed,
        )  # fmt: skip
        weights = episode_weights(settings.heads, rows.num_episodes, settings.seed)
        fqe = FQE(
            rows, next_actions, start_actions, critic, gamma=self.gamma, signals=signals, bounds=bounds,
            weights=weights, seed=settings.seed,
        )  # fmt: skip
        facts = asdict(settings) | {"gamma": self.gamma, "data": self.data.training_fingerprint}
        counted = np.arange(len(next_actions)) < len(policies)
        names = [*self.names, "behaviour", "lower third", "middle third", "upper third"]
        counted[reference] = False
        return fqe, fit(
            fqe, settings.steps, reference=reference, counted=counted, names=names, progress=self.progress,
            state_file=self.out / "fqe.pt" if self.out else None, key=key_of(facts, next_actions, start_actions),
        )  # fmt: skip

    def _second_opinion(self, fqe: FQE, policies: list[Policy]) -> dict[str, Any]:
        """Values in the judge's model, and what rollouts in it show."""
        num, none = len(policies), np.full(len(policies), np.nan)
        result: dict[str, Any] = {
            "model": None,
            "outside": none,
            "stopped": none,
            "own": none,
            "facts": {"rollout_length": 0},
        }
        judge = self._judge()
        if judge is None:
            return result
        result["facts"] = {"rollout_length": judge.length, "model_errors": judge.errors}
        if not judge.length:
            return result
        rows, held_out, seed = self.data.rows, self.data.held_out, self.settings.seed
        self.progress(f"rollouts of {judge.length} steps in the judge's model")
        starts = model_value.first_states(held_out, torch.arange(len(held_out)), seed)
        box, bounds = StateBox.of(rows.obs), (float(rows.rewards.min()), float(rows.rewards.max()))
        rolled = [model_value.roll_out(judge, policy, starts, self.gamma, bounds, box, seed) for policy in policies]

        def tails(obs: Tensor, actions: Tensor) -> Tensor:
            rest = fqe.num_policies - num
            padded = [torch.cat((part, part[:1].expand(rest, -1, -1))) for part in (obs, actions)]
            return fqe.critic.values(*padded)[:num, ..., 0]

        result["model"] = model_value.model_values(rolled, tails)
        result["outside"] = np.array([one.outside for one in rolled])
        result["stopped"] = np.array([one.stopped for one in rolled])
        own = list(rolled)
        has_own = np.zeros(num, bool)
        for i, candidate in enumerate(self.own):
            if candidate.own_model is not None:
                theirs = model_value.Judge(
                    candidate.own_model, self._rule(candidate.own_model), judge.length, {}, float("inf")
                )
                own[i] = model_value.roll_out(theirs, policies[i], starts, self.gamma, bounds, box, seed)
                has_own[i] = True
        if has_own.any():
            difference = (model_value.model_values(own, tails) - result["model"]).mean(-1)
            result["own"] = np.where(has_own, difference, np.nan)
        return result

    def _judge(self) -> model_value.Judge | None:
        given = self.settings.judge_model
        if given == "none":
            return None
        rows, held_out, seed = self.data.rows, self.data.held_out, self.settings.seed
        if given == "train":
            known = resolve_termination(self.task.env, self.task.termination_fn, self.task.env_config)
            model = model_value.train_judge(
                rows, self.data.training_fingerprint, learn_terminations=known is None, seed=seed,
                progress=self.progress,
            )  # fmt: skip
        else:
            try:
                model = DynamicsEnsemble.load(given)
            except (ValueError, OSError) as error:
                raise UsageError(f"judge_model (--judge-model): {error}") from error
            if (model.obs_dim, model.act_dim) != (rows.obs.shape[1], rows.actions.shape[1]):
                raise CheckpointError(f"judge_model (--judge-model) {given} is a model of other spaces.")
        return model_value.make_judge(model, self._rule(model), held_out, torch.arange(len(held_out)), seed)

    def _rule(self, model: DynamicsEnsemble) -> TerminationFn:
        return rule_of_model(self.task, model, self.task.action_space, torch.device("cpu"))
