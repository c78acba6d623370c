"""Models change and the server stops without anybody's request being lost."""

from __future__ import annotations

import asyncio
import signal
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest
from eventually import PATIENCE, eventually
from metrics_page import metric
from model_repository import write_add_sub
from offramp_client import InferResult, RetryPolicy, aio, errors
from server_process import ServerProcess, serving
from traffic import Traffic

ROW = np.array([[1, 2, 3, 4]], dtype=np.float32)
RELOADS = 50
ONCE = RetryPolicy(max_attempts=1)


async def test_fifty_reloads_under_load_fail_no_request_and_do_not_grow_memory(repository: Path) -> None:
    write_add_sub(repository)
    with serving(repository) as server:
        async with aio.Client(server.grpc, timeout=PATIENCE) as client:
            memory = 0

            async def call() -> None:
                result = await client.infer("add_sub", {"x": ROW})
                offset = float(result["y"][0, 0]) - 1
                np.testing.assert_array_equal(result["y"], ROW + offset)
                np.testing.assert_array_equal(result["z"], ROW - offset)

            async with Traffic(call, callers=4) as traffic:
                for reload in range(RELOADS):
                    write_add_sub(repository, offset=reload)
                    await client.load_model("add_sub")
                    assert float((await client.infer("add_sub", {"x": ROW}))["y"][0, 0]) == 1 + reload
                    await traffic.more(4)
                    if reload == RELOADS // 5:
                        memory = server.resident_bytes()
            assert server.resident_bytes() < memory + 48 * 2**20
        assert metric(server, "offramp_model_loads_total", model="add_sub", outcome="ok") == RELOADS + 1
        assert metric(server, "offramp_worker_restarts_total") == 0


async def test_a_new_version_takes_over_and_a_broken_one_does_not(repository: Path) -> None:
    write_add_sub(repository, version=1, offset=1)
    with serving(repository, ["--in-process"]) as server:
        async with aio.Client(server.grpc, timeout=PATIENCE) as client:
            write_add_sub(repository, version=2, offset=2)
            await client.load_model("add_sub")
            result = await client.infer("add_sub", {"x": ROW})
            assert (result.model_version, result["y"].tolist()) == ("2", (ROW + 2).tolist())
            broken = repository / "add_sub" / "3"
            broken.mkdir()
            (broken / "model.onnx").write_bytes(b"this is no model")
            with pytest.raises(errors.FailedPrecondition, match=r"model\.onnx"):
                await client.load_model("add_sub")
            assert (await client.infer("add_sub", {"x": ROW})).model_version == "2"


async def test_an_unloaded_model_is_gone_and_comes_back_with_a_load(repository: Path) -> None:
    write_add_sub(repository)
    with serving(repository, ["--in-process"]) as server:
        async with aio.Client(server.grpc, timeout=PATIENCE, retries=ONCE) as client:
            await client.unload_model("add_sub")
            with pytest.raises(errors.NotFound, match="unloaded"):
                await client.infer("add_sub", {"x": ROW})
            assert not await client.is_model_ready("add_sub")
            await client.load_model("add_sub")
            assert await client.is_model_ready("add_sub")


@asynccontextmanager
async def held_back(server: ServerProcess, requests: int) -> AsyncIterator[list[asyncio.Task[InferResult]]]:
    """That many requests inside the server, number n of them with rows of n. Their answers cannot come before the block
    ends."""
    async with aio.Client(server.grpc, timeout=PATIENCE, retries=ONCE) as client:
        with server.computing_nothing():
            running = [asyncio.create_task(client.infer("add_sub", {"x": ROW * n})) for n in range(requests)]
            await eventually(lambda: metric(server, "offramp_requests_in_flight") == requests)
            yield running
        await asyncio.gather(*running, return_exceptions=True)


async def test_sigterm_refuses_what_is_new_finishes_what_is_there_and_exits_with_zero(repository: Path) -> None:
    write_add_sub(repository)
    with serving(repository, environment={"OFFRAMP_SERVER__DRAIN_TIMEOUT": str(PATIENCE)}) as server:
        async with held_back(server, 5) as running, aio.Client(server.grpc, timeout=PATIENCE, retries=ONCE) as client:
            server.process.send_signal(signal.SIGTERM)
            await eventually(lambda: _readyz(server) == 503)
            with pytest.raises(errors.Unavailable, match="drain"):
                await client.infer("add_sub", {"x": ROW})
        for n, task in enumerate(running):
            np.testing.assert_array_equal(task.result()["y"], ROW * n)
        assert await asyncio.to_thread(server.process.wait, PATIENCE) == 0


async def test_a_drain_that_takes_too_long_gives_up_with_unavailable(repository: Path) -> None:
    write_add_sub(repository)
    with serving(repository, environment={"OFFRAMP_SERVER__DRAIN_TIMEOUT": "0.05"}) as server:
        async with held_back(server, 6) as running:
            server.process.send_signal(signal.SIGTERM)
            for task in running:
                with pytest.raises(errors.Unavailable):
                    await task
            assert await asyncio.to_thread(server.process.wait, PATIENCE) == 0


async def test_a_second_signal_ends_the_server_at_once(repository: Path) -> None:
    write_add_sub(repository)
    with serving(repository, environment={"OFFRAMP_SERVER__DRAIN_TIMEOUT": str(PATIENCE)}) as server:
        async with held_back(server, 6) as running:
            server.process.send_signal(signal.SIGINT)
            await eventually(lambda: _readyz(server) == 503)
            server.process.send_signal(signal.SIGINT)
            # A drain would have waited for the requests first.
            assert await asyncio.to_thread(server.process.wait, PATIENCE) == 1
            for task in running:
                with pytest.raises(errors.Unavailable):
                    await task


def _readyz(server: ServerProcess) -> int:
    try:
        with urllib.request.urlopen(f"http://{server.http}/readyz", timeout=PATIENCE) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
