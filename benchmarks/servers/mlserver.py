"""Peer: MLServer, with its worker process (the default) or without."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from benchmarks.harness.processes import free_ports
from benchmarks.harness.workloads import Workload
from benchmarks.servers.base import Launch
from benchmarks.servers.peer import Peer

MAX_BATCH_TIME_S = 0.001


class MLServer(Peer):
    """MLServer 1.7 with `workers` parallel workers; adaptive batching for the models that compute something."""

    project = "mlserver"
    # The worker of 1.7.1 ends at start, again and again, with uvloop 0.22: it asks for an event loop that is not there.
    requirements = ("mlserver==1.7.1", "uvloop<0.22")
    packages = ("mlserver", "grpcio")

    def __init__(self, engine: str, workers: int, note: str) -> None:
        super().__init__(engine)
        self.name = f"MLServer, parallel_workers {workers}"
        self.note = note
        self._workers = workers

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
            write_model_settings(workload, directory / workload.model)
        command: list[str | Path] = [self.environment().root / "bin" / "mlserver", "start", directory]
        return Launch(command, f"127.0.0.1:{grpc_port}")


def write_model_settings(workload: Workload, directory: Path) -> None:
    directory.mkdir()
    settings: dict[str, object] = {
        "name": workload.model,
        "implementation": "benchmarks.runtimes.mlserver_model.ProgramModel",
        "parameters": {"uri": str(workload.program)},
    }
    if workload.computes:
        settings |= {"max_batch_size": workload.max_batch, "max_batch_time": MAX_BATCH_TIME_S}
    (directory / "model-settings.json").write_text(json.dumps(settings))
