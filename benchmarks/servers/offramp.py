"""The server under test, with a worker process for each model (the default) or with the engine in its own process."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from benchmarks.harness.environments import project_environment
from benchmarks.harness.workloads import Workload
from benchmarks.servers.base import Launch, Server, require
from benchmarks.servers.peer import ENGINE_VERSIONS

IN_PROCESS, WORKER = "Offramp, in-process", "Offramp, worker process"
AUTO = "auto"
ENGINE_SETTINGS = """
[engine]
backend = "{engine}"
device = "cpu"
threads = 1
"""


class Offramp(Server):
    """`offramp serve` with `mode` "process" or "in-process" ([workers] mode in its configuration).

    `engine` "auto" leaves the engine, its threads and its instances to Offramp.
    """

    # "auto" times every engine at its first start.
    start_timeout_s = 600.0

    def __init__(self, engine: str, mode: str, note: str) -> None:
        super().__init__()
        self.name = IN_PROCESS if mode == "in-process" else WORKER
        self.note = note
        self.engine = engine
        self.compute_threads = None if engine == AUTO else 1
        self._mode = mode

    def install(self) -> None:
        require(project_environment(), "offramp")

    def versions(self) -> dict[str, str]:
        engines = ENGINE_VERSIONS.get(self.engine, ("torch", "onnxruntime"))
        return project_environment().versions(["offramp", "grpcio", *engines])

    def prepare(self, workloads: Sequence[Workload], directory: Path) -> Launch:
        repository = directory / "repository"
        for workload in workloads:
            write_model(workload, self.engine, repository / workload.model)
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


def write_model(workload: Workload, engine: str, directory: Path) -> None:
    version = directory / "1"
    version.mkdir(parents=True)
    file = workload.exported if engine == AUTO else workload.program
    os.link(file, version / f"model{file.suffix}")
    (directory / "model.toml").write_text(model_settings(workload, engine))


def model_settings(workload: Workload, engine: str) -> str:
    settings = f"""\
max_batch_size = {workload.max_batch}

[[inputs]]
name = "input"
datatype = "FP32"
dims = {workload.input_dims}

[[outputs]]
name = "output"
datatype = "FP32"
dims = {workload.output_dims}
"""
    return settings if engine == AUTO else settings + ENGINE_SETTINGS.format(engine=engine)
