"""Every service of this server, ready for a transport."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from open_inference import grpc_predict_v2_pb2

from offramp_server.rpc.auth import Authenticator, Token
from offramp_server.rpc.calls import guarded
from offramp_server.rpc.health_board import HealthBoard
from offramp_server.rpc.health_service import health_service
from offramp_server.rpc.inference_calls import InferenceCalls
from offramp_server.rpc.ports import LogControl, Serving, TraceControl
from offramp_server.rpc.reflection_service import reflection_services
from offramp_server.rpc.repository_calls import RepositoryCalls
from offramp_server.rpc.route_service import route_service
from offramp_server.rpc.settings_calls import SettingsCalls
from offramp_server.rpc.shared_memory import SharedMemory, SharedMemorySettings
from offramp_server.rpc.shared_memory_calls import SharedMemoryCalls
from offramp_server.transport.interface import Service
from offramp_server.validation import Limits


@dataclass(frozen=True, slots=True)
class RpcSettings:
    """What the wire needs of the server's configuration."""

    server_version: str
    tokens: Sequence[Token] = ()
    # Counts only without tokens: the server is bound to loopback.
    management_allowed: bool = False
    shared_memory: SharedMemorySettings = field(default_factory=SharedMemorySettings)
    limits: Limits = field(default_factory=Limits)
    # Requests of one ModelStreamInfer call that may be under way at a time.
    stream_window: int = 64


def build_services(
    serving: Serving, health: HealthBoard, settings: RpcSettings, logs: LogControl, traces: TraceControl
) -> tuple[Service, ...]:
    """All services, guarded. Their names are put on the health board."""
    authenticator = Authenticator(settings.tokens, management_allowed=settings.management_allowed)
    services = [
        _inference_service(serving, settings, logs, traces),
        health_service(health),
        route_service(serving.live_routes, authenticator.caller, authenticator.manages),
    ]
    services.extend(reflection_services(services))
    health.add_services(service.name for service in services)
    return tuple(guarded(service, authenticator) for service in services)


def _inference_service(serving: Serving, settings: RpcSettings, logs: LogControl, traces: TraceControl) -> Service:
    shared_memory = SharedMemory(settings.shared_memory)
    inference = InferenceCalls(
        serving,
        shared_memory,
        traces,
        settings.limits,
        stream_window=settings.stream_window,
        server_version=settings.server_version,
        extensions=list(_extensions(shared_memory.enabled, traces.enabled)),
    )
    return Service.of(
        grpc_predict_v2_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"],
        inference,
        RepositoryCalls(serving),
        SharedMemoryCalls(shared_memory),
        SettingsCalls(logs, traces),
    )


def _extensions(shared_memory: bool, tracing: bool) -> Iterator[str]:
    """Triton's names of what works here, in its order."""
    yield from ("classification", "model_repository", "schedule_policy", "model_configuration")
    if shared_memory:
        yield "system_shared_memory"
    yield from ("parameters", "statistics")
    if tracing:
        yield "trace"
    yield "logging"
