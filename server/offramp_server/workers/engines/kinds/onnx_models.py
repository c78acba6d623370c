"""What the engines that read ONNX have in common: `.onnx` as it is, `.pt2` by way of an `.onnx` file that is built."""

from __future__ import annotations

from offramp_server.model_spec import ModelSpec
from offramp_server.workers.engines.kind import EngineRequest
from offramp_server.workers.engines.kinds import torch_models
from offramp_server.workers.engines.kinds.installed import lacking


def refusal(name: str, spec: ModelSpec) -> str:
    """Why such an engine cannot run the model; empty if it can."""
    if spec.engine.precision != "fp32":
        return (
            f"{name} computes in the precision that the file was written with, "
            f'"{spec.engine.precision}" cannot be asked for; leave precision out and convert the file instead'
        )
    return _not_convertible(name, spec) if builds(spec) else ""


def builds(spec: ModelSpec) -> bool:
    return spec.format != "onnx"


def build(request: EngineRequest) -> None:
    from offramp_server.workers.engines.onnx_build import build_onnx

    build_onnx(request)


def _not_convertible(name: str, spec: ModelSpec) -> str:
    install = f'{name} runs a .{spec.format} file by way of ONNX, pip install "offramp[server]"'
    return torch_models.refusal(name, spec) or lacking("torch", install) or lacking("onnxscript", install)
