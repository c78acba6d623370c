"""Workers die; the server goes on and tells the truth."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import numpy as np
import pytest
from eventually import PATIENCE, eventually
from metrics_page import metric
from model_repository import write_add_sub, write_gather, write_remainder
from offramp_client import InferResult, aio, errors
from server_process import ServerProcess, serving
from traffic import Traffic

ROW = np.array([[1, 2, 3, 4]], dtype=np.float32)
SMALLEST = np.iinfo(np.int32).min


def _int(value: int) -> np.ndarray:
    return np.array([[value]], dtype=np.int32)


async def _wait_for_workers(server: ServerProcess, count: int, without: int = 0) -> list[int]:
    """The pids, the oldest first, once there are `count` workers, `without` not among them."""

    def pids() -> list[int]:
        return [pid for pid in server.worker_pids() if pid != without]

    await eventually(lambda: len(pids()) >= count)
    return pids()


async def test_killing_workers_under_load_fails_no_request_and_every_restart_is_counted(repository: Path) -> None:
    write_add_sub(repository, offset=1)
    kills = 3
    with serving(repository) as server:
        async with aio.Client(server.grpc, timeout=PATIENCE) as client:

            async def call() -> None:
                result = await client.infer("add_sub", {"x": ROW})
                np.testing.assert_array_equal(result["y"], ROW + 1)

            async with Traffic(call, callers=8) as traffic:
                for _ in range(kills):
                    active = (await _wait_for_workers(server, 2))[0]
                    os.kill(active, signal.SIGKILL)
                    await _wait_for_workers(server, 2, without=active)
                    await traffic.more(50)
        restarts = metric(server, "offramp_worker_restarts_total", device="cpu", reason="signal_9")
        assert restarts == kills


async def test_killing_the_active_worker_and_the_standby_together_fails_no_request(repository: Path) -> None:
    write_add_sub(repository, offset=1)
    with serving(repository) as server:
        async with aio.Client(server.grpc, timeout=PATIENCE) as client:

            async def call() -> None:
                result = await client.infer("add_sub", {"x": ROW})
                np.testing.assert_array_equal(result["y"], ROW + 1)

            async with Traffic(call, callers=8) as traffic:
                for pid in await _wait_for_workers(server, 2):
                    os.kill(pid, signal.SIGKILL)
                await traffic.more(100)


async def test_a_request_that_kills_every_worker_it_meets_is_answered_with_an_error_and_takes_nobody_with_it(
    repository: Path,
) -> None:
    write_remainder(repository)
    with serving(repository) as server:
        async with aio.Client(server.grpc, timeout=PATIENCE) as client:
            await _wait_for_workers(server, 2)

            def rest(a: int, b: int) -> asyncio.Task[InferResult]:
                return asyncio.create_task(client.infer("remainder", {"a": _int(a), "b": _int(b)}))

            with server.computing_nothing():
                mates = [rest(n, 100) for n in range(10)]
                hostile = rest(SMALLEST, -1)
                mates += [rest(n, 100) for n in range(10, 20)]
                await eventually(lambda: metric(server, "offramp_requests_in_flight") == 21)
            with pytest.raises(errors.OfframpError, match="2 attempts"):
                await hostile
            assert [int((await mate)["rest"][0, 0]) for mate in mates] == list(range(20))
            # And the server goes on.
            assert (await rest(42, 9))["rest"].tolist() == [[6]]
        assert metric(server, "offramp_worker_restarts_total", device="cpu", reason="signal_8") == 2


async def test_a_request_that_makes_the_model_raise_fails_alone(repository: Path) -> None:
    write_gather(repository)
    with serving(repository, ["--in-process"]) as server:
        async with aio.Client(server.grpc, timeout=PATIENCE) as client:
            indices = [n % 10 for n in range(40)]
            indices[7] = 99
            results = await asyncio.gather(
                *(client.infer("gather", {"index": np.array([[n]], dtype=np.int64)}) for n in indices),
                return_exceptions=True,
            )
        assert isinstance(results[7], errors.OfframpError)
        good = [r for r in results if not isinstance(r, BaseException)]
        assert [float(r["row"][0, 0]) for r in good] == [float(n) for n in indices if n != 99]


async def test_workers_do_not_outlive_a_front_end_that_was_killed(repository: Path) -> None:
    write_add_sub(repository)
    with serving(repository) as server:
        pids = await _wait_for_workers(server, 2)
        server.process.kill()
        server.process.wait()
        await eventually(lambda: not any(_running(pid) for pid in pids))


async def test_a_model_that_no_worker_could_load_again_is_not_ready_nor_are_its_routes_until_one_could(
    repository: Path,
) -> None:
    write_add_sub(repository, offset=1)
    (repository / "over").mkdir()
    (repository / "over" / "route.toml").write_text('kind = "single"\nmodel = "add_sub"\n')
    folder, away = repository / "add_sub" / "1", repository.parent / "away"
    with serving(repository) as server:
        async with aio.Client(server.grpc, timeout=PATIENCE) as client:
            pids = await _wait_for_workers(server, 2)
            folder.rename(away)
            for pid in pids:
                os.kill(pid, signal.SIGKILL)
            await eventually(lambda: metric(server, "offramp_model_ready", model="add_sub") == 0)
            for name in ("add_sub", "over"):
                [entry] = [entry for entry in await client.repository_index() if entry.name == name]
                assert entry.state == "UNAVAILABLE"
                assert "no worker could load it again" in entry.reason
                assert not await client.is_model_ready(name)
                with pytest.raises(errors.Unavailable, match="no worker could load it again"):
                    await client.infer(name, {"x": ROW})
            away.rename(folder)
            await eventually(lambda: metric(server, "offramp_model_ready", model="add_sub") == 1)
            for name in ("add_sub", "over"):
                assert await client.is_model_ready(name)
                np.testing.assert_array_equal((await client.infer(name, {"x": ROW}))["y"], ROW + 1)


def _running(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
