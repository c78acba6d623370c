"""What the engines of torch have in common before torch is imported."""

from __future__ import annotations

from open_inference.tensor import BYTES

from offramp_server.model_spec import ModelSpec
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
