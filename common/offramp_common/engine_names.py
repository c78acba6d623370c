"""The names of the engines that `[engine] backend` may ask for, by the format of the model file."""

from __future__ import annotations

from types import MappingProxyType

AUTO = "auto"
ENGINES = MappingProxyType(
    {
        "pt2": (
            "torch-eager",
            "torch-compile",
            "aot-inductor",
            "cuda-graphs",
            "torch-tensorrt",
            "onnxruntime",
            "openvino",
        ),
        "onnx": ("onnxruntime", "openvino"),
    }
)
ALL_ENGINES = ENGINES["pt2"]
