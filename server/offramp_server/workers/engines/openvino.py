"""OpenVINO on the CPU. Never imports torch.

One model compiled for all shapes: compiled for each batch size it was 1 to 4 % faster, and took as much memory again
for each.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import openvino
from open_inference.tensor import Tensor

from offramp_server.errors import InvalidRequest, LoadError
from offramp_server.model_spec import ModelSpec, TensorSpec
from offramp_server.workers.engines.answers import batch_size, check_output
from offramp_server.workers.engines.kind import EngineRequest
from offramp_server.workers.engines.onnx_source import OnnxSource, onnx_source

_INT32 = np.iinfo(np.int32)


class OpenVinoEngine:
    """One infer request, whose tensors are set by position."""

    def __init__(self, request: EngineRequest) -> None:
        """Raises LoadError."""
        self.report = request.report()
        self._spec = request.spec
        source = onnx_source(request)
        model = _compiled(request.spec, source, request.threads)
        self._inputs = _positions(request.spec, source, "input", model.inputs, source.inputs)
        self._outputs = _positions(request.spec, source, "output", model.outputs, source.outputs)
        self._request = model.create_infer_request()

    def execute(self, inputs: Sequence[Tensor], staying: int = 0) -> list[Tensor]:
        request = self._request
        for at, tensor in zip(self._inputs, inputs, strict=True):
            request.set_input_tensor(at, _value(tensor))
        # Given as arguments, inputs would be looked up and checked once more.
        request.infer()
        batch = batch_size(self._spec, inputs)
        pairs = zip(self._spec.outputs, self._outputs, strict=True)
        return [self._answer(output, request.get_output_tensor(at).data, batch) for output, at in pairs]

    def close(self) -> None:
        self._request = None

    def _answer(self, output: TensorSpec, values: Any, batch: int | None) -> Tensor:
        # The next call computes into the same memory.
        answer = Tensor.from_numpy(output.name, values)
        check_output(self._spec, output, answer.datatype, answer.shape, batch)
        return answer


def _compiled(spec: ModelSpec, source: OnnxSource, threads: int) -> Any:
    try:
        core = openvino.Core()
        return core.compile_model(core.read_model(source.path), "CPU", _settings(threads))
    except Exception as error:
        reason = [line for line in map(str.strip, str(error).splitlines()) if line and not line.startswith("Exception")]
        raise LoadError(
            f'model "{spec.name}": OpenVINO cannot load {source.path.name}: {reason[0] if reason else error}'
        ) from error


def _settings(threads: int) -> dict[str, Any]:
    return {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": threads,
        # Otherwise it takes bf16 or fp16 where the processor has it.
        "INFERENCE_PRECISION_HINT": "f32",
        # It would pin the threads of every worker to the same cores.
        "ENABLE_CPU_PINNING": False,
    }


def _positions(
    spec: ModelSpec, source: OnnxSource, what: str, ports: Sequence[Any], wanted: Sequence[str]
) -> list[int]:
    known = {name: at for at, port in enumerate(ports) for name in port.get_names()}
    if not set(wanted) <= known.keys() or (what == "input" and len(wanted) != len(ports)):
        raise LoadError(
            f'model "{spec.name}": {what}s {", ".join(wanted)} are declared, {source.path.name} has {", ".join(known)}'
        )
    return [known[name] for name in wanted]


def _value(tensor: Tensor) -> Any:
    array = tensor.numpy()
    if tensor.datatype == "INT64":
        _check_32_bits(tensor, array)
    return openvino.Tensor(array, shared_memory=array.flags.writeable)


def _check_32_bits(tensor: Tensor, array: Any) -> None:
    low, high = array.min(initial=0), array.max(initial=0)
    if low < _INT32.min or high > _INT32.max:
        raise InvalidRequest(
            f'input "{tensor.name}": this model runs in OpenVINO, which computes INT64 in 32 bits; expected values '
            f"from {_INT32.min} to {_INT32.max}, got {low if low < _INT32.min else high}"
        )
