"""Health as orchestrators ask for it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2
from offramp_server.rpc.health_board import Health, HealthBoard
from rpc_fakes import Running, running

UNKNOWN, SERVING, NOT_SERVING = (
    health_pb2.HealthCheckResponse.ServingStatus.Value(name) for name in ("SERVICE_UNKNOWN", "SERVING", "NOT_SERVING")
)


@pytest.fixture
async def server() -> AsyncIterator[Running]:
    async with running() as server:
        server.health.set_endpoint("echo", serving=True)
        yield server


@pytest.fixture
async def channel(server: Running) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(server.address) as channel:
        yield channel


async def check(channel: grpc.aio.Channel, service: str) -> Any:
    call = channel.unary_unary(
        "/grpc.health.v1.Health/Check",
        request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
        response_deserializer=health_pb2.HealthCheckResponse.FromString,
    )
    return (await call(health_pb2.HealthCheckRequest(service=service))).status


def watch(channel: grpc.aio.Channel, service: str) -> Any:
    call = channel.unary_stream(
        "/grpc.health.v1.Health/Watch",
        request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
        response_deserializer=health_pb2.HealthCheckResponse.FromString,
    )
    return call(health_pb2.HealthCheckRequest(service=service))


async def test_the_server_its_services_and_its_models_have_a_health(channel: grpc.aio.Channel) -> None:
    for name in ("", "inference.GRPCInferenceService", "offramp.v1.RouteService", "grpc.health.v1.Health", "echo"):
        assert await check(channel, name) == SERVING


async def test_an_unknown_name_is_not_found(channel: grpc.aio.Channel) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await check(channel, "missing")

    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    assert caught.value.details() == 'no service, model or route "missing"'


async def test_a_model_that_cannot_answer_is_not_serving(server: Running, channel: grpc.aio.Channel) -> None:
    server.health.set_endpoint("echo", serving=False)

    assert await check(channel, "echo") == NOT_SERVING
    assert await check(channel, "") == SERVING


async def test_draining_takes_everything_out_of_service(server: Running, channel: grpc.aio.Channel) -> None:
    server.health.drain()
    server.health.set_server(serving=True)
    server.health.set_endpoint("echo", serving=True)

    for name in ("", "inference.GRPCInferenceService", "echo"):
        assert await check(channel, name) == NOT_SERVING


async def test_a_watch_sees_changes_and_survives_an_unknown_name(server: Running, channel: grpc.aio.Channel) -> None:
    call = watch(channel, "later")
    assert (await call.read()).status == UNKNOWN
    server.health.set_endpoint("later", serving=False)
    assert (await call.read()).status == NOT_SERVING
    server.health.set_endpoint("later", serving=True)
    assert (await call.read()).status == SERVING
    server.health.remove_endpoint("later")
    assert (await call.read()).status == UNKNOWN
    call.cancel()


async def test_closing_says_not_serving_and_ends_every_watch(server: Running, channel: grpc.aio.Channel) -> None:
    calls = [watch(channel, ""), watch(channel, "echo")]
    for call in calls:
        assert (await call.read()).status == SERVING

    server.health.close()

    for call in calls:
        assert (await call.read()).status == NOT_SERVING
        assert await call.read() is grpc.aio.EOF


async def test_a_watch_is_told_of_changes_only() -> None:
    board = HealthBoard()
    board.set_endpoint("echo", serving=True)
    watching = board.watch("echo")
    assert await anext(watching) is Health.SERVING

    following = asyncio.ensure_future(anext(watching))
    await asyncio.sleep(0)
    board.set_endpoint("other", serving=True)
    board.set_endpoint("echo", serving=True)
    await asyncio.sleep(0)
    assert not following.done()
    board.set_endpoint("echo", serving=False)

    assert await following is Health.NOT_SERVING
    await watching.aclose()


async def test_a_watch_that_is_busy_telling_while_the_board_closes_tells_the_end_as_well() -> None:
    board = HealthBoard()
    board.set_endpoint("echo", serving=True)
    watching = board.watch("echo")
    assert await anext(watching) is Health.SERVING

    # Whoever reads the watch has not come back for more.
    board.close()

    assert [health async for health in watching] == [Health.NOT_SERVING]
    assert [health async for health in board.watch("echo")] == [Health.NOT_SERVING]


def test_a_board_starts_out_of_service() -> None:
    board = HealthBoard()
    board.add_services(["a.B"])

    assert board.status("") is board.status("a.B") is Health.NOT_SERVING
    assert board.status("echo") is None
