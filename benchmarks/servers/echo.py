"""Controls: servers that echo one tensor, plain grpc.aio, and C++ where it can be built."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.harness.cache import cache_directory
from benchmarks.harness.certificate import Certificate
from benchmarks.harness.environments import REPOSITORY_ROOT, NotRunnableError, project_environment
from benchmarks.harness.workloads import Workload
from benchmarks.servers.base import Launch, Server

SOURCE = REPOSITORY_ROOT / "benchmarks" / "runtimes" / "cpp" / "echo_server.cc"
PROTO = REPOSITORY_ROOT / "proto"
FILES = ("open_inference/grpc_predict_v2.proto", "open_inference/model_config.proto")
PACKAGES = ("grpc++", "protobuf")
DEBIAN = "Debian: g++, pkg-config, libgrpc++-dev, protobuf-compiler-grpc"


class GrpcAioEcho(Server):
    name = "grpc.aio echo"
    is_control = True
    note = "decodes the request, copies its bytes into the answer; no model, no validation, no queue"

    def __init__(self, everything: bool = False, tls: Certificate | None = None) -> None:
        """With `everything` it echoes the requests of all models, and what comes back is not their answer."""
        super().__init__(tls)
        self._everything = everything

    def install(self) -> None:
        return

    def versions(self) -> dict[str, str]:
        return project_environment().versions(["grpcio", "protobuf"])

    def serves(self, workload: Workload) -> bool:
        return self._everything or not workload.computes

    def prepare(self, workloads: Sequence[Workload], directory: Path) -> Launch:
        command = [project_environment().python, "-m", "benchmarks.runtimes.echo_server", *files(self.tls)]
        return Launch(command, target=None)


class CppEcho(GrpcAioEcho):
    """The same in C++, compiled at the first run against the libraries that the system has."""

    name = "C++ gRPC echo"
    note = "as the echo in Python: decodes, copies, serialises; asynchronous, one completion queue, one thread"

    def install(self) -> None:
        self._executable = built_echo()

    def versions(self) -> dict[str, str]:
        return {package: pkg_config("--modversion", package) for package in PACKAGES}

    def prepare(self, workloads: Sequence[Workload], directory: Path) -> Launch:
        return Launch([self._executable, *files(self.tls)], target=None)


def files(tls: Certificate | None) -> list[str | Path]:
    return [] if tls is None else [tls.chain, tls.key]


def built_echo() -> Path:
    """The executable, from the cache if it has one. Raises NotRunnableError."""
    needed = ["g++", "protoc", "grpc_cpp_plugin", "pkg-config"]
    missing = [tool for tool in needed if shutil.which(tool) is None]
    if missing:
        raise NotRunnableError(f"{', '.join(missing)} not installed ({DEBIAN})")
    sources = [SOURCE, *(PROTO / file for file in FILES)]
    release = pkg_config("--modversion", "grpc++")
    digest = hashlib.sha256(release.encode() + b"".join(source.read_bytes() for source in sources)).hexdigest()[:12]
    executable = cache_directory("cpp") / f"echo-{digest}"
    if not executable.exists():
        with tempfile.TemporaryDirectory(dir=executable.parent) as scratch:
            build(Path(scratch), Path(scratch, "echo"))
            Path(scratch, "echo").replace(executable)
    return executable


def build(scratch: Path, executable: Path) -> None:
    """Takes half a minute. Raises NotRunnableError."""
    plugin = f"--plugin=protoc-gen-grpc={shutil.which('grpc_cpp_plugin')}"
    execute(["protoc", f"-I{PROTO}", f"--cpp_out={scratch}", f"--grpc_out={scratch}", plugin, *FILES])
    libraries = [*pkg_config("--cflags", *PACKAGES).split(), *pkg_config("--libs", *PACKAGES).split()]
    generated = sorted(scratch.rglob("*.cc"))
    execute(["g++", "-std=c++17", "-O2", f"-I{scratch}", SOURCE, *generated, *libraries, "-o", executable])


def pkg_config(*arguments: str) -> str:
    return " ".join(execute(["pkg-config", *arguments]).split())


def execute(command: Sequence[str | Path]) -> str:
    """Raises NotRunnableError with the first of what it has to say."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = (done.stderr.strip() or "no output").splitlines()[0]
        raise NotRunnableError(f"{command[0]} ended with status {done.returncode}: {said}")
    return done.stdout
