"""Control: a plain grpc.aio server that echoes one tensor."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.harness.environments import project_environment
from benchmarks.harness.workloads import Workload
from benchmarks.servers.base import Launch, Server


class GrpcAioEcho(Server):
    name = "grpc.aio echo"
    is_control = True
    note = "decodes the request, copies its bytes into the answer; no model, no validation, no queue"

    def __init__(self, everything: bool = False) -> None:
        """With `everything` it echoes the requests of all models, and what comes back is not their answer."""
        super().__init__()
        self._everything = everything

    def install(self) -> None:
        return

    def versions(self) -> dict[str, str]:
        return project_environment().versions(["grpcio", "protobuf"])

    def serves(self, workload: Workload) -> bool:
        return self._everything or not workload.computes

    def prepare(self, workloads: Sequence[Workload], directory: Path) -> Launch:
        return Launch([project_environment().python, "-m", "benchmarks.runtimes.echo_server"], target=None)
