"""How far an engine's answers are from another one's, and how far they may be."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine_models import model_spec
from offramp_server.workers.engines.parity import compare, tolerance
from open_inference.tensor import BF16, Tensor


def tensor(values: Any, dtype: Any = np.float32, datatype: str | None = None) -> Tensor:
    return Tensor.from_numpy("y", np.array(values, dtype), datatype)


def difference(found: Any, wanted: Any, dtype: Any = np.float32) -> float:
    return compare([tensor(found, dtype)], [tensor(wanted, dtype)])


def test_a_difference_is_relative_to_the_largest_value_of_its_own_output() -> None:
    assert difference([1.0, -8.0], [2.0, -8.0]) == 1 / 8
    small, large = tensor([0.5]), tensor([1000.0])
    assert compare([tensor([0.25]), large], [small, large]) == 0.5


def test_equal_answers_differ_by_nothing_whatever_they_hold() -> None:
    assert difference([np.nan, np.inf, -np.inf, 1], [np.nan, np.inf, -np.inf, 1]) == 0
    assert difference(np.zeros((0, 3)), np.zeros((0, 3))) == 0
    assert compare([], []) == 0
    assert compare([tensor([b"a"], object)], [tensor([b"a"], object)]) == 0


@pytest.mark.parametrize(
    ("found", "wanted"), [(np.nan, 1.0), (1.0, np.nan), (np.inf, 1.0), (1.0, np.inf), (np.inf, -np.inf)]
)
def test_nan_or_infinity_in_one_of_the_two_is_never_within_a_tolerance(found: float, wanted: float) -> None:
    assert difference([found, 1.0], [wanted, 1.0]) == math.inf


def test_where_nothing_but_zero_is_expected_differences_count_as_they_are() -> None:
    assert difference([0.0, 1e-6], [0.0, 0.0]) == pytest.approx(1e-6)


def test_integers_and_booleans_count_as_numbers() -> None:
    assert difference([0, 250], [255, 250], np.uint8) == 1
    assert difference([-128], [127], np.int8) == 255 / 127
    assert difference([2**63 - 1], [-(2**63)], np.int64) == pytest.approx(2)
    assert difference([True, False], [True, True], np.bool_) == 1


def test_half_precision_is_compared_without_overflow() -> None:
    assert difference([-60000], [60000], np.float16) == pytest.approx(2, abs=1e-3)
    assert compare([tensor([1.0], datatype=BF16)], [tensor([2.0], datatype=BF16)]) == 0.5


def test_other_shapes_datatypes_counts_and_strings_are_not_comparable() -> None:
    assert difference([[1.0]], [1.0]) == math.inf
    assert compare([tensor([1], np.int32)], [tensor([1])]) == math.inf
    assert compare([], [tensor([1])]) == math.inf
    assert compare([tensor([b"a"], object)], [tensor([b"b"], object)]) == math.inf


def test_the_tolerance_follows_precision_and_is_wider_for_integers() -> None:
    path = Path("model.pt2")
    allowed = [tolerance(model_spec(path, [], [], precision=name)) for name in ("fp32", "fp16", "bf16")]
    assert allowed == sorted(allowed)
    assert allowed[0] == 1e-4
    assert tolerance(model_spec(path, [], [], quantized=True)) > allowed[0]
