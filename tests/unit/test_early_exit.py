"""An early-exit route answers at the first stage that is sure enough, item by item."""

from __future__ import annotations

import gc
import math
import weakref
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from exit_fakes import LOGITS, Stages, ask, cascade, coins, endpoint, exits, play, request, route, segment, segments
from offramp_adapters.audits.observation import ExitObservation
from offramp_adapters.confidence.agreement import Agreement
from offramp_adapters.control.rules import LoadRule
from offramp_adapters.routes.early_exit import EarlyExitRoute
from offramp_adapters.routes.exit_settings import Stage
from offramp_adapters.routes.held import Held
from offramp_adapters.routes.plan import (
    Answer,
    FollowUp,
    Parameters,
    ParameterValue,
    RouteRefused,
    Run,
    Shed,
    StateLost,
    Target,
    Together,
)
from offramp_adapters.routes.strategy import Level, Query, TensorFacts
from open_inference.tensor import Tensor


def stages(table: dict[tuple[int, int], tuple[int, float]], **more: Any) -> Stages:
    """What stages say of items, by (stage, item); 0.9 for class 0 otherwise."""
    return Stages(lambda number, item: table.get((number, item), (0, 0.9)), **more)


def classes(answer: Answer) -> list[int]:
    [tensor] = [tensor for tensor in answer.outputs if tensor.name == "logits"]
    return list(tensor.numpy().argmax(axis=1).tolist())


# Exits


def test_a_sure_item_leaves_at_the_first_stage_and_nothing_else_runs() -> None:
    models = stages({})
    answer = ask(cascade(route([0.8])), models)
    assert models.runs == [("s1", [0], 0)]
    assert answer.parameters == {"offramp_exit": "s1", "offramp_confidence": "0.9", "offramp_epoch": "7"}
    assert answer.models == ("s1:1",)


def test_an_unsure_item_goes_on_to_the_reference_with_what_the_client_sent() -> None:
    models = stages({(1, 0): (1, 0.6), (2, 0): (2, 0.5)})
    answer = ask(cascade(route([0.8])), models)
    assert models.runs == [("s1", [0], 0), ("s2", [0], 1)]
    assert (classes(answer), exits(answer), answer.models) == ([2], ["s2"], ("s2:1",))
    assert answer.parameters["offramp_confidence"] == "0.5"


def test_only_survivors_go_on_and_answers_come_back_in_order() -> None:
    unsure = {(1, 0): (0, 0.5), (1, 2): (0, 0.5), (1, 3): (0, 0.5), (2, 2): (0, 0.5), (3, 2): (1, 0.7)}
    models = stages(unsure)
    answer = ask(cascade(route([0.8, 0.8])), models, count=5)
    assert models.runs == [("s1", [0, 1, 2, 3, 4], 0), ("s2", [0, 2, 3], 1), ("s3", [2], 2)]
    assert exits(answer) == ["s2", "s1", "s3", "s2", "s1"]
    assert classes(answer) == [0, 0, 1, 0, 0]
    [sentences] = [tensor for tensor in answer.outputs if tensor.name == "sentence"]
    assert [row[0].decode() for row in sentences.numpy()] == ["0 at s2", "1 at s1", "2 at s3", "3 at s2", "4 at s1"]
    assert answer.parameters["offramp_confidence"] == "0.9,0.9,0.7,0.9,0.9"
    assert answer.models == ("s1:1", "s2:1", "s3:1")


def test_thresholds_above_1_return_the_reference_s_answer_untouched() -> None:
    models = stages({(3, item): (item % 3, 0.4) for item in range(4)})
    strategy = cascade(route([1.01, 2.0]))
    inputs = request(4)
    plan = strategy.plan(Query({}, inputs, lambda: 0.5))
    step = next(plan)
    for number in (1, 2):
        [run] = step.runs
        # The very request: the reference sees what it would see alone.
        assert run.inputs is None
        step = plan.send((models.answer(number, range(4)),))
    reference = models.answer(3, range(4))
    with pytest.raises(StopIteration) as end:
        plan.send((reference,))
    outputs = end.value.value.outputs
    assert [tensor.name for tensor in outputs] == ["logits", "sentence"]
    for tensor in outputs:
        assert any(tensor.data is other.data for other in reference.outputs)


def test_a_score_equal_to_the_threshold_is_enough() -> None:
    score = float(np.float64(ask(cascade(route([0.0])), stages({})).observations[0].scores[0]))  # type: ignore[union-attr]
    assert exits(ask(cascade(route([score])), stages({}))) == ["s1"]
    assert exits(ask(cascade(route([math.nextafter(score, 2)])), stages({}))) == ["s2"]


def test_an_answer_that_is_no_number_never_leaves_early() -> None:
    models = stages({(1, 0): (0, math.nan)})
    answer = ask(cascade(route([0.0])), models)
    assert exits(answer) == ["s2"]
    [seen] = answer.observations
    assert isinstance(seen, ExitObservation)
    assert math.isnan(seen.scores[0])
    assert seen.agreed == (False,)


def test_the_reference_answers_even_with_what_is_no_number() -> None:
    answer = ask(cascade(route([2.0])), stages({(2, 0): (0, math.nan)}))
    assert (exits(answer), answer.parameters["offramp_confidence"]) == (["s2"], "nan")


def test_a_temperature_belongs_to_its_stage() -> None:
    first, last = Target("s1"), Target("s2")
    definition = EarlyExitRoute((Stage(first, 0.8, temperature=3.0), Stage(last)))
    assert exits(ask(cascade(definition), stages({}))) == ["s2"]


def test_classes_may_have_thresholds_of_their_own() -> None:
    definition = EarlyExitRoute((Stage(Target("s1"), 0.8, thresholds_by_class={"2": 0.95}), Stage(Target("s2"))))
    models = stages({(1, 0): (2, 0.9), (1, 1): (1, 0.9), (1, 2): (2, 0.96)})
    answer = ask(cascade(definition), models, count=3)
    assert exits(answer) == ["s2", "s1", "s1"]
    assert [seen.thresholds for seen in answer.observations if isinstance(seen, ExitObservation)] == [
        (0.8,), (0.95,), (0.95,),
    ]  # fmt: skip


def test_an_exit_that_is_closed_is_closed_for_every_class_and_at_every_level() -> None:
    definition = EarlyExitRoute(
        (Stage(Target("s1"), 1.5, thresholds_by_class={"0": 0.1}), Stage(Target("s2"))),
        load={Level.OVERLOADED: LoadRule(thresholds=(0.1,))},
    )
    for level in Level:
        assert exits(ask(cascade(definition), stages({}), level=level)) == ["s2"]


def test_a_level_of_load_moves_the_thresholds_of_classes_along() -> None:
    definition = EarlyExitRoute(
        (Stage(Target("s1"), 0.8, thresholds_by_class={"2": 0.95}), Stage(Target("s2"))),
        load={Level.OVERLOADED: LoadRule(thresholds=(0.6,)), Level.IDLE: LoadRule(thresholds=(0.9,))},
    )
    asked = {
        level: ask(cascade(definition), stages({(1, 0): (2, 0.7), (1, 1): (0, 0.7)}), 2, level=level) for level in Level
    }
    thresholds = {
        level: [seen.thresholds[0] for seen in sorted(answer.observations, key=lambda seen: seen.item)]  # type: ignore[union-attr]
        for level, answer in asked.items()
    }
    assert thresholds[Level.NORMAL] == thresholds[Level.BUSY] == [0.95, 0.8]
    assert thresholds[Level.OVERLOADED] == pytest.approx([0.75, 0.6])
    assert thresholds[Level.IDLE] == pytest.approx([1.05, 0.9])


def test_what_every_stage_below_says_is_passed_on() -> None:
    strategy = cascade(route([0.5, 0.5]))
    plan = strategy.plan(Query({}, request(1), lambda: 0.5))
    next(plan)
    said = stages({}).answer(1, [0])
    with pytest.raises(StopIteration) as end:
        plan.send((Answer(said.outputs, {"logits": ("a", "b", "c")}, {"offramp_labels": "[]"}, said.models),))
    assert end.value.value.parameters["offramp_labels"] == "[]"
    assert end.value.value.labels == {"logits": ("a", "b", "c")}


def test_a_model_without_a_batch_dimension_is_one_item() -> None:
    strategy = cascade(route([0.8]), max_batch_size=0)
    plan = strategy.plan(Query({}, [Tensor.from_numpy("image", np.zeros(1, np.float32))], lambda: 0.5))
    next(plan)
    unsure = Answer(
        [Tensor.from_numpy("logits", np.array([0, 0.1, 0], np.float32)), Tensor("sentence", "BYTES", (0,), b"")]
    )
    step = plan.send((unsure,))
    assert (step.runs[0].target, step.runs[0].inputs) == (Target("s2"), None)
    with pytest.raises(StopIteration) as end:
        plan.send((unsure,))
    assert end.value.value.outputs == unsure.outputs
    assert end.value.value.observations[0].agreed == (True,)


def test_a_batch_that_a_deeper_stage_could_not_take_is_refused_before_anything_runs() -> None:
    definition = route([0.8])
    first, last = definition.targets
    strategy = definition.bind({first: endpoint(), last: endpoint(max_batch_size=2)})
    assert strategy.face.max_batch_size == 2
    with pytest.raises(RouteRefused, match='input "image": expected a batch size from 1 to 2, got 3'):
        ask(strategy, stages({}), count=3)


def test_rows_of_different_shapes_cannot_be_one_answer() -> None:
    definition = route([0.8])
    variable = endpoint(outputs=[LOGITS, TensorFacts("boxes", "FP32", (-1,))])
    plan = definition.bind(dict.fromkeys(definition.targets, variable)).plan(Query({}, request(2), lambda: 0.5))
    next(plan)

    def answer(rows: list[list[float]], boxes: int) -> Answer:
        outputs = [np.array(rows, np.float32), np.zeros((len(rows), boxes), np.float32)]
        return Answer([Tensor.from_numpy(name, each) for name, each in zip(("logits", "boxes"), outputs, strict=True)])

    plan.send((answer([[9, 0, 0], [0, 0, 0]], 2),))
    with pytest.raises(RouteRefused, match="send them one at a time"):
        plan.send((answer([[9, 0, 0]], 5),))


# Other scores


def test_an_ensemble_s_agreement_can_be_the_score() -> None:
    definition = EarlyExitRoute((Stage(Target("s1"), 0.75), Stage(Target("s2"))), score="agreement")
    ensemble, alone = definition.targets
    strategy = definition.bind({ensemble: endpoint(scores=frozenset({"agreement"})), alone: endpoint()})
    plan = strategy.plan(Query({}, request(3), lambda: 0.5))
    next(plan)
    said = stages({}).answer(1, [0, 1, 2])
    agreement = np.array([1.0000000001, 0.5, 0.75])
    step = plan.send((Answer(said.outputs, models=said.models, scores={"agreement": agreement}),))
    [run] = step.runs
    assert run.inputs is not None
    assert run.inputs[0].numpy().tolist() == [[1.0]]
    with pytest.raises(StopIteration) as end:
        plan.send((stages({}).answer(2, [1]),))
    # The reference is one model: its confidence is its probability.
    assert end.value.value.parameters["offramp_confidence"] == "1,0.9,0.75"


def test_an_answer_that_is_no_number_never_leaves_early_whatever_the_score_is() -> None:
    by_agreement = EarlyExitRoute((Stage(Target("s1"), 0.0), Stage(Target("s2"))), score="agreement")
    ensemble, alone = by_agreement.targets
    strategy = by_agreement.bind({ensemble: endpoint(scores=frozenset({"agreement"})), alone: endpoint()})
    by_patience = cascade(route([0.0, 0.0], score="patience", patience=1))
    unknown = Tensor.from_numpy("logits", np.full((1, 3), np.nan, np.float32))
    for each in (strategy, by_patience):
        plan = each.plan(Query({}, request(1), lambda: 0.5))
        next(plan)
        [run] = plan.send((Answer([unknown], scores={"agreement": np.zeros(1)}),)).runs
        assert run.target == Target("s2")


def test_patience_waits_for_exits_that_agree_in_a_row() -> None:
    definition = route([1.0, 1.0, 1.0, 1.0], score="patience", patience=2)
    said = {
        # Three exits agree: the third is the second that says the same as the one before.
        0: [0, 0, 0, 1, 2],
        # One dissents in between.
        1: [0, 1, 1, 1, 2],
        # Never twice in a row.
        2: [0, 1, 1, 2, 2],
    }
    models = Stages(lambda number, item: (said[item][number - 1], 0.9))
    answer = ask(cascade(definition), models, count=3)
    assert exits(answer) == ["s3", "s4", "s5"]
    assert answer.parameters["offramp_confidence"] == "1,1,0.5"
    assert classes(answer) == [0, 1, 2]


def test_patience_over_numbers_goes_by_the_route_s_tolerance() -> None:
    definition = route([1.0, 1.0], score="patience", patience=1, agreement=Agreement("tolerance", tolerance=0.1))
    number = endpoint(outputs=[TensorFacts("value", "FP32", (1,))])
    plan = definition.bind(dict.fromkeys(definition.targets, number)).plan(Query({}, request(2), lambda: 0.5))

    def values(*rows: float) -> tuple[Answer]:
        return (Answer([Tensor.from_numpy("value", np.array(rows, np.float32)[:, None])]),)

    next(plan)
    plan.send(values(1.0, 2.0))
    step = plan.send(values(1.05, 3.0))
    assert step.runs[0].inputs[0].numpy().tolist() == [[1.0]]  # type: ignore[index]
    with pytest.raises(StopIteration) as end:
        plan.send(values(3.05))
    answer = end.value.value
    assert answer.outputs[0].numpy()[:, 0].tolist() == pytest.approx([1.05, 3.05])
    [early, deferred] = answer.observations
    assert (deferred.agreed, deferred.served, deferred.reference) == ((False, True), None, None)
    assert (early.exit, early.scores, early.served) == (1, (0.0, 1.0), None)


def test_a_run_says_whether_its_items_may_go_on_and_which_parameters_are_not_for_routes_below() -> None:
    def first(**parameters: ParameterValue) -> Run:
        step = next(cascade(route([0.8])).plan(Query(parameters, request(1), lambda: 0.5)))
        assert isinstance(step, Together)
        [run] = step.runs
        return run

    assert first().may_continue
    assert not first(offramp_max_exit="s1").may_continue
    assert not first(offramp_route="model:s1").may_continue
    assert first().heeded == {"offramp_route", "offramp_max_exit", "offramp_min_confidence"}


# Segments


def test_segments_are_handed_what_the_one_before_gave_for_the_survivors() -> None:
    models = stages({(1, 1): (0, 0.5), (1, 2): (0, 0.5), (2, 2): (0, 0.5)})
    answer = ask(segments(route([0.8, 0.8])), models, count=3)
    assert models.runs == [("s1", [0, 1, 2], 0), ("s2", [1, 2], 1), ("s3", [2], 2)]
    assert [tensor.name for tensor in answer.outputs] == ["logits"]
    assert answer.models == ("s1:1", "s2:1", "s3:1")


def test_a_whole_model_behind_segments_takes_what_the_client_sent() -> None:
    definition = route([0.8, 0.8])
    one, two, reference = definition.targets
    strategy = definition.bind({one: segment(1, 3), two: segment(2, 3), reference: endpoint()})
    models = stages({(1, 1): (0, 0.5), (2, 1): (0, 0.5)})
    answer = ask(strategy, models, count=2)
    assert models.runs == [("s1", [0, 1], 0), ("s2", [1], 1), ("s3", [1], 2)]
    assert answer.models == ("s1:1", "s3:1")


def test_lost_hidden_state_is_computed_again_for_the_items_that_are_left() -> None:
    models = stages({(1, 1): (0, 0.5), (2, 1): (0, 0.5)}, fail={2: StateLost("gone")})
    answer = ask(segments(route([0.8, 0.8])), models, count=2)
    assert models.runs == [
        ("s1", [0, 1], 0), ("s2", [1], 1), ("s3", [1], 2),
        ("s1", [1], 0), ("s2", [1], 1), ("s3", [1], 2),
    ]  # fmt: skip
    assert exits(answer) == ["s1", "s3"]


def test_hidden_state_stays_in_its_worker_until_it_was_lost_there() -> None:
    definition = route([0.8])
    stages_of_one_device = {
        target: replace(segment(number, 2), device="cpu") for number, target in enumerate(definition.targets, 1)
    }
    plan = definition.bind(stages_of_one_device).plan(Query({}, request(1), lambda: 0.5))
    first = next(plan)
    assert [run.keep for run in first.runs] == [{"hidden_1_1"}]
    unsure = Stages(lambda number, item: (0, 0.5)).answer(1, [0])
    assert plan.send((unsure,)).runs[0].keep == frozenset()
    again = plan.throw(StateLost("gone"))
    assert [(run.target.name, run.keep) for run in again.runs] == [("s1", frozenset())]


def test_what_was_decided_before_the_loss_stays() -> None:
    turns = iter([0.5, 0.5, 0.99, 0.99, 0.9])
    models = Stages(lambda number, item: (0, next(turns)), fail={1: StateLost("gone")})
    answer = ask(segments(route([0.8, 0.8])), models)
    # The second look of stage 1 is surer, but the item is past it.
    assert exits(answer) == ["s2"]
    [seen] = answer.observations
    assert seen.scores == pytest.approx((0.5, 0.99))  # type: ignore[union-attr]


def test_hidden_state_that_is_lost_again_and_again_is_given_up() -> None:
    gone = {number: StateLost(f"gone {number}") for number in (1, 3, 5, 7)}
    models = stages({(1, 0): (0, 0.5)}, fail=gone)
    with pytest.raises(StateLost, match="gone 7"):
        ask(segments(route([0.8])), models)
    assert len(models.runs) == 8


def test_the_failure_of_a_stage_is_the_failure_of_the_request() -> None:
    models = stages({(1, 0): (0, 0.5)}, fail={1: RuntimeError("broken")})
    with pytest.raises(RuntimeError, match="broken"):
        ask(cascade(route([0.8])), models, count=2)


# What requests ask for


@pytest.mark.parametrize("wanted", ["s2", "2", 2])
def test_a_request_may_go_no_deeper_than_a_stage(wanted: str | int) -> None:
    models = Stages(lambda number, item: (0, 0.4))
    answer = ask(cascade(route([0.8, 0.8])), models, parameters={"offramp_max_exit": wanted})
    assert [name for name, _, _ in models.runs] == ["s1", "s2"]
    assert (exits(answer), answer.parameters["offramp_confidence"]) == (["s2"], "0.4")
    assert (answer.observations, answer.follow_ups) == ((), ())


@pytest.mark.parametrize("wanted", ["", "s4", "0", 4, -1, True, 1.0, "²", "9" * 5000])
def test_a_stage_that_is_not_there_is_refused(wanted: Any) -> None:
    with pytest.raises(
        RouteRefused, match=r'expected the name of a stage \("s1", "s2", "s3"\) or its number from 1 to 3'
    ):
        ask(cascade(route([0.8, 0.8])), stages({}), parameters={"offramp_max_exit": wanted})


def test_a_request_may_ask_for_a_surer_answer_but_not_for_a_less_sure_one() -> None:
    strategy = cascade(route([0.8]))
    asked: list[tuple[float | str, str]] = [("0.95", "s2"), (0.1, "s1"), (0, "s1"), ("0.85", "s1")]
    for wanted, left in asked:
        answer = ask(strategy, stages({}), parameters={"offramp_min_confidence": wanted})
        assert exits(answer) == [left]
        assert answer.observations == ()


@pytest.mark.parametrize("wanted", ["high", 1.5, -0.1, True, "nan"])
def test_a_confidence_that_is_none_is_refused(wanted: Any) -> None:
    with pytest.raises(RouteRefused, match='"offramp_min_confidence": expected a number from 0 to 1'):
        ask(cascade(route([0.8])), stages({}), parameters={"offramp_min_confidence": wanted})


def test_a_request_may_ask_for_one_model_alone() -> None:
    for number in (1, 2):
        models = Stages(lambda number, item: (0, 0.5))
        wanted = f"s{number}"
        answer = ask(cascade(route([0.8])), models, parameters={"offramp_route": f"model:{wanted}"}, count=2)
        assert models.runs == [(wanted, [0, 1], number - 1)]
        assert (exits(answer), answer.models, answer.observations) == ([wanted] * 2, (f"{wanted}:1",), ())


def test_a_segment_is_no_model_to_ask_for() -> None:
    with pytest.raises(RouteRefused, match='"offramp_route": expected "early_exit", got "model:s1"'):
        ask(segments(route([0.8])), stages({}), parameters={"offramp_route": "model:s1"})


def test_a_model_and_an_earlier_exit_do_not_go_together() -> None:
    wanted: Parameters = {"offramp_route": "model:s2", "offramp_max_exit": "s1"}
    with pytest.raises(RouteRefused, match='stage "s1" comes before the model'):
        ask(cascade(route([0.8])), stages({}), parameters=wanted)


def test_parameters_of_other_kinds_change_nothing() -> None:
    answer = ask(cascade(route([0.8])), stages({}), parameters={"offramp_unit": "u", "mine": 3})
    assert len(answer.observations) == 1


# Audits


def test_a_deferred_item_is_compared_with_the_reference_for_nothing() -> None:
    models = stages({(1, 0): (1, 0.5), (2, 0): (0, 0.6), (3, 0): (1, 0.7)})
    [seen] = ask(cascade(route([0.8, 0.8], audit_rate=0.25)), models).observations
    assert isinstance(seen, ExitObservation)
    assert (seen.epoch, seen.sequence, seen.item, seen.exit, seen.stages) == (7, 11, 0, 2, 3)
    assert seen.scores == pytest.approx((0.5, 0.6))
    assert (seen.thresholds, seen.probability, seen.audited) == ((0.8, 0.8), 1.0, True)
    assert (seen.agreed, seen.served, seen.reference, seen.lost) == ((True, False), 1, 1, "")


def test_an_item_that_left_is_noted_with_the_chance_that_it_had() -> None:
    [seen] = ask(cascade(route([0.8], audit_rate=0.25)), stages({}), coin=coins([0.25])).observations
    assert isinstance(seen, ExitObservation)
    assert (seen.exit, seen.probability, seen.audited, seen.agreed, seen.served) == (0, 0.25, False, (), 0)


def test_without_audits_no_coin_is_tossed() -> None:
    answer = ask(cascade(route([0.8])), stages({}))
    assert (answer.observations[0].probability, answer.follow_ups) == (0.0, ())  # type: ignore[union-attr]


def audits(answer: Answer) -> list[FollowUp]:
    assert all(follow_up.kind == "audit" for follow_up in answer.follow_ups)
    return list(answer.follow_ups)


def test_an_audit_runs_the_reference_alone_and_judges_the_answer_that_was_served() -> None:
    # Asked again, the first stage would say something else.
    turns = iter([(1, 0.9), (1, 0.9), (0, 0.9)])
    first = {0: next(turns), 1: next(turns), 2: next(turns)}
    models = stages({(1, item): said for item, said in first.items()} | {(2, 1): (1, 0.9), (2, 0): (2, 0.9)})
    answer = ask(cascade(route([0.8], audit_rate=0.5)), models, count=3, coin=coins([0.1, 0.1, 0.9]))
    assert [seen.item for seen in answer.observations] == [2]
    models.runs.clear()
    first.clear()
    [audit] = audits(answer)
    seen = play(audit.plan, models, request(3))
    assert models.runs == [("s2", [0, 1], 1)]
    assert [(each.item, each.audited, each.probability, each.agreed, each.served, each.reference) for each in seen] == [  # type: ignore[attr-defined]
        (0, True, 0.5, (False,), 1, 2),
        (1, True, 0.5, (True,), 1, 1),
    ]


def test_an_audit_of_segments_goes_on_from_where_each_item_left() -> None:
    models = stages({(1, 1): (0, 0.5), (1, 3): (0, 0.5), (2, 3): (0, 0.5), (3, 1): (1, 0.9)})
    answer = ask(segments(route([0.8, 0.8], audit_rate=1.0)), models, count=4, coin=lambda: 0.999)
    [deferred] = answer.observations
    assert deferred.item == 3
    models.runs.clear()
    early, later = audits(answer)
    first = play(early.plan, models)
    second = play(later.plan, models)
    assert models.runs == [("s2", [0, 2], 1), ("s3", [0, 2], 2), ("s3", [1], 2)]
    assert [(each.item, each.exit, each.agreed) for each in (*first, *second)] == [  # type: ignore[misc]
        (0, 0, (True,)), (2, 0, (True,)), (1, 1, (False, False)),
    ]  # fmt: skip


def test_an_audit_begins_again_where_hidden_state_was_lost() -> None:
    models = stages({})
    answer = ask(segments(route([0.8, 0.8], audit_rate=1.0)), models, count=2, coin=coins([0.5, 0.5]))
    [audit] = audits(answer)
    models.runs.clear()
    models.fail = {0: StateLost("gone")}
    seen = play(audit.plan, models, request(2))
    assert models.runs == [("s2", [0, 1], 1), ("s1", [0, 1], 0), ("s2", [0, 1], 1), ("s3", [0, 1], 2)]
    assert len(seen) == 2  # type: ignore[arg-type]


def test_what_no_audit_goes_on_from_does_not_stay_in_its_worker() -> None:
    class Row:
        pass

    rows = [Row(), Row()]
    alive = [weakref.ref(row) for row in rows]
    said = stages({}).answer(1, [0, 1]).outputs[0]
    kept = Held("hidden_1_1", "FP32", (2, 1), b"", "worker", tuple(rows))
    rows.clear()
    plan = segments(route([0.8], audit_rate=0.5)).plan(Query({}, request(2), coins([0.1, 0.9])))
    next(plan)
    with pytest.raises(StopIteration) as end:
        plan.send((Answer([said, kept]),))
    del plan, kept
    answer = end.value.value
    gc.collect()
    assert [row() is not None for row in alive] == [True, False]
    [run] = next(audits(answer)[0].plan).runs
    [handed] = run.inputs or ()
    assert isinstance(handed, Held)
    assert handed.rows == (alive[0](),)


def test_an_audit_behind_segments_runs_the_whole_reference() -> None:
    definition = route([0.8, 0.8], audit_rate=1.0)
    one, two, reference = definition.targets
    strategy = definition.bind({one: segment(1, 3), two: segment(2, 3), reference: endpoint()})
    models = stages({})
    answer = ask(strategy, models, coin=lambda: 0.5)
    models.runs.clear()
    play(audits(answer)[0].plan, models, request(1))
    assert models.runs == [("s3", [0], 2)]


def test_an_audit_that_is_lost_is_noted_as_one_that_was_to_be() -> None:
    answer = ask(cascade(route([0.8], audit_rate=0.5)), stages({}), count=2, coin=coins([0.1, 0.1]))
    assert answer.observations == ()
    [audit] = audits(answer)
    lost = audit.lost("full")
    assert [(seen.item, seen.audited, seen.probability, seen.lost, seen.agreed) for seen in lost] == [  # type: ignore[union-attr]
        (0, True, 0.5, "full", ()), (1, True, 0.5, "full", ()),
    ]  # fmt: skip


def test_agreement_of_audits_is_what_the_route_says_it_is() -> None:
    definition = route([0.8, 0.8], audit_rate=1.0, agreement=Agreement("top_k", k=2))
    # Of equal ones none is ahead: classes 1 and 2 are both second.
    models = stages({(1, 1): (0, 0.5), (3, 0): (1, 0.9), (3, 1): (2, 0.9)})
    answer = ask(cascade(definition), models, count=2, coin=lambda: 0.5)
    seen = [each for audit in audits(answer) for each in play(audit.plan, models, request(2))]  # type: ignore[attr-defined]
    assert [(each.item, each.agreed, each.reference) for each in seen] == [(0, (True,), 1), (1, (True, True), 2)]


def test_under_load_fewer_are_audited_and_the_chance_is_noted() -> None:
    definition = route([0.8], audit_rate=0.5, load={Level.OVERLOADED: LoadRule(audits=0.1)})
    answer = ask(cascade(definition), stages({}), coin=coins([0.06]), level=Level.OVERLOADED)
    assert [seen.probability for seen in answer.observations] == [0.05]  # type: ignore[union-attr]


def test_shedding_is_decided_by_a_coin_before_anything_is_looked_at() -> None:
    strategy = cascade(route([0.8], load={Level.OVERLOADED: LoadRule(shed=0.5)}))
    with pytest.raises(Shed, match="try again later"):
        ask(strategy, stages({}), coin=coins([0.49]), level=Level.OVERLOADED, parameters={"offramp_max_exit": "x"})
    assert exits(ask(strategy, stages({}), coin=coins([0.5]), level=Level.OVERLOADED)) == ["s1"]
    assert exits(ask(strategy, stages({}), level=Level.BUSY)) == ["s1"]
