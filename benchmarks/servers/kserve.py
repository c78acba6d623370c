"""Peer: KServe's Python model server."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.harness.environments import TORCH, Environment, peer_environment
from benchmarks.harness.processes import free_ports
from benchmarks.harness.workloads import Workload
from benchmarks.servers.base import Launch, Server

REQUIREMENTS = ("kserve==0.21.0", TORCH)


class KServe(Server):
    name = "KServe"
    note = "no batcher in the model server; computes on its event loop"

    def install(self) -> None:
        self._environment()

    def versions(self) -> dict[str, str]:
        return self._environment().versions(["kserve", "grpcio", "torch"])

    def prepare(self, workloads: Sequence[Workload], directory: Path) -> Launch:
        grpc_port, http_port = free_ports(2)
        models = [f"{workload.name}={workload.program}" for workload in workloads]
        module = "benchmarks.runtimes.kserve_server"
        command: list[str | Path] = [self._environment().python, "-m", module, str(grpc_port), str(http_port), *models]
        return Launch(command, f"127.0.0.1:{grpc_port}")

    def _environment(self) -> Environment:
        return peer_environment("kserve", REQUIREMENTS)
