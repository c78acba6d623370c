"""ONNX Runtime."""

from __future__ import annotations

from offramp_server.model_spec import ModelSpec
from offramp_server.workers.engines.base import Engine
from offramp_server.workers.engines.kind import EngineRequest
from offramp_server.workers.engines.kinds import onnx_models
from offramp_server.workers.engines.kinds.installed import lacking


class OnnxRuntimeKind:
    """Runs .onnx files as they are, and .pt2 files by way of one that is built."""

    name = "onnxruntime"

    def missing(self, device: str) -> str:
        return lacking("onnxruntime", 'pip install "offramp[server]"')

    def refusal(self, spec: ModelSpec, device: str) -> str:
        if device != "cpu":
            return f'{self.name} runs on the CPU here, not on "{device}"; device = "cpu" is right'
        return onnx_models.refusal(self.name, spec)

    def variants(self, spec: ModelSpec, device: str) -> tuple[str, ...]:
        return ("",)

    def builds(self, spec: ModelSpec) -> bool:
        return onnx_models.builds(spec)

    def build(self, request: EngineRequest) -> None:
        onnx_models.build(request)

    def load(self, request: EngineRequest) -> Engine:
        from offramp_server.workers.engines.onnx_runtime import OnnxRuntimeEngine

        return OnnxRuntimeEngine(request)
