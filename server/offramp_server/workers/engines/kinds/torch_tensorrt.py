"""TensorRT by way of Torch-TensorRT."""

from __future__ import annotations

from offramp_server.model_spec import ModelSpec
from offramp_server.workers.engines.base import Engine
from offramp_server.workers.engines.kind import EngineRequest
from offramp_server.workers.engines.kinds import torch_models
from offramp_server.workers.engines.kinds.installed import lacking

# Each release of it belongs to one of torch and one of TensorRT: 2.11 to TensorRT 10.15, 2.13 to TensorRT 11.0.
_INSTALL = (
    'pip install "offramp[tensorrt]" brings torch-tensorrt in the version of torch, and tensorrt from pypi.nvidia.com, '
    "which need a driver for CUDA 13; NVIDIA's PyTorch image has both"
)


class TorchTensorRtKind:
    """The exported program compiled by TensorRT where it can, the rest by torch; compiled once and kept."""

    name = "torch-tensorrt"

    def builds(self, spec: ModelSpec) -> bool:
        return True

    def missing(self, device: str) -> str:
        needed = ("torch_tensorrt", "tensorrt")
        return torch_models.missing(device) or next(filter(None, (lacking(name, _INSTALL) for name in needed)), "")

    def refusal(self, spec: ModelSpec, device: str) -> str:
        return (
            torch_models.refusal_of_device(self.name, device)
            or torch_models.refusal(self.name, spec)
            or torch_models.refusal_of_shapes(self.name, spec)
        )

    def variants(self, spec: ModelSpec, device: str) -> tuple[str, ...]:
        return ("",)

    def build(self, request: EngineRequest) -> None:
        from offramp_server.workers.engines.tensorrt import build

        build(request)

    def load(self, request: EngineRequest) -> Engine:
        from offramp_server.workers.engines.tensorrt import load

        return load(request)
