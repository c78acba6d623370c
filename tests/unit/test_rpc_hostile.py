"""Whatever a client puts into a message, it is told what is wrong, and the server has no error of its own."""

from __future__ import annotations

import asyncio
from functools import cache
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from offramp_server.rpc.health_board import HealthBoard
from offramp_server.rpc.services import RpcSettings, build_services
from offramp_server.transport.interface import CallFailed, Code, Method
from open_inference import grpc_predict_v2_pb2 as pb
from open_inference.tensor import DATATYPES
from rpc_fakes import FakeContext, FakeLogs, FakeServing, FakeTraces

# What a caller can do something about.
EXPECTED = {Code.INVALID_ARGUMENT, Code.NOT_FOUND, Code.FAILED_PRECONDITION}

NAME = st.one_of(st.sampled_from(["x", "y", "INPUT0", "INPUT1", "OUTPUT0", ""]), st.text(max_size=8))
PARAMETER = st.one_of(
    st.builds(pb.InferParameter),
    st.builds(pb.InferParameter, bool_param=st.booleans()),
    st.builds(pb.InferParameter, int64_param=st.integers(-(2**63), 2**63 - 1)),
    st.builds(pb.InferParameter, uint64_param=st.integers(0, 2**64 - 1)),
    st.builds(pb.InferParameter, double_param=st.floats()),
    st.builds(pb.InferParameter, string_param=st.text(max_size=8)),
)
KEY = st.sampled_from(
    ["priority", "timeout", "sequence_id", "sequence_start", "classification", "shared_memory_region", "offramp_unit"]
)
PARAMETERS = st.dictionaries(KEY, PARAMETER, max_size=2)
CONTENTS = st.one_of(
    st.none(),
    st.builds(pb.InferTensorContents, fp32_contents=st.lists(st.floats(width=32), max_size=4)),
    st.builds(pb.InferTensorContents, int_contents=st.lists(st.integers(-(2**31), 2**31 - 1), max_size=4)),
    st.builds(pb.InferTensorContents, bytes_contents=st.lists(st.binary(max_size=4), max_size=4)),
)
INPUT = st.builds(
    pb.ModelInferRequest.InferInputTensor,
    name=NAME,
    datatype=st.sampled_from([*DATATYPES, "FP8", ""]),
    shape=st.lists(st.one_of(st.integers(-1, 4), st.sampled_from([16, 2**62])), max_size=3),
    parameters=PARAMETERS,
    contents=CONTENTS,
)
OUTPUT = st.builds(pb.ModelInferRequest.InferRequestedOutputTensor, name=NAME, parameters=PARAMETERS)
REQUEST = st.builds(
    pb.ModelInferRequest,
    model_name=st.sampled_from(["echo", "simple", "text", "half", "missing", ""]),
    model_version=st.sampled_from(["", "1", "9", "x"]),
    id=st.text(max_size=5),
    parameters=PARAMETERS,
    inputs=st.lists(INPUT, max_size=3),
    outputs=st.lists(OUTPUT, max_size=2),
    raw_input_contents=st.lists(st.binary(max_size=40), max_size=3),
)


@cache
def model_infer() -> Method:
    services = build_services(FakeServing(), HealthBoard(), RpcSettings("1"), FakeLogs(), FakeTraces())
    return next(method for service in services for method in service.methods if method.name == "ModelInfer")


async def status(method: Method, data: bytes) -> Code:
    try:
        answer: Any = method.handler(method.parse(data), FakeContext())
        pb.ModelInferResponse.FromString(await answer)
    except CallFailed as failure:
        return failure.code
    return Code.OK


@given(REQUEST)
def test_no_request_is_an_internal_error(request: pb.ModelInferRequest) -> None:
    assert asyncio.run(status(model_infer(), request.SerializeToString())) in {Code.OK, *EXPECTED}


@given(st.data())
def test_a_good_request_with_one_thing_changed_is_understood_or_explained(data: st.DataObject) -> None:
    request = pb.ModelInferRequest(model_name="echo", id="1")
    request.inputs.add(name="x", datatype="FP32", shape=[1, 2])
    request.raw_input_contents.append(bytes(8))
    assert asyncio.run(status(model_infer(), request.SerializeToString())) is Code.OK

    change = data.draw(REQUEST)
    for field in data.draw(st.sets(st.sampled_from([field.name for field in request.DESCRIPTOR.fields]), max_size=2)):
        request.ClearField(field)
        single = pb.ModelInferRequest.FromString(change.SerializeToString())
        for other in request.DESCRIPTOR.fields:
            if other.name != field:
                single.ClearField(other.name)
        request.MergeFrom(single)
    assert asyncio.run(status(model_infer(), request.SerializeToString())) in {Code.OK, *EXPECTED}
