"""Triton's own clients. Their calls are those of ModelInfer: `Call.messages` has the request that they are to write."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from calling import Call, Channel, Opening, Outcome, Pending, Tls, code_of
from offramp_server.transport.interface import Code
from open_inference import grpc_predict_v2_pb2 as pb
from python_clients import LoopChannel, LoopClient, channel_options
from tritonclient.utils import InferenceServerException

_TYPES = {"FP32": np.float32, "INT32": np.int32}


def _connection(opening: Opening, folder: str) -> dict[str, Any]:
    return {"url": opening.target, "channel_args": channel_options(opening), **_files(opening.tls, folder)}


def _files(tls: Tls | None, folder: str) -> dict[str, Any]:
    if tls is None:
        return {}
    said: dict[str, Any] = {"ssl": True}
    pem = {"root_certificates": tls.ca, "certificate_chain": tls.certificate, "private_key": tls.key}
    for name, content in pem.items():
        if content is not None:
            Path(folder, name).write_bytes(content)
            said[name] = str(Path(folder, name))
    return said


def _request(call: Call) -> dict[str, Any]:
    request = pb.ModelInferRequest.FromString(call.messages[0])
    inputs = []
    for tensor, raw in zip(request.inputs, request.raw_input_contents, strict=True):
        inputs.append(triton.InferInput(tensor.name, list(tensor.shape), tensor.datatype))
        inputs[-1].set_data_from_numpy(np.frombuffer(raw, _TYPES[tensor.datatype]).reshape(tensor.shape))
    return {
        "model_name": request.model_name,
        "inputs": inputs,
        "request_id": request.id,
        "client_timeout": call.timeout,
        "headers": dict(call.metadata),
        "compression_algorithm": call.compression,
    }


def _outcome(result: Any, error: Exception | None) -> Outcome:
    if isinstance(error, InferenceServerException):
        return Outcome(code_of(error.status()), error.message())
    return Outcome(Code.OK, answers=(result.get_response().SerializeToString(),))


class TritonClient:
    """The blocking one."""

    def open(self, opening: Opening) -> Channel:
        return _TritonChannel(opening)

    def close(self) -> None:
        pass


class _TritonChannel:
    def __init__(self, opening: Opening) -> None:
        with TemporaryDirectory() as folder:
            self._client = triton.InferenceServerClient(**_connection(opening, folder))

    def begin(self, call: Call) -> Pending:
        future: Future[Outcome] = Future()

        def on_done(result: Any, error: Any) -> None:
            future.set_result(_outcome(result, error))

        return Pending(future, self._client.async_infer(callback=on_done, **_request(call)).cancel)

    def close(self) -> None:
        self._client.close()


class TritonAsyncioClient(LoopClient):
    """The asyncio one."""

    async def _open(self, opening: Opening) -> Channel:
        return _TritonAsyncioChannel(opening, self.loop)


class _TritonAsyncioChannel(LoopChannel):
    def __init__(self, opening: Opening, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        with TemporaryDirectory() as folder:
            self._client = triton_aio.InferenceServerClient(**_connection(opening, folder))

    async def make(self, call: Call) -> Outcome:
        try:
            return _outcome(await self._client.infer(**_request(call)), None)
        except InferenceServerException as error:
            return _outcome(None, error)

    async def leave(self) -> None:
        await self._client.close()
