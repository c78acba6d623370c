"""torch.compile, for those who ask for it."""

from __future__ import annotations

import os
import shutil
import sys

from offramp_server.model_spec import ModelSpec
from offramp_server.workers.engines.base import Engine
from offramp_server.workers.engines.kind import EngineRequest
from offramp_server.workers.engines.kinds import torch_models


def cpp_compiler() -> str | None:
    """The C++ compiler that Inductor will call, None if it is not installed."""
    return shutil.which(os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++"))


def lacking_compiler(name: str) -> str:
    """Empty if there is a compiler."""
    if cpp_compiler() is not None:
        return ""
    return (
        f"{name} needs a C++ compiler (g++, or what CXX names) and none is installed; "
        'install one or use backend = "torch-eager"'
    )


class TorchCompileKind:
    """Compiles in the worker, each time the model is loaded: `auto` never does that, it takes packages of Inductor."""

    name = "torch-compile"

    def missing(self, device: str) -> str:
        return torch_models.missing(device) or lacking_compiler(self.name)

    def refusal(self, spec: ModelSpec, device: str) -> str:
        return torch_models.refusal(self.name, spec)

    def variants(self, spec: ModelSpec, device: str) -> tuple[str, ...]:
        return ()

    def builds(self, spec: ModelSpec) -> bool:
        return False

    def build(self, request: EngineRequest) -> None:
        """There is nothing that would outlast the process."""

    def load(self, request: EngineRequest) -> Engine:
        from offramp_server.workers.engines.torch_load import load_compiled

        return load_compiled(request)
