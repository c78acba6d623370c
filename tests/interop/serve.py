"""`offramp serve` as a test starts it, and requests to it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from calling import Call
from model_files import write_identity_onnx
from open_inference import grpc_predict_v2_pb2 as pb
from server_process import ServerProcess, serving

MODEL = "identity"
_PATH = "/inference.GRPCInferenceService/"


@contextmanager
def offramp_serve(transport: str, folder: Path, *arguments: str) -> Iterator[ServerProcess]:
    """With a worker process and a model that gives back what it got, FP32 [-1, -1]: x -> y."""
    write_identity_onnx(folder / MODEL / "1" / "model.onnx", "FP32", ["batch", "n"])
    with serving(folder, arguments, {"OFFRAMP_SERVER__TRANSPORT": transport}) as server:
        yield server


def request_of(size: int, model: str = MODEL) -> bytes:
    """`size` is that of its tensor in bytes."""
    values = np.arange(size // 4, dtype=np.float32)[None]
    tensor = pb.ModelInferRequest.InferInputTensor(name="x", datatype="FP32", shape=values.shape)
    return pb.ModelInferRequest(
        model_name=model, id="7", inputs=[tensor], raw_input_contents=[values.tobytes()]
    ).SerializeToString()


def infer(size: int = 16, *, model: str = MODEL, timeout: float = 120, compression: str | None = None) -> Call:
    return Call(f"{_PATH}ModelInfer", (request_of(size, model),), timeout=timeout, compression=compression)


def infer_stream(*models: str) -> Call:
    return Call(f"{_PATH}ModelStreamInfer", tuple(request_of(16, model) for model in models), "bidi")


def answers_to(call: Call, answer: bytes) -> bool:
    """Whether the answer gives back what the request had."""
    request, response = pb.ModelInferRequest.FromString(call.messages[0]), pb.ModelInferResponse.FromString(answer)
    return (response.id, list(response.raw_output_contents)) == (request.id, list(request.raw_input_contents))
