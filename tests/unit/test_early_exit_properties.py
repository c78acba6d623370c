"""Whatever stages say, however many items there are and whatever is lost on the way: each item leaves exactly once, at
the first stage that qualifies, and is seen exactly once."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
from exit_fakes import Stages, cascade, play, request, route, segments
from hypothesis import given
from hypothesis import strategies as st
from offramp_adapters.audits.observation import ExitObservation
from offramp_adapters.routes.early_exit import EarlyExitRoute
from offramp_adapters.routes.plan import Answer, StateLost
from offramp_adapters.routes.strategy import Query

# Apart, so that rounding decides nothing.
SCORES = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9, math.nan)
THRESHOLDS = (0.0, 0.35, 0.45, 0.55, 0.65, 0.75, 0.85, 1.01, 7.0)
CLASSES = st.integers(0, 2)


@dataclass(frozen=True)
class Case:
    """What stages say of each item, [stages][items], and how the route goes by it."""

    said: list[list[tuple[int, float]]]
    thresholds: list[float]
    of_segments: bool
    rate: float

    @property
    def definition(self) -> EarlyExitRoute:
        return route(self.thresholds, audit_rate=self.rate)

    @property
    def items(self) -> int:
        return len(self.said[0])

    def stages(self) -> Stages:
        return Stages(lambda number, item: self.said[number - 1][item])

    def leaves_at(self, item: int) -> int:
        """From 1."""
        for number, threshold in enumerate(self.thresholds, 1):
            if self.said[number - 1][item][1] >= threshold:
                return number
        return len(self.said)

    def best(self, number: int, item: int) -> int | None:
        best, score = self.said[number - 1][item]
        return None if math.isnan(score) else best


@st.composite
def cases(draw: st.DrawFn) -> Case:
    exits, items = draw(st.integers(1, 4)), draw(st.integers(1, 6))
    saying = st.lists(st.tuples(CLASSES, st.sampled_from(SCORES)), min_size=items, max_size=items)
    said = draw(st.lists(saying, min_size=exits + 1, max_size=exits + 1))
    thresholds = draw(st.lists(st.sampled_from(THRESHOLDS), min_size=exits, max_size=exits))
    return Case(said, thresholds, draw(st.booleans()), draw(st.sampled_from([0.0, 0.5, 1.0])))


def start(case: Case, coins: Sequence[float]) -> tuple[object, Stages]:
    tossed = iter(coins)
    strategy = (segments if case.of_segments else cascade)(case.definition)
    plan = strategy.plan(Query({}, request(case.items), lambda: next(tossed)))
    return plan, case.stages()


def check_answer(case: Case, answer: Answer) -> None:
    left = [case.leaves_at(item) for item in range(case.items)]
    assert answer.parameters["offramp_exit"] == ",".join(f"s{number}" for number in left)
    outputs = {tensor.name: tensor for tensor in answer.outputs}
    expected = case.stages()
    for item, number in enumerate(left):
        [logits, _, sentence] = expected.answer(number, [item]).outputs
        row = outputs["logits"].numpy()[item].tobytes()
        assert row == logits.numpy()[0].tobytes()
        if "sentence" in outputs:
            assert outputs["sentence"].numpy()[item].tolist() == sentence.numpy()[0].tolist()


def check_seen(case: Case, seen: Sequence[ExitObservation]) -> None:
    assert sorted(each.item for each in seen) == list(range(case.items))
    for each in seen:
        number, last = case.leaves_at(each.item), len(case.said)
        visited = range(1, min(number, last - 1) + 1)
        assert each.exit == number - 1
        assert each.thresholds == tuple(case.thresholds[at - 1] for at in visited)
        assert each.scores == pytest.approx([case.said[at - 1][each.item][1] for at in visited], nan_ok=True)
        assert each.served == case.best(number, each.item)
        assert each.probability == (1.0 if number == last else case.rate)
        if each.audited and not each.lost:
            best = case.best(last, each.item)
            assert each.reference == best
            assert each.agreed == tuple(best is not None and case.best(at, each.item) == best for at in visited)
        else:
            assert each.agreed == ()


COINS = st.lists(st.sampled_from([0.0, 0.49, 0.5, 0.999]), min_size=6, max_size=6)


@given(cases(), COINS, st.sets(st.integers(0, 12), max_size=3), st.booleans())
def test_each_item_leaves_once_at_the_first_stage_that_qualifies_though_hidden_state_is_lost(
    case: Case, coins: Sequence[float], losses: set[int], audits_are_lost: bool
) -> None:
    plan, stages = start(case, coins)
    if case.of_segments:
        stages.fail = {number: StateLost("gone") for number in losses}
    answer = play(plan, stages, request(case.items))  # type: ignore[arg-type]
    assert isinstance(answer, Answer)
    check_answer(case, answer)
    if not case.of_segments:
        # Whole models: nobody is computed twice, and nobody who has left.
        runs = Counter((name, item) for name, items, _ in stages.runs for item in items)
        assert runs == Counter(
            (f"s{at}", item) for item in range(case.items) for at in range(1, case.leaves_at(item) + 1)
        )
    seen = [each for each in answer.observations if isinstance(each, ExitObservation)]
    for follow_up in answer.follow_ups:
        seen += follow_up.lost("full") if audits_are_lost else play(follow_up.plan, stages, request(case.items))  # type: ignore[arg-type]
    check_seen(case, seen)
    early = [item for item in range(case.items) if case.leaves_at(item) < len(case.said)]
    audited = [item for item, coin in zip(early, coins, strict=False) if case.rate and coin < case.rate]
    assert sorted(each.item for each in seen if each.audited and each.exit < len(case.said) - 1) == audited


class Expired(Exception):
    pass


@given(cases(), COINS, st.integers(0, 4))
def test_a_request_that_fails_at_any_stage_has_no_answer_and_is_not_seen(
    case: Case, coins: Sequence[float], when: int
) -> None:
    plan, stages = start(case, coins)
    stages.fail = {when: Expired()}
    try:
        answer = play(plan, stages, request(case.items))  # type: ignore[arg-type]
    except Expired:
        assert len(stages.runs) == when + 1
        with pytest.raises(StopIteration):
            next(plan)  # type: ignore[call-overload]
    else:
        assert len(stages.runs) <= when
        check_answer(case, answer)  # type: ignore[arg-type]


@given(cases(), COINS, st.integers(0, 4))
def test_a_request_that_is_cancelled_at_any_stage_asks_for_nothing_more(
    case: Case, coins: Sequence[float], when: int
) -> None:
    plan, stages = start(case, coins)
    step = next(plan)  # type: ignore[call-overload]
    try:
        for _ in range(when):
            step = plan.send((stages(step.runs[0], request(case.items)),))  # type: ignore[attr-defined]
    except StopIteration as end:
        check_answer(case, end.value)
    else:
        plan.close()  # type: ignore[attr-defined]
        with pytest.raises(StopIteration):
            next(plan)  # type: ignore[call-overload]


@given(cases(), COINS)
def test_the_same_requests_in_the_same_order_are_answered_and_seen_alike(case: Case, coins: Sequence[float]) -> None:
    def once() -> tuple[object, ...]:
        plan, stages = start(case, coins)
        answer = play(plan, stages, request(case.items))  # type: ignore[arg-type]
        assert isinstance(answer, Answer)
        audits = [play(each.plan, stages, request(case.items)) for each in answer.follow_ups]
        return answer.parameters, answer.models, repr(answer.outputs), repr(answer.observations), repr(audits)

    assert once() == once()
