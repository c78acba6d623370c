"""What the engines of torch have in common before torch is imported."""

from __future__ import annotations

from open_inference.tensor import BYTES

from offramp_server.model_spec import VARIABLE, ModelSpec
from offramp_server.workers.engines.kinds.installed import lacking

# Rewritings of a program that may be faster, and compute the same but for rounding.
FOLDED = "batch norms folded"
CHANNELS_LAST = "batch norms folded, channels last"


def missing(device: str) -> str:
    return lacking("torch", 'pip install "offramp[server]"')


def refusal(name: str, spec: ModelSpec) -> str:
    """Why torch cannot run the model; empty if it can."""
    if spec.format != "pt2":
        return f'engine "{name}" cannot run a .{spec.format} file; it runs .pt2 files'
    for tensor in (*spec.inputs, *spec.outputs):
        if tensor.datatype == BYTES:
            return f'"{tensor.name}" is BYTES, torch has no strings; use an .onnx file, or numbers'
    return ""


def refusal_of_device(name: str, device: str) -> str:
    """Why an engine for NVIDIA's GPUs cannot run there; empty if it can."""
    if device.startswith("cuda"):
        return ""
    return f'engine "{name}" needs an NVIDIA GPU, not "{device}"; device = "cuda" or another backend is right'


def refusal_of_shapes(name: str, spec: ModelSpec) -> str:
    """Why an engine that is made for the shapes of its inputs cannot run the model; empty if it can."""
    for tensor in spec.inputs:
        if VARIABLE in tensor.dims:
            return (
                f'input "{tensor.name}" has variable dimensions {list(tensor.dims)}, and {name} is made for fixed ones '
                'but for the batch; fixed dimensions or backend = "torch-compile" are right'
            )
    return ""
