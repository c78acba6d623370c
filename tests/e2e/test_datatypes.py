"""Every datatype of the protocol goes in and comes out as it was, bit for bit."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from model_files import ONNX_TYPES
from open_inference import grpc_predict_v2_pb2 as pb
from open_inference.tensor import ITEM_SIZES
from server_process import ServerProcess
from shared_models import TORCH_TYPES, identity
from triton_calls import tensor
from tritonclient.utils import InferenceServerException

NUMBERS = [datatype for datatype in ONNX_TYPES if datatype != "BYTES"]
# Positive, negative and quiet or signalling NaN with payloads, infinities, negative zero, the smallest subnormal.
SPECIAL = {
    "FP16": "007c 00fc 007e 00fe 017d 2a7c 0080 0100",
    "BF16": "807f 80ff c07f c0ff 817f 2aff 0080 0100",
    "FP32": "0000807f 000080ff 0000c07f 0000c0ff 0100807f efbeadff 00000080 01000000",
    "FP64": "000000000000f07f 000000000000f0ff 000000000000f87f 010000000000f0ff "
    "efbeadde0000f47f 0000000000000080 0100000000000000 ffffffffffffefff",
}
STRINGS = [b"", b"plain", "grüße 🎈".encode(), bytes(range(128)), b"x" * 100_000]


@pytest.fixture(scope="module")
def infer(server: ServerProcess) -> Iterator[Any]:
    """ModelInfer by message, so that no client library touches the tensors' bytes."""
    with grpc.insecure_channel(server.grpc, options=[("grpc.max_receive_message_length", -1)]) as channel:
        yield channel.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer",
            request_serializer=pb.ModelInferRequest.SerializeToString,
            response_deserializer=pb.ModelInferResponse.FromString,
        )


@pytest.fixture(scope="module")
def client(server: ServerProcess) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(server.grpc) as client:
        yield client


def sample(datatype: str, count: int) -> bytes:
    """That many elements of random bits."""
    random = np.random.default_rng(count)
    if datatype == "BOOL":
        return random.integers(0, 2, count, dtype=np.uint8).tobytes()
    return random.bytes(count * ITEM_SIZES[datatype])


def request(model: str, inputs: list[tuple[str, str, list[int], bytes]]) -> pb.ModelInferRequest:
    message = pb.ModelInferRequest(model_name=model)
    for name, datatype, shape, data in inputs:
        message.inputs.add(name=name, datatype=datatype, shape=shape)
        message.raw_input_contents.append(data)
    return message


@pytest.mark.parametrize("datatype", NUMBERS)
def test_numbers_come_back_through_onnx(infer: Any, datatype: str) -> None:
    for rows, columns in ((1, 1), (3, 5), (16, 1000)):
        data = sample(datatype, rows * columns)

        response = infer(request(identity(datatype), [("x", datatype, [rows, columns], data)]), timeout=60)

        assert (response.outputs[0].datatype, list(response.outputs[0].shape)) == (datatype, [rows, columns])
        assert response.raw_output_contents[0] == data


def test_thirteen_tensors_of_thirteen_datatypes_come_back_through_torch(infer: Any) -> None:
    inputs = [
        (f"tensors_{position}", datatype, [4, 3], sample(datatype, 12)) for position, datatype in enumerate(TORCH_TYPES)
    ]

    response = infer(request("every_type", inputs), timeout=60)

    assert [output.datatype for output in response.outputs] == list(TORCH_TYPES)
    assert list(response.raw_output_contents) == [data for *_, data in inputs]


@pytest.mark.parametrize("datatype", SPECIAL)
def test_nan_infinities_and_signed_zero_pass_unchanged(infer: Any, datatype: str) -> None:
    data = bytes.fromhex(SPECIAL[datatype])
    response = infer(request(identity(datatype), [("x", datatype, [2, 4], data)]), timeout=60)
    assert response.raw_output_contents[0] == data


@pytest.mark.parametrize(("datatype", "field"), [("FP32", "fp32_contents"), ("FP64", "fp64_contents")])
def test_they_pass_in_typed_contents_too(infer: Any, datatype: str, field: str) -> None:
    data = bytes.fromhex(SPECIAL[datatype])
    message = pb.ModelInferRequest(model_name=identity(datatype))
    contents = message.inputs.add(name="x", datatype=datatype, shape=[2, 4]).contents
    # Protobuf packs floats as their bits; Python's floats would make a signalling NaN a quiet one.
    number = contents.DESCRIPTOR.fields_by_name[field].number
    contents.MergeFromString(bytes([number << 3 | 2, len(data)]) + data)

    response = infer(message, timeout=60)

    assert response.outputs[0].contents.SerializeToString()[2:] == data


def test_strings_of_any_length_come_back(client: triton.InferenceServerClient) -> None:
    rows = np.array([STRINGS, STRINGS[::-1]], dtype=np.object_)
    result = client.infer("identity_bytes", [tensor("x", rows, "BYTES")])
    np.testing.assert_array_equal(result.as_numpy("y"), rows)


def test_strings_that_are_not_utf8_are_refused_by_a_model_that_takes_text(
    client: triton.InferenceServerClient,
) -> None:
    with pytest.raises(InferenceServerException) as caught:
        client.infer("identity_bytes", [tensor("x", np.array([[b"ok", b"caf\xe9"]], dtype=np.object_), "BYTES")])
    assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"
    assert 'input "x": the strings of this model are UTF-8, element 1 is not' in caught.value.message()


def test_typed_strings_are_answered_typed(infer: Any) -> None:
    message = pb.ModelInferRequest(model_name="identity_bytes")
    message.inputs.add(name="x", datatype="BYTES", shape=[1, 3]).contents.bytes_contents.extend(STRINGS[:3])

    response = infer(message, timeout=60)

    assert list(response.outputs[0].contents.bytes_contents) == STRINGS[:3]
    assert not response.raw_output_contents
