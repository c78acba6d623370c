"""CUDA graphs."""

from __future__ import annotations

from offramp_server.model_spec import ModelSpec
from offramp_server.workers.engines.base import Engine
from offramp_server.workers.engines.kind import EngineRequest
from offramp_server.workers.engines.kinds import torch_models
from offramp_server.workers.engines.kinds.torch_models import CHANNELS_LAST, FOLDED


class CudaGraphsKind:
    """The operators of an exported program as they are, captured for a few batch sizes and replayed in one call."""

    name = "cuda-graphs"

    def builds(self, spec: ModelSpec) -> bool:
        return False

    def missing(self, device: str) -> str:
        return torch_models.missing(device)

    def refusal(self, spec: ModelSpec, device: str) -> str:
        return (
            torch_models.refusal_of_device(self.name, device)
            or torch_models.refusal(self.name, spec)
            or torch_models.refusal_of_shapes(self.name, spec)
        )

    def variants(self, spec: ModelSpec, device: str) -> tuple[str, ...]:
        return ("", FOLDED, CHANNELS_LAST)

    def build(self, request: EngineRequest) -> None:
        """There is nothing to build: a graph is bound to the memory of its process."""

    def load(self, request: EngineRequest) -> Engine:
        from offramp_server.workers.engines.torch_load import load_captured

        return load_captured(request)
