"""Peer: MLServer, with its worker process (the default) or without."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from benchmarks.harness.environments import TORCH, Environment, peer_environment
from benchmarks.harness.processes import free_ports
from benchmarks.harness.workloads import MAX_BATCH, Workload
from benchmarks.servers.base import Launch, Server

# The worker of 1.7.1 ends at start, again and again, with uvloop 0.22: it asks for an event loop that is not there.
REQUIREMENTS = ("mlserver==1.7.1", "uvloop<0.22", TORCH)
MAX_BATCH_TIME_S = 0.001


class MLServer(Server):
    """MLServer 1.7 with `workers` parallel workers; adaptive batching for the models that compute something."""

    def __init__(self, workers: int) -> None:
        super().__init__()
        self.name = f"MLServer, parallel_workers {workers}"
        self.note = f"adaptive batching {MAX_BATCH} / {MAX_BATCH_TIME_S * 1e3:g} ms but for identity; uvloop < 0.22"
        self._workers = workers

    def install(self) -> None:
        self._environment()

    def versions(self) -> dict[str, str]:
        return self._environment().versions(["mlserver", "grpcio", "torch"])

    def prepare(self, workloads: Sequence[Workload], directory: Path) -> Launch:
        grpc_port, http_port, metrics_port = free_ports(3)
        settings = {
            "host": "127.0.0.1",
            "grpc_port": grpc_port,
            "http_port": http_port,
            "metrics_port": metrics_port,
            "parallel_workers": self._workers,
            "debug": False,
        }
        (directory / "settings.json").write_text(json.dumps(settings))
        for workload in workloads:
            write_model_settings(workload, directory / workload.name)
        command: list[str | Path] = [self._environment().root / "bin" / "mlserver", "start", directory]
        return Launch(command, f"127.0.0.1:{grpc_port}")

    def _environment(self) -> Environment:
        return peer_environment("mlserver", REQUIREMENTS)


def write_model_settings(workload: Workload, directory: Path) -> None:
    directory.mkdir()
    settings: dict[str, object] = {
        "name": workload.name,
        "implementation": "benchmarks.runtimes.mlserver_model.ProgramModel",
        "parameters": {"uri": str(workload.program)},
    }
    if workload.name != "identity":
        settings |= {"max_batch_size": MAX_BATCH, "max_batch_time": MAX_BATCH_TIME_S}
    (directory / "model-settings.json").write_text(json.dumps(settings))
