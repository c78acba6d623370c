"""Workers share the cores out again when more of them come, and answer all the while."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest
from model_repository import write_add_sub
from offramp_server.config import Settings, WorkerSettings
from offramp_server.core import Core, build_core
from offramp_server.inference import InferRequest
from offramp_server.machine.numa import Node
from offramp_server.machine.plan import Topology
from open_inference.tensor import Tensor

FOUR_CORES = Topology(4, (Node(0, (0, 1, 2, 3)),))


def threads(core: Core, name: str) -> int:
    return core.models.get(name, "").engine.threads


async def ask(core: Core, until: asyncio.Event) -> int:
    """Requests that were answered, one after the other, until the event."""
    answered = 0
    while answered == 0 or not until.is_set():
        request = InferRequest("early", [Tensor.from_numpy("x", np.full((1, 4), answered, np.float32))])
        answer = await core.serving.infer(request)
        assert answer.outputs[0].numpy().tolist() == [[answered + 1.0] * 4]
        answered += 1
    return answered


async def test_a_model_gives_up_threads_to_workers_that_come_later_and_goes_on_answering(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("offramp_server.core.read_topology", lambda: FOUR_CORES)
    write_add_sub(tmp_path, "early", offset=1.0)
    write_add_sub(tmp_path, "late")
    (tmp_path / "late" / "model.toml").write_text("[engine]\ninstances = 2\n")
    core = build_core(tmp_path, Settings(workers=WorkerSettings(standby=0)))
    try:
        await core.models.load("early")
        core.serving.accepting = core.serving.ready = True
        assert threads(core, "early") == 4
        loaded = asyncio.Event()
        asking = asyncio.create_task(ask(core, loaded))
        await core.models.load("late")
        loaded.set()
        assert await asking > 0
        assert (threads(core, "early"), threads(core, "late")) == (2, 2)
        assert len(core.backend.groups[0].actives) == 2
    finally:
        await core.close()
