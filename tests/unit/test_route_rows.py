"""Rows of a request go different ways and come back in order, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from offramp_adapters.routes.rows import Part, ShapesDiffer, merge, take
from open_inference.tensor import Tensor

TEXTS = [b"", b"a", b"longer than the others", "ä".encode()]


def numbers(count: int) -> Tensor:
    """With a NaN that carries a payload, which decoding might lose."""
    bits = np.arange(count * 6, dtype=np.uint32).reshape(count, 2, 3) + 0x7FA00000
    return Tensor("x", "FP32", bits.shape, memoryview(bits.tobytes()))


def texts(count: int) -> Tensor:
    return Tensor.from_numpy("t", np.array([[TEXTS[n % 4], TEXTS[(n + 1) % 4]] for n in range(count)], object))


def test_rows_are_taken_in_the_order_asked_for() -> None:
    x, t = take([numbers(4), texts(4)], [3, 1])
    np.testing.assert_array_equal(x.numpy().view(np.uint32), numbers(4).numpy().view(np.uint32)[[3, 1]])
    assert t.numpy().tolist() == [[TEXTS[3], TEXTS[0]], [TEXTS[1], TEXTS[2]]]
    assert (x.shape, t.shape) == ((2, 2, 3), (2, 2))


def test_no_row_and_rows_of_no_elements_are_taken_too() -> None:
    assert take([texts(3)], [])[0].shape == (0, 2)
    empty = Tensor("e", "FP32", (3, 0), b"")
    assert take([empty], [2, 0]) == [Tensor("e", "FP32", (2, 0), b"")]
    assert take([Tensor("e", "BYTES", (3, 0), b"")], [1]) == [Tensor("e", "BYTES", (1, 0), b"")]


@given(st.lists(st.integers(0, 2), min_size=1, max_size=12))
def test_what_was_taken_apart_is_put_together_as_it_was(ways: list[int]) -> None:
    whole = [numbers(len(ways)), texts(len(ways))]
    parts = []
    for way in sorted(set(ways)):
        items = [item for item, taken in enumerate(ways) if taken == way]
        parts.append(Part(take(whole, items), range(len(items)), items))
    assert [bytes(tensor.data) for tensor in merge(parts)] == [bytes(tensor.data) for tensor in whole]
    assert [tensor.shape for tensor in merge(parts)] == [tensor.shape for tensor in whole]


def test_a_part_may_use_only_some_rows_of_an_answer_and_have_its_outputs_in_any_order() -> None:
    one, two = [numbers(3), texts(3)], [texts(2), numbers(2)]
    x, t = merge([Part(one, [2], [1]), Part(two, [1], [0])])
    assert x.numpy().view(np.uint32)[0].tolist() == numbers(2).numpy().view(np.uint32)[1].tolist()
    assert t.numpy().tolist() == [texts(2).numpy()[1].tolist(), texts(3).numpy()[2].tolist()]


def test_rows_of_different_shapes_are_refused() -> None:
    wide = Tensor.from_numpy("x", np.zeros((1, 2, 4), np.float32))
    with pytest.raises(ShapesDiffer, match=r'"x" is FP32\[2,3\] .* FP32\[2,4\] .*; send them one at a time'):
        merge([Part([numbers(1)], [0], [0]), Part([wide], [0], [1])])
