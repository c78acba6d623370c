"""Which workers there are while models come and go, with engines that are chosen when the test says so."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import cast

from offramp_server.engine_choice import EngineChoice
from offramp_server.engine_report import EngineReport
from offramp_server.errors import LoadError
from offramp_server.machine.numa import Node
from offramp_server.machine.plan import Topology
from offramp_server.model_spec import EngineSettings, ModelSpec
from offramp_server.scheduling.scheduler import Scheduler
from offramp_server.telemetry.stats import Stats
from offramp_server.tuning.decision import Decision
from offramp_server.tuning.engines import Engines
from offramp_server.tuning.trial import Job
from offramp_server.workers.backend import Backend
from offramp_server.workers.executor import ModelExecutor
from offramp_server.workers.group import DeathHandler
from offramp_server.workers.host import LoadReport, Placement
from scheduling_fakes import HandExecutor, settle, spec

REPORT = LoadReport(EngineReport("fake", "cpu", "fp32", 1, "the test said so"), {1: 0.01})


class Worker(HandExecutor):
    process_id = None

    def holds(self, handle: int) -> bool:
        return True

    async def start(self) -> None:
        self.alive = True

    async def load(self, handle: int, spec: ModelSpec, placement: Placement) -> LoadReport:
        return REPORT

    async def unload(self, handle: int) -> None:
        """It was never there."""

    async def close(self) -> None:
        self.alive = False


@dataclass
class Choosing:
    """`Engines` that answer for a model when its future is done."""

    answers: dict[str, asyncio.Future[Decision]] = field(default_factory=dict)
    asked: asyncio.Queue[str] = field(default_factory=asyncio.Queue)

    async def first(self, job: Job) -> Decision:
        self.asked.put_nowait(job.spec.name)
        return await self.answers.setdefault(job.spec.name, asyncio.get_running_loop().create_future())

    def close(self) -> None:
        """There is no cache."""


async def test_a_model_that_cannot_be_loaded_does_not_take_the_workers_of_one_whose_engine_is_being_chosen() -> None:
    choosing, workers = Choosing(), list[Worker]()

    def make(name: str, scheduler: Scheduler, on_death: DeathHandler, cpus: Sequence[int]) -> ModelExecutor:
        workers.append(Worker(scheduler, name))
        return workers[-1]

    topology = Topology(2, (Node(0, (0, 1)),))
    backend = Backend(make, 0, 2, Stats(), topology, cast(Engines, choosing))
    models = [replace(spec(name=name), engine=EngineSettings(device="cpu")) for name in ("broken", "good", "next")]
    loads = [asyncio.create_task(backend.load(model)) for model in models[:2]]
    for _ in loads:
        await choosing.asked.get()
    choosing.answers["broken"].set_exception(LoadError("it cannot be built"))
    await asyncio.wait(loads[:1])
    await settle()
    for name in ("good", "next"):
        decided = choosing.answers.setdefault(name, asyncio.get_running_loop().create_future())
        decided.set_result(Decision(EngineChoice("fake")))
    loaded = [await loads[1], await backend.load(models[2])]
    assert isinstance(loads[0].exception(), LoadError)
    assert len(workers) == 1
    assert backend.groups == [loaded[0].group] == [loaded[1].group]
    await backend.close()
    assert not workers[0].alive
