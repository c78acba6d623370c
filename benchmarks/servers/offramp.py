"""The server under test, with a worker process for each model (the default) or with the engine in its own process."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from benchmarks.harness.environments import project_environment
from benchmarks.harness.workloads import MAX_BATCH, Workload
from benchmarks.servers.base import Launch, Server, require


class Offramp(Server):
    """`offramp serve` with `mode` "process" or "in-process" ([workers] mode in its configuration)."""

    def __init__(self, mode: str) -> None:
        super().__init__()
        self.name = f"Offramp, {'in-process' if mode == 'in-process' else 'worker process'}"
        self.note = f"continuous batching up to {MAX_BATCH}, no delay timer"
        self._mode = mode

    def install(self) -> None:
        require(project_environment(), "offramp")

    def versions(self) -> dict[str, str]:
        return project_environment().versions(["offramp", "grpcio", "torch"])

    def prepare(self, workloads: Sequence[Workload], directory: Path) -> Launch:
        repository = directory / "repository"
        for workload in workloads:
            write_model(workload, repository / workload.name)
        config = directory / "config.toml"
        config.write_text(f'[workers]\nmode = "{self._mode}"\n')
        executable = project_environment().root / "bin" / "offramp"
        options: list[str | Path] = [
            "--model-repository",
            repository,
            "--config",
            config,
            "--grpc-port",
            "0",
            "--http-port",
            "0",
        ]
        return Launch([executable, "serve", *options], target=None)


def write_model(workload: Workload, directory: Path) -> None:
    version = directory / "1"
    version.mkdir(parents=True)
    os.link(workload.program, version / "model.pt2")
    (directory / "model.toml").write_text(model_settings(workload))


def model_settings(workload: Workload) -> str:
    return f"""\
max_batch_size = {MAX_BATCH}

[[inputs]]
name = "input"
datatype = "FP32"
dims = {list(workload.item_shape)}

[[outputs]]
name = "output"
datatype = "FP32"
dims = {list(workload.output_shape)}

[engine]
backend = "torch-eager"
device = "cpu"
threads = 1
"""
