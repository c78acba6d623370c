"""Early exits over the segments of one network, whose hidden state stays in the worker."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from eventually import PATIENCE, eventually
from offramp_client import InferResult, aio, errors
from offramp_server.config import Settings, WorkerSettings
from offramp_server.core import build_core
from offramp_server.inference import InferRequest, InferResponse
from offramp_server.scheduling.held import HeldMemory
from open_inference.tensor import Tensor
from segments import FEATURES, logits, write_deadly_segments, write_segments
from server_process import serving
from traffic import Traffic

ALWAYS_DEFER, SOMETIMES = 1.1, 0.6
SMALLEST = np.iinfo(np.int32).min


@pytest.mark.parametrize("mode", ["process", "in-process"])
@pytest.mark.parametrize("room", [0, 1 << 20])
async def test_a_route_answers_the_same_bits_whether_hidden_state_stays_or_travels(
    repository: Path, mode: Literal["process", "in-process"], room: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_segments(repository, ALWAYS_DEFER)
    rows = np.random.default_rng(1).standard_normal((40, FEATURES)).astype(np.float32)
    kept = count_kept_batches(monkeypatch)
    core = build_core(repository, Settings(workers=WorkerSettings(mode=mode, max_held_bytes=room)))
    try:
        await core.load()

        async def ask(model: str, name: str, items: np.ndarray) -> InferResponse:
            return await core.serving.infer(InferRequest(model, [Tensor.from_numpy(name, items)]))

        answers = await asyncio.gather(*(ask("net", "x", rows[at : at + 2]) for at in range(0, 40, 2)))
        for at, answer in zip(range(0, 40, 2), answers, strict=True):
            reference = await ask("net-2", "hidden_1_1", rows[at : at + 2] + 1)
            assert [tensor.name for tensor in answer.outputs] == ["logits"]
            assert bytes(answer.outputs[0].data) == bytes(reference.outputs[0].data)
        assert bool(kept) == (room > 0)
    finally:
        await core.close()


async def test_killing_workers_between_stages_fails_no_request(repository: Path) -> None:
    write_segments(repository, SOMETIMES, "[audit]\nrate = 0.5")
    rows = np.random.default_rng(2).standard_normal((64, 1, FEATURES)).astype(np.float32)
    exits: set[str] = set()
    with serving(repository) as server:
        async with aio.Client(server.grpc, timeout=PATIENCE) as client:
            turn = 0

            async def call() -> None:
                nonlocal turn
                turn += 1
                row = rows[turn % len(rows)]
                result = await client.infer("net", {"x": row})
                exit_name = str(result.parameters["offramp_exit"])
                exits.add(exit_name)
                expected = logits(int(exit_name[-1]), row)
                np.testing.assert_allclose(result["logits"], expected, rtol=1e-5, atol=1e-5)

            async with Traffic(call, callers=16) as traffic:
                for _ in range(3):
                    await traffic.more(100)
                    victim = server.worker_pids()[0]
                    os.kill(victim, signal.SIGKILL)
                    await eventually(lambda gone=victim: two_others(server.worker_pids(), gone))  # type: ignore[misc]
                await traffic.more(50)
    assert exits == {"net-1", "net-2"}


async def test_a_request_that_ends_workers_at_a_later_stage_is_given_up_and_takes_nobody_with_it(
    repository: Path,
) -> None:
    write_deadly_segments(repository)
    with serving(repository) as server:
        async with aio.Client(server.grpc, timeout=PATIENCE) as client:

            async def ask(value: int) -> InferResult | errors.OfframpError:
                try:
                    return await client.infer("net", {"x": np.array([[value]], dtype=np.int32)})
                except errors.OfframpError as error:
                    return error

            poison, *innocents = await asyncio.gather(*(ask(value) for value in (SMALLEST, *range(1, 9))))
            assert isinstance(poison, errors.OfframpError)
            assert "died on each of 2 attempts" in str(poison)
            for answer in innocents:
                assert isinstance(answer, InferResult)
                assert answer["logits"].tolist() == [[0, 0]]


def two_others(pids: list[int], gone: int) -> bool:
    return len([pid for pid in pids if pid != gone]) >= 2


def count_kept_batches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by the bytes of each batch of which something stayed."""
    kept: list[int] = []
    original = HeldMemory.kept

    def counted(self: HeldMemory, *arguments: object) -> object:
        batch = original(self, *arguments)  # type: ignore[arg-type]
        kept.append(batch.size)
        return batch

    monkeypatch.setattr(HeldMemory, "kept", counted)
    return kept
