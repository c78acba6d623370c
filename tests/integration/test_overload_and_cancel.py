"""More load than the server can take, and callers that change their minds.

The workers are held while a queue fills or is emptied, so that nothing hangs on how fast anybody is.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest
from eventually import PATIENCE, eventually, eventually_here
from metrics_page import metric
from model_repository import write_add_sub, write_spin
from offramp_client import InferResult, RetryPolicy, aio, errors
from offramp_server.workers.process_executor import SLABS
from server_process import ServerProcess, serving

ROW = np.array([[1, 2, 3, 4]], dtype=np.float32)
# Rows in a queue that is full.
QUEUE = 8
ONCE = RetryPolicy(max_attempts=1)


def write_model(repository: Path, name: str, config: str) -> None:
    """y = x."""
    write_add_sub(repository, name)
    (repository / name / "model.toml").write_text(config)


def in_flight(server: ServerProcess) -> float:
    return metric(server, "offramp_requests_in_flight")


async def test_a_full_queue_refuses_at_once_and_whoever_was_let_in_is_answered(repository: Path) -> None:
    write_model(repository, "narrow", f"max_batch_size = 1\n[batching]\nmax_queue_items = {QUEUE}\n")
    with serving(repository) as server:
        async with aio.Client(server.grpc, timeout=PATIENCE, retries=ONCE) as client:
            let_in: list[asyncio.Task[InferResult]] = []

            async def send(count: int) -> None:
                let_in.extend(asyncio.create_task(client.infer("narrow", {"x": ROW * n})) for n in range(count))
                await eventually(lambda: in_flight(server) == len(let_in))

            with server.computing_nothing():
                # What the worker is sent ahead does not wait in the queue.
                await send(SLABS)
                await send(QUEUE)
                assert metric(server, "offramp_queue_items", model="narrow") == QUEUE
                # Nobody is answered now, so a refusal that waited for anything would not come.
                for _ in range(2 * len(let_in)):
                    with pytest.raises(errors.ResourceExhausted) as refused:
                        await client.infer("narrow", {"x": ROW})
                    assert refused.value.retry_after is not None
                assert in_flight(server) == len(let_in)
            results = await asyncio.gather(*let_in)
        for result, n in zip(results, [*range(SLABS), *range(QUEUE)], strict=True):
            np.testing.assert_array_equal(result["y"], ROW * n)


async def test_three_times_the_load_is_answered_or_refused_and_leaves_nothing_behind(repository: Path) -> None:
    write_spin(repository, rounds=200, config=f"max_batch_size = 1\n[batching]\nmax_queue_items = {QUEUE}\n")
    with serving(repository) as server:
        async with aio.Client(server.grpc, timeout=PATIENCE) as client:
            await eventually(lambda: metric(server, "offramp_workers", state="standby") == 1)
            await client.infer("spin", {"x": ROW})
            memory = server.resident_bytes()
            answered = 0
            hints: list[float | None] = []

            async def call() -> None:
                nonlocal answered
                try:
                    await client.infer("spin", {"x": ROW})
                    answered += 1
                except errors.ResourceExhausted as error:
                    hints.append(error.retry_after)

            # Three times as many callers as are let in, who come back at once.
            async def insist(times: int) -> None:
                for _ in range(times):
                    await call()

            with server.computing_nothing():
                storm = asyncio.gather(*(insist(12) for _ in range(3 * (SLABS + QUEUE))))
                await eventually_here(lambda: len(hints) > 0)
            await storm
            assert answered + len(hints) == 12 * 3 * (SLABS + QUEUE)
            assert answered >= QUEUE
            assert all(hint is not None and hint > 0 for hint in hints)
            assert server.resident_bytes() < memory + 64 * 2**20
        assert metric(server, "offramp_requests_total", model="spin", status="resource_exhausted") == len(hints)
        assert in_flight(server) == 0


async def test_of_a_thousand_cancelled_requests_only_those_whose_batch_had_left_are_computed(repository: Path) -> None:
    batch = 4
    write_model(repository, "wide", f"max_batch_size = {batch}\n[batching]\nmax_queue_items = 4096\n")
    with serving(repository) as server:

        def waiting() -> float:
            return metric(server, "offramp_queue_items", model="wide")

        async with aio.Client(server.grpc, timeout=PATIENCE, retries=ONCE) as client:
            with server.computing_nothing():
                doomed = [asyncio.create_task(client.infer("wide", {"x": ROW})) for _ in range(1000)]
                await eventually(lambda: in_flight(server) == len(doomed))
                left = len(doomed) - waiting()
                assert 1 <= left <= SLABS * batch
                kept = [asyncio.create_task(client.infer("wide", {"x": ROW * n})) for n in range(10)]
                await eventually(lambda: waiting() == len(doomed) - left + len(kept))
                for task in doomed:
                    task.cancel()
                await eventually(lambda: in_flight(server) == len(kept))
                assert waiting() == len(kept)
            for n, result in enumerate(await asyncio.gather(*kept)):
                np.testing.assert_array_equal(result["y"], ROW * n)
            assert all(
                isinstance(o, asyncio.CancelledError) for o in await asyncio.gather(*doomed, return_exceptions=True)
            )
        assert metric(server, "offramp_batch_size_items_sum", model="wide") == left + len(kept)
        assert metric(server, "offramp_items_total", model="wide") == len(kept)
        assert metric(server, "offramp_requests_total", model="wide", status="cancelled") == len(doomed)


async def test_a_deadline_reaches_the_queue_and_the_late_request_is_never_computed(repository: Path) -> None:
    write_model(repository, "narrow", "max_batch_size = 1\n")
    with serving(repository) as server:
        async with aio.Client(server.grpc, timeout=PATIENCE, retries=ONCE) as client:
            with server.computing_nothing():
                busy = [asyncio.create_task(client.infer("narrow", {"x": ROW})) for _ in range(SLABS)]
                await eventually(lambda: in_flight(server) == len(busy))
                with pytest.raises(errors.DeadlineExceeded):
                    # Triton's parameter, so that it is the server that gives up and not the client's own clock.
                    await client.infer("narrow", {"x": ROW}, parameters={"timeout": 1000})
                assert metric(server, "offramp_queue_items", model="narrow") == 0
            await asyncio.gather(*busy)
        assert metric(server, "offramp_executions_total", model="narrow") == len(busy)
        assert metric(server, "offramp_requests_total", model="narrow", status="deadline_exceeded") == 1
