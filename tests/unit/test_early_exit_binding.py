"""An early-exit route over stages that do not fit each other says which, and what would be right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from exit_fakes import (
    CLASSES,
    IMAGE,
    LOGITS,
    SENTENCE,
    ask,
    cascade,
    endpoint,
    hidden,
    request,
    route,
    segment,
    segments,
)
from exit_fakes import Stages as Played
from offramp_adapters.confidence.agreement import Agreement
from offramp_adapters.control.rules import LoadRule
from offramp_adapters.routes.early_exit import EarlyExit, EarlyExitRoute
from offramp_adapters.routes.exit_settings import Stage
from offramp_adapters.routes.live import Live
from offramp_adapters.routes.plan import Target
from offramp_adapters.routes.strategy import Endpoint, Level, Query, RouteInvalid, TensorFacts

S1, S2 = Target("s1"), Target("s2")
LABELLED = TensorFacts("logits", "FP32", (CLASSES,), ("cat", "dog", "owl"))


def bind(*endpoints: Endpoint, definition: EarlyExitRoute | None = None) -> EarlyExit:
    definition = definition or route([0.8] * (len(endpoints) - 1))
    return definition.bind(dict(zip(definition.targets, endpoints, strict=True)))


# What stages are


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (
            endpoint([TensorFacts("image", "FP32", (9,))]),
            r'stage "s2" takes image FP32\[9\], and stage "s1" takes image FP32\[1\]; '
            r"expected the same inputs, or outputs of the stage before it \(logits FP32\[3\]",
        ),
        (endpoint([TensorFacts("image", "FP16", (1,))]), r'stage "s2" takes image FP16\[1\]'),
        (endpoint([IMAGE, TensorFacts("mask", "FP32", (1,))]), r'stage "s2" takes image FP32\[1\], mask FP32\[1\]'),
        (
            endpoint([TensorFacts("logits", "FP64", (CLASSES,))]),
            r'stage "s2" takes logits FP64\[3\], and stage "s1" before it gives logits FP32\[3\]; '
            "expected segments of one network, in order",
        ),
        (
            endpoint([LOGITS, hidden(1)]),
            r'stage "s2" takes hidden_1_1 FP32\[1\], and stage "s1" before it does not give it',
        ),
        (endpoint(max_batch_size=0), 'stage "s1" has a batch dimension and stage "s2" has none'),
        (
            endpoint(outputs=[TensorFacts("logits", "FP32", (4,)), SENTENCE]),
            '"s1" has 3 classes and "s2" has 4; expected the same',
        ),
        (endpoint(outputs=[TensorFacts("logits", "FP16", (3,)), SENTENCE]), r'"s1" gives logits FP32\[3\].*FP16\[3\]'),
        (endpoint(outputs=[TensorFacts("scores", "FP32", (3,))]), "expected one name"),
        (endpoint(outputs=[SENTENCE]), 'stage "s2" has no output with one number for each class'),
        (endpoint(outputs=[LOGITS, TensorFacts("sentence", "FP32", (1,))]), r"gives sentence BYTES\[1\].*FP32\[1\]"),
    ],
)
def test_stages_that_do_not_fit_are_named_with_what_would_fit(second: Endpoint, message: str) -> None:
    with pytest.raises(RouteInvalid, match=message):
        bind(endpoint(), second)


def test_labels_have_to_agree_where_there_are_any() -> None:
    other = TensorFacts("logits", "FP32", (CLASSES,), ("cat", "owl", "dog"))
    with pytest.raises(RouteInvalid, match='class 1 is "dog" of "s1" and "owl" of "s2"'):
        bind(endpoint(outputs=[LABELLED]), endpoint(outputs=[other]))
    # Clients see those of whoever has some.
    assert bind(endpoint(outputs=[LABELLED]), endpoint(outputs=[LOGITS])).face.gives == S1
    assert bind(endpoint(outputs=[LOGITS]), endpoint(outputs=[LABELLED])).face.gives == S2
    assert bind(endpoint(outputs=[LABELLED]), endpoint(outputs=[LABELLED])).face.gives == S2


def test_the_answer_has_the_outputs_that_every_stage_has_as_the_reference_orders_them() -> None:
    extra = TensorFacts("embedding", "FP32", (8, 8))
    assert bind(endpoint(outputs=[LOGITS, SENTENCE]), endpoint(outputs=[extra, SENTENCE, LOGITS])).face.outputs == (
        "sentence",
        "logits",
    )


def test_a_stage_may_take_more_lengths_than_the_client_is_told_to_send() -> None:
    variable = endpoint([TensorFacts("image", "FP32", (-1,))])
    bind(endpoint(), variable)
    with pytest.raises(RouteInvalid, match=r'stage "s2" takes image FP32\[1\], and stage "s1" takes image FP32\[-1\]'):
        bind(variable, endpoint())


def test_segments_have_to_be_of_one_network_and_in_order() -> None:
    with pytest.raises(
        RouteInvalid, match=r'stages "s1" and "s2" are segments of different networks \(weights aaaaaaaaaaaa and bbbb\)'
    ):
        bind(segment(1, 2, "a" * 64), segment(2, 2, "bbbb"))
    loop = endpoint([hidden(1)], [LOGITS, hidden(2)], metadata=dict(segment(3, 3).metadata))
    with pytest.raises(RouteInvalid, match='stage "s2" is segment 3 of its network, and "s1" before it segment 1; '):
        bind(segment(1, 3), loop)


def test_segments_that_do_not_say_where_they_come_from_are_taken_by_their_names() -> None:
    plain = endpoint([IMAGE], [LOGITS, hidden(1)]), endpoint([hidden(1)], [LOGITS])
    assert bind(*plain).exits.stages[1].start == 0


def test_a_cascade_may_end_in_a_whole_model_behind_segments() -> None:
    strategy = bind(segment(1, 3), segment(2, 3), endpoint())
    assert [stage.start for stage in strategy.exits.stages] == [0, 0, 2]
    assert [stage.hands_on for stage in strategy.exits.stages] == [("hidden_1_1",), (), ()]


def test_the_agreement_of_what_is_no_ensemble_is_no_score() -> None:
    with pytest.raises(RouteInvalid, match='stage "s1": score = "agreement" is that of an ensemble, and "s1" is none'):
        cascade(route([0.8], score="agreement"))


def test_one_stage_may_have_another_score() -> None:
    ensemble = Stage(S1, 1.0, score="agreement")
    definition = EarlyExitRoute((ensemble, Stage(S2, 0.9), Stage(Target("s3"))))
    agreeing = endpoint(scores=frozenset({"agreement"}))
    stages = bind(agreeing, endpoint(), endpoint(), definition=definition).exits.stages
    assert [(stage.by_agreement, stage.score) for stage in stages] == [
        (True, "max_probability"), (False, "max_probability"), (False, "max_probability"),
    ]  # fmt: skip


def test_one_class_is_no_ground_for_a_decision() -> None:
    one = endpoint(outputs=[TensorFacts("value", "FP32", (1,))])
    with pytest.raises(RouteInvalid, match=r'has one class, so that agreement.kind = "class" always holds'):
        bind(one, one)
    near = route([0.8], agreement=Agreement("tolerance", tolerance=0.1))
    with pytest.raises(RouteInvalid, match='has one class, which is always certain; expected score = "patience"'):
        bind(one, one, definition=near)


@pytest.mark.parametrize(
    ("facts", "name", "message"),
    [
        (LABELLED, "fox", 'stage "s1": there is no class "fox"; expected one of "cat", "dog", "owl"'),
        (LOGITS, "3", 'there is no class "3"; expected one of 0 to 2'),
    ],
)
def test_thresholds_are_of_classes_that_there_are(facts: TensorFacts, name: str, message: str) -> None:
    definition = EarlyExitRoute((Stage(S1, 0.8, thresholds_by_class={name: 0.9}), Stage(S2)))
    with pytest.raises(RouteInvalid, match=message):
        bind(endpoint(outputs=[facts]), endpoint(outputs=[facts]), definition=definition)


def test_classes_are_named_by_label_or_by_number() -> None:
    definition = EarlyExitRoute((Stage(S1, 0.8, thresholds_by_class={"owl": 0.9, "0": 0.7}), Stage(S2)))
    bound = bind(endpoint(outputs=[LABELLED]), endpoint(outputs=[LOGITS]), definition=definition)
    assert bound.exits.rules[Level.NORMAL].thresholds[0].by_class == {2: 0.9, 0: 0.7}


# What a definition says by itself


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([Stage(S1)], "at least two stages, got 1"),
        ([Stage(S1, 0.8), Stage(S1)], 'stage "s1" is there twice; give each stage a name of its own'),
        ([Stage(S1), Stage(S2)], 'stage "s1" needs a threshold'),
        ([Stage(S1, 0.8), Stage(S2, 0.8)], 'stage "s2" is the last one, which always answers: it has no threshold'),
        ([Stage(S1, -0.1), Stage(S2)], "threshold.s1: expected a number of at least 0"),
        ([Stage(S1, float("nan")), Stage(S2)], "threshold.s1: expected a number of at least 0"),
        ([Stage(S1, 0.8, thresholds_by_class={"a": -1}), Stage(S2)], "threshold.s1, class a: expected"),
        ([Stage(S1, 0.8, temperature=0), Stage(S2)], "temperature.s1: expected a number from 0.01 to 100, got 0"),
        ([Stage(S1, 0.8, score="patience"), Stage(S2)], 'score = "patience" counts over all stages or none'),
        (
            [Stage(S1, 0.8, temperature=2, score="agreement"), Stage(S2)],
            'a temperature does not change the score "agreement"',
        ),
    ],
)
def test_what_does_not_make_a_route_is_refused(stages: list[Stage], message: str) -> None:
    with pytest.raises(RouteInvalid, match=message):
        EarlyExitRoute(tuple(stages))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"score": "patience"}, 'score = "patience" needs patience'),
        ({"patience": 1}, 'score = "max_probability" does not use patience'),
        ({"score": "patience", "patience": 0}, "patience: expected an integer of at least 1, got 0"),
        (
            {"score": "patience", "patience": 2},
            "2 times in a row .* takes more than 2 exits before the last stage, there are 2",
        ),
        ({"audit_rate": 1.5}, "audit_rate: expected a number from 0 to 1, got 1.5"),
        ({"audit_rate": float("nan")}, "audit_rate: expected a number from 0 to 1"),
        (
            {"load": {Level.BUSY: LoadRule(thresholds=(0.5,))}},
            "load.busy.thresholds: expected 2, one for each exit, got 1",
        ),
        (
            {"load": {Level.BUSY: LoadRule(thresholds=(0.5, -1))}},
            "load.busy.thresholds: expected a number of at least 0",
        ),
        ({"load": {Level.BUSY: LoadRule(audits=-1)}}, "load.busy.audits: expected a factor of at least 0"),
        ({"load": {Level.BUSY: LoadRule(shed=2)}}, "load.busy.shed: expected a share from 0 to 1"),
    ],
)
def test_settings_that_do_not_make_sense_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(RouteInvalid, match=message):
        route([0.8, 0.8], **fields)


# What can be set live


def test_thresholds_temperatures_and_the_rate_of_audits_can_be_set_live() -> None:
    definition = route([0.8, 0.9], audit_rate=0.1)
    assert isinstance(definition, Live)
    assert definition.settings() == {
        "threshold.s1": 0.8, "threshold.s2": 0.9,
        "temperature.s1": 1.0, "temperature.s2": 1.0, "temperature.s3": 1.0,
        "audit_rate": 0.1,
    }  # fmt: skip
    changed = definition.with_settings({"threshold.s2": 2.0, "temperature.s1": 1.5, "audit_rate": 1.0})
    assert changed.settings() == {
        **definition.settings(), "threshold.s2": 2.0, "temperature.s1": 1.5, "audit_rate": 1.0,
    }  # fmt: skip
    assert definition.settings()["threshold.s2"] == 0.9
    assert changed.stages[2].threshold is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"threshold.s4": 0.5}, 'this route has no setting "threshold.s4"; did you mean "threshold.s'),
        # The reference always answers.
        ({"threshold.s3": 0.5}, "this route has no setting"),
        ({"threshold.s1": -1.0}, "threshold.s1: expected a number of at least 0"),
        ({"threshold.s1": float("inf")}, "threshold.s1: expected a number of at least 0"),
        ({"audit_rate": 2.0}, "audit_rate: expected a number from 0 to 1"),
        ({"temperature.s1": 0.0}, "temperature.s1: expected a number from 0.01 to 100"),
    ],
)
def test_a_setting_that_is_not_there_or_cannot_be_is_refused(changes: dict[str, float], message: str) -> None:
    with pytest.raises(RouteInvalid, match=message):
        route([0.8, 0.9]).with_settings(changes)


def test_a_score_without_a_temperature_has_no_temperature_to_set() -> None:
    definition = route([1.0, 1.0], score="patience", patience=1)
    assert set(definition.settings()) == {"threshold.s1", "threshold.s2", "audit_rate"}


def test_segments_show_clients_the_inputs_of_the_first_and_the_answer_of_the_last() -> None:
    face = segments(route([0.8, 0.8])).face
    assert (face.takes, face.gives, face.outputs) == (S1, Target("s3"), ("logits",))


def test_the_scale_of_probabilities_is_known_by_name_or_said() -> None:
    outputs = [TensorFacts("probabilities", "FP32", (CLASSES,))]
    assert bind(endpoint(outputs=outputs), endpoint(outputs=outputs)).exits.stages[0].scale == "probabilities"
    said = route([0.8], scale="probabilities")
    assert ask(cascade(said), Played(lambda number, item: (0, 0.9))).parameters["offramp_exit"] == "s2"


def kept_by_stages(devices: Sequence[str], outputs: Sequence[TensorFacts] = ()) -> list[frozenset[str]]:
    """What the runs of a request that goes through all stages keep, for segments on these devices."""
    definition = route([0.9] * (len(devices) - 1))
    bound = {}
    for number, (target, device) in enumerate(zip(definition.targets, devices, strict=True), 1):
        each = segment(number, len(devices))
        bound[target] = replace(each, device=device, outputs=(*each.outputs, *outputs))
    plan = definition.bind(bound).plan(Query({}, request(1), lambda: 0.5))
    models, step = Played(lambda number, item: (0, 0.5)), next(plan)
    kept = [step.runs[0].keep]
    for _ in devices[1:]:
        step = plan.send((models(step.runs[0], request(1)),))
        kept.append(step.runs[0].keep)
    return kept


def test_hidden_state_stays_in_the_worker_between_segments_on_one_device() -> None:
    assert kept_by_stages(["cpu"] * 3) == [{"hidden_1_1"}, {"hidden_2_1"}, frozenset()]


def test_it_travels_to_another_device_or_where_the_device_is_not_known() -> None:
    assert kept_by_stages(["cpu", "cuda:0", "cuda:0"]) == [frozenset(), {"hidden_2_1"}, frozenset()]
    assert kept_by_stages([""] * 3) == [frozenset()] * 3


def test_an_output_that_clients_get_travels_although_the_next_stage_takes_it() -> None:
    assert kept_by_stages(["cpu"] * 3, outputs=[hidden(1)]) == [frozenset(), {"hidden_2_1"}, frozenset()]
