"""Whether two answers agree is what the route says it is."""

from __future__ import annotations

import math

import numpy as np
import pytest
from offramp_adapters.confidence.agreement import Agreement, best_classes
from offramp_adapters.routes.deciding import Deciding
from offramp_adapters.routes.strategy import RouteInvalid, TensorFacts
from open_inference.tensor import Tensor

REFERENCE = [[0.0, 3.0, 1.0], [5.0, 1.0, 0.0]]


def logits(rows: object, name: str = "logits") -> Tensor:
    return Tensor.from_numpy(name, np.array(rows, np.float32))


def agreed(agreement: Agreement, rows: object, reference: object = REFERENCE) -> list[bool]:
    return agreement.compare([logits(rows)], [logits(reference)], "logits", True)


def test_classes_agree_by_the_most_probable_one() -> None:
    assert agreed(Agreement(), [[0.0, 0.2, 0.1], [0.0, 9.0, 0.0]]) == [True, False]


def test_the_reference_s_class_may_be_among_the_k_most_probable() -> None:
    rows = [[9.0, 8.0, 7.0], [0.0, 1.0, 2.0]]
    assert agreed(Agreement("top_k", k=1), rows) == [False, False]
    assert agreed(Agreement("top_k", k=2), rows) == [True, False]


def test_every_number_of_every_output_may_be_off_by_the_tolerance() -> None:
    near = Agreement("tolerance", tolerance=0.5)
    assert agreed(near, [[0.5, 3.0, 1.0], [5.0, 1.75, 0.0]]) == [True, False]
    other = [logits(REFERENCE), logits([[1.0], [1.0]], "box")]
    moved = [logits(REFERENCE), logits([[1.2], [2.0]], "box")]
    assert near.compare(moved, other, "logits", True) == [True, False]


def test_texts_agree_where_they_are_equal() -> None:
    ours, theirs = (Tensor.from_numpy("t", np.array([["a"], [b]], object)) for b in ("b", "c"))
    assert Agreement("tolerance", tolerance=9.0).compare([ours], [theirs], "t", True) == [True, False]


def test_embeddings_agree_by_their_cosine() -> None:
    rows = [[0.0, 30.0, 10.0], [5.0, 5.0, 0.0]]
    assert agreed(Agreement("cosine", tolerance=0.01), rows) == [True, False]
    assert agreed(Agreement("cosine", tolerance=2.0), np.zeros((2, 3))) == [False, False]


@pytest.mark.parametrize(
    "agreement",
    [
        Agreement(),
        Agreement("top_k", k=2),
        Agreement("tolerance", tolerance=9.0),
        Agreement("cosine", tolerance=2.0),
    ],
)
def test_what_is_no_number_agrees_with_nothing(agreement: Agreement) -> None:
    broken = [[math.nan, 3.0, 1.0], REFERENCE[1]]
    assert agreed(agreement, broken) == [False, True]
    assert agreed(agreement, REFERENCE, broken) == [False, True]
    assert agreed(agreement, broken, broken) == [False, True]


@pytest.mark.parametrize("agreement", [Agreement(), Agreement("tolerance", tolerance=9.0)])
def test_answers_of_different_shapes_do_not_agree(agreement: Agreement) -> None:
    assert agreed(agreement, [[1.0, 2.0], [2.0, 1.0]]) == [False, False]


def test_an_answer_without_a_batch_dimension_is_one_item() -> None:
    one, other = logits([0.0, 1.0]), logits([1.0, 2.0])
    assert Agreement().compare([one], [other], "logits", False) == [True]
    assert best_classes(one, False) == [1]


def test_the_class_of_an_item_is_the_first_of_the_highest_or_none() -> None:
    assert best_classes(logits([[1, 4, 4], [math.nan, 0, 0]]), True) == [1, None]
    assert best_classes(logits(np.zeros((2, 0))), True) == [None, None]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "top_k"}, 'agreement.kind = "top_k" needs agreement.k'),
        ({"k": 2}, 'agreement.kind = "class" does not use agreement.k'),
        ({"kind": "cosine"}, "needs agreement.tolerance"),
        ({"kind": "top_k", "k": 0}, "agreement.k: expected an integer of at least 1, got 0"),
        ({"kind": "tolerance", "tolerance": -1.0}, "agreement.tolerance: expected a number of at least 0, got -1"),
    ],
)
def test_what_does_not_go_together_is_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(RouteInvalid, match=message):
        Agreement(**fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("agreement", "classes", "message"),
    [
        (Agreement("top_k", k=3), 3, "expected fewer than the 3 classes"),
        (Agreement(), 1, 'has one class, .* expected "tolerance" or "cosine"'),
    ],
)
def test_what_would_always_hold_is_refused(agreement: Agreement, classes: int, message: str) -> None:
    with pytest.raises(RouteInvalid, match=message):
        agreement.check(Deciding(TensorFacts("logits", "FP32", (classes,)), "logits"))
