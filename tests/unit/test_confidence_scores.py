"""How sure an exit is: the same number whichever way it is computed, and no number for an answer that is none."""

from __future__ import annotations

import math
from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from offramp_adapters.confidence.scores import SoftmaxScore, judge
from open_inference.tensor import Tensor

KINDS: tuple[SoftmaxScore, ...] = get_args(SoftmaxScore)
LOGITS = [2.0, 0.5, -1.0]
P = np.exp(LOGITS) / np.exp(LOGITS).sum()


def of(row: list[float], kind: SoftmaxScore, temperature: float = 1.0, datatype: str = "FP32") -> float:
    tensor = Tensor.from_numpy("logits", np.array([row], np.float64), datatype)
    return judge(tensor, True, kind, "logits", temperature)[1][0]


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("max_probability", P[0]),
        ("margin", P[0] - P[1]),
        ("entropy", 1 + (P * np.log(P)).sum() / math.log(3)),
    ],
)
@pytest.mark.parametrize("datatype", ["FP32", "FP64", "FP16"])
def test_each_score_is_what_its_name_says(kind: SoftmaxScore, expected: float, datatype: str) -> None:
    assert of(LOGITS, kind, datatype=datatype) == pytest.approx(expected, rel=1e-6)


def test_a_temperature_above_one_makes_less_sure_and_leaves_the_class() -> None:
    warm = np.exp(np.array(LOGITS) / 3)
    assert of(LOGITS, "max_probability", 3.0) == pytest.approx(warm[0] / warm.sum())
    for kind in KINDS:
        assert of(LOGITS, kind, 3.0) < of(LOGITS, kind) < of(LOGITS, kind, 0.5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("temperature", [1.0, 1.7])
def test_probabilities_are_judged_as_the_logits_that_they_come_from(kind: SoftmaxScore, temperature: float) -> None:
    tensor = Tensor.from_numpy("probabilities", P)
    best, scores = judge(tensor, False, kind, "probabilities", temperature)
    assert best == [0]
    assert scores[0] == pytest.approx(of(LOGITS, kind, temperature, "FP64"))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("row", [[math.nan, 1.0], [1.0, math.nan], [math.inf, 0.0], [-math.inf, -math.inf]])
@pytest.mark.parametrize("copies", [1, 200])
def test_an_answer_that_is_no_number_has_neither_class_nor_score(
    kind: SoftmaxScore, row: list[float], copies: int
) -> None:
    tensor = Tensor.from_numpy("logits", np.array([row] * copies, np.float32))
    best, scores = judge(tensor, True, kind, "logits")
    assert best == [None] * copies
    assert all(map(math.isnan, scores))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("copies", [1, 200])
def test_classes_that_are_ruled_out_do_not_disturb(kind: SoftmaxScore, copies: int) -> None:
    tensor = Tensor.from_numpy("logits", np.array([[-math.inf, 3.0, -math.inf]] * copies, np.float32))
    assert judge(tensor, True, kind, "logits") == ([1] * copies, [1.0] * copies)
    tensor = Tensor.from_numpy("probabilities", np.array([[0.0, 1.0, 0.0]] * copies, np.float32))
    assert judge(tensor, True, kind, "probabilities") == ([1] * copies, [1.0] * copies)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("items", [1, 200])
def test_one_class_is_certain_and_none_is_nothing(kind: SoftmaxScore, items: int) -> None:
    assert judge(Tensor.from_numpy("y", np.full((items, 1), -7.0)), True, kind, "logits")[1] == [1.0] * items
    assert judge(Tensor.from_numpy("y", np.zeros((items, 0))), True, kind, "logits")[0] == [None] * items


def test_of_equal_classes_the_first_one_is_it() -> None:
    tensor = Tensor.from_numpy("logits", np.array([[1.0, 5.0, 5.0]], np.float32))
    assert judge(tensor, True, "margin", "logits") == ([1], [0.0])


@given(
    st.lists(st.lists(st.floats(-1e4, 1e4, width=32), min_size=3, max_size=3), min_size=1, max_size=5),
    st.sampled_from(KINDS),
    st.floats(0.05, 20),
)
def test_a_score_lies_between_0_and_1_and_does_not_depend_on_how_many_come_at_once(
    rows: list[list[float]], kind: SoftmaxScore, temperature: float
) -> None:
    few = judge(Tensor.from_numpy("logits", np.array(rows, np.float32)), True, kind, "logits", temperature)
    many = judge(Tensor.from_numpy("logits", np.array(rows * 50, np.float32)), True, kind, "logits", temperature)
    assert all(0 <= score <= 1 for score in [*few[1], *many[1]])
    assert many[0] == few[0] * 50
    assert many[1] == pytest.approx(few[1] * 50, abs=1e-9)
