"""The rule of the selection on made-up values."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from rllib_damo.selection.rule import (
    Evidence,
    decide,
    half_interval,
    has_moved,
    has_settled,
    kendall,
    plausible_value,
    reference_trend,
    scores,
    sound_reference,
    vetoes,
)

RETURNS = np.linspace(0, 10, 101)  # 5 to 95 %: 0.5 to 9.5


def evidence(means, spread=0.1, model=None, reference=-1, **changes) -> Evidence:
    """Candidates whose heads differ alike, the clone last."""
    means = np.asarray(means, float)
    heads = means[:, None] + spread * np.array([-1.0, 0.0, 0.5, 0.5])
    heads[:, 0] += 0.01 * np.arange(len(means))  # no two differences without any spread
    k, none = len(means), np.full(len(means), np.nan)
    made = Evidence(
        heads, None if model is None else np.asarray(model, float)[:, None] + np.zeros((1, 4)), k - 1, reference % k,
        RETURNS, np.zeros(k, bool), np.zeros(k), none, none, none, none,
    )  # fmt: skip
    return replace(made, **changes)


def choose(e: Evidence, **options):
    return decide(e, vetoes(e), **options)


def test_the_credibly_better_one_is_chosen():
    decision = choose(evidence([6.0, 7.0, 5.0]))
    assert (decision.choice, decision.answer, decision.confidence) == (1, 1, "high")
    assert decision.short_list == [1, 0, 2]
    assert decision.within_reach == [1]


def test_nothing_better_than_the_reference_is_no_choice():
    decision = choose(evidence([4.0, 3.0, 5.0]))
    assert decision.choice is None
    assert decision.answer == 2
    assert decision.confidence is None
    assert decision.short_list == [2, 0, 1]
    assert "no candidate's lower bound" in decision.reasons[0]


def test_an_uncertain_advantage_is_no_choice():
    noisy = evidence([6.0, 5.0])
    noisy.fqe[0] += [2, -2, 1, -1]
    assert choose(noisy).choice is None


def test_close_ones_are_within_reach_and_lower_the_confidence():
    decision = choose(evidence([7.0, 7.005, 5.0]))
    assert decision.confidence == "medium"
    assert decision.within_reach == [0, 1]


def test_another_reference_must_be_beaten():
    means = [6.0, 7.0, 5.0]
    assert choose(evidence(means, reference=1)).choice is None
    assert choose(evidence(means, reference=0)).choice == 1


def test_a_default_that_is_ruled_out_is_no_reference():
    e = evidence([6.0, 60.0, 5.0], reference=1)
    sound, notes = sound_reference(e, vetoes(e))
    assert sound.reference == 2
    assert "the default is ruled out: implausible" in notes[0]
    assert choose(sound).choice == 0
    kept, notes = sound_reference(evidence([6.0, 7.0, 5.0], reference=1), [[], [], []])
    assert (kept.reference, notes) == (1, [])


@pytest.mark.parametrize("wrong", [{"failed": ["self-test"]}, {}])
def test_a_failed_self_test_or_a_reference_without_value_is_no_choice(wrong):
    e = evidence([7.0, 5.0])
    if not wrong:
        e.fqe[-1] = np.nan
    decision = choose(e, **wrong)
    assert decision.choice is None
    assert decision.answer == 1


def test_warnings_cap_the_confidence():
    decision = choose(evidence([7.0, 5.0]), warnings=["in sample"])
    assert (decision.choice, decision.confidence) == (0, "low")
    assert "in sample" in decision.reasons


def test_all_vetoed_gives_the_reference():
    e = evidence([50.0, 60.0, 5.0])
    decision = choose(e)
    assert (decision.choice, decision.answer) == (None, 2)
    assert decision.within_reach == []
    assert decision.short_list == [2]
    assert "every candidate is ruled out" in decision.reasons


def test_one_candidate_and_one_that_is_not_finite():
    assert choose(evidence([7.0, 5.0])).choice == 0
    e = evidence([7.0, 8.0, 5.0])
    e.fqe[1] = np.nan
    assert vetoes(e)[1] == ["diverged"]
    assert choose(e).choice == 0


def test_of_equals_the_first_is_chosen():
    e = evidence([7.0, 7.0, 5.0])
    e.fqe[1] = e.fqe[0]
    assert choose(e).choice == 0


def test_each_veto_has_its_number():
    k = 7
    off = np.full(k, np.nan)

    def only(i, value):
        column = off.copy()
        column[i] = value
        return column

    e = evidence(
        [30.0, 6, 6, 6, 6, 6, 5], off_data=only(1, 0.3), off_states=only(2, 0.4), stopped=only(3, 0.6),
        own_minus_judge=only(4, 5.0), moved=np.nan_to_num(only(5, 3.0)),
    )  # fmt: skip
    found = vetoes(e)
    expected = ["implausible", "off the data: 30 %", "leaves the data: 40 %", "unsure: 60 %", "exploits", "not settled"]
    for reasons, text in zip(found[:-1], expected, strict=True):
        assert len(reasons) == 1
        assert text.replace(" %", "%") in reasons[0]
    assert found[-1] == []


def test_the_clone_is_never_implausible():
    e = evidence([6.0, 500.0])
    assert vetoes(e)[1] == []


def test_opinions_that_differ_count_by_the_lower():
    agreeing = evidence([7.0, 5.0], model=[6.5, 5.0])
    assert choose(agreeing).choice == 0
    assert choose(evidence([7.0, 5.0], model=[4.5, 5.0])).choice is None


def test_scale_and_shift_of_rewards_change_nothing():
    e = evidence([6.0, 9.0, 30.0, 5.0], moved=np.array([0.1, 0.2, 0.0, 0.0]))
    expected = choose(e)
    for factor, shift in ((10.0, 0.0), (1.0, -300.0)):
        changed = replace(
            e, fqe=e.fqe * factor + shift, returns=e.returns * factor + shift, moved=e.moved * factor
        )  # fmt: skip
        assert choose(changed) == expected
        assert plausible_value(changed) == pytest.approx(plausible_value(e) * factor + shift)
        np.testing.assert_allclose(scores(changed), scores(e) * factor, rtol=1e-9, atol=1e-9)


def test_the_order_of_candidates_changes_nothing():
    means = [6.0, 7.0, 4.0]
    first, second = choose(evidence([*means, 5.0])), choose(evidence([*means[::-1], 5.0]))
    assert second.choice == 2 - first.choice
    assert [2 - i if i < 3 else 3 for i in second.short_list] == first.short_list


def test_intervals_are_of_student():
    assert half_interval(np.array([0.0, 1.0, 2.0, 3.0])) == pytest.approx(2.353 * np.std([0, 1, 2, 3], ddof=1))
    assert half_interval(np.zeros((2, 1))).tolist() == [np.inf, np.inf]


def test_settled_when_nothing_moves_any_more():
    still = np.stack([evidence([6.0, 7.0, 5.0]).fqe] * 4)
    counted = np.array([True, True, False])
    assert has_settled(still, 2, counted)
    assert not has_settled(still[:3], 2, counted)
    moving = still + np.arange(4)[:, None, None] * np.array([1.0, 0, 0])[:, None]
    assert not has_settled(moving, 2, counted)
    together = still + np.arange(4)[:, None, None]  # all alike: the differences stand still
    assert has_settled(together, 2, counted)
    assert has_moved(np.concatenate([moving, moving + 1])[:6], 2)[0] > 0


def test_a_reference_that_still_moves_is_told():
    e = evidence([6.0, 7.0, 5.0])
    still = np.stack([e.fqe] * 6)
    assert reference_trend(e, still) is None
    moving = still + 10.0 * np.arange(6)[:, None, None] * np.array([0.0, 0, 1.0])[:, None]
    assert reference_trend(e, moving) == pytest.approx(20.0)
    assert reference_trend(e, still + 10.0 * np.arange(6)[:, None, None] * np.array([1.0, 1, 0])[:, None]) is None


def test_kendall():
    assert kendall(np.array([1.0, 2, 3]), np.array([1.0, 2, 3])) == 1
    assert kendall(np.array([1.0, 2, 3]), np.array([3.0, 2, 1])) == -1
    assert kendall(np.array([1.0, 2, 3]), np.array([1.0, 3, 2])) == pytest.approx(1 / 3)
    assert kendall(np.array([1.0]), np.array([2.0])) == 1
