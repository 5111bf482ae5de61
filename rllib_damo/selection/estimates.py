"""All estimates of one selection, in the order in which they need each other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rllib_damo.dynamics.ensemble import DynamicsEnsemble
from rllib_damo.dynamics.termination import resolve_termination, rule_of_model
from rllib_damo.errors import CheckpointError, UsageError
from rllib_damo.nn.standardize import input_scales
from rllib_damo.selection import model_value, rule, self_tests
from rllib_damo.selection.behavior_density import BehaviorDensity, StateBox
from rllib_damo.selection.candidates import Act, Candidate
from rllib_damo.selection.clone import Policy, clone, default_steps
from rllib_damo.selection.critic import NetworkCritic
from rllib_damo.selection.fitting import Fit, fit, key_of
from rllib_damo.selection.fqe import FQE, Bounds, default_gamma, episode_weights
from rllib_damo.selection.problem import Data
from rllib_damo.selection.rows import Rows
from rllib_damo.tasks import TerminationFn
from rllib_damo.utils.spaces import from_unit

_FEW_ROWS, _FEW_INPUTS = 50_000, 4  # with which the learning rate is the higher one
_STATES_TRIED = 5_000
CLONE = "clone"
STATE_FILE, CLONES_FILE = "fqe.pt", "clones.pt"


@dataclass(frozen=True)
class Settings:
    """What a selection was asked for; `select` explains each."""

    gamma: float | None = None
    heads: int = 4
    steps: int = 30_000
    judge_model: str = "train"
    seed: int = 0


class Estimates:
    """The estimators of one selection, on policies in this order: candidates, clone, behaviour, clones of thirds."""

    def __init__(
        self, own: list[Candidate], data: Data, task: SimpleNamespace, settings: Settings, out: Path | None,
        progress: Callable[[str], None],
    ):  # fmt: skip
        self.own, self.data, self.task, self.settings = own, data, task, settings
        self.out, self.progress = out, progress
        rows = data.rows
        longest = int((rows.stops - rows.starts).max())
        self.gamma = settings.gamma or default_gamma(longest, task.gamma)
        self.names = [candidate.name for candidate in own] + [CLONE]
        self.clone = len(own)
        self.given_model = self._read_model(settings.judge_model)

    def _read_model(self, given: str) -> DynamicsEnsemble | None:
        """The judge's model, where the path of one is given.

        Raises:
            UsageError: there is none, or it is damaged.
            CheckpointError: it is of other spaces.
        """
        if given in ("train", "none"):
            return None
        try:
            model = DynamicsEnsemble.load(given)
        except (ValueError, OSError) as error:
            raise UsageError(
                f"judge_model (--judge-model) {given!r} is neither train nor none nor the file of a model: {error}"
            ) from error
        rows = self.data.rows
        if (model.obs_dim, model.act_dim) != (rows.obs.shape[1], rows.actions.shape[1]):
            raise CheckpointError(f"judge_model (--judge-model) {given} is a model of other spaces.")
        return model

    def evaluate(self, default: int | None) -> tuple[rule.Evidence, Fit, list[self_tests.SelfTest], dict[str, Any]]:
        """All that the rule and the table need."""
        rows, held_out, seed = self.data.rows, self.data.held_out, self.settings.seed
        reference = self.clone if default is None else default
        self.progress("clones of the data's behaviour")
        parts = self_tests.thirds(rows) or []
        clones = clone(
            rows, [torch.arange(len(rows)), *parts], steps=default_steps(len(rows)), seed=seed,
            state_file=self.out / CLONES_FILE if self.out else None, key=self.data.training_fingerprint,
        )  # fmt: skip
        policies: list[Policy] = [candidate.unit_policy(self.task.action_space) for candidate in self.own]
        policies.append(clones[0])
        some = self._some(held_out)
        parts_differ = bool(parts) and self_tests.differing(clones[1:], held_out.obs[some])
        others: list[Policy] = [*clones[1:]] if parts_differ else []
        self.progress("distance to the data's actions")
        density = BehaviorDensity(rows, seed=seed)
        actions = torch.stack([policy(held_out.obs[some]) for policy in policies])
        off_data = density.shares_off_data(held_out.obs[some], held_out.actions[some], actions)
        fqe, fitted = self._fit(policies, clones[0], others, reference, off_data)
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
        opinion = self._second_opinion(fqe, policies)
        evidence = rule.Evidence(
            fqe=last[:num], model=opinion["model"], clone=self.clone, reference=reference, returns=returns,
            diverged=fitted.diverged[:num], moved=rule.has_moved(fitted.history[..., 0], reference)[:num],
            off_data=off_data, off_states=opinion["outside"], stopped=opinion["stopped"],
            own_minus_judge=opinion["own"],
        )  # fmt: skip
        survival = (1 - self.gamma) * fitted.history[-1][:num, :, 1].mean(-1) if fitted.history.shape[-1] > 1 else None
        columns = {
            "survival": survival, "facts": opinion["facts"], "no_model": opinion["missing"],
            "policies": self._acts(clones[0]), "clone": clones[0], "action_space": self.task.action_space,
        }  # fmt: skip
        return evidence, fitted, tests, columns

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
        every = [*policies, own_clone, *others]
        found = torch.empty(len(every), len(obs), self.data.rows.actions.shape[1])
        for own, policy in zip(found, every, strict=True):  # not stacked: that holds all of it twice
            own.copy_(policy(obs))
        return found

    def _fit(
        self, policies: list[Policy], own_clone: Policy, others: list[Policy], reference: int, off_data: np.ndarray
    ) -> tuple[FQE, Fit]:
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
        counted[: len(policies)] &= off_data <= rule.OFF_DATA  # the others are out, wherever they end
        names = [*self.names, "behaviour", "lower third", "middle third", "upper third"]
        counted[reference] = False
        return fqe, fit(
            fqe, settings.steps, reference=reference, counted=counted, names=names, progress=self.progress,
            state_file=self.out / STATE_FILE if self.out else None, key=key_of(facts, next_actions, start_actions),
        )  # fmt: skip

    def _second_opinion(self, fqe: FQE, policies: list[Policy]) -> dict[str, Any]:
        """Values in the judge's model, and what rollouts in it show; "missing" says why there are none."""
        num, none = len(policies), np.full(len(policies), np.nan)
        result: dict[str, Any] = {
            "model": None, "outside": none, "stopped": none, "own": none, "facts": {"rollout_length": 0},
            "missing": "judge_model (--judge-model) is none",
        }  # fmt: skip
        judge = self._judge()
        if judge is None:
            return result
        result["facts"] = {"rollout_length": judge.length, "model_errors": judge.errors}
        if not judge.length:
            least = min(model_value.LENGTHS)
            error = f"{judge.errors[least]:.2g} standard deviations after {least} steps"
            result["missing"] = f"the judge's model is too inexact ({error})"
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
        if self.settings.judge_model == "none":
            return None
        rows, held_out, seed = self.data.rows, self.data.held_out, self.settings.seed
        model = self.given_model
        if model is None:
            known = resolve_termination(self.task.env, self.task.termination_fn, self.task.env_config)
            model = model_value.train_judge(
                rows, self.data.training_fingerprint, self.task.action_space, learn_terminations=known is None,
                seed=seed, progress=self.progress,
            )  # fmt: skip
        return model_value.make_judge(model, self._rule(model), held_out, torch.arange(len(held_out)), seed)

    def _rule(self, model: DynamicsEnsemble) -> TerminationFn:
        return rule_of_model(self.task, model, self.task.action_space, torch.device("cpu"))
