"""A split: who answers, what shadows see, and which targets go together. The targets are played by hand."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from offramp_adapters.audits.observation import ShadowObservation
from offramp_adapters.confidence.agreement import Agreement
from offramp_adapters.control.rules import LoadRule
from offramp_adapters.experiments.assignment import assign
from offramp_adapters.routes.plan import Answer, FollowUp, ParameterValue, RouteRefused, Run, Shed, Target, Together
from offramp_adapters.routes.split import Arm, Shadow, Split, SplitRoute
from offramp_adapters.routes.strategy import Endpoint, Level, Query, RouteInvalid, TensorFacts
from offramp_server.errors import ConfigurationError
from offramp_server.repository.route_toml import read_route_file
from open_inference.tensor import Tensor

TEACHER, STUDENT, TINY = Target("teacher"), Target("student"), Target("tiny", "2")
IMAGE = TensorFacts("image", "FP32", (4,))
LOGITS = TensorFacts("logits", "FP32", (3,))
HALVES = (Arm("full", TEACHER, 1), Arm("small", STUDENT, 1))
SHADOWED = (Shadow("candidate", TINY),)


def endpoint(*outputs: TensorFacts, inputs: Iterable[TensorFacts] = (IMAGE,), max_batch_size: int = 8) -> Endpoint:
    return Endpoint(tuple(inputs), outputs or (LOGITS,), max_batch_size)


def split(endpoints: Mapping[Target, Endpoint] | None = None, **keys: Any) -> Split:
    route = SplitRoute(**{"salt": "s", "arms": HALVES, **keys})
    return route.bind({**dict.fromkeys(route.targets, endpoint()), **(endpoints or {})})


def coins(*values: float) -> Callable[[], float]:
    return iter(values).__next__


def query(coin: Callable[[], float] = lambda: 0.0, level: Level = Level.NORMAL, **given: ParameterValue) -> Query:
    return Query(given, (), coin, level, epoch=3, sequence=17)


def answer(*rows: list[float], **parameters: ParameterValue) -> Answer:
    return Answer([Tensor.from_numpy("logits", np.array(rows, np.float32))], parameters=parameters, models=("m:1",))


def target_of(strategy: Split, request: Query) -> Target:
    step = next(strategy.plan(request))
    [run] = step.runs
    return run.target


def served(strategy: Split, request: Query, given: Answer) -> Answer:
    plan = strategy.plan(request)
    next(plan)
    with pytest.raises(StopIteration) as ended:
        plan.send((given,))
    result: Answer = ended.value.value
    return result


def shadowed(copy: FollowUp, given: Answer) -> tuple[Any, ...]:
    assert next(copy.plan) == Together((Run(TINY),))
    with pytest.raises(StopIteration) as ended:
        copy.plan.send((given,))
    result: tuple[Any, ...] = ended.value.value
    return result


# Who answers


def test_a_unit_has_the_same_arm_every_time_whatever_the_coin_says() -> None:
    toss = random.Random(1).random
    for unit in ("alice", "bob", 42, -7):
        expected = {"full": TEACHER, "small": STUDENT}[assign("s", {"full": 1, "small": 1}, unit)]
        assert {target_of(split(), query(toss, offramp_unit=unit)) for _ in range(5)} == {expected}


def test_requests_without_a_unit_are_drawn_one_by_one() -> None:
    toss = random.Random(2).random
    arms = (Arm("full", TEACHER, 3), Arm("small", STUDENT, 1))
    drawn = Counter(target_of(split(arms=arms), query(toss, offramp_unit="")) for _ in range(2000))
    assert 0.70 < drawn[TEACHER] / 2000 < 0.80


def test_the_answer_is_the_arms_own_and_names_the_arm() -> None:
    given = answer([1, 2, 3], offramp_exit="early", offramp_confidence="0.9")
    result = served(split(), query(offramp_unit="alice"), given)
    assert result.outputs is given.outputs
    assert result.models == ("m:1",)
    arm = assign("s", {"full": 1, "small": 1}, "alice")
    assert result.parameters == {
        "offramp_exit": "early", "offramp_confidence": "0.9", "offramp_arm": arm, "offramp_assigned": "unit",
    }  # fmt: skip
    assert served(split(), query(), given).parameters["offramp_assigned"] == "coin"


def test_arms_of_a_split_below_are_named_as_a_path() -> None:
    result = served(split(), query(), answer([1, 2, 3], offramp_arm="inner", offramp_assigned="unit"))
    assert result.parameters["offramp_arm"] == "full/inner"


def test_a_request_may_ask_for_an_arm_and_is_no_part_of_the_experiment_then() -> None:
    strategy = split(arms=(Arm("full", TEACHER, 1), Arm("small", STUDENT, 0)), shadows=SHADOWED)
    asked = query(offramp_route="model:student", offramp_unit="alice")
    assert next(strategy.plan(asked)) == Together((Run(STUDENT),))
    result = served(strategy, asked, answer([1, 2, 3]))
    assert (result.parameters["offramp_arm"], result.parameters["offramp_assigned"]) == ("small", "request")
    assert result.follow_ups == ()


def test_a_request_that_is_assigned_is_counted_under_its_arm() -> None:
    assert next(split().plan(query())) == Together((Run(TEACHER, arm="full"),))


@pytest.mark.parametrize("wanted", ["ensemble", "model:tiny"])
def test_a_shadow_or_another_kind_of_route_cannot_be_asked_for(wanted: str) -> None:
    with pytest.raises(RouteRefused, match='expected "split" or "model:teacher" or "model:student", got'):
        next(split(shadows=SHADOWED).plan(query(offramp_route=wanted)))


@pytest.mark.parametrize("unit", [True, 1.5])
def test_a_unit_is_a_text_or_an_integer(unit: ParameterValue) -> None:
    with pytest.raises(RouteRefused, match='"offramp_unit": expected a string or an integer'):
        next(split().plan(query(offramp_unit=unit)))


def test_a_unit_is_no_longer_than_what_can_be_hashed_while_others_wait() -> None:
    next(split().plan(query(offramp_unit="u" * 1024)))
    with pytest.raises(RouteRefused, match='"offramp_unit": expected at most 1024 characters, got 1025'):
        next(split().plan(query(offramp_unit="u" * 1025)))


def test_two_arms_may_run_the_same_model() -> None:
    strategy = split(arms=(Arm("a", TEACHER, 1), Arm("b", TEACHER, 1)))
    assert served(strategy, query(coins(0.7)), answer([1, 2, 3])).parameters["offramp_arm"] == "b"


# Shadows


def test_a_shadow_is_compared_with_the_answer_that_was_served_item_by_item() -> None:
    result = served(split(shadows=SHADOWED), query(), answer([0, 1, 0], [2, 0, 0]))
    [copy] = result.follow_ups
    assert copy.kind == "shadow"
    assert shadowed(copy, answer([0, 5, 1], [0, 0, 9])) == (
        ShadowObservation(3, 17, 0, "full", "candidate", agreed=True, served=1, shadowed=1),
        ShadowObservation(3, 17, 1, "full", "candidate", agreed=False, served=0, shadowed=2),
    )


def test_what_agreement_means_is_the_routes_own() -> None:
    strategy = split(shadows=SHADOWED, agreement=Agreement("top_k", k=2))
    [copy] = served(strategy, query(), answer([0, 1, 0])).follow_ups
    assert [seen.agreed for seen in shadowed(copy, answer([2, 1, 0]))] == [True]

    strategy = split(shadows=SHADOWED, agreement=Agreement("tolerance", tolerance=0.1))
    [copy] = served(strategy, query(), answer([0, 1, 0])).follow_ups
    [seen] = shadowed(copy, answer([0, 1.05, 0]))
    assert (seen.agreed, seen.served, seen.shadowed) == (True, None, None)


def test_a_copy_that_is_lost_is_noted_for_each_item() -> None:
    [copy] = served(split(shadows=SHADOWED), query(), answer([0, 1, 0], [2, 0, 0])).follow_ups
    assert copy.lost("full") == tuple(
        ShadowObservation(3, 17, item, "full", "candidate", lost="full") for item in (0, 1)
    )


def test_a_shadow_sees_its_share_of_the_requests() -> None:
    strategy = split(shadows=(Shadow("candidate", TINY, 0.25), Shadow("never", TEACHER, 0.0)))
    toss = random.Random(3).random
    copies = sum(len(served(strategy, query(toss), answer([0, 1, 0])).follow_ups) for _ in range(2000))
    assert 0.2 < copies / 2000 < 0.3


def test_without_a_batch_dimension_the_answer_is_one_item() -> None:
    flat = endpoint(max_batch_size=0)
    strategy = split({TEACHER: flat, STUDENT: flat, TINY: flat}, shadows=SHADOWED)
    one = Answer([Tensor.from_numpy("logits", np.array([0, 1, 0], np.float32))])
    [copy] = served(strategy, query(), one).follow_ups
    assert [seen.agreed for seen in shadowed(copy, one)] == [True]
    assert len(copy.lost("full")) == 1


# Load


def test_at_a_level_without_shadows_their_copies_are_dropped_and_counted() -> None:
    strategy = split(shadows=SHADOWED, load={Level.BUSY: LoadRule(shadows=False)})
    calm = served(strategy, query(), answer([0, 1, 0]))
    busy = served(strategy, query(level=Level.BUSY), answer([0, 1, 0]))
    assert [copy.dropped for copy in calm.follow_ups] == [""]
    assert [copy.dropped for copy in busy.follow_ups] == ["load"]


def test_requests_are_shed_by_a_coin_before_anything_of_them_is_looked_at() -> None:
    strategy = split(load={Level.OVERLOADED: LoadRule(shed=0.5)})
    wrong: dict[str, ParameterValue] = {"offramp_route": "nonsense", "offramp_unit": True}
    with pytest.raises(Shed, match="overloaded and sheds 50% of this route's requests"):
        next(strategy.plan(query(coins(0.49), Level.OVERLOADED, **wrong)))
    with pytest.raises(RouteRefused):
        next(strategy.plan(query(coins(0.5), Level.OVERLOADED, **wrong)))
    assert target_of(strategy, query(coins(0.0), Level.BUSY)) == TEACHER


# What goes together


def labelled(*labels: str) -> Endpoint:
    return endpoint(TensorFacts("logits", "FP32", (3,), labels))


@pytest.mark.parametrize(
    ("other", "sentence"),
    [
        (endpoint(inputs=[]), '"teacher" takes input image FP32[4] and "{0}" does not'),
        (endpoint(inputs=[TensorFacts("image", "FP32", (5,))]), '"teacher" takes input image FP32[4] and "{0}" takes'),
        (endpoint(max_batch_size=0), '"teacher" has a batch dimension and "{0}" has none'),
        (endpoint(TensorFacts("scores", "FP32", (3,))), '"teacher" gives output logits FP32[3] and "{0}" does not'),
        (endpoint(TensorFacts("logits", "FP32", (4,))), '"teacher" gives output logits FP32[3] and "{0}" gives logits'),
        (endpoint(TensorFacts("logits", "FP16", (3,))), '"{0}" gives logits FP16[3]; expected the same'),
        (labelled("cat", "dog", "bird"), 'output logits: class 1 is "bird" of "teacher" and "dog" of "{0}"'),
    ],
)
def test_targets_that_do_not_go_together_are_named(other: Endpoint, sentence: str) -> None:
    here = {TEACHER: labelled("cat", "bird", "dog")}
    with pytest.raises(RouteInvalid) as arm:
        split({**here, STUDENT: other})
    assert sentence.format("student") in str(arm.value)
    with pytest.raises(RouteInvalid) as shadow:
        split({**here, TINY: other}, shadows=SHADOWED)
    assert sentence.format("tiny:2") in str(shadow.value)


def test_labels_of_two_arms_are_compared_though_the_first_has_none() -> None:
    third = (*HALVES, Arm("third", TINY, 1))
    with pytest.raises(RouteInvalid, match='class 0 is "a" of "student" and "b" of "tiny:2"'):
        split({STUDENT: labelled("a", "b", "c"), TINY: labelled("b", "a", "c")}, arms=third)
    assert split({STUDENT: labelled("a", "b", "c")}, arms=third).face.gives == STUDENT


def test_a_shadow_may_give_more_than_the_arms_but_an_arm_may_not() -> None:
    more = endpoint(LOGITS, TensorFacts("features", "FP32", (64,)))
    assert split({TINY: more}, shadows=SHADOWED).face.outputs == ("logits",)
    with pytest.raises(RouteInvalid, match=r'"student" gives output features FP32\[64\] and "teacher" does not'):
        split({STUDENT: more})


def test_hidden_states_are_no_part_of_an_answer() -> None:
    segment = endpoint(LOGITS, TensorFacts("hidden_1", "FP32", (64,)))
    assert split({STUDENT: segment}).face.outputs == ("logits",)


def test_the_route_takes_as_many_items_as_every_arm_does() -> None:
    assert split({STUDENT: endpoint(max_batch_size=4)}).face.max_batch_size == 4


def test_shadows_need_an_output_that_decides_only_if_they_are_judged_by_one() -> None:
    flat = endpoint(TensorFacts("mask", "FP32", (8, 8)))
    masks = {TEACHER: flat, STUDENT: flat, TINY: flat}
    split(masks)
    split(masks, shadows=SHADOWED, agreement=Agreement("tolerance", tolerance=0.1))
    with pytest.raises(RouteInvalid, match="has no output with one number for each class"):
        split(masks, shadows=SHADOWED)


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({"arms": ()}, "a split needs at least one arm"),
        ({"arms": (Arm("a", TEACHER, 0), Arm("b", STUDENT, 0))}, "every arm has weight 0"),
        ({"arms": (Arm("a", TEACHER, 1e308), Arm("b", STUDENT, 1e308))}, "too large to be added"),
        ({"arms": (Arm("a", TEACHER, -1),)}, "weight.a: expected a number of at least 0, got -1"),
        ({"arms": (Arm("a", TEACHER, float("inf")),)}, "weight.a: expected a number of at least 0, got inf"),
        ({"arms": (Arm("a", TEACHER, 1), Arm("a", STUDENT, 1))}, 'two arms or shadows are named "a"'),
        ({"shadows": (Shadow("full", TINY),)}, 'two arms or shadows are named "full"'),
        ({"shadows": (Shadow("c", TINY, 1.5),)}, "share.c: expected a number from 0 to 1, got 1.5"),
    ],
)
def test_a_split_that_cannot_work_is_refused(keys: dict[str, Any], sentence: str) -> None:
    with pytest.raises(RouteInvalid, match=sentence):
        SplitRoute(**{"salt": "s", "arms": HALVES, **keys})


# Live settings


def test_weights_and_shares_can_be_set_live_and_nothing_else() -> None:
    route = SplitRoute("s", HALVES, SHADOWED)
    assert route.settings() == {"weight.full": 1, "weight.small": 1, "share.candidate": 1}
    changed = route.with_settings({"weight.small": 0, "share.candidate": 0.5})
    assert changed.settings() == {"weight.full": 1, "weight.small": 0, "share.candidate": 0.5}
    assert route.settings()["weight.small"] == 1
    with pytest.raises(RouteInvalid, match=r'no setting "weight\.smal"; did you mean "weight\.small"'):
        route.with_settings({"weight.smal": 1})
    with pytest.raises(RouteInvalid, match="every arm has weight 0"):
        route.with_settings({"weight.small": 0, "weight.full": 0})
    with pytest.raises(RouteInvalid, match=r"share\.candidate: expected a number from 0 to 1, got nan"):
        route.with_settings({"share.candidate": float("nan")})


# route.toml

WRITTEN = """
kind = "split"
salt = "checkout-2026"

[[arms]]
name = "full"
model = "teacher"
weight = 90

[[arms]]
model = "student"
version = 3
weight = 10

[[shadows]]
model = "tiny"
share = 0.1

[agreement]
kind = "top_k"
k = 2

[load.busy]
shadows = false

[load.overloaded]
shadows = false
shed = 0.5
"""


def read(folder: Path, text: str) -> SplitRoute:
    folder.mkdir()
    (folder / "route.toml").write_text(text)
    route = read_route_file(folder).definition
    assert isinstance(route, SplitRoute)
    return route


def test_a_split_is_written_in_route_toml(tmp_path: Path) -> None:
    assert read(tmp_path / "r", WRITTEN) == SplitRoute(
        "checkout-2026",
        (Arm("full", TEACHER, 90), Arm("student", Target("student", "3"), 10)),
        (Shadow("tiny", Target("tiny"), 0.1),),
        Agreement("top_k", k=2),
        load={Level.BUSY: LoadRule(shadows=False), Level.OVERLOADED: LoadRule(shadows=False, shed=0.5)},
    )


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ('salt = "checkout-2026"', "", '"salt" is missing; expected a string of at least one character'),
        ("weight = 90", "weight = -1", r"arms\[0\].weight: expected a number of at least 0, got -1"),
        ("share = 0.1", "share = 2", r"shadows\[0\].share: expected a number from 0 to 1, got 2"),
        ("shed = 0.5", "shedd = 0.5", 'unknown key "load.overloaded.shedd"; did you mean "load.overloaded.shed"'),
        ("[load.busy]", "[load.normal]", 'unknown key "load.normal"'),
        ("shed = 0.5", "shed = 1.5", "load.overloaded.shed: expected a number from 0 to 1, got 1.5"),
        ("k = 2", "", 'agreement.kind = "top_k" needs agreement.k'),
        ('name = "full"', 'name = "a/b"', r"arms\[0\].name: expected a name of letters"),
    ],
)
def test_a_mistake_in_the_file_is_one_clear_sentence(old: str, new: str, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=sentence):
        read(tmp_path / "r", WRITTEN.replace(old, new, 1))
