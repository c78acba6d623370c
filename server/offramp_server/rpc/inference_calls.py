"""GRPCInferenceService: is the server there, what can it do, and inference."""

from __future__ import annotations

import asyncio
import itertools
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from functools import partial

from open_inference import grpc_predict_v2_pb2 as pb

from offramp_server.rpc.calls import told
from offramp_server.rpc.codec import decode, encode
from offramp_server.rpc.ports import Serving
from offramp_server.rpc.shared_memory import SharedMemory
from offramp_server.rpc.streams import answer_in_order
from offramp_server.transport.interface import CallContext
from offramp_server.validation import Limits

_SERVER_NAME = "offramp"
_STREAM_METHOD = "ModelStreamInfer"
_FINAL_RESPONSE = "triton_final_response"
# A client that sends this metadata wants its stream to end with the status of the first error.
_END_ON_ERROR = "triton_grpc_error"


class RequestIds:
    """Ids for requests that bring none: unique within a process and, in all likelihood, beyond."""

    def __init__(self) -> None:
        self._prefix = secrets.token_hex(6)
        self._count = itertools.count(1)

    def next(self) -> str:
        return f"{self._prefix}-{next(self._count)}"


class InferenceCalls:
    """Inference, one by one and in streams."""

    def __init__(
        self,
        serving: Serving,
        shared_memory: SharedMemory,
        limits: Limits,
        *,
        stream_window: int,
        server_version: str,
        extensions: Sequence[str],
    ) -> None:
        """`stream_window`: how many requests of one stream may be under way at a time."""
        self._serving = serving
        self._shared_memory = shared_memory
        self._limits = limits
        self._stream_window = stream_window
        self._server_version = server_version
        self._extensions = tuple(extensions)
        self._ids = RequestIds()

    async def server_live(self, request: pb.ServerLiveRequest, context: CallContext) -> pb.ServerLiveResponse:
        return pb.ServerLiveResponse(live=self._serving.live)

    async def server_ready(self, request: pb.ServerReadyRequest, context: CallContext) -> pb.ServerReadyResponse:
        return pb.ServerReadyResponse(ready=self._serving.ready)

    async def server_metadata(
        self, request: pb.ServerMetadataRequest, context: CallContext
    ) -> pb.ServerMetadataResponse:
        return pb.ServerMetadataResponse(name=_SERVER_NAME, version=self._server_version, extensions=self._extensions)

    async def model_infer(self, request: pb.ModelInferRequest, context: CallContext) -> pb.ModelInferResponse:
        return await self._infer(request, context.deadline)

    async def model_stream_infer(
        self, requests: AsyncIterator[pb.ModelInferRequest], context: CallContext
    ) -> AsyncIterator[pb.ModelStreamInferResponse]:
        """An error is the answer to its request, and the stream goes on."""
        ends_on_error = context.metadata.get(_END_ON_ERROR) == "true"
        answer = partial(self._answer_in_stream, deadline=context.deadline, ends_on_error=ends_on_error)
        async with aclosing(answer_in_order(requests, answer, self._stream_window)) as answers:
            async for response in answers:
                yield response

    async def _infer(self, message: pb.ModelInferRequest, deadline: float | None) -> pb.ModelInferResponse:
        client_id = message.id
        if not client_id:
            # Into the message, so that the log has it whatever happens to the request.
            message.id = self._ids.next()
        request, plan = decode(
            message,
            deadline=deadline,
            now=asyncio.get_running_loop().time(),
            shared_memory=self._shared_memory,
            limits=self._limits,
        )
        response = await self._serving.infer(request)
        endpoint = self._serving.endpoint(request.model, request.version) if plan.classes else None
        return encode(response, plan, client_id=client_id, request_id=request.id, endpoint=endpoint)

    async def _answer_in_stream(
        self, message: pb.ModelInferRequest, *, deadline: float | None, ends_on_error: bool
    ) -> pb.ModelStreamInferResponse:
        started = time.perf_counter()
        client_id = message.id
        try:
            response = pb.ModelStreamInferResponse(infer_response=await self._infer(message, deadline))
        except Exception as error:
            failure = told(error, _STREAM_METHOD, message, started)
            if ends_on_error:
                raise failure from error
            response = pb.ModelStreamInferResponse(
                error_message=failure.message,
                infer_response=pb.ModelInferResponse(
                    id=client_id, model_name=message.model_name, model_version=message.model_version
                ),
            )
        # One answer for each request: it is always the last one, and as with Triton it says so unasked.
        response.infer_response.parameters[_FINAL_RESPONSE].bool_param = True
        return response
