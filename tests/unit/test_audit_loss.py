"""How often a route's answers differ from its reference's, from what was audited."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest
from offramp_adapters.audits.loss import ExitTotals, interval, outcome, rate
from offramp_adapters.audits.observation import ExitObservation
from offramp_adapters.audits.subject import NOT_IN_ANSWERS, NOT_JUDGED, answering, subject


def seen(
    exit: int = 0, probability: float = 1.0, agreed: tuple[bool, ...] = (), lost: str = "", rate: float | None = None
) -> ExitObservation:
    """At a route with three stages."""
    audited = bool(agreed or lost or exit == 2)
    chance = probability if rate is None else rate
    return ExitObservation(1, 0, 0, exit, 3, (0.9,), (0.8,), probability, chance, audited, lost, agreed)


def totals(*observations: ExitObservation) -> ExitTotals:
    counted = ExitTotals()
    for each in observations:
        counted.count(each)
    return counted


def test_the_answer_that_was_served_is_the_one_that_is_judged() -> None:
    assert outcome(seen(0)) == ""
    assert outcome(seen(0, agreed=(True,))) == "agreed"
    assert outcome(seen(1, agreed=(True, False))) == "disagreed"
    assert outcome(seen(1, agreed=(False, True))) == "agreed"
    assert outcome(seen(2, agreed=(False, False))) == "deferred"
    assert outcome(seen(0, lost="full")) == "lost"


def test_what_was_audited_stands_for_what_was_not() -> None:
    counted = totals(
        *[seen(0, 0.1)] * 90, *[seen(0, 0.1, agreed=(True,))] * 7, *[seen(0, 0.1, agreed=(False,))] * 3,
        *[seen(2, agreed=(False, False))] * 100,
    )  # fmt: skip
    assert (counted.items, counted.audited, counted.disagreed, counted.lost) == (200, 110, 3, 0)
    assert rate(counted) == pytest.approx(3 / 0.1 / 200)


def test_nothing_is_said_of_items_that_could_not_be_audited() -> None:
    assert rate(totals()) is None
    assert rate(totals(seen(0, 0.0))) is None
    assert interval(totals(seen(0, 0.0))) == (0.0, 1.0)
    counted = totals(*[seen(0, 0.0)] * 50, *[seen(0, 1.0, agreed=(True,))] * 49, seen(0, 1.0, agreed=(False,)))
    assert (counted.unseen, rate(counted)) == (50, 0.02)


def test_items_that_were_deferred_while_there_were_no_audits_do_not_dilute_what_was_found() -> None:
    audited = totals(*[seen(0, 1.0, agreed=(True,))] * 9, seen(0, 1.0, agreed=(False,)))
    diluted = totals(*[seen(2, 1.0, agreed=(False, False), rate=0.0)] * 90)
    diluted.add(audited)
    assert (diluted.items, diluted.unseen) == (100, 90)
    assert rate(diluted) == rate(audited) == pytest.approx(0.1)
    assert interval(diluted) == interval(audited)


def test_the_interval_is_the_exact_one_where_all_audits_had_the_same_chance() -> None:
    # Clopper and Pearson's for 3 of 100 and for 0 of 100, from SciPy's quantiles of the beta distribution.
    some = totals(*[seen(0, agreed=(True,))] * 97, *[seen(0, agreed=(False,))] * 3)
    assert interval(some) == pytest.approx((0.006229972, 0.08517605), rel=1e-6)
    none = totals(*[seen(0, agreed=(True,))] * 100)
    assert interval(none) == pytest.approx((0.0, 0.03621669), rel=1e-6)
    tenth = totals(*[seen(0, 0.1)] * 97, *[seen(0, 0.1, agreed=(False,))] * 3)
    assert interval(tenth) == pytest.approx((0.06229972, 0.8517605), rel=1e-6)


def test_a_lost_audit_may_have_gone_either_way() -> None:
    known = [seen(0, agreed=(True,))] * 999
    low, high = interval(totals(*known, seen(0, lost="full")))
    assert low == 0
    assert high == pytest.approx(interval(totals(*known, seen(0, agreed=(False,))))[1])


@pytest.mark.parametrize("chances", [(0.2,), (0.1, 0.5)])
def test_the_interval_keeps_its_promise(chances: tuple[float, ...]) -> None:
    random.seed(1)
    missed = 0
    for _ in range(300):
        counted = ExitTotals()
        for item in range(400):
            chance = chances[item % len(chances)]
            audited = random.random() < chance
            counted.count(seen(0, chance, (random.random() >= 0.1,) if audited else ()))
        low, high = interval(counted, 0.1)
        missed += not low <= 0.1 <= high
    assert missed <= 45  # 30 expected at most


def test_mixed_chances_are_never_taken_for_equal_ones() -> None:
    mixed = totals(*[seen(0, 0.1)] * 500, *[seen(0, 0.1, agreed=(False,))] * 5, *[seen(0, 0.5, agreed=(False,))] * 5)
    low, high = interval(mixed)
    expected = rate(mixed)
    assert expected is not None
    assert low < expected < high


def test_totals_add_up() -> None:
    parts = [seen(0, 0.1), seen(0, 0.1, agreed=(False,)), seen(0, 0.5, lost="late"), seen(2)]
    together = ExitTotals()
    for part in parts:
        together.add(totals(part))
    assert together == totals(*parts)


@dataclass(frozen=True, slots=True)
class Part:
    name: str
    threshold: float = field(default=0.5, metadata=NOT_JUDGED)


@dataclass(frozen=True, slots=True)
class Whole:
    parts: tuple[Part, ...]
    more: dict[str, int] = field(default_factory=dict)
    rate: float = field(default=0.0, metadata=NOT_IN_ANSWERS)


def test_a_threshold_or_a_rate_asks_for_no_new_evidence_and_anything_else_does() -> None:
    before = Whole((Part("a"), Part("b")), {"x": 1, "y": 2})
    assert subject(before) == subject(Whole((Part("a", 0.9), Part("b")), {"y": 2, "x": 1}, rate=0.3))
    assert subject(before) != subject(Whole((Part("b"), Part("a")), {"x": 1, "y": 2}))
    assert subject(before) != subject(Whole((Part("a"), Part("b")), {"x": 2, "y": 2}))


def test_answers_depend_on_thresholds_and_not_on_rates_of_audits() -> None:
    before = Whole((Part("a"), Part("b")))
    assert answering(before) == answering(Whole((Part("a"), Part("b")), rate=0.3))
    assert answering(before) != answering(Whole((Part("a", 0.9), Part("b"))))
