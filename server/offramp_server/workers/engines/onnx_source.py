"""Which `.onnx` file an engine reads for a model, and what its tensors are called there. Never imports torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from offramp_server.model_spec import ModelSpec
from offramp_server.workers.engines.kind import EngineRequest

_BUILT = "model.onnx"


@dataclass(frozen=True, slots=True)
class OnnxSource:
    """Names are in the order of the spec."""

    path: Path
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def onnx_source(request: EngineRequest) -> OnnxSource:
    """The model's own file, or the one that is built of another format."""
    spec = request.spec
    if spec.format != "onnx":
        return built_source(spec, request.artifacts)
    inputs, outputs = (tuple(tensor.source or tensor.name for tensor in side) for side in (spec.inputs, spec.outputs))
    return OnnxSource(spec.path, inputs, outputs)


def built_source(spec: ModelSpec, artifacts: Path) -> OnnxSource:
    """Public names will not do: an input and an output may have the same."""
    inputs = tuple(f"input{at}" for at in range(len(spec.inputs)))
    return OnnxSource(artifacts / _BUILT, inputs, tuple(f"output{at}" for at in range(len(spec.outputs))))
