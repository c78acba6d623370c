"""The environment of processes that load models: workers, and trials of engines."""

from __future__ import annotations

import os
from collections.abc import Mapping
from types import MappingProxyType

# Unless the server's own environment says otherwise.
_DEFAULTS: Mapping[str, str] = MappingProxyType(
    {
        # NVML numbers devices like this; CUDA would put the fastest first.
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        # Batches of every size leave holes in the memory that torch has of a GPU; this puts pages together instead.
        "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",
        # fp32 means fp32, in libraries that ask nobody as well: TensorRT in ONNX Runtime rounds to ten bits otherwise.
        "NVIDIA_TF32_OVERRIDE": "0",
        # ONNX Runtime would give the home folder an id, and keep a database of events in it.
        "ORT_DISABLE_TELEMETRY": "1",
    }
)


def model_environment() -> dict[str, str]:
    return {**_DEFAULTS, **os.environ}
