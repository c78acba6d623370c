"""Packages of Inductor, compiled ahead of time."""

from __future__ import annotations

from offramp_server.errors import LoadError
from offramp_server.model_spec import VARIABLE, ModelSpec, TensorSpec
from offramp_server.workers.engines.base import Engine
from offramp_server.workers.engines.kind import EngineRequest
from offramp_server.workers.engines.kinds import torch_models
from offramp_server.workers.engines.kinds.torch_compile import lacking_compiler


class AotInductorKind:
    """Compiles in `build`, which needs a C++ compiler; `load` needs none, and compiles nothing."""

    name = "aot-inductor"

    def missing(self, device: str) -> str:
        # Not the compiler: packages may have been built elsewhere, for a machine or an image like this one.
        return torch_models.missing(device)

    def refusal(self, spec: ModelSpec, device: str) -> str:
        return torch_models.refusal(self.name, spec) or _short(spec)

    def variants(self, spec: ModelSpec, device: str) -> tuple[str, ...]:
        return ("",)

    def builds(self, spec: ModelSpec) -> bool:
        return True

    def build(self, request: EngineRequest) -> None:
        problem = lacking_compiler(self.name)
        if problem:
            raise LoadError(f'model "{request.spec.name}": {problem}')
        from offramp_server.workers.engines.aot_build import build_packages

        build_packages(request)

    def load(self, request: EngineRequest) -> Engine:
        from offramp_server.workers.engines.aot_load import load_packages

        return load_packages(request)


def _short(spec: ModelSpec) -> str:
    """torch compiles 0 and 1 as constants, and packages do not look at what they are given."""
    for tensor in spec.inputs:
        lengths = [_shortest(tensor, at) for at, dim in enumerate(tensor.dims) if dim == VARIABLE]
        if any(shortest < 2 for shortest in lengths):
            return (
                f'"{tensor.name}" has a variable dimension that may be {min(lengths)}, which aot-inductor compiles '
                'apart; export the program with torch.export.Dim(..., min=2), or use backend = "torch-eager"'
            )
    return ""


def _shortest(tensor: TensorSpec, at: int) -> int:
    bounds = tensor.ranges[at] if at < len(tensor.ranges) else None
    return 1 if bounds is None else bounds[0]
