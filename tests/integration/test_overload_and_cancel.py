"""More load than the server can take, and callers that change their minds."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import numpy as np
import pytest
from eventually import eventually
from metrics_page import metric
from model_repository import write_spin
from offramp_client import RetryPolicy, aio, errors
from server_process import serving

ROW = np.array([[1, 2, 3, 4]], dtype=np.float32)
ONE_AT_A_TIME = "max_batch_size = 1\n[batching]\nmax_queue_items = 8\n"


async def test_with_three_times_the_load_refusals_are_immediate_and_those_accepted_wait_a_bounded_time(
    repository: Path,
) -> None:
    write_spin(repository, rounds=200, config=ONE_AT_A_TIME)
    with serving(repository, ["--in-process"]) as server:
        async with aio.Client(server.grpc, timeout=60) as client:
            await client.infer("spin", {"x": ROW})
            memory = server.resident_bytes()
            answered: list[float] = []
            refused: list[float] = []
            hints: list[float | None] = []

            async def call(_: int) -> None:
                started = time.perf_counter()
                try:
                    await client.infer("spin", {"x": ROW})
                    answered.append(time.perf_counter() - started)
                except errors.ResourceExhausted as error:
                    refused.append(time.perf_counter() - started)
                    hints.append(error.retry_after)

            # A queue of 8 and two on their way are always full with 32 callers that come back at once.
            async def insist(caller: int) -> None:
                for _ in range(12):
                    await call(caller)

            await asyncio.gather(*map(insist, range(32)))
            assert len(answered) + len(refused) == 32 * 12
            assert answered
            assert refused
            assert all(hint is not None and hint > 0 for hint in hints)
            # Nobody who was let in waited for more than the queue in front of it; a refusal waits for nothing.
            assert np.median(refused) < np.median(answered)
            queued = metric(server, "offramp_queue_duration_seconds_sum", model="spin")
            computed = metric(server, "offramp_compute_duration_seconds_sum", model="spin")
            assert queued / computed < 12
            assert server.resident_bytes() < memory + 64 * 2**20
        assert metric(server, "offramp_requests_total", model="spin", status="resource_exhausted") == len(refused)
        assert metric(server, "offramp_requests_in_flight") == 0


async def test_of_a_thousand_cancelled_requests_only_those_whose_batch_had_left_are_computed(repository: Path) -> None:
    write_spin(repository, rounds=2000, config="max_batch_size = 4\n[batching]\nmax_queue_items = 4096\n")
    with serving(repository, ["--in-process"]) as server:
        async with aio.Client(server.grpc, timeout=60) as client:
            await client.infer("spin", {"x": ROW})
            before = metric(server, "offramp_items_total", model="spin")
            executed = metric(server, "offramp_batch_size_items_sum", model="spin")
            busy = [asyncio.create_task(client.infer("spin", {"x": ROW * n})) for n in range(8)]
            await eventually(lambda: metric(server, "offramp_queue_items", model="spin") > 0)
            doomed = [asyncio.create_task(client.infer("spin", {"x": ROW})) for _ in range(1000)]
            await eventually(lambda: metric(server, "offramp_requests_in_flight") >= 200)
            for task in doomed:
                task.cancel()
            outcomes = await asyncio.gather(*doomed, return_exceptions=True)
            for n, result in enumerate(await asyncio.gather(*busy)):
                np.testing.assert_array_equal(result["y"], ROW * n)
            await eventually(lambda: metric(server, "offramp_requests_in_flight") == 0)
            finished = sum(not isinstance(outcome, BaseException) for outcome in outcomes)
            # An answer may be on its way when its caller cancels: the server counts it, the caller does not.
            answered = metric(server, "offramp_items_total", model="spin") - before
            assert answered >= len(busy) + finished
            # At most the batch in the worker and the one sent ahead could hold cancelled requests.
            computed = metric(server, "offramp_batch_size_items_sum", model="spin") - executed
            assert answered <= computed <= answered + 3 * 4
            assert computed < len(busy) + len(doomed) / 2
            assert metric(server, "offramp_queue_items", model="spin") == 0


async def test_a_deadline_reaches_the_queue_and_the_late_request_is_never_computed(repository: Path) -> None:
    write_spin(repository, rounds=4000, config=ONE_AT_A_TIME)
    with serving(repository, ["--in-process"]) as server:
        async with aio.Client(server.grpc, timeout=60, retries=RetryPolicy(max_attempts=1)) as client:
            await client.infer("spin", {"x": ROW})
            executed = metric(server, "offramp_executions_total", model="spin")
            busy = [asyncio.create_task(client.infer("spin", {"x": ROW})) for _ in range(3)]
            await eventually(lambda: metric(server, "offramp_requests_in_flight") >= 3)
            with pytest.raises(errors.DeadlineExceeded):
                # Triton's parameter, so that it is the server that gives up and not the client's own clock.
                await client.infer("spin", {"x": ROW}, parameters={"timeout": 1000})
            await asyncio.gather(*busy)
            assert metric(server, "offramp_executions_total", model="spin") == executed + 3
        assert metric(server, "offramp_requests_total", model="spin", status="deadline_exceeded") == 1
