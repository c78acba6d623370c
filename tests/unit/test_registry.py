"""What the table of models promises while they come and go, with a loader that does as it is told."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any, cast

import pytest
from offramp_server.engine_report import EngineReport
from offramp_server.errors import LoadError, NotFound, Unavailable
from offramp_server.model_spec import ModelSpec
from offramp_server.repository.registry import ModelRegistry
from offramp_server.telemetry.stats import Stats
from offramp_server.workers.backend import LoadedModel
from offramp_server.workers.host import LoadReport
from scheduling_fakes import settle, spec

REPORT = LoadReport(EngineReport("fake", "cpu", "fp32", 1, "the test said so"), {1: 0.01})


@dataclass
class FakeLoader:
    """Loads at once unless it is told to wait or to fail; notes what is loaded."""

    go_on: asyncio.Event = field(default_factory=asyncio.Event)
    let_go: asyncio.Event = field(default_factory=asyncio.Event)
    fails: bool = False
    cancelled: int = 0
    held: list[LoadedModel] = field(default_factory=list)
    # Of every model.
    problem: str = ""

    def __post_init__(self) -> None:
        self.go_on.set()
        self.let_go.set()

    async def load(self, model: ModelSpec) -> LoadedModel:
        try:
            await self.go_on.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self.fails:
            raise LoadError("no memory")
        group = SimpleNamespace(problem=lambda handle: self.problem, report=lambda handle: None)
        self.held.append(LoadedModel(model, REPORT, cast("Any", SimpleNamespace(handle=1)), cast("Any", group)))
        return self.held[-1]

    async def unload(self, model: LoadedModel) -> None:
        await self.let_go.wait()
        self.held.remove(model)


class Bench:
    """A folder `double` with the given versions, and nothing else."""

    def __init__(self, *versions: int) -> None:
        self.versions = versions
        self.stats = Stats()
        self.loader = FakeLoader()
        self.registry = ModelRegistry(self._read, self.loader, self.stats)

    def _read(self, name: str) -> list[ModelSpec]:
        if name != "double":
            raise NotFound(f'the repository has no model or route "{name}"')
        return [replace(spec(), version=version) for version in self.versions]

    @property
    def states(self) -> dict[str, str]:
        return {entry.version: entry.state for entry in self.registry.index()}


async def test_a_reload_switches_to_the_new_version_before_the_old_one_is_let_go() -> None:
    bench = Bench(1)
    await bench.registry.load("double")
    bench.versions = (2,)
    bench.loader.let_go.clear()
    await bench.registry.load("double")
    assert bench.registry.get("double").spec.version == 2
    assert [model.spec.version for model in bench.loader.held] == [1, 2]
    bench.loader.let_go.set()
    await settle()
    assert [model.spec.version for model in bench.loader.held] == [2]


async def test_a_load_that_fails_leaves_what_was_served_and_says_why() -> None:
    bench = Bench(1)
    await bench.registry.load("double")
    bench.versions = (1, 2)
    bench.loader.fails = True
    with pytest.raises(LoadError, match="no memory"):
        await bench.registry.load("double")
    assert bench.registry.versions("double") == ("1",)
    assert bench.stats.loads["double", "error"] == 1


async def test_of_several_versions_none_is_kept_if_one_fails() -> None:
    bench = Bench(1, 2)
    load = bench.loader.load

    async def second_fails(model: ModelSpec) -> LoadedModel:
        bench.loader.fails = model.version == 2
        return await load(model)

    bench.loader.load = second_fails  # type: ignore[method-assign]
    with pytest.raises(LoadError, match="no memory"):
        await bench.registry.load("double")
    assert bench.loader.held == []
    assert bench.states["2"] == "UNAVAILABLE"
    assert "READY" not in bench.states.values()


async def test_a_load_whose_caller_went_away_goes_on() -> None:
    bench = Bench(1)
    bench.loader.go_on.clear()
    caller = asyncio.create_task(bench.registry.load("double"))
    while bench.states != {"1": "LOADING"}:  # noqa: ASYNC110
        await asyncio.sleep(0)
    caller.cancel()
    bench.loader.go_on.set()
    await settle()
    assert bench.states == {"1": "READY"}


async def test_closing_ends_the_loads_that_are_under_way() -> None:
    bench = Bench(1)
    bench.loader.go_on.clear()
    caller = asyncio.create_task(bench.registry.load("double"))
    while bench.states != {"1": "LOADING"}:  # noqa: ASYNC110
        await asyncio.sleep(0)
    caller.cancel()
    await bench.registry.close()
    assert bench.loader.cancelled == 1
    assert bench.registry.versions("double") == ()


async def test_a_name_that_was_never_there_leaves_no_trace() -> None:
    bench = Bench(1)
    with pytest.raises(NotFound):
        await bench.registry.load("made-up")
    assert bench.registry.index() == []
    assert bench.stats.loads == {}


async def test_a_model_that_no_worker_holds_any_more_is_not_ready_until_one_does() -> None:
    bench = Bench(1)
    changes = 0

    def note() -> None:
        nonlocal changes
        changes += 1

    await bench.registry.load("double")
    bench.registry.on_change = note
    bench.loader.problem = "its workers were killed"
    bench.registry.show_problems()
    [entry] = bench.registry.index()
    assert (entry.state, entry.reason) == ("UNAVAILABLE", "its workers were killed")
    with pytest.raises(Unavailable, match=r"double.*version 1.*its workers were killed"):
        bench.registry.get("double")
    bench.loader.problem = ""
    bench.registry.show_problems()
    assert bench.states == {"1": "READY"}
    assert bench.registry.get("double").spec.version == 1
    assert changes == 2
