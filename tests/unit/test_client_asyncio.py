"""What only the asyncio client has to promise."""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import AsyncIterator, Iterator
from typing import cast

import numpy as np
import pytest
from client_fakes import FakeServer
from eventually import PATIENCE
from offramp_client import AsyncClient, InferRequest, InferResult, aio, errors
from offramp_client._transports import TransportName

INPUTS = {"x": np.zeros(1, np.float32)}


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer() as server:
        yield server


@pytest.fixture(params=["grpcio", "native"])
def transport(request: pytest.FixtureRequest) -> TransportName:
    return cast("TransportName", request.param)


async def test_many_calls_run_at_the_same_time_over_one_client(server: FakeServer, transport: TransportName) -> None:
    async with AsyncClient(server.target, transport=transport) as client:
        slow = asyncio.create_task(client.infer("slow", INPUTS))
        await asyncio.to_thread(server.working.wait, 10)
        results = await asyncio.gather(*(client.infer("echo", INPUTS, request_id=str(i)) for i in range(20)))
        assert not slow.done()
        server.release.set()
        await slow

    assert [result.id for result in results] == [str(i) for i in range(20)]


async def test_cancelling_the_task_cancels_the_call_on_the_server(server: FakeServer, transport: TransportName) -> None:
    async with AsyncClient(server.target, transport=transport) as client:
        task = asyncio.create_task(client.infer("slow", INPUTS))
        assert await asyncio.to_thread(server.working.wait, PATIENCE)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await asyncio.to_thread(server.cancelled.wait, PATIENCE)


async def test_an_outer_timeout_is_a_timeout_and_no_error_of_ours(server: FakeServer, transport: TransportName) -> None:
    async with AsyncClient(server.target, transport=transport) as client:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await client.infer("slow", INPUTS)


async def test_closing_ends_what_is_in_flight_without_cancelling_its_task(
    server: FakeServer, transport: TransportName
) -> None:
    client = AsyncClient(server.target, transport=transport)
    task = asyncio.create_task(client.infer("slow", INPUTS))
    assert await asyncio.to_thread(server.working.wait, PATIENCE)

    await client.close()

    with pytest.raises(errors.Cancelled):
        await task
    assert await asyncio.to_thread(server.cancelled.wait, PATIENCE)


async def test_closing_ends_a_stream_without_cancelling_its_task(server: FakeServer, transport: TransportName) -> None:
    async def endless() -> AsyncIterator[InferRequest]:
        yield InferRequest("echo", INPUTS)
        await asyncio.Event().wait()

    client = AsyncClient(server.target, transport=transport)
    answers = client.infer_stream(endless())
    await anext(answers)
    rest: asyncio.Task[InferResult] = asyncio.create_task(anext(answers))  # type: ignore[arg-type]
    # Lets the task reach its wait.
    await asyncio.sleep(0)
    await client.close()

    with pytest.raises(errors.Cancelled):
        await rest


async def test_a_closed_client_says_so(server: FakeServer, transport: TransportName) -> None:
    async with AsyncClient(server.target, transport=transport) as client:
        await client.is_live()
    await client.close()
    with pytest.raises(RuntimeError, match=rf"Client\('{server.target}'\) is closed; make a new one"):
        await client.is_live()
    with pytest.raises(RuntimeError, match="is closed"):
        client.infer_stream([])


async def test_a_client_that_was_never_used_closes(server: FakeServer, transport: TransportName) -> None:
    async with AsyncClient(server.target, transport=transport):
        pass


def test_a_client_may_be_made_before_its_event_loop_runs(server: FakeServer, transport: TransportName) -> None:
    client = AsyncClient(server.target, transport=transport)

    async def use() -> bool:
        async with client:
            return await client.is_live()

    assert asyncio.run(use())


@pytest.mark.skipif(importlib.util.find_spec("uvloop") is None, reason="uvloop is not installed")
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_the_native_transport_runs_on_uvloop(server: FakeServer, host: str) -> None:
    import uvloop

    async def use() -> str | None:
        async with AsyncClient(f"{host}:{server.port}", transport="native") as client:
            large = {"x": np.zeros(1_000_000, np.float32)}
            assert (await client.infer("echo", large))["x"].size == 1_000_000
            return (await client.infer("echo", INPUTS, request_id="r")).id

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(use()) == "r"


def test_both_names_are_one_class() -> None:
    assert AsyncClient is aio.Client
