"""What a selection found: as an object, a table, JSON and a picture."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from rllib_damo.selection.candidates import Act, Candidate, changed_settings
from rllib_damo.selection.clone import Clone
from rllib_damo.selection.fitting import Fit
from rllib_damo.selection.rule import Decision, Evidence, combined, half_interval, plausible_value, scores
from rllib_damo.selection.self_tests import SelfTest
from rllib_damo.utils.paths import new_file
from rllib_damo.utils.uris import without_password
from rllib_damo.version import versions

FORMAT = "rllib_damo.selection/1"
_NAME = 40  # characters of a name in the picture


@dataclass(frozen=True)
class Judged:
    """A row of the table. Values are discounted, in the data's reward units.

    Attributes:
        name, path: of the candidate; the path is "" for a function and for the clone.
        value, low, high: by fitted Q evaluation, with the spread of 90 % over bootstraps of the episodes. It holds no
            bias, so it is no confidence interval of the value.
        value_model: by rollouts in the judge's model; None: there is no second opinion.
        difference, difference_low, difference_high: of both opinions' mean to the reference, in pairs.
        score: lower bound of the difference, which the rule goes by.
        own_minus_judge: the value in the candidate's own model less that in the judge's.
        survival: discounted share of time before a terminal, 0 to 1.
        off_data, off_states: shares of actions and of rollouts' states outside the data.
        trend: how far the difference to the reference moved in the last third of the training.
        vetoes: reasons against it.
        is_reference: whether the others are compared with it.
        settings: those options of its config that are not the algorithm's defaults.
        verdict: "chosen, medium", "within reach", "reference", "out: ..." or "".
        values: the value at each check of the training.
    """

    name: str
    path: str
    value: float
    low: float
    high: float
    value_model: float | None
    difference: float
    difference_low: float
    difference_high: float
    score: float
    own_minus_judge: float | None
    survival: float | None
    off_data: float | None
    off_states: float | None
    trend: float
    vetoes: tuple[str, ...]
    is_reference: bool
    settings: Mapping[str, Any]
    verdict: str
    values: tuple[float, ...]


@dataclass(frozen=True)
class Selection:
    """The result of `select`.

    Attributes:
        choice: the chosen candidate; None: nothing is credibly better than the reference.
        answer: the choice, or the reference.
        short_list: at most three, the best first, for a test with real episodes.
        within_reach: candidates that cannot be told from the best one.
        confidence: "high", "medium" or "low"; None without a choice.
        reasons: sentences.
        table: all candidates and the clone, the best first and those ruled out last.
        self_tests: whether the data can judge policies.
        plausible: the largest value that is believed.
        returns: 5 and 95 % quantiles of the data's discounted returns.
        steps: of the training, at each check.
        facts: the dataset, its split, the settings, seconds.
        clone: of the data's behaviour, which the candidates are judged beside.
        action_space: the environment's.
        policies: by name, the clone among them: ``observations (B, obs) -> actions (B, act)`` in the environment's
            units.
    """

    choice: Judged | None
    answer: Judged
    short_list: list[Judged]
    within_reach: list[Judged]
    confidence: str | None
    reasons: list[str]
    table: list[Judged]
    self_tests: list[SelfTest]
    plausible: float
    returns: tuple[float, float]
    steps: list[int]
    facts: dict[str, Any]
    clone: Clone
    action_space: gym.spaces.Box
    policies: Mapping[str, Act]

    def to_json(self) -> str:
        """Everything, as JSON of the format "rllib_damo.selection/1"; numbers that are not finite are null."""
        content = {
            "format": FORMAT,
            "choice": self.choice.name if self.choice else None,
            "answer": self.answer.name,
            "short_list": [one.name for one in self.short_list],
            "within_reach": [one.name for one in self.within_reach],
            "confidence": self.confidence,
            "reasons": self.reasons,
            "table": [asdict(one) for one in self.table],
            "self_tests": [asdict(test) for test in self.self_tests],
            "plausible": self.plausible,
            "returns": self.returns,
            "steps": self.steps,
            "facts": self.facts,
            "versions": versions(),
        }
        return json.dumps(_finite(content), indent=1)

    def lines(self) -> list[str]:
        """The table and the verdict, as text."""
        facts, held_out = self.facts, self.facts["held_out"]
        found = [
            f"{facts['dataset']}: {facts['episodes']:,} episodes to fit, {held_out:,} held out; discount "
            f"{facts['settings']['gamma']:.4g}"
        ]
        words = {True: "passed", False: "failed", None: "not possible"}
        found += [f"self-test, {test.name}: {words[test.passed]} ({test.text})" for test in self.self_tests]
        reference = next((one.name for one in self.table if one.is_reference), "reference")
        compared = f"against {reference}"
        rows = [["candidate", "value (spread)", "model", compared, "at least", "survives", "off data", "verdict"]]
        for one in self.table:
            rows.append([
                one.name, f"{one.value:.4g} ({one.low:.4g} to {one.high:.4g})", _show(one.value_model),
                "" if one.is_reference else f"{one.difference:+.4g}", "" if one.is_reference else f"{one.score:+.4g}",
                "-" if one.survival is None else f"{one.survival:.0%}",
                "-" if one.off_data is None else f"{one.off_data:.0%}", one.verdict,
            ])  # fmt: skip
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        found += ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
        if self.choice is not None:
            found.append(f"Choice: {self.choice.name}, {self.confidence} confidence. {self.choice.path}".rstrip())
            if held_out and self.choice.path:
                found.append(
                    "To learn from the held-out episodes too, train its options anew without holdout_episodes: the "
                    "choice of options carries over, that of a checkpoint does not."
                )
        else:
            found.append(f"No choice; the answer is {self.answer.name}. {self.answer.path}".rstrip())
        if self.answer.name == "clone":
            env = f"--env {shlex.quote(facts['env'])} " if facts["env"] else ""
            inputs = facts["inputs"]
            several = f"--config {shlex.quote(json.dumps({'input_': inputs}))}"
            data = f"--input {shlex.quote(inputs[0])}" if len(inputs) == 1 else several
            found.append(f"Train a policy like it by: rllib train --algo BehaviorCloning {env}{data}")
        found += [f"  - {reason}" for reason in self.reasons]
        if self.choice is None:
            found.append("Without a choice, the order of the table is no ranking.")
        found.append(f"Short list, for a test with real episodes: {'; '.join(one.name for one in self.short_list)}")
        found.append(
            "Values are discounted and without a time limit. The spread holds the chance of the episodes, not the "
            "error of the estimate where actions leave the data."
        )
        return found

    def plot(self, path: str | Path) -> None:
        """Draws the values with their intervals, and how they settled, into a PNG or SVG file."""
        from matplotlib import colormaps
        from matplotlib.backends.backend_agg import FigureCanvasAgg  # imports take long, and few ask for a picture
        from matplotlib.figure import Figure

        figure = Figure(figsize=(12, 1.8 + 0.35 * len(self.table)), layout="constrained")
        FigureCanvasAgg(figure)
        left, right = figure.subplots(1, 2, width_ratios=(3, 2))
        colors = colormaps["tab20"].colors  # type: ignore[attr-defined]
        left.axvspan(*self.returns, color="0.9", label="data, 5 to 95 %")
        for place, one in enumerate(reversed(self.table)):
            color, filled = colors[place % len(colors)], "none" if one.vetoes else None
            error = [[one.value - one.low], [one.high - one.value]]
            known = np.isfinite(error).all() and math.isfinite(one.value)
            left.errorbar(
                one.value, place, xerr=error if known else None, fmt="o", color=color, mfc=filled or color, capsize=3
            )
            if one.value_model is not None:
                left.plot(one.value_model, place, "x", color=color)
            if one.name == "clone":
                left.axvline(one.value, color="0.5", linewidth=0.8)
            right.plot(self.steps, one.values, color=color, linestyle="--" if one.vetoes else "-")
        left.set_yticks(range(len(self.table)), [_short(one.name) for one in reversed(self.table)])
        left.set_xlabel("discounted value\no: Q evaluation, x: model, hollow: ruled out, line: clone")
        left.legend(loc="best", fontsize="small")
        right.set_xlabel("steps")
        right.locator_params(axis="x", nbins=4)
        right.set_title("values while training, in the colours of the left", fontsize="medium")
        kind = Path(path).suffix.removeprefix(".") or "png"
        with new_file(path) as scratch:
            figure.savefig(scratch, dpi=120, format=kind)


def make_selection(
    names: Sequence[str], own: Sequence[Candidate], evidence: Evidence, against: Sequence[Sequence[str]],
    decision: Decision, tests: Sequence[SelfTest], fitted: Fit, columns: Mapping[str, Any], facts: dict[str, Any],
) -> Selection:  # fmt: skip
    """The result from what the rule read and said; arrays are over ``names``."""
    values, halves, bounds = evidence.fqe.mean(-1), half_interval(evidence.fqe), scores(evidence)
    differences = combined(evidence) - combined(evidence)[evidence.reference]
    middle, wide = differences.mean(-1), half_interval(differences)
    survival = columns["survival"]
    judged = []
    for i, name in enumerate(names):
        verdict = ""
        if against[i]:
            verdict = f"out: {'; '.join(against[i])}"
        elif i == decision.choice:
            verdict = f"chosen, {decision.confidence}"
        elif i in decision.within_reach and i != evidence.reference:
            verdict = "within reach of the best"
        if i == evidence.reference:
            verdict = f"{verdict}, reference".removeprefix(", ")
        judged.append(
            Judged(
                name=name,
                path=without_password(own[i].path) if i < len(own) else "",
                value=float(values[i]),
                low=float(values[i] - halves[i]),
                high=float(values[i] + halves[i]),
                value_model=None if evidence.model is None else float(evidence.model[i].mean()),
                difference=float(middle[i]),
                difference_low=float(middle[i] - wide[i]),
                difference_high=float(middle[i] + wide[i]),
                score=float(bounds[i]),
                own_minus_judge=_known(evidence.own_minus_judge[i]),
                survival=None if survival is None else float(survival[i]),
                off_data=_known(evidence.off_data[i]),
                off_states=_known(evidence.off_states[i]),
                trend=float(evidence.moved[i]),
                vetoes=tuple(against[i]),
                is_reference=i == evidence.reference,
                settings=changed_settings(own[i].config) if i < len(own) else {},
                verdict=verdict,
                values=tuple(fitted.history[:, i, :, 0].mean(-1).tolist()),
            )
        )
    order = sorted(
        range(len(judged)),
        key=lambda i: (bool(against[i]), -(0.0 if i == evidence.reference else np.nan_to_num(bounds[i], nan=-np.inf))),
    )
    low, high = np.quantile(evidence.returns, (0.05, 0.95))
    return Selection(
        choice=None if decision.choice is None else judged[decision.choice], answer=judged[decision.answer],
        short_list=[judged[i] for i in decision.short_list], within_reach=[judged[i] for i in decision.within_reach],
        confidence=decision.confidence, reasons=decision.reasons, table=[judged[i] for i in order],
        self_tests=list(tests), plausible=plausible_value(evidence), returns=(float(low), float(high)),
        steps=fitted.steps, facts=facts, clone=columns["clone"], action_space=columns["action_space"],
        policies=columns["policies"],
    )  # fmt: skip


def _known(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _short(name: str) -> str:
    return name if len(name) <= _NAME else f"…{name[1 - _NAME :]}"


def _show(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _finite(value: Any) -> Any:
    """The same with numbers that JSON does not know as null, and keys as text."""
    if isinstance(value, Mapping):
        return {str(key): _finite(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
