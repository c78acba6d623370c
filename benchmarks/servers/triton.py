"""Peer: Triton Inference Server with its Python backend, from the nvidia-pytriton wheel.

The wheel carries tritonserver, the Python backend and nearly every shared library they need. Only these are used:
PyTriton itself, which puts a proxy process between Triton and the model, stays out of it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.harness.environments import Environment, NotRunnableError
from benchmarks.harness.processes import free_ports
from benchmarks.harness.workloads import Workload
from benchmarks.servers.base import Launch
from benchmarks.servers.peer import Peer

WHEEL = "nvidia-pytriton==0.7.0"
TRITON_VERSION = "2.51 (bundled in nvidia-pytriton 0.7.0)"


class Triton(Peer):
    """Dynamic batching with a queue delay for the models that compute something, and `instances` of each model."""

    name = "Triton, Python backend"
    project = "triton"
    requirements = (WHEEL,)

    def __init__(self, engine: str, instances: int, queue_delay_us: int, note: str) -> None:
        super().__init__(engine)
        self.note = note
        self._instances = instances
        self._queue_delay_us = queue_delay_us

    def install(self) -> None:
        environment = self.environment()
        for executable in (self._server(environment), self._stub(environment)):
            executable.chmod(0o755)
            check_libraries(executable, self._library_path(environment))

    def versions(self) -> dict[str, str]:
        return {"tritonserver": TRITON_VERSION, **super().versions()}

    def prepare(self, workloads: Sequence[Workload], directory: Path) -> Launch:
        environment = self.environment()
        repository = directory / "repository"
        for workload in workloads:
            write_model(self._config(workload), repository / workload.model)
        backends = self._backends(environment, directory / "backends")
        grpc_port, http_port, metrics_port = free_ports(3)
        arguments = {
            "model-repository": repository,
            "backend-directory": backends,
            "grpc-address": "127.0.0.1",
            "grpc-port": grpc_port,
            "http-address": "127.0.0.1",
            "http-port": http_port,
            "metrics-address": "127.0.0.1",
            "metrics-port": metrics_port,
            "log-verbose": 0,
        }
        command: list[str | Path] = [
            self._server(environment),
            *(f"--{name}={value}" for name, value in arguments.items()),
        ]
        variables = {
            "PATH": f"{environment.root / 'bin'}:{os.environ['PATH']}",
            "LD_LIBRARY_PATH": self._library_path(environment),
        }
        return Launch(command, f"127.0.0.1:{grpc_port}", variables)

    def _config(self, workload: Workload) -> str:
        delay = self._queue_delay_us if workload.computes else 0
        return f"""\
name: "{workload.model}"
backend: "python"
max_batch_size: {workload.max_batch}
input [ {{ name: "input" data_type: TYPE_FP32 dims: {workload.input_dims} }} ]
output [ {{ name: "output" data_type: TYPE_FP32 dims: {workload.output_dims} }} ]
instance_group [ {{ kind: KIND_CPU count: {self._instances} }} ]
parameters {{ key: "program" value: {{ string_value: "{workload.program}" }} }}
dynamic_batching {{ max_queue_delay_microseconds: {delay} }}
"""

    def _bundle(self, environment: Environment) -> Path:
        return environment.site_packages() / "pytriton" / "tritonserver"

    def _server(self, environment: Environment) -> Path:
        return self._bundle(environment) / "bin" / "tritonserver"

    def _stub(self, environment: Environment) -> Path:
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        stub = self._bundle(environment) / "python_backend_stubs" / version / "triton_python_backend_stub"
        if not stub.exists():
            raise NotRunnableError(f"{WHEEL} has no Python backend for Python {version}")
        return stub

    def _backends(self, environment: Environment, directory: Path) -> Path:
        """Make a backend directory with the stub of this Python where Triton looks for it."""
        shutil.copytree(self._bundle(environment) / "backends", directory, symlinks=True)
        shutil.copy(self._stub(environment), directory / "python" / "triton_python_backend_stub")
        return directory

    def _library_path(self, environment: Environment) -> str:
        # The stub embeds Python, whose library is beside the interpreter or (Debian) in package libpython3.
        return f"{environment.site_packages() / 'nvidia_pytriton.libs'}:{Path(sys.base_prefix) / 'lib'}"


def check_libraries(executable: Path, library_path: str) -> None:
    """Raise NotRunnableError naming the shared libraries that the loader does not find."""
    variables = {**os.environ, "LD_LIBRARY_PATH": library_path}
    done = subprocess.run(["ldd", executable], capture_output=True, text=True, env=variables, check=False)
    missing = [line.split()[0] for line in done.stdout.splitlines() if "not found" in line]
    if missing:
        raise NotRunnableError(f"{executable.name} misses {', '.join(missing)} (benchmarks/README.md: Triton)")


def write_model(config: str, directory: Path) -> None:
    version = directory / "1"
    version.mkdir(parents=True)
    (version / "model.py").write_text("from benchmarks.runtimes.triton_model import TritonPythonModel\n")
    (directory / "config.pbtxt").write_text(config)
