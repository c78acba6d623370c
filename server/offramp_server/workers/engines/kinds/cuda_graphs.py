"""CUDA graphs."""

from __future__ import annotations

from offramp_server.model_spec import ModelSpec
from offramp_server.workers.engines.base import Engine
from offramp_server.workers.engines.kind import EngineRequest
from offramp_server.workers.engines.kinds import torch_models
from offramp_server.workers.engines.kinds.aot_inductor import AotInductorKind
from offramp_server.workers.engines.kinds.torch_models import CHANNELS_LAST, FOLDED

# What Inductor has compiled ahead is captured, instead of the program's own operators.
PACKAGES = "over aot-inductor"


class CudaGraphsKind:
    """The operators of an exported program, captured for a few batch sizes and replayed in one call."""

    name = "cuda-graphs"

    def builds(self, spec: ModelSpec) -> bool:
        """For one of its variants."""
        return True

    def missing(self, device: str) -> str:
        return torch_models.missing(device)

    def refusal(self, spec: ModelSpec, device: str) -> str:
        return (
            torch_models.refusal_of_device(self.name, device)
            or torch_models.refusal(self.name, spec)
            or torch_models.refusal_of_shapes(self.name, spec)
        )

    def variants(self, spec: ModelSpec, device: str) -> tuple[str, ...]:
        return ("", FOLDED, CHANNELS_LAST, PACKAGES)

    def build(self, request: EngineRequest) -> None:
        """A graph itself is bound to the memory of its process."""
        if request.choice.variant == PACKAGES:
            AotInductorKind().build(request)

    def load(self, request: EngineRequest) -> Engine:
        if request.choice.variant == PACKAGES:
            from offramp_server.workers.engines.aot_load import load_captured_packages

            return load_captured_packages(request)
        from offramp_server.workers.engines.torch_load import load_captured

        return load_captured(request)
