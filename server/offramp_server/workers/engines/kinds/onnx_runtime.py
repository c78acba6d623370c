"""ONNX Runtime."""

from __future__ import annotations

from offramp_server.model_spec import ModelSpec
from offramp_server.workers.engines.base import Engine
from offramp_server.workers.engines.kind import EngineRequest
from offramp_server.workers.engines.kinds import onnx_gpu, onnx_models
from offramp_server.workers.engines.kinds.installed import lacking


class OnnxRuntimeKind:
    """Runs .onnx files as they are, and .pt2 files by way of one that is built."""

    name = "onnxruntime"

    def missing(self, device: str) -> str:
        if device == "cpu":
            return lacking("onnxruntime", 'pip install "offramp[server]"')
        return onnx_gpu.missing()

    def refusal(self, spec: ModelSpec, device: str) -> str:
        return onnx_gpu.refusal(self.name, spec, device) or onnx_models.refusal(self.name, spec)

    def variants(self, spec: ModelSpec, device: str) -> tuple[str, ...]:
        return ("",) if device == "cpu" else onnx_gpu.variants(spec)

    def builds(self, spec: ModelSpec) -> bool:
        return onnx_models.builds(spec)

    def build(self, request: EngineRequest) -> None:
        onnx_models.build(request)
        if request.choice.variant == onnx_gpu.TENSORRT:
            from offramp_server.workers.engines.onnx_gpu import build_engines

            build_engines(request)

    def load(self, request: EngineRequest) -> Engine:
        if request.device != "cpu":
            from offramp_server.workers.engines.onnx_gpu import load_on_gpu

            return load_on_gpu(request)
        from offramp_server.workers.engines.onnx_runtime import OnnxRuntimeEngine

        return OnnxRuntimeEngine(request)
