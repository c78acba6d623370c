"""GRPCInferenceService: is the server there, what can it do, and inference."""

from __future__ import annotations

import asyncio
import itertools
import secrets
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import aclosing, nullcontext
from functools import partial
from types import MappingProxyType

from open_inference import grpc_predict_v2_pb2 as pb
from open_inference import raw_contents

from offramp_server.inference import InferRequest, InferResponse, ParameterValue
from offramp_server.rpc.answers import AnswerWriter
from offramp_server.rpc.calls import told
from offramp_server.rpc.forms import Received, RequestReader
from offramp_server.rpc.parameters import write_parameters
from offramp_server.rpc.ports import Serving, TraceControl
from offramp_server.rpc.shared_memory import SharedMemory
from offramp_server.rpc.status import failure_of, failure_parameters, identified
from offramp_server.rpc.streams import answer_in_order
from offramp_server.transport.interface import CallContext, Parts, parses, swift
from offramp_server.validation import Limits

_ANSWER_FIELD = pb.ModelStreamInferResponse.INFER_RESPONSE_FIELD_NUMBER
_SERVER_NAME = "offramp"
_STREAM_METHOD = "ModelStreamInfer"
_REQUEST_ID = "offramp_request_id"
# One answer for each request: it is always the last one, and as with Triton it says so unasked.
_FINAL = MappingProxyType({"triton_final_response": True})
_NONE: Mapping[str, ParameterValue] = MappingProxyType({})
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
        traces: TraceControl,
        limits: Limits,
        *,
        stream_window: int,
        server_version: str,
        extensions: Sequence[str],
    ) -> None:
        """`stream_window`: how many requests of one stream may be under way at a time."""
        self._serving = serving
        self._traces = traces
        self._reader = RequestReader(shared_memory, limits)
        self.parse = self._reader.parse
        self._writer = AnswerWriter()
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

    @swift
    @parses("parse")
    async def model_infer(
        self, received: Received, context: CallContext, parameters: Mapping[str, ParameterValue] = _NONE
    ) -> bytes | Parts:
        client_id = received.id
        if not client_id:
            # There, so that the log has it whatever happens to the request.
            received.id = self._ids.next()
        request, plan = self._reader.decode(received, context.deadline, asyncio.get_running_loop().time())
        response = await (self._traced(request, context) if self._traces.enabled else self._serving.infer(request))
        endpoint = self._serving.endpoint(request.model, request.version) if plan.classes else None
        parameters = {_REQUEST_ID: request.id, **parameters}
        return self._writer.encode(response, plan, id=client_id, parameters=parameters, endpoint=endpoint)

    @parses("parse")
    async def model_stream_infer(
        self, requests: AsyncIterator[Received], context: CallContext
    ) -> AsyncIterator[pb.ModelStreamInferResponse | bytes | Parts]:
        """An error is the answer to its request, and the stream goes on."""
        answer = partial(self._answer_in_stream, context=context)
        async with aclosing(answer_in_order(requests, answer, self._stream_window)) as answers:
            async for response in answers:
                yield response

    async def _traced(self, request: InferRequest, context: CallContext) -> InferResponse:
        with self._traces.request(context.metadata.items(), request.model, request.id) or nullcontext():
            return await self._serving.infer(request)

    async def _answer_in_stream(
        self, received: Received, context: CallContext
    ) -> pb.ModelStreamInferResponse | bytes | Parts:
        started = time.perf_counter()
        client_id = received.id
        try:
            answer = await self.model_infer(received, context, _FINAL)
            if isinstance(answer, Parts):
                return Parts(raw_contents.nest_in_parts(_ANSWER_FIELD, answer.parts))
            return raw_contents.serialize(b"", _ANSWER_FIELD, [answer])
        except Exception as error:
            if context.metadata.get(_END_ON_ERROR) == "true":
                raise identified(failure_of(error), received.id) from error
            failure = told(error, _STREAM_METHOD, received, started)
            response = pb.ModelInferResponse(
                id=client_id, model_name=received.model_name, model_version=received.model_version
            )
            write_parameters(response.parameters, {**_FINAL, **failure_parameters(failure, received.id)})
            return pb.ModelStreamInferResponse(error_message=failure.message, infer_response=response)
