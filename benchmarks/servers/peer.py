"""What the peers have in common: an environment of their own, and the engine's packages in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from benchmarks.harness.environments import TORCH, Environment, peer_environment
from benchmarks.harness.workloads import ONNX_RUNTIME, TORCH_EAGER
from benchmarks.servers.base import Server

# Every environment has torch anyway.
ENGINE_PACKAGES: Mapping[str, Sequence[str]] = {TORCH_EAGER: (), ONNX_RUNTIME: ("onnxruntime",)}
ENGINE_VERSIONS: Mapping[str, Sequence[str]] = {TORCH_EAGER: ("torch",), ONNX_RUNTIME: ("onnxruntime",)}


class Peer(Server):
    """Another server that runs the benchmark's models with `engine` in its Python code."""

    # The name of the environment.
    project: ClassVar[str]
    requirements: ClassVar[Sequence[str]]
    # Whose versions the report gives.
    packages: ClassVar[Sequence[str]] = ()

    def __init__(self, engine: str) -> None:
        super().__init__()
        self.engine = engine

    def install(self) -> None:
        self.environment()

    def versions(self) -> dict[str, str]:
        return self.environment().versions([*self.packages, *ENGINE_VERSIONS[self.engine]])

    def environment(self) -> Environment:
        return peer_environment(self.project, (*self.requirements, TORCH), ENGINE_PACKAGES[self.engine])
