"""The server under test, with a worker process for each model (the default) or with the engine in its own process."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import grpc
from open_inference import grpc_predict_v2_pb2 as pb

from benchmarks.harness.cache import cache_directory
from benchmarks.harness.certificate import Certificate
from benchmarks.harness.environments import project_environment
from benchmarks.harness.verify import CALL_TIMEOUT_S, SERVICE, open_channel
from benchmarks.harness.workloads import Workload
from benchmarks.servers.base import Launch, Server, by_model, require
from benchmarks.servers.peer import ENGINE_VERSIONS

IN_PROCESS, WORKER = "Offramp, in-process", "Offramp, worker process"
AUTO = "auto"
GRPCIO, NATIVE = "grpcio", "native"
TUNING_BUDGET_S = 300
ENGINE_SETTINGS = """
[engine]
backend = "{engine}"
device = "cpu"
instances = 1
threads = 1
"""


class Offramp(Server):
    """`offramp serve` with `mode` "process" or "in-process" ([workers] mode in its configuration).

    `transport` is [server] transport, `max_queue_items` that of [batching] of every model. `engine` "auto" leaves the
    engine, its threads and its instances to Offramp.
    """

    # "auto" builds and times every engine at its first start.
    start_timeout_s = 1200.0

    def __init__(
        self,
        engine: str,
        mode: str,
        note: str,
        transport: str = NATIVE,
        tls: Certificate | None = None,
        front_ends: int = 1,
        max_queue_items: int | None = None,
    ) -> None:
        super().__init__(tls)
        self.name = server_name(mode, transport)
        if front_ends > 1:
            self.name += f", {front_ends} front ends"
        self.note = note
        self.engine = engine
        self.compute_threads = None if engine == AUTO else 1
        self._mode = mode
        self._transport = transport
        self._front_ends = front_ends
        self._max_queue_items = max_queue_items

    def install(self) -> None:
        require(project_environment(), "offramp")

    def versions(self) -> dict[str, str]:
        engines = ENGINE_VERSIONS.get(self.engine, ("torch", "onnxruntime"))
        return project_environment().versions(["offramp", "grpcio", *engines])

    def prepare(self, workloads: Sequence[Workload], directory: Path) -> Launch:
        repository = directory / "repository"
        for workload in workloads:
            write_model(workload, self.engine, repository / workload.model, self._max_queue_items)
        config = directory / "config.toml"
        settings = f'[server]\ntransport = "{self._transport}"\nfront_ends = {self._front_ends}\n'
        settings += f'[workers]\nmode = "{self._mode}"\n'
        if self.tls is not None:
            settings += f'[tls]\ncertificate = "{self.tls.chain}"\nkey = "{self.tls.key}"\n'
        config.write_text(settings + (tuning() if self.engine == AUTO else ""))
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

    def engines(self, workloads: Sequence[Workload]) -> str:
        if self.engine != AUTO:
            return ""
        with open_channel(self.target) as channel:
            return "; ".join(engine_report(channel, workload.model) for workload in by_model(workloads))


def server_name(mode: str, transport: str) -> str:
    name = IN_PROCESS if mode == "in-process" else WORKER
    return name if transport == NATIVE else f"{name}, {transport} transport"


def tuning() -> str:
    """As `offramp tune` ahead of time: no limit that a busy machine would hit, and a cache of the benchmark's own."""
    return f'[engines]\nbudget = {TUNING_BUDGET_S}\ncache = "{cache_directory("engines")}"\n'


def engine_report(channel: grpc.Channel, model: str) -> str:
    """Return e.g. "student: torch-compile, fp32, 1 thread x 2"."""
    ask = channel.unary_unary(
        f"{SERVICE}ModelConfig", pb.ModelConfigRequest.SerializeToString, pb.ModelConfigResponse.FromString
    )
    config = ask(pb.ModelConfigRequest(name=model), timeout=CALL_TIMEOUT_S).config
    said = {name: parameter.string_value for name, parameter in config.parameters.items()}
    engine = f"{said['engine']} ({said['engine.variant']})" if said.get("engine.variant") else said["engine"]
    instances = sum(group.count for group in config.instance_group)
    return f"{model}: {engine}, {said['precision']}, threads {said['engine.threads']} x {instances}"


def write_model(workload: Workload, engine: str, directory: Path, max_queue_items: int | None = None) -> None:
    version = directory / "1"
    version.mkdir(parents=True)
    file = workload.exported if engine == AUTO else workload.program
    os.link(file, version / f"model{file.suffix}")
    (directory / "model.toml").write_text(model_settings(workload, engine, max_queue_items))


def model_settings(workload: Workload, engine: str, max_queue_items: int | None) -> str:
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
    if max_queue_items is not None:
        settings += f"\n[batching]\nmax_queue_items = {max_queue_items}\n"
    return settings if engine == AUTO else settings + ENGINE_SETTINGS.format(engine=engine)
