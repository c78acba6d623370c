"""grpc.health.v1: the health board on the wire."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing

from grpc_health.v1 import health_pb2
from offramp_common.text import quoted

from offramp_server.errors import NotFound
from offramp_server.rpc.health_board import Health, HealthBoard
from offramp_server.transport.interface import CallContext, Service

_STATUS = health_pb2.HealthCheckResponse


class HealthCalls:
    """grpc.health.v1.Health. The service of a request is "", a gRPC service, a model or a route."""

    def __init__(self, board: HealthBoard) -> None:
        self._board = board

    async def check(
        self, request: health_pb2.HealthCheckRequest, context: CallContext
    ) -> health_pb2.HealthCheckResponse:
        health = self._board.status(request.service)
        if health is None:
            raise NotFound(f"no service, model or route {quoted(request.service)}")
        return _response(health)

    async def watch(
        self, request: health_pb2.HealthCheckRequest, context: CallContext
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        async with aclosing(self._board.watch(request.service)) as changes:
            async for health in changes:
                yield _response(health)


def health_service(board: HealthBoard) -> Service:
    return Service.of(health_pb2.DESCRIPTOR.services_by_name["Health"], HealthCalls(board))


def _response(health: Health | None) -> health_pb2.HealthCheckResponse:
    return _STATUS(status=_STATUS.SERVICE_UNKNOWN if health is None else _STATUS.ServingStatus.Value(health.value))
