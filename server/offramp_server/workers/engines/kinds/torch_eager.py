"""torch without a compiler."""

from __future__ import annotations

from offramp_server.model_spec import ModelSpec
from offramp_server.workers.engines.base import Engine
from offramp_server.workers.engines.kind import EngineRequest
from offramp_server.workers.engines.kinds import torch_models
from offramp_server.workers.engines.kinds.torch_models import CHANNELS_LAST, FOLDED


class TorchEagerKind:
    """The operators of an exported program one after the other; its variants rewrite the program first."""

    name = "torch-eager"

    def missing(self, device: str) -> str:
        return torch_models.missing(device)

    def refusal(self, spec: ModelSpec, device: str) -> str:
        return torch_models.refusal(self.name, spec)

    def variants(self, spec: ModelSpec, device: str) -> tuple[str, ...]:
        rewritten = (FOLDED, CHANNELS_LAST) if spec.engine.precision == "fp32" else ()
        return ("", *rewritten)

    def builds(self, spec: ModelSpec) -> bool:
        return False

    def build(self, request: EngineRequest) -> None:
        """There is nothing to build."""

    def load(self, request: EngineRequest) -> Engine:
        from offramp_server.workers.engines.torch_load import load_eager

        return load_eager(request)
