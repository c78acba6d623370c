"""Whatever a client sends, it is told what is wrong, and no worker suffers. Against worker processes, over a bare
channel: the messages are bytes here, so nothing on this side keeps them well-formed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import grpc
import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from metrics_page import metric
from open_inference import grpc_predict_v2_pb2 as pb
from open_inference.tensor import DATATYPES, ITEM_SIZES, encode_bytes
from server_process import ServerProcess

T = TypeVar("T")
Draw = Callable[[st.SearchStrategy[T]], T]
Infer = Callable[[bytes], bytes]

EXAMPLES = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much]
)
REFUSALS = {grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND}
ROWS = 2
# Model -> inputs: name, datatype, shape.
MODELS: dict[str, list[tuple[str, str, list[int]]]] = {
    "add_sub_pt2": [("INPUT0", "INT32", [ROWS, 16]), ("INPUT1", "INT32", [ROWS, 16])],
    "add_sub_onnx": [("INPUT0", "INT32", [ROWS, 16]), ("INPUT1", "INT32", [ROWS, 16])],
    "sequence": [("tokens", "FP32", [ROWS, 3, 4]), ("mask", "FP32", [ROWS, 3])],
    "identity_bytes": [("x", "BYTES", [ROWS, 2])],
    "unbatched": [("x", "FP32", [2, 3])],
}


@pytest.fixture(scope="module")
def infer(server: ServerProcess) -> Iterator[Infer]:
    """ModelInfer, bytes to bytes."""
    with grpc.insecure_channel(server.grpc) as channel:
        call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        yield lambda data: call(data, timeout=60)


@pytest.fixture(autouse=True)
def unharmed(server: ServerProcess, infer: Infer) -> Iterator[None]:
    """After each test the same workers are there, and every model answers."""
    yield
    assert metric(server, "offramp_worker_restarts_total") == 0
    for model in MODELS:
        response = pb.ModelInferResponse.FromString(infer(valid(model).SerializeToString()))
        assert response.model_name == model
    assert server.process.poll() is None


def valid(model: str) -> pb.ModelInferRequest:
    request = pb.ModelInferRequest(model_name=model, id="hypothesis")
    for name, datatype, shape in MODELS[model]:
        request.inputs.add(name=name, datatype=datatype, shape=shape)
        count = int(np.prod(shape))
        data = encode_bytes([b"word"] * count) if datatype == "BYTES" else bytes(count * ITEM_SIZES[datatype])
        request.raw_input_contents.append(data)
    return request


def outcome(infer: Infer, data: bytes) -> tuple[grpc.StatusCode, str]:
    try:
        infer(data)
    except grpc.RpcError as error:
        return error.code(), str(error.details())
    return grpc.StatusCode.OK, ""


def check_refusal(infer: Infer, data: bytes) -> str:
    """The sentence with which it is refused."""
    code, message = outcome(infer, data)
    assert code in REFUSALS, (code, message)
    check_sentence(message)
    return message


def check_sentence(message: str) -> None:
    """Words for a caller: one line, of a length that a header bears, and not the repr of somebody's exception."""
    assert len(message.split()) >= 3
    assert len(message) <= 2000
    assert "\n" not in message
    assert "Traceback" not in message
    assert not message.split(":")[0].endswith(("Error", "Exception"))


# One thing is wrong. Each of these spoils a valid request and returns what the sentence has to mention.


def wrong_model(request: pb.ModelInferRequest, draw: Draw[Any]) -> str:
    # Hypothesis knows the strings of our own modules; no folder's name that is served has an exclamation mark.
    names = st.one_of(st.just(""), st.text(max_size=300).map(lambda name: f"{name}!"))
    request.model_name = draw(names)
    return "model"


def wrong_version(request: pb.ModelInferRequest, draw: Draw[Any]) -> str:
    request.model_version = draw(st.text(min_size=1, max_size=300).filter(lambda version: version.strip("0") != "1"))
    return "version"


def wrong_input_name(request: pb.ModelInferRequest, draw: Draw[Any]) -> str:
    tensor = draw(st.sampled_from(request.inputs))
    known = {other.name for other in request.inputs}
    tensor.name = draw(st.text(max_size=300).filter(lambda name: name not in known))
    return "input" if len(tensor.name) <= 256 else "name"


def repeated_input(request: pb.ModelInferRequest, draw: Draw[Any]) -> str:
    position = draw(st.integers(0, len(request.inputs) - 1))
    request.inputs.add().CopyFrom(request.inputs[position])
    request.raw_input_contents.append(request.raw_input_contents[position])
    return "2 times"


def missing_input(request: pb.ModelInferRequest, draw: Draw[Any]) -> str:
    position = draw(st.integers(0, len(request.inputs) - 1))
    name = request.inputs[position].name
    del request.inputs[position]
    del request.raw_input_contents[position]
    return f'missing input "{name}"'


def wrong_output_name(request: pb.ModelInferRequest, draw: Draw[Any]) -> str:
    request.outputs.add(name=draw(st.text(max_size=300).filter(lambda name: name not in ("y", "OUTPUT0", "OUTPUT1"))))
    assume(not request.outputs[0].name.startswith("output"))
    return "output" if len(request.outputs[0].name) <= 256 else "name"


def wrong_datatype(request: pb.ModelInferRequest, draw: Draw[Any]) -> str:
    tensor = draw(st.sampled_from(request.inputs))
    expected = str(tensor.datatype)
    others = st.one_of(st.sampled_from(sorted(DATATYPES)), st.text(max_size=300))
    tensor.datatype = draw(others.filter(lambda datatype: datatype != expected))
    return expected


def wrong_shape(request: pb.ModelInferRequest, draw: Draw[Any]) -> str:
    tensor = draw(st.sampled_from(request.inputs))
    was = list(tensor.shape)
    dims = st.one_of(st.integers(-2, 40), st.sampled_from([2**31 - 1, 2**31, 2**62, 2**63 - 1, -(2**63)]))
    tensor.shape[:] = draw(st.lists(dims, max_size=20).filter(lambda shape: shape != was))
    # The same bytes in another shape may be just as good, where no other input has to agree.
    assume(len(request.inputs) > 1 or np.prod(tensor.shape, dtype=object) != np.prod(was))
    return f'input "{request.inputs[0].name}"' if tensor is request.inputs[0] else "input"


def empty_batch(request: pb.ModelInferRequest, draw: Draw[Any]) -> str:
    assume(request.model_name != "unbatched")
    for position, tensor in enumerate(request.inputs):
        tensor.shape[0] = 0
        request.raw_input_contents[position] = b""
    return "expected a batch size from 1"


def batch_too_large(request: pb.ModelInferRequest, draw: Draw[Any]) -> str:
    assume(request.model_name in ("add_sub_pt2", "add_sub_onnx"))
    rows = draw(st.integers(17, 200))
    for position, tensor in enumerate(request.inputs):
        tensor.shape[0] = rows
        request.raw_input_contents[position] = bytes(rows * 64)
    return f"got {rows}"


def different_batches(request: pb.ModelInferRequest, draw: Draw[Any]) -> str:
    assume(len(request.inputs) > 1)
    request.inputs[1].shape[0] = 1
    request.raw_input_contents[1] = request.raw_input_contents[1][: len(request.raw_input_contents[1]) // ROWS]
    return "batch size 1"


def wrong_length(request: pb.ModelInferRequest, draw: Draw[Any]) -> str:
    position = draw(st.integers(0, len(request.inputs) - 1))
    right = len(request.raw_input_contents[position])
    size = draw(st.integers(0, 3 * right).filter(lambda size: size != right))
    # Zeros would be as many empty strings as there are lengths of zero.
    request.raw_input_contents[position] = b"\xff" * size
    return f'input "{request.inputs[position].name}"'


def truncated_strings(request: pb.ModelInferRequest, draw: Draw[Any]) -> str:
    assume(request.model_name == "identity_bytes")
    whole = request.raw_input_contents[0]
    request.raw_input_contents[0] = whole[: draw(st.integers(0, len(whole) - 1))]
    return "4 elements"


def lying_string_lengths(request: pb.ModelInferRequest, draw: Draw[Any]) -> str:
    assume(request.model_name == "identity_bytes")
    data = bytearray(request.raw_input_contents[0])
    length = draw(st.integers(0, 2**32 - 1).filter(lambda length: length != 4))
    position = 8 * draw(st.integers(0, 3))
    data[position : position + 4] = length.to_bytes(4, "little")
    # A length that jumps over whole elements leaves too few of them, which is refused as well.
    request.raw_input_contents[0] = bytes(data)
    return "4 elements"


def strings_that_are_no_text(request: pb.ModelInferRequest, draw: Draw[Any]) -> str:
    assume(request.model_name == "identity_bytes")
    broken = draw(st.binary(max_size=20)) + b"\xff"
    request.raw_input_contents[0] = encode_bytes([b"fine", b"", broken, b"fine"])
    return "element 2"


def wrong_number_of_contents(request: pb.ModelInferRequest, draw: Draw[Any]) -> str:
    right = len(request.inputs)
    number = draw(st.integers(1, 5).filter(lambda number: number != right))
    request.raw_input_contents[:] = [request.raw_input_contents[0]] * number
    return "raw_input_contents"


def raw_and_typed(request: pb.ModelInferRequest, draw: Draw[Any]) -> str:
    draw(st.sampled_from(request.inputs)).contents.int_contents.append(1)
    return "raw_input_contents"


def wrong_typed_field(request: pb.ModelInferRequest, draw: Draw[Any]) -> str:
    del request.raw_input_contents[:]
    for tensor in request.inputs:
        tensor.contents.bool_contents.extend(draw(st.lists(st.booleans(), min_size=1, max_size=40)))
    return "bool_contents"


def parameter_without_value(request: pb.ModelInferRequest, draw: Draw[Any]) -> str:
    request.parameters[draw(st.text(max_size=30))].SetInParent()
    return "has no value"


def wrong_parameter(request: pb.ModelInferRequest, draw: Draw[Any]) -> str:
    key = draw(st.sampled_from(["priority", "timeout"]))
    parameter = request.parameters[key]
    kind = draw(st.sampled_from(["bool_param", "double_param", "string_param", "int64_param"]))
    values = {
        "bool_param": st.booleans(),
        "double_param": st.floats(),
        "string_param": st.text(max_size=40).filter(lambda text: not text.isdigit()),
        "int64_param": st.integers(-(2**63), -1),
    }
    setattr(parameter, kind, draw(values[kind]))
    return f'parameter "{key}"'


def unknown_region(request: pb.ModelInferRequest, draw: Draw[Any]) -> str:
    tensor = draw(st.sampled_from(request.inputs))
    tensor.parameters["shared_memory_region"].string_param = draw(st.text(max_size=300))
    tensor.parameters["shared_memory_byte_size"].int64_param = draw(st.integers(-(2**63), 2**63 - 1))
    return "shared memory region"


def too_many(request: pb.ModelInferRequest, draw: Draw[Any]) -> str:
    kind = draw(st.sampled_from(["inputs", "outputs", "parameters"]))
    for number in range(300):
        if kind == "parameters":
            request.parameters[str(number)].int64_param = number
        else:
            getattr(request, kind).add(name=str(number))
    return f"at most 64 {kind}"


SPOILERS = [
    wrong_model,
    wrong_version,
    wrong_input_name,
    repeated_input,
    missing_input,
    wrong_output_name,
    wrong_datatype,
    wrong_shape,
    empty_batch,
    batch_too_large,
    different_batches,
    wrong_length,
    truncated_strings,
    lying_string_lengths,
    strings_that_are_no_text,
    wrong_number_of_contents,
    raw_and_typed,
    wrong_typed_field,
    parameter_without_value,
    wrong_parameter,
    unknown_region,
    too_many,
]


@pytest.mark.parametrize("spoil", SPOILERS, ids=lambda spoil: spoil.__name__)
@EXAMPLES
@given(data=st.data(), model=st.sampled_from(sorted(MODELS)))
def test_a_request_with_one_thing_wrong_is_told_which(
    infer: Infer, spoil: Callable[..., str], data: st.DataObject, model: str
) -> None:
    request = valid(model)
    mention = spoil(request, data.draw)
    assert mention in check_refusal(infer, request.SerializeToString())


# Anything may be wrong, or nothing.


@EXAMPLES
@given(data=st.binary(max_size=300))
def test_bytes_that_are_no_message_are_refused(infer: Infer, data: bytes) -> None:
    check_refusal(infer, data)


@settings(EXAMPLES, max_examples=150)
@given(data=st.data(), model=st.sampled_from(sorted(MODELS)))
def test_a_damaged_message_is_answered_or_refused(infer: Infer, data: st.DataObject, model: str) -> None:
    message = bytearray(valid(model).SerializeToString())
    for _ in range(data.draw(st.integers(1, 4))):
        message[data.draw(st.integers(0, len(message) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.one_of(st.just(len(message)), st.integers(0, len(message))))
    code, text = outcome(infer, bytes(message[:cut]))
    assert code is grpc.StatusCode.OK or code in REFUSALS, (code, text)
    if code in REFUSALS:
        check_sentence(text)


@settings(EXAMPLES, max_examples=150)
@given(data=st.data(), model=st.sampled_from(sorted(MODELS)))
def test_several_things_wrong_at_once_are_refused(infer: Infer, data: st.DataObject, model: str) -> None:
    request = valid(model)
    independent = [wrong_version, wrong_datatype, wrong_length, parameter_without_value, unknown_region, raw_and_typed]
    for spoil in data.draw(st.lists(st.sampled_from(independent), min_size=2, max_size=4, unique=True)):
        spoil(request, data.draw)
    check_refusal(infer, request.SerializeToString())


@pytest.mark.parametrize("method", ["ModelMetadata", "ModelConfig", "ModelStatistics", "ModelStreamInfer"])
@EXAMPLES
@given(data=st.binary(min_size=1, max_size=100))
def test_other_calls_refuse_garbage_too(server: ServerProcess, method: str, data: bytes) -> None:
    # Not a field that protobuf could skip: an end of a group that never began.
    garbage = b"\x0c" + data
    path = f"/inference.GRPCInferenceService/{method}"
    with grpc.insecure_channel(server.grpc) as channel:
        # On the wire a call with one message is a stream of one.
        answers = channel.stream_stream(path)(iter([garbage]), timeout=60)
        with pytest.raises(grpc.RpcError) as caught:
            list(answers)
    error: Any = caught.value
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "does not parse" in error.details()


def test_a_stream_says_what_is_wrong_with_each_request_and_goes_on(server: ServerProcess) -> None:
    good, bad = valid("add_sub_pt2"), valid("add_sub_pt2")
    bad.inputs[0].shape[1] = 3
    requests = [good, bad, good, valid("sequence"), bad]
    with grpc.insecure_channel(server.grpc) as channel:
        call = channel.stream_stream(
            "/inference.GRPCInferenceService/ModelStreamInfer",
            request_serializer=pb.ModelInferRequest.SerializeToString,
            response_deserializer=pb.ModelStreamInferResponse.FromString,
        )
        responses = list(call(iter(requests), timeout=60))

    wrong = 'input "INPUT0": expected INT32[-1,16], got INT32[2,3]'
    assert [response.error_message for response in responses] == ["", wrong, "", "", wrong]
    said = responses[1].infer_response.parameters
    assert said["offramp_status"].string_param == "INVALID_ARGUMENT"
    assert said["offramp_request_id"].string_param == "hypothesis"
