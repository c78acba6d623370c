"""Messages in, plain requests out, and back."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st
from offramp_server.errors import FailedPrecondition, InvalidRequest
from offramp_server.inference import InferRequest, InferResponse, ParameterValue
from offramp_server.rpc import wire
from offramp_server.rpc.codec import ReplyPlan, decode, encode
from offramp_server.rpc.shared_memory import SharedMemory, SharedMemorySettings
from offramp_server.rpc.wire import ReceivedRequest
from offramp_server.transport.handling import joined
from offramp_server.transport.interface import Parts
from offramp_server.validation import Limits
from open_inference.grpc_predict_v2_pb2 import ModelInferRequest, ModelInferResponse
from open_inference.tensor import NUMPY_TYPES, Tensor, encode_bytes
from rpc_fakes import echo_endpoint

OFF = SharedMemory(SharedMemorySettings())
NOW = 1000.0


def read(message: ModelInferRequest, deadline: float | None = None, **limits: int) -> tuple[InferRequest, ReplyPlan]:
    received = wire.parse(message.SerializeToString())
    return decode(received, deadline=deadline, now=NOW, shared_memory=OFF, limits=Limits(**limits))


def refusal(message: ModelInferRequest, **limits: int) -> str:
    with pytest.raises(InvalidRequest) as caught:
        read(message, **limits)
    return str(caught.value)


def request(**parameters: ParameterValue) -> ModelInferRequest:
    message = ModelInferRequest(model_name="m", model_version="2", id="r1")
    for key, value in parameters.items():
        set_parameter(message.parameters[key], value)
    return message


def set_parameter(parameter: Any, value: ParameterValue) -> None:
    kind = {bool: "bool", int: "int64", float: "double", str: "string"}[type(value)]
    setattr(parameter, f"{kind}_param", value)


def add_raw(message: ModelInferRequest, name: str, datatype: str, shape: list[int], data: bytes) -> None:
    message.inputs.add(name=name, datatype=datatype, shape=shape)
    message.raw_input_contents.append(data)


def typed(datatype: str, **contents: Any) -> ModelInferRequest:
    message = request()
    field = message.inputs.add(name="x", datatype=datatype, shape=[2]).contents
    for key, values in contents.items():
        getattr(field, key).extend(values)
    return message


def write(plan: ReplyPlan, *outputs: Tensor, endpoint: Any = None) -> ModelInferResponse:
    response = InferResponse("m", "2", "r1", outputs)
    written = encode(response, plan, id="r1", parameters={}, endpoint=endpoint)
    return ModelInferResponse.FromString(joined(written))


def test_large_outputs_are_not_copied() -> None:
    large, small = Tensor("y", "UINT8", (100_000,), bytes(100_000)), Tensor("z", "UINT8", (2,), b"ab")
    response = InferResponse("m", "2", "r1", [large, small])

    written = encode(response, ReplyPlan(), id="r1", parameters={}, endpoint=None)

    assert isinstance(written, Parts)
    assert any(isinstance(part, memoryview) and part.obj is large.data for part in written.parts)
    assert list(ModelInferResponse.FromString(joined(written)).raw_output_contents) == [large.data, small.data]


def test_raw_inputs_stay_the_bytes_they_are() -> None:
    message = request()
    add_raw(message, "a", "FP16", [1, 2], b"abcd")
    add_raw(message, "b", "BYTES", [1], encode_bytes(["hi"]))

    result, plan = read(message)

    assert (result.model, result.version, result.id) == ("m", "2", "r1")
    assert list(result.inputs) == [
        Tensor("a", "FP16", (1, 2), b"abcd"),
        Tensor("b", "BYTES", (1,), encode_bytes(["hi"])),
    ]
    assert not plan.typed


def test_a_large_raw_input_is_a_view_of_the_message() -> None:
    message = request()
    add_raw(message, "a", "UINT8", [100_000], bytes(range(250)) * 400)

    [tensor] = read(message)[0].inputs

    assert isinstance(tensor.data, memoryview)
    assert bytes(tensor.data) == message.raw_input_contents[0]


def test_every_raw_input_has_its_entry() -> None:
    message = request()
    add_raw(message, "a", "INT8", [1], b"1")
    message.inputs.add(name="b", datatype="INT8", shape=[1])
    expected = "expected an entry of raw_input_contents for each input that is not in shared memory (2), got 1"
    assert refusal(message) == expected

    message.raw_input_contents.extend([b"2", b"3"])
    assert refusal(message).endswith("(2), got 3")


def test_typed_and_raw_do_not_mix() -> None:
    message = typed("INT32", int_contents=[1, 2])
    message.raw_input_contents.append(b"12345678")

    assert refusal(message) == (
        'input "x" has typed contents, and the request raw_input_contents as well; expected the one or the other'
    )


@pytest.mark.parametrize(
    ("datatype", "field", "values"),
    [
        ("BOOL", "bool_contents", [True, False]),
        ("INT8", "int_contents", [-128, 127]),
        ("INT16", "int_contents", [-(2**15), 2**15 - 1]),
        ("INT32", "int_contents", [-(2**31), 2**31 - 1]),
        ("INT64", "int64_contents", [-(2**63), 2**63 - 1]),
        ("UINT8", "uint_contents", [0, 255]),
        ("UINT16", "uint_contents", [0, 2**16 - 1]),
        ("UINT32", "uint_contents", [0, 2**32 - 1]),
        ("UINT64", "uint64_contents", [0, 2**64 - 1]),
        ("FP32", "fp32_contents", [0.5, float("-inf")]),
        ("FP64", "fp64_contents", [0.1, 1e308]),
    ],
)
def test_typed_contents_become_raw_bytes_and_go_back_typed(datatype: str, field: str, values: list[Any]) -> None:
    result, plan = read(typed(datatype, **{field: values}))
    [tensor] = result.inputs
    response = write(plan, Tensor("y", datatype, (2,), tensor.data))

    assert tensor.data == np.array(values, dtype=NUMPY_TYPES[datatype]).tobytes()
    assert list(getattr(response.outputs[0].contents, field)) == values
    assert not response.raw_output_contents


def test_typed_strings_become_bytes_elements_and_go_back() -> None:
    result, plan = read(typed("BYTES", bytes_contents=[b"ab", b""]))
    [tensor] = result.inputs

    assert tensor.data == encode_bytes([b"ab", b""])
    assert list(write(plan, tensor).outputs[0].contents.bytes_contents) == [b"ab", b""]


@pytest.mark.parametrize("count", [127, 128, 5000, 40_000])
def test_typed_floats_of_any_count_keep_their_bits(count: int) -> None:
    values = np.linspace(-1, 1, count, dtype=np.float32)
    values[0] = np.nan

    result, plan = read(typed("FP32", fp32_contents=values))
    [tensor] = result.inputs
    response = write(plan, Tensor("y", "FP32", (count,), tensor.data))

    assert tensor.data == values.tobytes()
    np.testing.assert_array_equal(np.array(response.outputs[0].contents.fp32_contents, np.float32), values)


def test_typed_values_that_do_not_fit_are_refused() -> None:
    assert refusal(typed("INT8", int_contents=[1, 300])) == (
        'input "x": INT8 holds -128 to 127, got values from 1 to 300'
    )
    assert refusal(typed("UINT8", uint_contents=[256, 0])) == (
        'input "x": UINT8 holds 0 to 255, got values from 0 to 256'
    )


def test_the_wrong_typed_field_is_refused() -> None:
    assert refusal(typed("FP32", int_contents=[1])) == (
        'input "x": FP32 travels in fp32_contents alone, got int_contents'
    )
    assert refusal(typed("INT32", int_contents=[1], uint_contents=[1])) == (
        'input "x": INT32 travels in int_contents alone, got int_contents, uint_contents'
    )
    assert refusal(typed("FP16", fp32_contents=[1])).startswith(
        'input "x": "FP16" has no typed contents; send raw_input_contents, or one of BOOL, INT8,'
    )


def test_half_precision_outputs_of_a_typed_request_are_raw_and_so_are_the_others() -> None:
    half, whole = Tensor("h", "FP16", (1,), b"ab"), Tensor("w", "INT8", (1,), b"c")

    response = write(ReplyPlan(typed=True), half, whole)

    assert list(response.raw_output_contents) == [b"ab", b"c"]
    assert not any(output.HasField("contents") for output in response.outputs)


def test_a_raw_request_is_answered_raw() -> None:
    response = write(ReplyPlan(), Tensor("y", "INT32", (1, 1), memoryview(b"abcd")), Tensor("z", "BYTES", (0,), b""))

    assert (response.model_name, response.model_version, response.id) == ("m", "2", "r1")
    assert [(output.name, output.datatype, list(output.shape)) for output in response.outputs] == [
        ("y", "INT32", [1, 1]),
        ("z", "BYTES", [0]),
    ]
    assert list(response.raw_output_contents) == [b"abcd", b""]


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ([2, -1], 'input "x": expected dimensions from 0, got -1'),
        ([1] * 17, 'input "x": expected at most 16 dimensions, got 17'),
        ([2**40, 2**40], 'input "x": expected at most 2^63 - 1 elements, the shape says more'),
    ],
)
def test_impossible_shapes_are_refused(shape: list[int], message: str) -> None:
    sent = request()
    add_raw(sent, "x", "INT8", shape, b"")

    assert refusal(sent) == message


def test_priority_is_a_number_in_any_form() -> None:
    unsigned = request()
    unsigned.parameters["priority"].uint64_param = 3

    assert [read(message)[0].priority for message in (request(priority=2), request(priority="1"), unsigned)] == [
        2,
        1,
        3,
    ]
    assert refusal(request(priority=-1)) == 'parameter "priority": expected a number from 0 as an integer, got -1'
    assert refusal(request(priority="high")).endswith('got "high"')
    assert refusal(request(priority=True)).endswith("got True")
    assert refusal(request(priority=1.5)).endswith("got 1.5")


def test_the_earlier_of_deadline_and_timeout_counts() -> None:
    assert read(request())[0].deadline is None
    assert read(request(), deadline=NOW + 1)[0].deadline == NOW + 1
    assert read(request(timeout=500_000))[0].deadline == NOW + 0.5
    assert read(request(timeout=500_000), deadline=NOW + 0.2)[0].deadline == NOW + 0.2
    assert read(request(timeout=500_000), deadline=NOW + 2)[0].deadline == NOW + 0.5
    # Triton's clients send it for "none".
    assert read(request(timeout=0), deadline=NOW + 2)[0].deadline == NOW + 2
    assert "timeout" in refusal(request(timeout=-5))


def test_sequences_are_refused_and_their_absence_is_not() -> None:
    expected = 'sequence_id "7": models here keep no state between requests; leave sequence_id out'
    assert refusal(request(sequence_id=7)) == expected
    assert "models here keep no state" in refusal(request(sequence_id="abc"))
    absent = request(sequence_id=0, sequence_start=False, sequence_end=False)
    assert read(absent)[0].parameters == {}
    assert "expected a bool" in refusal(request(sequence_start="yes"))


def test_unknown_parameters_pass_through_with_their_types() -> None:
    message = request(offramp_unit="u1", number=-4, ratio=0.5, flag=True, binary_data_output=True)
    message.parameters["big"].uint64_param = 2**64 - 1

    assert read(message)[0].parameters == {
        "offramp_unit": "u1",
        "number": -4,
        "ratio": 0.5,
        "flag": True,
        "big": 2**64 - 1,
    }


def test_a_parameter_without_a_value_is_refused() -> None:
    message = request()
    message.parameters["empty"].SetInParent()

    assert refusal(message).startswith('parameter "empty" has no value')


def test_response_parameters_are_typed_by_their_values() -> None:
    response = InferResponse("m", "1", "r", [], {"s": "x", "b": True, "i": -1, "d": 0.5, "u": 2**64 - 1})
    written = encode(response, ReplyPlan(), id="", parameters={"offramp_request_id": "r"}, endpoint=None)
    message = ModelInferResponse.FromString(joined(written))

    kinds = {key: value.WhichOneof("parameter_choice") for key, value in message.parameters.items()}
    assert kinds == {
        "offramp_request_id": "string_param",
        "s": "string_param",
        "b": "bool_param",
        "i": "int64_param",
        "d": "double_param",
        "u": "uint64_param",
    }


def test_names_and_counts_have_limits() -> None:
    long = "x" * 300
    for message, kind in (
        (ModelInferRequest(model_name=long), "model name"),
        (ModelInferRequest(model_version=long), "model version"),
        (ModelInferRequest(id=long), "request id"),
        (request(**{long: 1}), "parameter key"),
    ):
        assert refusal(message) == f"a {kind} has at most 256 characters, got 300"
    tensor = request()
    add_raw(tensor, long, "INT8", [1], b"1")
    assert "tensor name" in refusal(tensor)
    output = request()
    output.outputs.add(name=long)
    assert "tensor name" in refusal(output)
    for _ in range(3):
        add_raw(message, "x", "INT8", [1], b"1")
    assert refusal(message, max_entries=2, max_name_length=999) == "a request has at most 2 inputs, got 3"


def test_shared_memory_is_refused_where_it_is_off() -> None:
    message = request()
    set_parameter(message.inputs.add(name="x", datatype="INT8", shape=[1]).parameters["shared_memory_region"], "r")

    with pytest.raises(FailedPrecondition, match="switched off on this server"):
        read(message)


def classification(count: ParameterValue, name: str = "y") -> ModelInferRequest:
    message = request()
    output = message.outputs.add(name=name)
    set_parameter(output.parameters["classification"], count)
    return message


def test_classification_gives_the_best_classes_with_labels() -> None:
    result, plan = read(classification(2))
    scores = Tensor.from_numpy("y", np.array([[0.1, 0.7, 0.2], [3, 1, 2]], dtype=np.float32))
    info = echo_endpoint("m", "FP32", (3,), labels=("cat", "dog"))

    response = write(plan, scores, endpoint=info)

    assert result.outputs == ("y",)
    assert (response.outputs[0].datatype, list(response.outputs[0].shape)) == ("BYTES", [2, 2])
    assert response.raw_output_contents[0] == encode_bytes(
        ["0.700000:1:dog", "0.200000:2", "3.000000:0:cat", "2.000000:2"]
    )


def test_classification_of_more_classes_than_there_are_gives_all_in_order() -> None:
    plan = read(classification(9))[1]
    scores = Tensor.from_numpy("y", np.array([[200, 0, 200, 255]], dtype=np.uint8))

    response = write(plan, scores, endpoint=echo_endpoint("m", "UINT8", (4,)))

    assert list(response.outputs[0].shape) == [1, 4]
    assert response.raw_output_contents[0] == encode_bytes(["255:3", "200:0", "200:2", "0:1"])


def test_classification_puts_nan_last() -> None:
    plan = read(classification(3))[1]
    scores = Tensor.from_numpy("y", np.array([[np.nan, 1, 2]], dtype=np.float64))

    response = write(plan, scores, endpoint=echo_endpoint("m", "FP64", (3,)))

    assert response.raw_output_contents[0] == encode_bytes(["2.000000:2", "1.000000:1", "nan:0"])


def test_classification_needs_numbers() -> None:
    plan = read(classification(3))[1]

    with pytest.raises(InvalidRequest, match='output "y" is BYTES; classification needs numbers'):
        write(plan, Tensor("y", "BYTES", (1, 1), encode_bytes(["a"])), endpoint=echo_endpoint("m", "BYTES", (1,)))
    assert 'parameter "classification"' in refusal(classification(-1))
    assert read(classification(0))[1].classes == {}


REQUESTS = st.builds(
    ModelInferRequest,
    model_name=st.text(max_size=5),
    id=st.text(max_size=5),
    inputs=st.lists(
        st.builds(
            ModelInferRequest.InferInputTensor,
            name=st.text(max_size=4),
            datatype=st.sampled_from(["FP32", "BYTES", "x"]),
            shape=st.lists(st.integers(-(2**63), 2**63 - 1), max_size=3),
        ),
        max_size=3,
    ),
    raw_input_contents=st.lists(st.binary(max_size=300), max_size=4),
)


@given(REQUESTS)
def test_a_message_read_field_by_field_is_what_protobuf_reads(message: ModelInferRequest) -> None:
    received = wire._parse_large(message.SerializeToString())

    assert [bytes(raw) for raw in received.raw] == list(message.raw_input_contents)
    message.ClearField("raw_input_contents")
    assert received.message == message


@given(st.one_of(st.binary(max_size=60), st.tuples(REQUESTS, st.binary(max_size=9), st.integers(0, 400))))
def test_garbage_is_read_as_protobuf_reads_it_or_refused(garbage: Any) -> None:
    if isinstance(garbage, bytes):
        data = garbage
    else:
        whole, inserted, position = garbage[0].SerializeToString(), garbage[1], garbage[2]
        data = whole[:position] + inserted + whole[position:]
    try:
        expected = ModelInferRequest.FromString(data)
    except DecodeError:
        expected = None
    try:
        received = parse_as_large(data)
    except DecodeError:
        assert expected is None
        return
    if expected is not None:
        assert [bytes(raw) for raw in received.raw] == list(expected.raw_input_contents)
        expected.ClearField("raw_input_contents")
        received.message.ClearField("raw_input_contents")
        assert received.message == expected


def parse_as_large(data: bytes) -> ReceivedRequest:
    """As `wire.parse` would if everything were large."""
    try:
        return wire._parse_large(data)
    except wire.OddMessage:
        message = ModelInferRequest.FromString(data)
        return ReceivedRequest(message, list(message.raw_input_contents), data)


@given(REQUESTS, st.lists(st.sampled_from(["INT8", "BOOL", "FP32", "BYTES", "FP16"]), min_size=4, max_size=4))
def test_whatever_a_message_says_it_is_read_or_refused(message: ModelInferRequest, datatypes: list[str]) -> None:
    for tensor, datatype in zip(message.inputs, datatypes, strict=False):
        tensor.contents.int_contents.extend([1, 2, 1000])
        tensor.datatype = datatype
    try:
        result = read(message)[0]
    except InvalidRequest:
        return
    assert len(result.inputs) == len(message.inputs)
