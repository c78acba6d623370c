"""Splits over real models: arms, shadows that nobody waits for, and what happens to them under load."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest
from classifiers import write_classifier, write_route
from eventually import PATIENCE, eventually_here
from offramp_adapters.experiments.assignment import assign
from offramp_adapters.routes.strategy import Level
from offramp_server.config import LimitSettings, LoadSettings, ServerSettings, Settings, WorkerSettings
from offramp_server.core import Core, build_core
from offramp_server.errors import InvalidRequest, Overloaded
from offramp_server.inference import InferRequest, InferResponse, ParameterValue
from open_inference.tensor import Tensor

EYE = np.eye(3)
SPLIT = """
kind = "split"
salt = "s"
[[arms]]
name = "full"
model = "teacher"
[[arms]]
name = "small"
model = "student"
"""
SHADOW = """
[[shadows]]
model = "candidate"
"""


@pytest.fixture
def models(repository: Path) -> Path:
    """The student doubles what the teacher says, the candidate turns it around."""
    write_classifier(repository, "teacher", EYE)
    write_classifier(repository, "student", 2 * EYE)
    write_classifier(repository, "candidate", -EYE)
    return repository


NO_CONTROLLER = LoadSettings(enabled=False)


@asynccontextmanager
async def running(
    repository: Path, load: LoadSettings = NO_CONTROLLER, drain_timeout: float = 30.0, **limits: int
) -> AsyncIterator[Core]:
    server, workers = ServerSettings(drain_timeout=drain_timeout), WorkerSettings(mode="in-process")
    settings = Settings(server, LimitSettings(**limits), workers, load)
    core = build_core(repository, settings)
    try:
        await core.load()
        yield core
        await core.drain()
    finally:
        await core.close()


async def ask(core: Core, rows: list[list[float]] | None = None, **given: ParameterValue) -> InferResponse:
    image = Tensor.from_numpy("x", np.array(rows or [[1, 2, 3]], np.float32))
    return await core.serving.infer(InferRequest("ab", [image], parameters=given))


def hold_still(core: Core, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits for this model goes on waiting until the patch is undone."""
    lane = core.models.get(model).lane
    monkeypatch.setattr(lane.queue, "head", lambda *executor: None)
    # A trivial one would not wait.
    monkeypatch.setattr(lane.cost, "per_batch", 1.0)


def copies(core: Core) -> Counter[str]:
    """What became of the shadow's copies."""
    return Counter({
        outcome: count for (route, kind, outcome), count in core.serving.stats.follow_ups.items()
        if (route, kind) == ("ab", "shadow")
    })  # fmt: skip


async def test_units_keep_their_arms_and_the_answer_says_which_over_a_restart(models: Path) -> None:
    write_route(models, "ab", SPLIT)
    for _ in range(2):
        async with running(models) as core:
            for unit in ("alice", "bob", 42):
                response = await ask(core, offramp_unit=unit)
                arm = assign("s", {"full": 1, "small": 1}, unit)
                assert response.parameters == {
                    "offramp_route": "split", "offramp_arm": arm, "offramp_assigned": "unit",
                    "offramp_models": {"full": "teacher:1", "small": "student:1"}[arm],
                }  # fmt: skip
                factor = {"full": 1, "small": 2}[arm]
                np.testing.assert_array_equal(response.outputs[0].numpy(), [[factor, 2 * factor, 3 * factor]])


async def test_requests_that_are_assigned_are_counted_by_arm_and_those_that_ask_for_one_are_not(models: Path) -> None:
    write_route(models, "ab", SPLIT)
    async with running(models) as core:
        responses = [await ask(core, offramp_unit=unit) for unit in range(20)]
        for _ in range(3):
            response = await ask(core, offramp_route="model:student")
            assert response.parameters["offramp_assigned"] == "request"
        expected = Counter(response.parameters["offramp_arm"] for response in responses)
        arms = core.serving.stats.route("ab").arms
        assert {name: arm.requests["ok"] for name, arm in arms.items()} == expected
        assert sum(sum(arm.request_seconds.counts) for arm in arms.values()) == 20
        assert core.serving.stats.route("ab").requests["ok"] == 23


async def test_an_arm_that_fails_is_counted_with_its_status(models: Path) -> None:
    write_route(models, "ab", SPLIT)
    async with running(models) as core:
        with pytest.raises(InvalidRequest):
            await ask(core, [[1, 2]], offramp_unit="alice")
        [arm] = core.serving.stats.route("ab").arms.values()
        assert arm.requests == {"invalid_argument": 1}


async def test_a_split_over_routes_lets_them_decide_and_names_the_path(models: Path) -> None:
    write_route(models, "inner", SPLIT)
    write_route(models, "ab", 'kind = "split"\nsalt = "t"\n[[arms]]\nname = "outer"\nmodel = "inner"\n')
    async with running(models) as core:
        response = await ask(core, offramp_unit="alice", offramp_route="model:inner")
        inner = assign("s", {"full": 1, "small": 1}, "alice")
        assert response.parameters["offramp_arm"] == f"outer/{inner}"


async def test_shadows_see_copies_and_answers_are_the_same_as_without(models: Path) -> None:
    write_route(models, "ab", SPLIT + SHADOW)
    async with running(models) as core:
        for unit in range(10):
            response = await ask(core, offramp_unit=unit)
            assert int(response.outputs[0].numpy().argmax()) == 2
            assert "candidate" not in str(response.parameters["offramp_models"])
        await eventually_here(lambda: copies(core)["done"] == 10)
        assert copies(core) == {"done": 10}
        assert core.serving.stats.models["candidate", "1"].success_count == 10


async def test_copies_are_no_traffic_of_a_route_that_is_a_shadow(models: Path) -> None:
    write_route(models, "copied", SPLIT)
    write_route(models, "ab", SPLIT + SHADOW.replace("candidate", "copied"))
    async with running(models) as core:
        for unit in range(5):
            await ask(core, offramp_unit=unit)
        await eventually_here(lambda: copies(core)["done"] == 5)
        seen = core.serving.stats.route("copied")
        assert (seen.requests, seen.items) == ({}, 0)
        assert sum(seen.request_seconds.counts) == 0
        assert all(not arm.requests for arm in seen.arms.values())


async def test_nobody_waits_for_a_shadow_whose_worker_is_held_still_and_drops_are_counted_exactly(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_route(models, "ab", SPLIT + SHADOW)
    async with running(models, max_follow_ups=4) as core:
        hold_still(core, "candidate", monkeypatch)
        async with asyncio.timeout(PATIENCE):
            responses = [await ask(core, offramp_unit=unit) for unit in range(30)]
        assert all(int(response.outputs[0].numpy().argmax()) == 2 for response in responses)
        # Four wait for the shadow's worker.
        await eventually_here(lambda: core.models.get("candidate").lane.queue.items == 4)
        assert copies(core) == {"full": 26}

        monkeypatch.undo()
        core.models.get("candidate").group.scheduler.wake()
        await eventually_here(lambda: copies(core).total() == 30)
        assert copies(core) == {"full": 26, "done": 4}


async def test_copies_that_wait_when_the_server_closes_are_counted_as_well(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_route(models, "ab", SPLIT + SHADOW)
    async with running(models, drain_timeout=0.05) as core:
        hold_still(core, "candidate", monkeypatch)
        for unit in range(5):
            await ask(core, offramp_unit=unit)
    assert copies(core) == {"shutdown": 5}


async def test_a_shadow_that_fails_is_counted_and_harms_nobody(models: Path) -> None:
    (models / "candidate" / "model.toml").write_text("max_batch_size = 1\n")
    write_route(models, "ab", SPLIT + SHADOW)
    async with running(models) as core:
        response = await ask(core, [[1, 2, 3], [3, 2, 1]], offramp_unit="alice")
        assert response.outputs[0].numpy().argmax(axis=1).tolist() == [2, 0]
        await eventually_here(lambda: copies(core).total() == 1)
        assert copies(core) == {"failed": 1}


async def test_under_load_copies_are_dropped_first_and_then_requests_are_shed(models: Path) -> None:
    rules = "[load.busy]\nshadows = false\n[load.overloaded]\nshadows = false\nshed = 1.0\n"
    write_route(models, "ab", SPLIT + SHADOW + rules)
    async with running(models) as core:
        await ask(core, offramp_unit="alice")
        await eventually_here(lambda: copies(core) == {"done": 1})
        core.load_monitor.controller.level = Level.BUSY
        await ask(core, offramp_unit="alice")
        assert copies(core) == {"done": 1, "load": 1}
        core.load_monitor.controller.level = Level.OVERLOADED
        with pytest.raises(Overloaded, match="overloaded and sheds 100% of this route's requests") as refused:
            await ask(core, offramp_unit="alice")
        assert refused.value.retry_after > 0
        assert core.serving.stats.route("ab").requests == {"ok": 2, "resource_exhausted": 1}


async def test_a_server_whose_queue_does_not_move_is_found_to_be_overloaded(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_route(models, "ab", SPLIT + "[load.overloaded]\nshed = 1.0\n")
    async with running(models, load=LoadSettings(target_wait=0.02)) as core:
        for model in ("teacher", "student"):
            hold_still(core, model, monkeypatch)
        first = asyncio.create_task(ask(core))
        await eventually_here(lambda: core.load_monitor.level is Level.OVERLOADED)
        with pytest.raises(Overloaded):
            await ask(core)
        monkeypatch.undo()
        core.models.get("teacher").group.scheduler.wake()
        await first
