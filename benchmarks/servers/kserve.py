"""Peer: KServe's Python model server."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.harness.processes import free_ports
from benchmarks.harness.workloads import Workload
from benchmarks.servers.base import Launch
from benchmarks.servers.peer import Peer


class KServe(Peer):
    """Computes on its event loop (`threads` 0), as KServe's examples do, or on the loop's pool of so many threads."""

    name = "KServe"
    project = "kserve"
    requirements = ("kserve==0.21.0",)
    packages = ("kserve", "grpcio")

    def __init__(self, engine: str, threads: int, note: str) -> None:
        super().__init__(engine)
        self.note = note
        self._threads = threads

    def prepare(self, workloads: Sequence[Workload], directory: Path) -> Launch:
        grpc_port, http_port = free_ports(2)
        # A hop to a thread costs more than returning the input.
        kinds = ["threads" if self._threads and each.computes else "event-loop" for each in workloads]
        models = [f"{each.model}={kind}={each.program}" for each, kind in zip(workloads, kinds, strict=True)]
        module = "benchmarks.runtimes.kserve_server"
        settings = map(str, (grpc_port, http_port, self._threads))
        return Launch([self.environment().python, "-m", module, *settings, *models], f"127.0.0.1:{grpc_port}")
