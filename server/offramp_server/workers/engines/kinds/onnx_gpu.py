"""ONNX Runtime on an NVIDIA GPU, before it is imported."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, distribution

from open_inference.tensor import BYTES

from offramp_server.model_spec import VARIABLE, ModelSpec
from offramp_server.workers.engines.kinds.installed import lacking

# The variant that hands the graph to TensorRT; the plain one runs ONNX Runtime's own CUDA kernels.
TENSORRT = "TensorRT"


def missing() -> str:
    """What has to be installed; empty: nothing. Which of the two packages the module comes from, it does not say."""
    try:
        distribution("onnxruntime-gpu")
    except PackageNotFoundError:
        return (
            "onnxruntime-gpu is not installed; pip uninstall onnxruntime, then pip install onnxruntime-gpu "
            "(both are the module onnxruntime)"
        )
    return ""


def refusal(name: str, spec: ModelSpec, device: str) -> str:
    """Why it cannot run there; empty if it can."""
    if device == "cpu":
        return ""
    if not device.startswith("cuda"):
        return f'{name} runs on "cpu" and "cuda:N", not on "{device}"'
    for tensor in (*spec.inputs, *spec.outputs):
        if tensor.datatype == BYTES:
            return (
                f'"{tensor.name}" is BYTES, which ONNX Runtime computes with on the CPU alone; device = "cpu" is right'
            )
    return ""


def variants(spec: ModelSpec) -> tuple[str, ...]:
    """TensorRT builds engines, which need a folder that outlasts the worker: an .onnx file, run as it is, has none."""
    fixed = not any(VARIABLE in tensor.dims for tensor in spec.inputs)
    return ("", TENSORRT) if spec.format != "onnx" and fixed and not lacking("tensorrt", "") else ("",)
