"""ONNX Runtime."""

from __future__ import annotations

from offramp_server.model_spec import ModelSpec
from offramp_server.workers.engines.base import Engine
from offramp_server.workers.engines.kind import EngineRequest
from offramp_server.workers.engines.kinds.installed import lacking


class OnnxRuntimeKind:
    """Runs .onnx files as they are."""

    name = "onnxruntime"

    def missing(self, device: str) -> str:
        return lacking("onnxruntime", 'pip install "offramp[server]"')

    def refusal(self, spec: ModelSpec, device: str) -> str:
        if spec.format != "onnx":
            return f'engine "{self.name}" cannot run a .{spec.format} file; it runs .onnx files'
        if device != "cpu":
            return f'.onnx files run on the CPU, not on "{device}"; device = "cpu" is right'
        if spec.engine.precision != "fp32":
            return (
                "an .onnx file computes in the precision it was written with, "
                f'"{spec.engine.precision}" cannot be asked for; leave precision out and convert the file instead'
            )
        return ""

    def variants(self, spec: ModelSpec, device: str) -> tuple[str, ...]:
        return ("",)

    def builds(self, spec: ModelSpec) -> bool:
        return False

    def build(self, request: EngineRequest) -> None:
        """There is nothing to build."""

    def load(self, request: EngineRequest) -> Engine:
        from offramp_server.workers.engines.onnx_runtime import OnnxRuntimeEngine

        return OnnxRuntimeEngine(request)
