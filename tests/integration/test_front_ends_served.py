"""`offramp serve --front-ends 2`: to its clients it is one server, whatever becomes of a front end."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest
import tritonclient.grpc as triton
from eventually import PATIENCE, eventually, eventually_here
from front_ends import ECHO, WAIT, Handlers
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from metrics_page import metric
from model_repository import write_add_sub
from offramp_client import Client, InferRequest, RetryPolicy, aio, errors
from offramp_server.transport.interface import ListenOptions
from offramp_server.transport.relay.running import Patience
from offramp_server.transport.relay.transport import RelayTransport
from server_process import ServerProcess, serving
from traffic import Traffic

ROW = np.array([[1, 2, 3, 4]], dtype=np.float32)
ONCE = RetryPolicy(max_attempts=1)
NATIVE = {"OFFRAMP_SERVER__TRANSPORT": "native"}


@contextmanager
def served(repository: Path, *arguments: str, **environment: str) -> Iterator[ServerProcess]:
    write_add_sub(repository, offset=1)
    with serving(repository, ["--front-ends=2", *arguments], {**NATIVE, **environment}) as server:
        assert len(server.front_end_pids()) == 2
        yield server


class Watching:
    """A client with a connection of its own, on which a stream goes on."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.health = health_pb2_grpc.HealthStub(channel)
        self.stream: Any = self.health.Watch(health_pb2.HealthCheckRequest())

    async def check(self) -> bool:
        asked = self.health.Check(health_pb2.HealthCheckRequest(), wait_for_ready=True, timeout=PATIENCE)
        return bool((await asked).status == health_pb2.HealthCheckResponse.SERVING)


def connections(server: ServerProcess) -> list[int]:
    return [int(metric(server, "offramp_front_end_connections", front_end=number)) for number in ("1", "2")]


@asynccontextmanager
async def clients_of_both(server: ServerProcess) -> AsyncIterator[list[Watching]]:
    """As many as it takes until each front end has two: the kernel deals them out."""
    found: list[Watching] = []
    async with AsyncExitStack() as stack:
        while min(connections(server)) < 2:
            for _ in range(4):
                own = [("grpc.use_local_subchannel_pool", 1)]
                channel = await stack.enter_async_context(grpc.aio.insecure_channel(server.grpc, own))
                found.append(Watching(channel))
                await found[-1].stream.read()
            await eventually(lambda: sum(connections(server)) == len(found))
        yield found


async def test_clients_of_all_kinds_share_one_server(repository: Path) -> None:
    with served(repository) as server:
        async with clients_of_both(server) as clients:
            for client in clients:
                assert await client.check()
        await asyncio.to_thread(_call_in_every_way, server)
        async with aio.Client(server.grpc, timeout=PATIENCE) as client_of_sdk:
            requests = [InferRequest("add_sub", {"x": ROW * n}) for n in range(50)]
            results = [result async for result in client_of_sdk.infer_stream(requests)]
            for n, result in enumerate(results):
                np.testing.assert_array_equal(result["y"], ROW * n + 1)
        assert len(results) == 50
        # One server counts them all.
        assert metric(server, "offramp_items_total", model="add_sub") == 50 + 2 * 8
        assert metric(server, "offramp_front_end_cpu_seconds_total") > 0
        assert server.stop() == 0


def _call_in_every_way(server: ServerProcess) -> None:
    for _ in range(8):
        with Client(server.grpc, timeout=PATIENCE) as client:
            np.testing.assert_array_equal(client.infer("add_sub", {"x": ROW})["y"], ROW + 1)
        with triton.InferenceServerClient(server.grpc) as client_of_triton:
            row = triton.InferInput("x", [1, 4], "FP32")
            row.set_data_from_numpy(ROW)
            result = client_of_triton.infer("add_sub", [row], client_timeout=PATIENCE)
            np.testing.assert_array_equal(result.as_numpy("z"), ROW - 1)
    with grpc.insecure_channel(server.grpc) as channel:
        assert "offramp.v1.RouteService" in ProtoReflectionDescriptorDatabase(channel).get_services()


async def test_a_front_end_that_is_killed_takes_only_its_own_clients_with_it(repository: Path) -> None:
    with served(repository, "--in-process") as server:
        async with clients_of_both(server) as clients:
            before = connections(server)
            victim, other = server.front_end_pids()
            os.kill(victim, signal.SIGKILL)
            await eventually(lambda: metric(server, "offramp_front_end_restarts_total", reason="signal_9") == 1)
            await eventually(lambda: len(server.front_end_pids()) == 2)
            assert other in server.front_end_pids()
            # Those of the other one have not noticed; the rest connect again.
            assert all([await client.check() for client in clients])
            ended = [client for client in clients if client.stream.done()]
            assert len(ended) in before
            assert {await client.stream.code() for client in ended} == {grpc.StatusCode.UNAVAILABLE}
        assert f"(process {victim}) ended: signal_9" in server.logged()
        assert server.stop() == 0


async def test_signals_to_all_processes_at_once_drain_the_server_under_load(repository: Path) -> None:
    with served(repository, OFFRAMP_SERVER__DRAIN_TIMEOUT=str(PATIENCE)) as server:
        front_ends = server.front_end_pids()
        async with AsyncExitStack() as stack:
            clients = [
                await stack.enter_async_context(aio.Client(server.grpc, timeout=PATIENCE, retries=ONCE))
                for _ in range(6)
            ]
            for client in clients:
                await client.infer("add_sub", {"x": ROW})
            await eventually(lambda: metric(server, "offramp_workers", state="standby") == 1)
            with server.computing_nothing():
                waiting = [
                    asyncio.create_task(client.infer("add_sub", {"x": ROW * n})) for n, client in enumerate(clients)
                ]
                await eventually(lambda: metric(server, "offramp_requests_in_flight") == len(clients))
                # As a terminal and a service manager do.
                for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
                    for pid in (*front_ends, *server.worker_pids()):
                        os.kill(pid, number)
                server.process.send_signal(signal.SIGTERM)
                await eventually(lambda: "draining" in server.logged())
                for client in clients:
                    with pytest.raises(errors.Unavailable):
                        await client.infer("add_sub", {"x": ROW})
            for n, answer in enumerate(waiting):
                np.testing.assert_array_equal((await answer)["y"], ROW * n + 1)
        assert await asyncio.to_thread(server.process.wait, PATIENCE) == 0
        assert not any(_runs(pid) for pid in front_ends)
        assert "did not end in time" not in server.logged()
        assert "signal_" not in server.logged()


async def test_a_front_end_that_stands_still_is_replaced_and_its_calls_fail() -> None:
    handlers = Handlers()
    patience = Patience(silence=2)
    transport = RelayTransport(
        [handlers.service()], ListenOptions("127.0.0.1", 0), 1, (logging.WARNING, "text"), patience=patience
    )
    target = f"127.0.0.1:{await transport.start()}"
    try:
        [seat] = transport.seats
        hung = seat.pid
        assert hung is not None
        async with grpc.aio.insecure_channel(target) as channel:
            call = channel.unary_unary(WAIT)(b"x")
            await eventually_here(lambda: handlers.running == 1)
            os.kill(hung, signal.SIGSTOP)
            assert await call.code() is grpc.StatusCode.UNAVAILABLE
            await eventually_here(lambda: handlers.running == 0)
            assert await _answered(channel) == b"x"
        assert transport.restarts["hung"] >= 1
        assert not _runs(hung)
    finally:
        await transport.stop(1)


async def _answered(channel: grpc.aio.Channel) -> bytes:
    """Where everything is slow, the next front end may be taken for one that hangs as well."""
    for _ in range(5):
        with suppress(grpc.aio.AioRpcError):
            answer: bytes = await channel.unary_unary(ECHO)(b"x", wait_for_ready=True, timeout=PATIENCE)
            return answer
    raise AssertionError("no front end answers")


async def test_front_ends_do_not_outlive_a_server_that_was_killed(repository: Path) -> None:
    with served(repository, "--in-process") as server:
        front_ends = server.front_end_pids()
        async with aio.Client(server.grpc, timeout=PATIENCE, retries=ONCE) as client:

            async def call() -> None:
                try:
                    await client.infer("add_sub", {"x": ROW})
                except errors.Unavailable:
                    killed.set()

            killed = asyncio.Event()
            async with Traffic(call, callers=4) as traffic:
                await traffic.more(20)
                server.process.kill()
                await asyncio.wait_for(killed.wait(), PATIENCE)
        await eventually(lambda: not any(_runs(pid) for pid in front_ends))


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False
