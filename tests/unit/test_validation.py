"""A request that fits its model passes; any other is refused with a sentence that says why."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from offramp_server.errors import InvalidRequest
from offramp_server.inference import InferRequest
from offramp_server.model_spec import TensorSpec
from offramp_server.validation import Limits, ValidatedInputs, validate
from open_inference.tensor import DATATYPES, Tensor, encode_bytes
from rpc_fakes import float_tensor

IMAGE = TensorSpec("x", "FP32", (-1, 28, 28))
SCORES = TensorSpec("scores", "FP32", (10,))


def check(
    tensors: Sequence[Tensor], *specs: TensorSpec, batch: int = 8, outputs: Sequence[str] = (), **limits: int
) -> ValidatedInputs:
    request = InferRequest("m", tensors, outputs=outputs)
    return validate(request, specs, (SCORES,), batch, Limits(**limits))


def refusal(tensors: Sequence[Tensor], *specs: TensorSpec, **options: Any) -> str:
    with pytest.raises(InvalidRequest) as caught:
        check(tensors, *specs, **options)
    return str(caught.value)


def test_a_request_that_fits_is_counted_in_items() -> None:
    tensor = float_tensor(3, 1, 28, 28)

    valid = check([tensor], IMAGE)

    assert valid.items == 3
    assert valid.tensors == [tensor]
    assert valid.shape_key == ((1, 28, 28),)


def test_inputs_come_out_in_the_order_of_the_model() -> None:
    a, b = float_tensor(2, 3, name="a"), float_tensor(2, 4, name="b")

    valid = check([b, a], TensorSpec("a", "FP32", (3,)), TensorSpec("b", "FP32", (-1,)))

    assert [tensor.name for tensor in valid.tensors] == ["a", "b"]
    assert valid.shape_key == ((3,), (4,))


def test_requests_of_different_item_shapes_have_different_keys() -> None:
    spec = TensorSpec("x", "FP32", (-1,))

    assert check([float_tensor(1, 3)], spec).shape_key == check([float_tensor(2, 3)], spec).shape_key
    assert check([float_tensor(1, 3)], spec).shape_key != check([float_tensor(1, 4)], spec).shape_key


def test_a_model_without_a_batch_dimension_takes_one_request_as_one_item() -> None:
    valid = check([float_tensor(5, 28, 28)], IMAGE, batch=0)

    assert valid.items == 1
    assert valid.shape_key == ((5, 28, 28),)


def test_a_wrong_datatype_or_shape_names_both() -> None:
    wrong = Tensor("x", "FP64", (1, 28, 28), bytes(8 * 784))

    assert refusal([wrong], IMAGE) == 'input "x": expected FP32[-1,-1,28,28], got FP64[1,28,28]'
    assert refusal([wrong], IMAGE, batch=0) == 'input "x": expected FP32[-1,28,28], got FP64[1,28,28]'
    assert refusal([float_tensor(1, 1, 28, 27)], IMAGE) == 'input "x": expected FP32[-1,-1,28,28], got FP32[1,1,28,27]'
    assert refusal([Tensor("x", "FP32", (), b"")], IMAGE) == 'input "x": expected FP32[-1,-1,28,28], got FP32[]'


def test_a_misspelt_input_is_told_its_name() -> None:
    assert refusal([float_tensor(1, name="imgae")], replace(IMAGE, name="image")) == (
        'the model has no input "imgae"; did you mean "image"?'
    )
    assert refusal([float_tensor(1, name="q")], IMAGE) == 'the model has no input "q"; there is "x"'


def test_a_missing_input_is_named() -> None:
    assert refusal([float_tensor(1, 3)], TensorSpec("x", "FP32", (3,)), TensorSpec("mask", "INT64", (3,))) == (
        'missing input "mask" (INT64): the model takes 2, the request has 1'
    )


def test_an_input_given_twice_is_refused() -> None:
    tensor = float_tensor(1, 3)

    assert refusal([tensor, tensor], TensorSpec("x", "FP32", (3,))) == 'input "x" is given 2 times, expected once'
    both = [TensorSpec("x", "FP32", (3,)), TensorSpec("y", "FP32", (3,))]
    assert refusal([tensor, tensor], *both) == 'input "x" is given 2 times, expected once'


def test_the_batch_size_has_bounds() -> None:
    spec = TensorSpec("x", "FP32", (3,))

    assert refusal([float_tensor(9, 3)], spec) == 'input "x": expected a batch size from 1 to 8, got 9'
    assert refusal([Tensor("x", "FP32", (0, 3), b"")], spec) == 'input "x": expected a batch size from 1 to 8, got 0'
    assert "from 1 to 4, got 5" in refusal([float_tensor(5, 3)], spec, max_batch_items=4)


def test_inputs_of_one_request_have_one_batch_size() -> None:
    a, b = float_tensor(2, 3, name="a"), float_tensor(1, 3, name="b")

    assert refusal([a, b], TensorSpec("a", "FP32", (3,)), TensorSpec("b", "FP32", (3,))) == (
        'input "b" has batch size 1, input "a" has 2; expected the same'
    )


def test_a_variable_dimension_has_the_bounds_of_the_model() -> None:
    spec = TensorSpec("x", "FP32", (-1,), ranges=((2, 4),))

    assert check([float_tensor(1, 4)], spec).items == 1
    assert refusal([float_tensor(1, 5)], spec) == 'input "x": expected dimension 1 from 2 to 4, got 5'
    assert refusal([float_tensor(1, 1)], spec) == 'input "x": expected dimension 1 from 2 to 4, got 1'


def test_a_variable_dimension_may_be_empty_only_if_the_model_says_so() -> None:
    empty = Tensor("x", "FP32", (1, 0), b"")

    assert refusal([empty], TensorSpec("x", "FP32", (-1,))) == 'input "x": expected dimension 1 of at least 1, got 0'
    assert check([empty], TensorSpec("x", "FP32", (-1,), ranges=((0, 9),))).items == 1


def test_dimensions_of_one_symbol_agree() -> None:
    ids = TensorSpec("ids", "FP32", (-1,), symbols=("sequence",))
    mask = TensorSpec("mask", "FP32", (-1,), symbols=("sequence",))

    assert check([float_tensor(1, 5, name="ids"), float_tensor(1, 5, name="mask")], ids, mask).items == 1
    assert refusal([float_tensor(1, 5, name="ids"), float_tensor(1, 6, name="mask")], ids, mask) == (
        'input "mask": dimension 1 is 6, but it is sequence, which is 5 in input "ids"; expected the same'
    )


def test_minus_one_is_no_size() -> None:
    spec = TensorSpec("x", "FP32", (-1, -1))

    assert "got -1" in refusal([Tensor("x", "FP32", (1, -1, -1), bytes(4))], spec)


def test_data_has_the_length_that_its_shape_says() -> None:
    short = Tensor("x", "FP32", (1, 3), bytes(11))

    assert refusal([short], TensorSpec("x", "FP32", (3,))) == 'input "x": FP32[1,3] takes 12 bytes, got 11'


def test_a_view_is_measured_in_bytes() -> None:
    view = np.zeros(3, dtype=np.float32).data

    assert check([Tensor("x", "FP32", (1, 3), view)], TensorSpec("x", "FP32", (3,))).items == 1


def test_a_tensor_over_the_limit_is_refused() -> None:
    spec = TensorSpec("x", "FP32", (-1,))

    assert refusal([float_tensor(1, 5)], spec, max_tensor_bytes=16) == (
        'input "x" has 20 bytes, this server takes at most 16'
    )


def test_bytes_elements_are_counted_and_whole() -> None:
    spec = TensorSpec("x", "BYTES", (-1,))
    data = encode_bytes([b"ab", b"", b"c"])

    def text(count: int, data: bytes) -> list[Tensor]:
        return [Tensor("x", "BYTES", (1, count), data)]

    assert check(text(3, data), spec).items == 1
    assert refusal(text(2, data), spec) == ('input "x": BYTES[1,2] has 2 elements, which end after 10 bytes, got 15')
    assert "3 elements, and BYTES element at offset 10 says 1 bytes, only 0 are left" in refusal(
        text(3, data[:-1]), spec
    )
    assert "which take at least 4000000 bytes, got 15" in refusal(text(1_000_000, data), spec)


def test_strings_are_utf8_where_the_model_takes_text() -> None:
    good, bad = encode_bytes(["grün".encode(), b""]), encode_bytes([b"ok", b"caf\xe9"])
    text, anything = TensorSpec("x", "BYTES", (2,), utf8=True), TensorSpec("x", "BYTES", (2,))

    assert check([Tensor("x", "BYTES", (1, 2), good)], text).items == 1
    assert check([Tensor("x", "BYTES", (1, 2), bad)], anything).items == 1
    assert refusal([Tensor("x", "BYTES", (1, 2), bad)], text) == (
        'input "x": the strings of this model are UTF-8, element 1 is not from its byte 3 on'
    )


def test_bool_elements_are_zero_or_one() -> None:
    spec = TensorSpec("x", "BOOL", (3,))

    assert check([Tensor("x", "BOOL", (1, 3), b"\x01\x00\x01")], spec).items == 1
    assert refusal([Tensor("x", "BOOL", (1, 3), b"\x01\x00\x02")], spec) == (
        'input "x": a BOOL element is a byte 0 or 1, got 2 at 2'
    )


def test_unknown_and_repeated_outputs_are_refused() -> None:
    tensor, spec = float_tensor(1, 3), TensorSpec("x", "FP32", (3,))

    assert check([tensor], spec, outputs=["scores"]).items == 1
    assert refusal([tensor], spec, outputs=["score"]) == 'the model has no output "score"; did you mean "scores"?'
    assert refusal([tensor], spec, outputs=["scores", "scores"]) == 'output "scores" is given 2 times, expected once'


def test_a_hostile_name_is_cut_and_stays_on_one_line() -> None:
    message = refusal([float_tensor(1, name="a\n" * 5000)], IMAGE)

    assert len(message) < 300
    assert "\n" not in message


@pytest.mark.parametrize("datatype", ["FP32\n", "", "x" * 5000])
def test_a_hostile_datatype_is_quoted_and_cut(datatype: str) -> None:
    message = refusal([Tensor("x", datatype, (1, 3), bytes(12))], TensorSpec("x", "FP32", (3,)))

    assert message == f'input "x": expected FP32[-1,3], got {json.dumps(datatype[:16])}[1,3]'


def test_nan_and_infinities_pass() -> None:
    tensor = Tensor.from_numpy("x", np.array([[np.nan, np.inf, -np.inf]], dtype=np.float32))

    assert check([tensor], TensorSpec("x", "FP32", (3,))).items == 1


def test_a_model_may_have_no_inputs() -> None:
    assert check([]).items == 1


DIM = st.one_of(st.integers(-2, 6), st.sampled_from([2**31, 2**62, -(2**62)]))
TENSOR = st.builds(
    Tensor,
    name=st.one_of(st.sampled_from(["x", "y", ""]), st.text(max_size=8)),
    datatype=st.one_of(st.sampled_from([*DATATYPES, "FP8", ""]), st.text(max_size=4)),
    shape=st.lists(DIM, max_size=5).map(tuple),
    data=st.one_of(st.binary(max_size=80), st.integers(0, 20).map(lambda count: bytes(4 * count))),
)
SPEC = st.builds(
    TensorSpec,
    name=st.sampled_from(["x", "y"]),
    datatype=st.sampled_from(DATATYPES),
    dims=st.lists(st.integers(-1, 4).filter(bool), max_size=3).map(tuple),
    symbols=st.lists(st.sampled_from([None, "n"]), max_size=3).map(tuple),
    ranges=st.lists(st.one_of(st.none(), st.tuples(st.integers(0, 2), st.integers(2, 4))), max_size=3).map(tuple),
)


@given(
    tensors=st.lists(TENSOR, max_size=3),
    specs=st.lists(SPEC, max_size=2, unique_by=lambda spec: spec.name).map(tuple),
    batch=st.integers(0, 4),
    outputs=st.lists(st.sampled_from(["scores", "z"]), max_size=2),
)
def test_whatever_comes_passes_or_is_refused(
    tensors: list[Tensor], specs: tuple[TensorSpec, ...], batch: int, outputs: list[str]
) -> None:
    try:
        valid = check(tensors, *specs, batch=batch, outputs=outputs)
    except InvalidRequest:
        return
    assert_fits(valid, specs, batch)


@given(data=st.data(), spec=SPEC, batch=st.integers(0, 4))
def test_one_thing_wrong_is_always_refused(data: st.DataObject, spec: TensorSpec, batch: int) -> None:
    spec = replace(spec, name="x", datatype="INT16", symbols=(), ranges=())
    shape = tuple(data.draw(st.integers(1, 3)) if dim < 0 else dim for dim in spec.dims)
    if batch:
        shape = (data.draw(st.integers(1, batch)), *shape)
    good = Tensor("x", "INT16", shape, bytes(2 * math.prod(shape)))
    assert_fits(check([good], spec, batch=batch), (spec,), batch)

    bad = data.draw(
        st.sampled_from(
            [
                replace(good, name="z"),
                replace(good, datatype="UINT16"),
                replace(good, shape=(*shape, 1)),
                replace(good, shape=shape[1:]) if shape else replace(good, shape=(1,)),
                replace(good, data=bytes(good.data) + b"\0"),
                replace(good, data=b""),
            ]
        )
    )
    assert refusal([bad], spec, batch=batch)


def assert_fits(valid: ValidatedInputs, specs: tuple[TensorSpec, ...], batch: int) -> None:
    for tensor, spec in zip(valid.tensors, specs, strict=True):
        assert (tensor.name, tensor.datatype) == (spec.name, spec.datatype)
        dims = tensor.shape[1:] if batch else tensor.shape
        assert len(dims) == len(spec.dims)
        assert all(size == dim or dim == -1 for size, dim in zip(dims, spec.dims, strict=True))
        assert all(size >= 0 for size in tensor.shape)
        # Reading it is safe.
        assert tensor.numpy().shape == tensor.shape
        if batch:
            assert tensor.shape[0] == valid.items <= batch
