"""A small server behind the wire, and a context without a wire."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import numpy as np
from eventually import PATIENCE
from offramp_server.endpoints import EndpointInfo, IndexEntry, RouteInfo
from offramp_server.errors import NotFound, Unavailable
from offramp_server.inference import InferRequest, InferResponse
from offramp_server.model_spec import TensorSpec
from offramp_server.routing.overrides import RouteChange, SettingsUpdate
from offramp_server.rpc.health_board import HealthBoard
from offramp_server.rpc.services import RpcSettings, build_services
from offramp_server.telemetry.stats import Stats
from offramp_server.transport.grpcio import GrpcioTransport
from offramp_server.transport.interface import ListenOptions
from offramp_server.validation import Limits, validate
from open_inference.tensor import Tensor

Compute = Callable[[Mapping[str, Tensor]], Iterable[Tensor]]


def add_sub(inputs: Mapping[str, Tensor]) -> list[Tensor]:
    """Triton's quick-start model: the sum and the difference of two inputs."""
    left, right = inputs["INPUT0"].numpy(), inputs["INPUT1"].numpy()
    return [Tensor.from_numpy("OUTPUT0", left + right), Tensor.from_numpy("OUTPUT1", left - right)]


def echo(inputs: Mapping[str, Tensor]) -> list[Tensor]:
    return [Tensor("y", tensor.datatype, tensor.shape, tensor.data) for tensor in inputs.values()]


def endpoint(
    name: str, inputs: Iterable[TensorSpec], outputs: Iterable[TensorSpec], max_batch_size: int = 8
) -> EndpointInfo:
    return EndpointInfo(
        name=name,
        versions=("1",),
        platform="onnx_onnxv1",
        backend="onnxruntime",
        max_batch_size=max_batch_size,
        inputs=tuple(inputs),
        outputs=tuple(outputs),
        max_queue_items=512,
        parameters={"precision": "fp32"},
    )


def echo_endpoint(name: str, datatype: str, dims: tuple[int, ...], labels: tuple[str, ...] = ()) -> EndpointInfo:
    return endpoint(name, [TensorSpec("x", datatype, dims)], [TensorSpec("y", datatype, dims, labels=labels)])


ADD_SUB = endpoint(
    "simple",
    [TensorSpec("INPUT0", "INT32", (16,)), TensorSpec("INPUT1", "INT32", (16,))],
    [TensorSpec("OUTPUT0", "INT32", (16,)), TensorSpec("OUTPUT1", "INT32", (16,))],
)


@dataclass
class FakeServing:
    """Computes in the event loop. A request may be held back until `gate` opens; `failure` is raised instead."""

    models: dict[str, tuple[EndpointInfo, Compute]] = field(
        default_factory=lambda: {
            "simple": (ADD_SUB, add_sub),
            "echo": (echo_endpoint("echo", "FP32", (-1,), ("cat", "dog")), echo),
            "text": (echo_endpoint("text", "BYTES", (-1,)), echo),
            "half": (echo_endpoint("half", "FP16", (-1,)), echo),
        }
    )
    stats: Stats = field(default_factory=Stats)
    live: bool = True
    ready: bool = True
    failure: Exception | None = None
    gate: asyncio.Event | None = None
    seen: list[InferRequest] = field(default_factory=list)
    cancelled: int = 0
    in_flight: int = 0
    most_in_flight: int = 0
    live_routes: FakeRoutes = field(default_factory=lambda: FakeRoutes())
    calls: list[tuple[str, str]] = field(default_factory=list)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    async def until(self, condition: Callable[[FakeServing], bool]) -> None:
        async with asyncio.timeout(PATIENCE):
            while not condition(self):
                self.changed.clear()
                await self.changed.wait()

    async def infer(self, request: InferRequest) -> InferResponse:
        self.seen.append(request)
        if self.failure is not None:
            raise self.failure
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        self.changed.set()
        try:
            if self.gate is not None:
                await self.gate.wait()
            return self._answer(request)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.in_flight -= 1
            self.changed.set()

    def _answer(self, request: InferRequest) -> InferResponse:
        info = self.endpoint(request.model, request.version)
        valid = validate(request, info.inputs, info.outputs, info.max_batch_size, Limits())
        outputs = self.models[request.model][1]({tensor.name: tensor for tensor in valid.tensors})
        by_name = {tensor.name: tensor for tensor in outputs}
        wanted = request.outputs or tuple(by_name)
        return InferResponse(request.model, "1", request.id, [by_name[name] for name in wanted])

    def endpoint(self, name: str, version: str = "") -> EndpointInfo:
        if name not in self.models or version not in ("", "1"):
            raise NotFound(f'there is no model "{name}" with version "{version}"')
        return self.models[name][0]

    def index(self) -> list[IndexEntry]:
        ready = [IndexEntry(name, "1", "READY") for name in self.models]
        return [*ready, IndexEntry("broken", "1", "UNAVAILABLE", "no such file")]

    def model_ready(self, name: str, version: str = "") -> bool:
        self.endpoint(name, version)
        return self.ready

    async def load(self, name: str) -> None:
        self.calls.append(("load", name))

    async def unload(self, name: str) -> None:
        self.calls.append(("unload", name))


@dataclass
class FakeRoutes:
    """Routes that are as they were put here; every update is taken, and gives the route back."""

    infos: list[RouteInfo] = field(default_factory=list)
    history: list[RouteChange] = field(default_factory=list)
    updates: list[tuple[str, SettingsUpdate, str]] = field(default_factory=list)
    #: States that a watch gives before it ends as on a drain.
    states: list[list[RouteInfo]] = field(default_factory=list)

    def routes(self) -> list[RouteInfo]:
        return self.infos

    def route(self, name: str) -> RouteInfo:
        for info in self.infos:
            if info.name == name:
                return info
        raise NotFound(f'there is no route "{name}"')

    async def update(self, name: str, update: SettingsUpdate, by: str) -> RouteInfo:
        self.updates.append((name, update, by))
        return self.route(name)

    async def changes(self, name: str, before: int | None, limit: int) -> list[RouteChange]:
        return [change for change in self.history if before is None or change.number < before][:limit]

    async def watch(self) -> AsyncGenerator[list[RouteInfo], None]:
        for state in self.states:
            yield state
        raise Unavailable("the server is draining")


@dataclass
class FakeLogs:
    level: int = logging.INFO
    format: str = "text"

    def configure(self, *, level: int | None = None, format: str | None = None) -> None:
        self.level = self.level if level is None else level
        self.format = self.format if format is None else format


@dataclass
class FakeTraces:
    enabled: bool = False
    rate: int = 1
    traced: list[tuple[dict[str, str | bytes], str, str]] = field(default_factory=list)

    def configure(self, *, enabled: bool | None = None, rate: int | None = None) -> None:
        self.enabled = self.enabled if enabled is None else enabled
        self.rate = self.rate if rate is None else rate

    def request(self, metadata: Iterable[tuple[str, str | bytes]], name: str, request_id: str = "") -> None:
        self.traced.append((dict(metadata), name, request_id))


@dataclass
class FakeContext:
    """A call that nothing carries."""

    metadata: Mapping[str, str | bytes] = field(default_factory=dict)
    deadline: float | None = None
    peer: str = "test"
    identity: str | None = None
    trailing: dict[str, str | bytes] = field(default_factory=dict)

    def set_trailing(self, key: str, value: str | bytes) -> None:
        self.trailing[key] = value


@dataclass
class Running:
    """A server on a port of this machine."""

    address: str
    serving: FakeServing
    health: HealthBoard
    logs: FakeLogs
    traces: FakeTraces


@asynccontextmanager
async def running(
    settings: RpcSettings | None = None, listen: ListenOptions | None = None, serving: FakeServing | None = None
) -> AsyncIterator[Running]:
    serving, health, logs, traces = serving or FakeServing(), HealthBoard(), FakeLogs(), FakeTraces()
    services = build_services(serving, health, settings or RpcSettings("1.2.3", management_allowed=True), logs, traces)
    listen = listen or ListenOptions("127.0.0.1", 0)
    transport = GrpcioTransport(services, listen)
    port = await transport.start()
    health.set_server(serving=True)
    try:
        yield Running(f"127.0.0.1:{port}", serving, health, logs, traces)
    finally:
        health.close()
        await transport.stop(0)


def float_tensor(*shape: int, name: str = "x") -> Tensor:
    size = int(np.prod(shape))
    return Tensor.from_numpy(name, np.arange(size, dtype=np.float32).reshape(shape))
