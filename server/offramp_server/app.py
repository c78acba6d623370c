"""The composition root of `offramp serve`: wires the parts, opens the ports, and stops in order."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import os
import signal
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from offramp_server.collector import spare_what_stays
from offramp_server.config import Settings, TlsSettings
from offramp_server.core import build_core, request_limits
from offramp_server.event_loop import event_loop_factory
from offramp_server.gauges import gauges_of
from offramp_server.repository.watcher import fingerprints, watch_repository
from offramp_server.rpc.auth import Role, Token
from offramp_server.rpc.health_board import HealthBoard
from offramp_server.rpc.services import RpcSettings, build_services
from offramp_server.rpc.shared_memory import SharedMemorySettings
from offramp_server.telemetry import logs, tracing
from offramp_server.telemetry.gpu_monitor import GpuMonitor
from offramp_server.telemetry.http import TelemetryServer
from offramp_server.telemetry.prometheus import Exposition
from offramp_server.transport.grpcio import GrpcioTransport
from offramp_server.transport.interface import ListenOptions, Service, TlsMaterial, Transport
from offramp_server.transport.native.transport import NativeTransport
from offramp_server.transport.relay.transport import RelayTransport
from offramp_server.transport.tls import read_tls
from offramp_server.transport.unix_socket import host_of, path_of
from offramp_server.workers.allocator import tune_allocator

# What calls get to see their answer off once nothing is left to compute. Seconds.
STOP_GRACE_SECONDS = 1.0

log = logging.getLogger("offramp.server")


def run(repository: Path, settings: Settings) -> int:
    """Serve until a signal says stop; the process's exit code. Raises ConfigurationError before anything is served."""
    tune_allocator()
    log_control = logs.install(logs.LEVELS[settings.logging.level], settings.logging.format)
    with asyncio.Runner(loop_factory=event_loop_factory()) as runner:
        return runner.run(_serve(repository, settings, log_control))


async def _serve(repository: Path, settings: Settings, log_control: logs.LogControl) -> int:
    stop = asyncio.Event()
    _stop_on_signals(stop)
    server = Server(repository, settings, log_control)
    try:
        await server.open()
        spare_what_stays()
        loading = asyncio.create_task(server.load())
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait((loading, stopping), return_when=asyncio.FIRST_COMPLETED)
        if loading.done():
            print(f"ready grpc={server.grpc_address} http={server.http_address} models={loading.result()}", flush=True)
        else:
            loading.cancel()
        await stopping
        await server.drain()
    finally:
        await server.close()
    return 0


def _stop_on_signals(stop: asyncio.Event) -> None:
    """The first SIGTERM or SIGINT asks for an orderly stop, the second ends the process at once."""

    def on_signal() -> None:
        if stop.is_set():
            # Workers die with their parent.
            os._exit(1)
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, on_signal)


class Server:
    """One server with its ports. Build and use it on the running event loop."""

    def __init__(self, repository: Path, settings: Settings, log_control: logs.LogControl) -> None:
        """Raises ConfigurationError."""
        self._repository = repository
        self._settings = settings
        self.core = build_core(repository, settings)
        self.health = HealthBoard()
        self._tracer = tracing.connect(settings.telemetry.otlp_endpoint, settings.telemetry.trace_sample_ratio)
        rpc_settings = _rpc_settings(settings)
        services = build_services(self.core.serving, self.health, rpc_settings, log_control, self._tracer)
        self._transport = _transport(services, settings, log_control)
        self._gpus = GpuMonitor()
        exposition = Exposition(self.core.serving.stats, gauges_of(self.core, self._transport), self._gpus.readings)
        self._http = TelemetryServer(exposition, lambda: self.core.serving.live, self._not_ready)
        self._watcher: asyncio.Task[None] | None = None
        self._draining = False
        # The names that health has been told of.
        self._endpoints: set[str] = set()
        self.grpc_address = self.http_address = ""

    async def open(self) -> None:
        """Listen on both ports; nothing is ready yet. Raises ConfigurationError if one cannot be had."""
        host = self._settings.server.host
        self.grpc_address = _address(_grpc_host(self._settings), await self._transport.start())
        self.http_address = _address(host, await self._http.start(host, self._settings.server.http_port))

    async def load(self) -> int:
        """Load the repository and take requests. The number of models and routes that can answer."""
        interval = self._settings.repository.poll_interval
        before = await asyncio.to_thread(fingerprints, self._repository) if interval > 0 else {}
        await self.core.load()
        self.core.catalog.on_change(self._show_health)
        self.health.set_server(serving=True)
        self._show_health()
        if interval > 0:
            watch = watch_repository(self._repository, self.core.catalog, interval, before)
            self._watcher = asyncio.create_task(watch)
        return sum(entry.state == "READY" for entry in self.core.serving.index())

    async def drain(self) -> None:
        """Say so, refuse what is new, finish what is there."""
        self._draining = True
        self.health.drain()
        log.info("draining: %s requests in flight", self.core.admission.in_flight)
        if not await self.core.drain():
            log.warning("gave up requests that took longer than server.drain_timeout")

    async def close(self) -> None:
        """Close the ports, then stop the workers."""
        if self._watcher is not None:
            self._watcher.cancel()
        self.health.close()
        await self._transport.stop(STOP_GRACE_SECONDS)
        await self._http.stop()
        self._gpus.close()
        await self.core.close()
        await asyncio.to_thread(self._tracer.close)

    def _not_ready(self) -> str:
        if self._draining:
            return "draining"
        return "" if self.core.serving.ready else "starting"

    def _show_health(self) -> None:
        """A name is healthy if any of its versions answers."""
        serving: dict[str, bool] = {}
        for entry in self.core.serving.index():
            serving[entry.name] = serving.get(entry.name, False) or entry.state == "READY"
        for name, healthy in serving.items():
            self.health.set_endpoint(name, serving=healthy)
        for name in self._endpoints - serving.keys():
            self.health.remove_endpoint(name)
        self._endpoints = set(serving)


def _rpc_settings(settings: Settings) -> RpcSettings:
    roles = {"infer": Role.INFER, "admin": Role.ADMIN}
    return RpcSettings(
        server_version=version("offramp"),
        tokens=[Token(token.name, roles[token.role], token.sha256) for token in settings.auth.tokens],
        management_allowed=_is_loopback(_grpc_host(settings)),
        shared_memory=SharedMemorySettings(settings.shared_memory.enabled, settings.shared_memory.prefix),
        limits=request_limits(settings),
        stream_window=settings.limits.max_stream_in_flight,
    )


def _transport(services: Sequence[Service], settings: Settings, log_control: logs.LogControl) -> Transport:
    options = _listen_options(settings)
    if settings.server.front_ends > 1:
        transport = RelayTransport(
            services, options, settings.server.front_ends, (log_control.level, log_control.format)
        )
        log_control.on_change = transport.configure_log
        return transport
    return (NativeTransport if settings.server.transport == "native" else GrpcioTransport)(services, options)


def _listen_options(settings: Settings) -> ListenOptions:
    server = settings.server
    return ListenOptions(
        host=_grpc_host(settings),
        port=server.grpc_port,
        max_message_bytes=server.max_message_bytes,
        max_metadata_bytes=settings.limits.max_metadata_bytes,
        tls=_tls_material(settings.tls),
    )


def _tls_material(tls: TlsSettings) -> TlsMaterial | None:
    if tls.certificate is None or tls.key is None:
        return None
    return read_tls(tls.certificate, tls.key, tls.client_ca)


def _grpc_host(settings: Settings) -> str:
    path = settings.server.grpc_socket
    return settings.server.host if path is None else host_of(path)


def _is_loopback(host: str) -> bool:
    if host == "localhost" or path_of(host) is not None:
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _address(host: str, port: int) -> str:
    if path_of(host) is not None:
        return host
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
