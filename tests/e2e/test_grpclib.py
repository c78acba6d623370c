"""grpclib, which brings an HTTP/2 of its own, calls the server as it is."""

from __future__ import annotations

from collections.abc import AsyncIterator

import numpy as np
import pytest
from eventually import PATIENCE
from grpclib.client import Channel, StreamStreamMethod, UnaryUnaryMethod
from grpclib.const import Status
from grpclib.exceptions import GRPCError
from open_inference import grpc_predict_v2_pb2 as pb
from server_process import ServerProcess

SERVICE = "/inference.GRPCInferenceService/"


@pytest.fixture
async def channel(small_server: ServerProcess) -> AsyncIterator[Channel]:
    host, port = small_server.grpc.rsplit(":", 1)
    channel = Channel(host, int(port))
    yield channel
    channel.close()


def add_sub(name: str) -> pb.ModelInferRequest:
    values = np.arange(16, dtype=np.int32)
    tensor = pb.ModelInferRequest.InferInputTensor
    return pb.ModelInferRequest(
        model_name=name,
        id="7",
        inputs=[tensor(name=each, datatype="INT32", shape=[1, 16]) for each in ("INPUT0", "INPUT1")],
        raw_input_contents=[values.tobytes(), values.tobytes()],
    )


def infer(channel: Channel) -> UnaryUnaryMethod[pb.ModelInferRequest, pb.ModelInferResponse]:
    return UnaryUnaryMethod(channel, f"{SERVICE}ModelInfer", pb.ModelInferRequest, pb.ModelInferResponse)


async def test_a_call_and_its_answer(channel: Channel) -> None:
    answer = await infer(channel)(
        add_sub("add_sub"), timeout=PATIENCE, metadata=[("key", "value"), ("raw-bin", b"\0\xff")]
    )
    assert answer.id == "7"
    np.testing.assert_array_equal(np.frombuffer(answer.raw_output_contents[0], np.int32), 2 * np.arange(16))


async def test_an_error_has_its_status_and_message(channel: Channel) -> None:
    with pytest.raises(GRPCError) as caught:
        await infer(channel)(add_sub("nothing"), timeout=PATIENCE)
    assert caught.value.status is Status.NOT_FOUND
    assert 'there is no model or route "nothing"' in str(caught.value.message)


async def test_a_stream_of_requests(channel: Channel) -> None:
    method = StreamStreamMethod(
        channel, f"{SERVICE}ModelStreamInfer", pb.ModelInferRequest, pb.ModelStreamInferResponse
    )
    answers = await method([add_sub("add_sub"), add_sub("nothing"), add_sub("add_sub")], timeout=PATIENCE)
    assert [bool(answer.error_message) for answer in answers] == [False, True, False]
