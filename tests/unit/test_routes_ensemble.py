"""Ensembles: what their answer is made of. The members are played by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from offramp_adapters.routes.combine import Stack
from offramp_adapters.routes.ensemble import Ensemble, EnsembleRoute, Member
from offramp_adapters.routes.plan import Answer, RouteRefused, Run, Target, Together
from offramp_adapters.routes.strategy import Endpoint, Query, RouteInvalid, TensorFacts
from open_inference.tensor import Tensor

A, B, C = Target("a"), Target("b"), Target("c", "2")
IMAGE = TensorFacts("image", "FP32", (4,))


def endpoint(*outputs: TensorFacts, inputs: Sequence[TensorFacts] = (IMAGE,), max_batch_size: int = 8) -> Endpoint:
    return Endpoint(tuple(inputs), outputs or (TensorFacts("probabilities", "FP32", (3,)),), max_batch_size)


def ensemble(*members: Member | Target, endpoints: Mapping[Target, Endpoint] | None = None, **keys: Any) -> Ensemble:
    listed = tuple(member if isinstance(member, Member) else Member(member) for member in members)
    route = EnsembleRoute(listed, **keys)
    return route.bind(endpoints or dict.fromkeys(route.targets, endpoint()))


def answer(rows: Sequence[Sequence[float]] | np.ndarray, model: str = "m:1", name: str = "probabilities") -> Answer:
    return Answer([Tensor.from_numpy(name, np.asarray(rows, np.float32))], models=(model,))


def query(**parameters: str) -> Query:
    return Query(parameters, (), lambda: 0.5)


def finish(strategy: Ensemble, *outcomes: Answer | None) -> Answer:
    plan = strategy.plan(query())
    next(plan)
    with pytest.raises(StopIteration) as ended:
        plan.send(outcomes)
    result: Answer = ended.value.value
    return result


def values(result: Answer) -> np.ndarray:
    [output] = result.outputs
    return output.numpy()


# What runs


def test_all_members_run_side_by_side_on_the_requests_own_inputs() -> None:
    plan = ensemble(A, B, quorum=1, margin=0.01).plan(query())
    assert next(plan) == Together((Run(A), Run(B)), 1, 0.01)


def test_a_member_without_weight_is_not_run() -> None:
    plan = ensemble(Member(A, 0.0), B, combine="weighted_mean").plan(query())
    assert next(plan).runs == (Run(B),)


def test_one_request_may_have_one_member_alone() -> None:
    plan = ensemble(A, B).plan(query(offramp_route="model:b"))
    assert next(plan) == Together((Run(B),))
    whole = answer([[0.2, 0.3, 0.5]])
    with pytest.raises(StopIteration) as ended:
        plan.send((whole,))
    assert ended.value.value is whole


def test_a_request_for_another_kind_of_route_is_refused() -> None:
    with pytest.raises(RouteRefused, match='expected "ensemble" or "model:a" or "model:b", got "early_exit"'):
        next(ensemble(A, B).plan(query(offramp_route="early_exit")))


# Combining


def test_the_mean_of_probabilities_is_answered_on_their_scale() -> None:
    result = finish(ensemble(A, B), answer([[0.2, 0.8, 0.0]], "a:1"), answer([[0.6, 0.0, 0.4]], "b:3"))
    np.testing.assert_allclose(values(result), [[0.4, 0.4, 0.2]], rtol=1e-6)
    assert result.models == ("a:1", "b:3")
    assert result.parameters == {"offramp_confidence": "0.4"}


def test_the_softmax_of_the_logits_answered_is_the_mean_of_the_members_probabilities() -> None:
    one, two = np.array([[1.0, 2.0, 0.5], [0.0, 0.0, 3.0]]), np.array([[0.0, -1.0, 4.0], [2.0, 1.0, 0.0]])
    logits = endpoint(TensorFacts("logits", "FP32", (3,)))
    strategy = ensemble(A, B, endpoints={A: logits, B: logits})
    result = finish(strategy, answer(one, name="logits"), answer(two, name="logits"))
    np.testing.assert_allclose(softmax(values(result)), (softmax(one) + softmax(two)) / 2, rtol=1e-6)
    assert result.outputs[0].name == "logits"


def test_weights_count_in_proportion_to_each_other() -> None:
    strategy = ensemble(Member(A, 3.0), Member(B, 1.0), combine="weighted_mean")
    result = finish(strategy, answer([[1, 0, 0]]), answer([[0, 1, 0]]))
    np.testing.assert_allclose(values(result), [[0.75, 0.25, 0]])


def test_the_temperature_of_a_member_makes_it_less_sure() -> None:
    result = finish(ensemble(Member(A, temperature=2.0)), answer([[0.64, 0.36, 0.0]]))
    np.testing.assert_allclose(values(result), [[0.8 / 1.4, 0.6 / 1.4, 0]], rtol=1e-6)


def test_a_vote_goes_by_the_members_classes_and_their_weights() -> None:
    strategy = ensemble(Member(A, 1.0), Member(B, 1.0), Member(C, 3.0), combine="vote")
    result = finish(strategy, answer([[0.9, 0.1, 0]]), answer([[0.9, 0.1, 0]]), answer([[0.3, 0.4, 0.3]]))
    np.testing.assert_allclose(values(result), [[0.4, 0.6, 0]], rtol=1e-6)
    assert result.parameters["offramp_confidence"] == "0.6"


def test_a_tied_vote_goes_to_the_class_with_the_higher_mean_probability() -> None:
    votes = [answer([[0.1, 0.9, 0.0]]), answer([[0.6, 0.0, 0.4]]), answer([[0.2, 0.1, 0.7]]), answer([[0.1, 0.2, 0.7]])]
    strategy = ensemble(*(Member(Target(name)) for name in "abcd"), combine="vote")
    assert values(finish(strategy, *votes)).argmax() == 2
    # Class 1 and class 2, of 0.25 and 0.5 votes: no tie. Without the last vote all three have one.
    tied = finish(ensemble(A, B, C, combine="vote"), *votes[:3])
    np.testing.assert_allclose(values(tied), [[0.9 / 3, 1.0 / 3, 1.1 / 3]], rtol=1e-6)


def test_a_vote_that_is_tied_in_every_way_goes_to_the_class_that_comes_first() -> None:
    strategy = ensemble(A, B, combine="vote")
    for order in (([[0, 0, 1]], [[0, 1, 0]]), ([[0, 1, 0]], [[0, 0, 1]])):
        assert values(finish(strategy, *map(answer, order))).argmax() == 1


def test_weights_that_add_up_to_the_same_but_for_rounding_tie() -> None:
    strategy = ensemble(Member(A, 0.1), Member(B, 0.2), Member(C, 0.3), combine="vote")
    result = finish(strategy, answer([[0.6, 0.4, 0]]), answer([[0.6, 0.4, 0]]), answer([[0.4, 0.6, 0]]))
    # 0.1 + 0.2 > 0.3 in binary; the mean probability of both is the same as well.
    np.testing.assert_allclose(values(result), [[0.5, 0.5, 0]], rtol=1e-6)


def test_a_stack_answers_by_the_logistic_regression_over_the_log_probabilities() -> None:
    weights = np.random.default_rng(0).normal(size=(6, 3))
    bias = np.array([0.1, -0.2, 0.3])
    strategy = ensemble(A, B, combine="stack", stack=stack_of(weights, bias))
    one, two = np.array([[0.2, 0.3, 0.5]]), np.array([[0.6, 0.3, 0.1]])
    result = finish(strategy, answer(one), answer(two))
    expected = softmax(np.log(np.hstack([one, two])) @ weights + bias)
    np.testing.assert_allclose(values(result), expected, rtol=1e-5)
    assert result.parameters["offramp_combine"] == "stack"


def test_a_probability_of_zero_does_not_break_a_stack() -> None:
    strategy = ensemble(A, combine="stack", stack=stack_of(np.eye(3), np.zeros(3)))
    result = values(finish(strategy, answer([[0.0, 0.4, 0.6]])))
    np.testing.assert_allclose(result, [[0, 0.4, 0.6]], atol=1e-6)


# Who is missing


def test_the_members_that_are_in_count_in_proportion_and_are_named() -> None:
    strategy = ensemble(Member(A, 2.0), Member(B, 1.0), Member(C, 1.0), combine="weighted_mean", quorum=1)
    result = finish(strategy, None, answer([[1, 0, 0]], "b:1"), answer([[0, 1, 0]], "c:2"))
    np.testing.assert_allclose(values(result), [[0.5, 0.5, 0]])
    assert result.models == ("b:1", "c:2")


def test_a_stack_without_one_of_its_members_is_the_mean_of_the_others_and_says_so() -> None:
    strategy = ensemble(A, B, combine="stack", stack=stack_of(np.zeros((6, 3)), np.array([9, 0, 0])), quorum=1)
    result = finish(strategy, None, answer([[0.2, 0.3, 0.5], [0.1, 0.8, 0.1]]))
    np.testing.assert_allclose(values(result), [[0.2, 0.3, 0.5], [0.1, 0.8, 0.1]], rtol=1e-6)
    assert result.parameters["offramp_combine"] == "mean,mean"


def test_nan_of_one_member_for_one_item_leaves_that_item_to_the_others() -> None:
    broken = answer([[np.nan, 0.5, 0.5], [0, 0, 1]], "a:1")
    result = finish(ensemble(A, B, quorum=1), broken, answer([[0.2, 0.8, 0], [0, 1, 0]], "b:1"))
    np.testing.assert_allclose(values(result), [[0.2, 0.8, 0], [0, 0.5, 0.5]], rtol=1e-6)
    assert result.models == ("a:1", "b:1")
    # All of b, the half of the members, agrees with the first answer, and a has none.
    np.testing.assert_allclose(result.scores["agreement"], [0.5, 0.5])


def test_a_member_that_gives_nothing_but_nan_is_not_named() -> None:
    result = finish(ensemble(A, B, quorum=1), answer([[np.nan] * 3], "a:1"), answer([[0, 1, 0]], "b:1"))
    assert result.models == ("b:1",)


@pytest.mark.parametrize("combine", ["mean", "vote"])
def test_an_item_for_which_the_quorum_is_not_there_is_nan_and_others_are_not(combine: str) -> None:
    broken = answer([[np.nan] * 3, [0, 1, 0]])
    result = finish(ensemble(A, B, combine=combine), broken, answer([[0.2, 0.8, 0], [0, 1, 0]]))
    assert np.isnan(values(result)[0]).all()
    np.testing.assert_allclose(values(result)[1], [0, 1, 0])
    assert result.parameters["offramp_confidence"] == "nan,1"
    assert result.scores["agreement"].tolist() == [0.0, 1.0]


def test_a_probability_of_nothing_at_all_is_no_answer() -> None:
    result = finish(ensemble(A, B, quorum=1), answer([[0, 0, 0]]), answer([[0, 1, 0]]))
    np.testing.assert_allclose(values(result), [[0, 1, 0]])


# Agreement


def test_agreement_is_the_weight_of_the_members_of_the_combined_class_among_all_members() -> None:
    strategy = ensemble(Member(A, 2.0), Member(B, 1.0), Member(C, 1.0), combine="weighted_mean", quorum=2)
    assert strategy.face.scores == {"agreement"}
    all_in = finish(strategy, answer([[0, 1, 0]]), answer([[0, 1, 0]]), answer([[1, 0, 0]]))
    assert all_in.scores["agreement"].tolist() == [0.75]
    # One that is missing has not agreed.
    two_in = finish(strategy, answer([[0, 1, 0]]), None, answer([[0, 1, 0]]))
    assert two_in.scores["agreement"].tolist() == [0.75]


# Shapes and datatypes


def test_members_without_a_batch_dimension_give_one_item() -> None:
    alone = endpoint(max_batch_size=0)
    result = finish(ensemble(A, B, endpoints={A: alone, B: alone}), answer([0.2, 0.8, 0]), answer([0.6, 0.4, 0]))  # type: ignore[list-item]
    assert values(result).shape == (3,)
    assert result.parameters["offramp_confidence"] == "0.6"


@pytest.mark.parametrize("datatype", ["FP16", "BF16", "FP64"])
def test_the_answer_has_the_members_datatype(datatype: str) -> None:
    said = endpoint(TensorFacts("logits", datatype, (3,)))
    rows = np.array([[-4000.0, 0.0, 4000.0]])
    given = Answer([Tensor.from_numpy("logits", rows, datatype)])
    [output] = finish(ensemble(A, B, endpoints={A: said, B: said}), given, given).outputs
    assert output.datatype == datatype
    assert output.numpy().argmax() == 2


def test_answers_of_different_lengths_are_refused_in_a_sentence() -> None:
    open_ended = endpoint(TensorFacts("probabilities", "FP32", (-1,)))
    plan = ensemble(A, B, endpoints={A: open_ended, B: open_ended}).plan(query())
    next(plan)
    with pytest.raises(RouteRefused, match=r"probabilities of shapes \[1, 2\] and \[1, 3\]; expected one shape"):
        plan.send((answer([[0.5, 0.5]]), answer([[0.2, 0.3, 0.5]])))


# What does not fit


def test_what_the_members_do_not_agree_on_is_said() -> None:
    def refused(match: str, other: Endpoint, **keys: Any) -> None:
        with pytest.raises(RouteInvalid, match=match):
            ensemble(A, B, endpoints={A: labelled("cat", "dog", "owl"), B: other}, **keys)

    def labelled(*labels: str) -> Endpoint:
        return endpoint(TensorFacts("probabilities", "FP32", (3,), labels))

    classes = TensorFacts("probabilities", "FP32", (4,))
    refused('"a" takes input image FP32.4. and "b" does not', endpoint(inputs=[TensorFacts("x", "FP32", (4,))]))
    refused(
        '"a" takes input image FP32.4. and "b" takes image FP16', endpoint(inputs=[TensorFacts("image", "FP16", (4,))])
    )
    refused(
        '"b" takes input mask INT64.4. and "a" does not', endpoint(inputs=[IMAGE, TensorFacts("mask", "INT64", (4,))])
    )
    refused('"a" has a batch dimension and "b" has none', endpoint(max_batch_size=0))
    refused('"a" has 3 classes and "b" has 4', endpoint(classes))
    refused('"a" answers with output probabilities .* and "b" with y', endpoint(TensorFacts("y", "FP32", (3,))))
    refused('class 1 is "dog" of "a" and "fox" of "b"', labelled("cat", "fox", "owl"))
    refused(
        '"b" has no output "probabilities"; there is "y"',
        endpoint(TensorFacts("y", "FP32", (3,))),
        output="probabilities",
    )
    refused('"b" has several outputs that could decide: y, z',
            endpoint(TensorFacts("y", "FP32", (3,)), TensorFacts("z", "FP32", (3,))))  # fmt: skip
    refused('"b" has no output with one number for each class; its outputs: text BYTES',
            endpoint(TensorFacts("text", "BYTES", (1,))))  # fmt: skip


def test_labels_of_any_member_are_compared_and_shown() -> None:
    bare, labelled = endpoint(), endpoint(TensorFacts("probabilities", "FP32", (3,), ("cat", "dog", "owl")))
    other = endpoint(TensorFacts("probabilities", "FP32", (3,), ("cat", "owl", "dog")))
    assert ensemble(A, B, endpoints={A: bare, B: labelled}).face.gives == B
    with pytest.raises(RouteInvalid, match='class 1 is "dog" of "b" and "owl" of "c:2"'):
        ensemble(A, B, C, endpoints={A: bare, B: labelled, C: other})


def test_a_batch_is_as_large_as_the_smallest_of_the_members() -> None:
    assert ensemble(A, B, endpoints={A: endpoint(max_batch_size=32), B: endpoint()}).face.max_batch_size == 8


@pytest.mark.parametrize(
    ("keys", "match"),
    [
        ({"members": ()}, "at least one member"),
        ({"members": (Member(A), Member(A))}, '"a" is named twice'),
        ({"members": (Member(A, 0.0),), "combine": "vote"}, "every member has weight 0"),
        ({"members": (Member(A, -1.0),)}, "weight.a: expected a number of at least 0, got -1"),
        ({"members": (Member(A, float("nan")),)}, "weight.a: .* got nan"),
        ({"members": (Member(A, temperature=0.0),)}, "temperature.a: expected a number from 0.01 to 100, got 0"),
        ({"members": (Member(A), Member(B)), "quorum": 3}, "quorum: expected 1 to 2, .* got 3"),
        ({"members": (Member(A),), "combine": "stack"}, "offramp fit-ensemble"),
        ({"members": (Member(A),), "stack": Stack(((1.0,),), (0.0,))}, 'belong to combine = "stack", not "mean"'),
    ],
)
def test_what_never_works_is_refused_before_anything_is_looked_up(keys: dict[str, Any], match: str) -> None:
    with pytest.raises(RouteInvalid, match=match):
        EnsembleRoute(**keys)


def test_a_stack_for_other_classes_is_refused() -> None:
    with pytest.raises(RouteInvalid, match=r"fitted for 6 log-probabilities and 2 classes; .* have 6 of 3 classes"):
        ensemble(A, B, combine="stack", stack=stack_of(np.zeros((6, 2)), np.zeros(2)))


# Live settings


def test_weights_and_temperatures_can_be_set_live_and_everything_else_stays() -> None:
    route = EnsembleRoute((Member(A, 2.0), Member(C, 1.0, 1.5)), "weighted_mean", quorum=1)
    assert route.settings() == {"weight.a": 2.0, "weight.c:2": 1.0, "temperature.a": 1.0, "temperature.c:2": 1.5}
    changed = route.with_settings({"weight.c:2": 0.5, "temperature.a": 3.0})
    assert changed == EnsembleRoute((Member(A, 2.0, 3.0), Member(C, 0.5, 1.5)), "weighted_mean", quorum=1)
    assert route.settings()["temperature.a"] == 1.0


def test_a_setting_that_would_mean_nothing_is_not_offered() -> None:
    assert EnsembleRoute((Member(A),)).settings() == {"temperature.a": 1.0}


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"weight.d": 1.0}, 'no setting "weight.d"; did you mean "weight.'),
        ({"weight.a": -1.0}, "weight.a: expected a number of at least 0"),
        ({"temperature.b": float("inf")}, "temperature.b: expected a number from"),
        ({"weight.a": 0.0, "weight.b": 0.0}, "every member has weight 0"),
        ({"weight.a": 0.0}, "quorum: expected 1 to 1, .* got 2"),
    ],
)
def test_a_setting_that_cannot_be_is_refused_and_named(changes: dict[str, float], match: str) -> None:
    route = EnsembleRoute((Member(A), Member(B)), "weighted_mean", quorum=2)
    with pytest.raises(RouteInvalid, match=match):
        route.with_settings(changes)


# Always the same


@pytest.mark.parametrize("combine", ["mean", "weighted_mean", "vote", "stack"])
def test_the_same_answers_are_combined_to_the_same_bits(combine: str) -> None:
    random = np.random.default_rng(3)
    stack = stack_of(random.normal(size=(9, 3)), random.normal(size=3)) if combine == "stack" else None
    members = [answer(random.dirichlet(np.ones(3), size=16)) for _ in range(3)]
    strategy = ensemble(A, B, C, combine=combine, stack=stack)
    first, second = finish(strategy, *members), finish(strategy, *members)
    assert bytes(first.outputs[0].data) == bytes(second.outputs[0].data)
    # The other items of a request change nothing either, but for the rounding of a stack's product.
    alone = finish(strategy, *(answer(member.outputs[0].numpy()[5:6]) for member in members))
    np.testing.assert_allclose(values(alone), values(first)[5:6], rtol=1e-6)


def stack_of(weights: np.ndarray, bias: np.ndarray) -> Stack:
    return Stack(tuple(tuple(map(float, row)) for row in weights), tuple(map(float, bias)))


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    result: np.ndarray = powers / powers.sum(axis=-1, keepdims=True)
    return result
