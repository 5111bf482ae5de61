"""The rule that chooses: pure functions of the candidates' values. No Q function, no data and no policy is read here.

A candidate is ruled out by vetoes, each with its number; the others are compared with a reference in pairs, head by
head, and one is chosen only where it is credibly better. Otherwise the answer is the reference.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

#: 95 % quantiles of Student's t for 1, 2, ... degrees of freedom: half a 90 % interval of E heads is t_{E-1} times sd.
_T95 = (6.314, 2.920, 2.353, 2.132, 2.015, 1.943, 1.895, 1.860, 1.833, 1.812, 1.796, 1.782, 1.771, 1.761, 1.753)

#: How far above the clone's value a value is still plausible, in ranges (5 to 95 %) of the data's returns.
PLAUSIBLE_GAIN = 0.1
#: Largest share of states whose action is beyond the logged actions' 99 % quantile, or which lie outside the data.
OFF_DATA = 0.2
#: Largest share of model rollouts that end early since the members disagree.
STOPPED = 0.5
#: Largest value in a policy's own model above that in the judge's, in ranges.
EXPLOITED = 0.25
#: A lower bound is so many standard deviations of the heads below the mean.
LOWER = 2.0


@dataclass(frozen=True)
class Evidence:
    """What is known of K candidates, the references among them. Values are ``(K, E)``, a column a head.

    Attributes:
        fqe: values by fitted Q evaluation.
        model: values by rollouts in the judge's model; None: there is none.
        clone, reference: which candidates these are; the reference is the clone where no default is named.
        returns: the data's discounted returns, completed where they were cut.
        diverged: ``(K,)`` bool.
        moved: ``(K,)`` how far the value's distance to the reference moved in the last third of the training.
        off_data: ``(K,)`` share of states whose action the data do not show; NaN: not known, as in the next ones.
        off_states: ``(K,)`` share of the rollouts' states outside the data.
        stopped: ``(K,)`` share of the rollouts that ended early.
        own_minus_judge: ``(K,)`` value in the candidate's own model less that in the judge's.
    """

    fqe: np.ndarray
    model: np.ndarray | None
    clone: int
    reference: int
    returns: np.ndarray
    diverged: np.ndarray
    moved: np.ndarray
    off_data: np.ndarray
    off_states: np.ndarray
    stopped: np.ndarray
    own_minus_judge: np.ndarray

    @property
    def spread(self) -> float:
        """q95 - q05 of the data's returns."""
        low, high = np.quantile(self.returns, (0.05, 0.95))
        return float(high - low)


@dataclass(frozen=True)
class Decision:
    """What the rule says.

    Attributes:
        choice: the chosen candidate; None: nothing is credibly better than the reference.
        answer: the choice, or the reference.
        within_reach: candidates that cannot be told from the best one.
        short_list: at most three, the best first, for a test with real episodes.
        confidence: "high", "medium" or "low" of a choice; None without one.
        reasons: sentences.
    """

    choice: int | None
    answer: int
    within_reach: list[int]
    short_list: list[int]
    confidence: str | None
    reasons: list[str] = field(default_factory=list)


def half_interval(values: np.ndarray) -> np.ndarray:
    """Half a 90 % interval of the mean over heads ``(..., E)``; infinite for a single head."""
    heads = values.shape[-1]
    if heads < 2:
        return np.full(values.shape[:-1], np.inf)
    t = _T95[heads - 2] if heads - 2 < len(_T95) else 1.7
    return t * values.std(-1, ddof=1)


def lower_bound(differences: np.ndarray) -> np.ndarray:
    """Mean less two standard deviations over the heads ``(..., E)``; minus infinity for a single head."""
    if differences.shape[-1] < 2:
        return np.full(differences.shape[:-1], -np.inf)
    return differences.mean(-1) - LOWER * differences.std(-1, ddof=1)


def plausible_value(evidence: Evidence) -> float:
    """The largest value that is believed, given the clone's and the data's returns.

    Written in differences: rewards times a number, or plus one where nothing terminates, change no verdict.
    """
    low, high = np.quantile(evidence.returns, (0.05, 0.95))
    clone = float(evidence.fqe[evidence.clone].mean())
    gain = PLAUSIBLE_GAIN * ((high - low) + abs(clone - low))
    return float(max(high, clone + gain))


def vetoes(evidence: Evidence) -> list[list[str]]:
    """The reasons against each candidate, with their numbers. The clone has none but a critic that diverged."""
    e, most = evidence, plausible_value(evidence)
    own_scale = max(float(e.fqe[e.clone].mean() - np.quantile(e.returns, 0.05)), EXPLOITED * e.spread)
    differences = half_interval(e.fqe - e.fqe[e.reference])
    found: list[list[str]] = []
    for i, value in enumerate(e.fqe.mean(-1)):
        reasons = ["diverged"] if e.diverged[i] or not np.isfinite(value) else []
        if i != e.clone:
            if value > most:
                reasons.append(f"implausible: at most {most:.4g} is believed")
            if e.moved[i] > max(differences[i] if np.isfinite(differences[i]) else 0.0, 0.1 * e.spread):
                reasons.append(f"not settled: moved by {e.moved[i]:.4g}")
            if e.off_data[i] > OFF_DATA:
                reasons.append(f"off the data: {e.off_data[i]:.0%} of actions")
            if e.off_states[i] > OFF_DATA:
                reasons.append(f"leaves the data: {e.off_states[i]:.0%} of states")
            if e.stopped[i] > STOPPED:
                reasons.append(f"the model is unsure: {e.stopped[i]:.0%} of rollouts")
            if e.own_minus_judge[i] > EXPLOITED * own_scale:
                reasons.append(f"exploits its model, whose value is {e.own_minus_judge[i]:.4g} above the judge's")
        found.append(reasons)
    return found


def sound_reference(evidence: Evidence, against: Sequence[Sequence[str]]) -> tuple[Evidence, list[str]]:
    """The evidence with the clone as the reference where the default is ruled out itself, and a sentence on that."""
    reasons = against[evidence.reference]
    if evidence.reference == evidence.clone or not reasons:
        return evidence, []
    return replace(evidence, reference=evidence.clone), [f"the default is ruled out: {'; '.join(reasons)}"]


def combined(evidence: Evidence) -> np.ndarray:
    """The mean of both opinions ``(K, E)``."""
    return evidence.fqe if evidence.model is None else (evidence.fqe + evidence.model) / 2


def scores(evidence: Evidence) -> np.ndarray:
    """Lower bounds of each candidate's advantage over the reference ``(K,)``, from differences head by head.

    Where the two opinions differ in sign, the lowest of the bounds counts.
    """
    ref = evidence.reference
    both = combined(evidence)
    bound = lower_bound(both - both[ref])
    if evidence.model is None:
        return bound
    fqe, model = (part - part[ref] for part in (evidence.fqe, evidence.model))
    disagree = np.sign(fqe.mean(-1)) != np.sign(model.mean(-1))
    return np.where(disagree, np.minimum(bound, np.minimum(lower_bound(fqe), lower_bound(model))), bound)


def decide(
    evidence: Evidence, against: Sequence[Sequence[str]], *, failed: Sequence[str] = (), warnings: Sequence[str] = ()
) -> Decision:
    """Chooses.

    Args:
        evidence: of all candidates.
        against: the vetoes of each.
        failed: self-tests that failed, a sentence each: then nothing is chosen.
        warnings: reasons why a choice's confidence is "low" at most.
    """
    ref, values = evidence.reference, combined(evidence)
    kept = [i for i, reasons in enumerate(against) if not reasons and i != ref]
    bounds = np.where(np.isnan(scores(evidence)), -np.inf, scores(evidence))
    # where two bounds are equal the larger mean counts, and then the order of names
    order = sorted(kept, key=lambda i: (-bounds[i], -values[i].mean(), i))
    ranked = sorted([*kept, ref], key=lambda i: (-(0.0 if i == ref else bounds[i]), -values[i].mean(), i))
    reach = [i for i in kept if order and _overlap(values, order[0], i)]
    reasons = list(failed)
    if against[ref]:
        reasons.append(f"the reference itself is not judged ({'; '.join(against[ref])})")
    if not kept:
        reasons.append("every candidate is ruled out" if len(against) > 1 else "there is no candidate")
    elif bounds[order[0]] <= 0:
        reasons.append("no candidate's lower bound is above the reference")
    if reasons:
        return Decision(None, ref, reach, ranked[:3], None, [*reasons, *warnings])
    best = order[0]
    beats_all = all(not _overlap(values, best, i) for i in kept if i != best)
    confidence = "low" if warnings else "high" if beats_all else "medium"
    others = [] if beats_all else ["others are within reach of it"]
    return Decision(best, best, reach, ranked[:3], confidence, [*warnings, *others])


def _overlap(values: np.ndarray, i: int, j: int) -> bool:
    """Whether the paired 90 % interval of a difference holds 0."""
    difference = values[i] - values[j]
    return i == j or not abs(difference.mean()) > half_interval(difference)


def has_settled(history: np.ndarray, reference: int, counted: np.ndarray) -> bool:
    """Whether training may stop: at three checks in a row nothing that matters changed.

    The first and the set of the best three are the same, Kendall's tau of two successive rankings is 0.9 or more, and
    no difference to the reference moved by more than a quarter of its 90 % interval.

    Args:
        history: ``(checks, K, E)`` values by fitted Q evaluation.
        reference: which one that is.
        counted: ``(K,)`` bool, the candidates to go by.
    """
    if len(history) < 4 or counted.sum() < 1:
        return False
    differences = (history - history[:, reference : reference + 1])[-4:, counted]
    means, halves = differences.mean(-1), half_interval(differences)
    order = np.argsort(-lower_bound(differences), axis=-1, kind="stable")
    for before, now in ((0, 1), (1, 2), (2, 3)):
        if order[before][0] != order[now][0] or {*order[before][:3]} != {*order[now][:3]}:
            return False
        if kendall(means[before], means[now]) < 0.9:
            return False
        still = np.abs(means[now] - means[before]) <= 0.25 * 2 * halves[now]
        if not still.all():
            return False
    return True


def kendall(a: np.ndarray, b: np.ndarray) -> float:
    """Kendall's tau of two rankings without ties, of (n,) numbers; 1 for a single one."""
    i, j = np.triu_indices(len(a), 1)
    if not len(i):
        return 1.0
    return float((np.sign(a[i] - a[j]) * np.sign(b[i] - b[j])).mean())


def has_moved(history: np.ndarray, reference: int) -> np.ndarray:
    """How far each difference to the reference moved in the last third of the checks, (K,)."""
    return _trend((history - history[:, reference : reference + 1]).mean(-1))


def reference_trend(evidence: Evidence, history: np.ndarray) -> float | None:
    """How far the reference's own value moved in the last third; None: less than half its interval, or little.

    It moves all differences alike, so that it can be held against none of the candidates.
    """
    values = history[:, evidence.reference]
    moved, half = float(_trend(values.mean(-1))), float(half_interval(values[-1]))
    return moved if moved > max(half if np.isfinite(half) else 0.0, 0.1 * evidence.spread) else None


def _trend(means: np.ndarray) -> np.ndarray:
    return np.abs(means[-1] - means[max(0, (2 * len(means)) // 3 - 1)])
