"""OpenVINO, an optional extra."""

from __future__ import annotations

from open_inference.tensor import BF16, BYTES

from offramp_server.model_spec import ModelSpec
from offramp_server.workers.engines.base import Engine
from offramp_server.workers.engines.kind import EngineRequest
from offramp_server.workers.engines.kinds import onnx_models
from offramp_server.workers.engines.kinds.installed import lacking

# What OpenVINO takes and then computes in 32 bits, or cannot be given by way of numpy.
_NOT_EXACT = ("FP64", "UINT32", "UINT64", BF16, BYTES)


class OpenVinoKind:
    """Runs .onnx files as they are, and .pt2 files by way of one that is built, on the CPU."""

    name = "openvino"

    def missing(self, device: str) -> str:
        return lacking("openvino", 'pip install "offramp[openvino]"')

    def refusal(self, spec: ModelSpec, device: str) -> str:
        if device != "cpu":
            return f'{self.name} runs on the CPU here, not on "{device}"; device = "cpu" is right'
        return onnx_models.refusal(self.name, spec) or _inexact(spec)

    def variants(self, spec: ModelSpec, device: str) -> tuple[str, ...]:
        return ("",)

    def builds(self, spec: ModelSpec) -> bool:
        return onnx_models.builds(spec)

    def build(self, request: EngineRequest) -> None:
        onnx_models.build(request)

    def load(self, request: EngineRequest) -> Engine:
        from offramp_server.workers.engines.openvino import OpenVinoEngine

        return OpenVinoEngine(request)


def _inexact(spec: ModelSpec) -> str:
    # INT64 inputs are looked at in each call. Sums and products that need 64 bits come out wrong, and nothing shows it.
    rounded = [tensor for tensor in spec.outputs if tensor.datatype == "INT64"]
    rounded += [tensor for tensor in (*spec.inputs, *spec.outputs) if tensor.datatype in _NOT_EXACT]
    if not rounded:
        return ""
    return (
        f'"{rounded[0].name}" is {rounded[0].datatype}, which openvino does not compute exactly; '
        'backend = "onnxruntime" does'
    )
