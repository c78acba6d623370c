"""Models on devices: one scheduler and one group of workers for each device, made when its first model comes."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

from offramp_adapters.routes.plan import Answer as PlannedAnswer
from offramp_adapters.routes.plan import Plan, Target
from offramp_adapters.routes.strategy import Query
from offramp_adapters.zero_shot.classifier import ZeroShot

from offramp_server.engine_report import EngineReport
from offramp_server.errors import Unavailable
from offramp_server.machine.plan import Topology
from offramp_server.model_spec import ModelSpec
from offramp_server.preprocess.items import Preprocessor
from offramp_server.preprocess.load import load_preprocessor
from offramp_server.scheduling.lane import Lane
from offramp_server.scheduling.scheduler import Scheduler
from offramp_server.scheduling.work import Answer, Work
from offramp_server.telemetry.stats import Stats
from offramp_server.tuning.engines import Engines
from offramp_server.tuning.loading import EngineLoader
from offramp_server.validation import FittingForms
from offramp_server.workers.devices import Devices
from offramp_server.workers.group import ExecutorFactory, WorkerGroup
from offramp_server.workers.host import LoadReport


class Head(Protocol):
    """Makes something else of a model's outputs, and may run the model several times for that."""

    def plan(self, query: Query) -> Plan[PlannedAnswer]: ...


@dataclass(frozen=True, slots=True, eq=False)
class LoadedModel:
    """One version of one model, warm and ready to be called."""

    spec: ModelSpec
    # Of its first load.
    report: LoadReport
    lane: Lane
    group: WorkerGroup
    # Makes the model's inputs of what clients send; None: they send them.
    preprocessor: Preprocessor | None = None
    # What becomes of the model's outputs before clients get them; None: nothing.
    head: Head | None = None
    # Which forms of requests fit it.
    fitting: FittingForms = field(default_factory=FittingForms)

    @property
    def engine(self) -> EngineReport:
        """What executes it now: as workers are added, each gets fewer threads."""
        return (self.group.report(self.lane.handle) or self.report).engine

    @property
    def problem(self) -> str:
        """Why it is not served at present, as when its workers died and could not be replaced; empty if it is."""
        return self.group.problem(self.lane.handle)

    def run(self, work: Work) -> Awaitable[Answer]:
        """Raises as Scheduler.run does, and Unavailable while no worker is there that could load the model."""
        if not self.group.serves(self.lane.handle):
            raise Unavailable(f'model "{self.spec.name}" is not ready: {self.problem or "unloaded"}')
        return self.group.scheduler.run(self.lane, work)


class Backend:
    """Where models are loaded."""

    def __init__(
        self,
        make_executor: ExecutorFactory,
        standbys: int,
        max_attempts: int,
        stats: Stats,
        topology: Topology,
        engines: Engines,
    ) -> None:
        # Called whenever there is a model that workers were replaced without, or that they have again. To be set before
        # the first load.
        self.on_change: Callable[[], None] = lambda: None
        self._make_executor = make_executor
        self._standbys = standbys
        self._max_attempts = max_attempts
        self._stats = stats
        self._topology = topology
        self._groups: dict[str, WorkerGroup] = {}
        self._engines = engines
        self._loader = EngineLoader(engines)
        self._devices = Devices()
        # Under way, by device: one that still chooses an engine has nothing in the workers yet.
        self._loads: Counter[str] = Counter()
        self._started = False

    @property
    def groups(self) -> list[WorkerGroup]:
        return list(self._groups.values())

    def schedulers(self) -> Iterator[Scheduler]:
        for group in self._groups.values():
            yield group.scheduler

    async def load(self, spec: ModelSpec) -> LoadedModel:
        """Load and warm one version. Raises LoadError, and then nothing of it is left."""
        preprocessor = await asyncio.to_thread(load_preprocessor, spec)
        group = self._group(await self._devices.of(spec))
        self._loads[group.device] += 1
        try:
            handle, report = await self._loader.load(group, spec)
        except BaseException:
            self._loads[group.device] -= 1
            await self._drop_unused(group)
            raise
        self._loads[group.device] -= 1
        stats = self._stats.model(spec.name, str(spec.version))
        lane = Lane(handle, spec, stats, report.seconds_by_items)
        group.scheduler.open_lane(lane)
        return LoadedModel(spec, report, lane, group, preprocessor, _head(spec))

    async def unload(self, model: LoadedModel) -> None:
        """Wait for the model's requests, then let go of it. The caller has stopped sending new ones."""
        await model.group.scheduler.close_lane(model.lane)
        await self._loader.unload(model.group, model.lane.handle)

    def keep_standbys(self) -> None:
        """Start the standbys; to be called once what should be served at first is loaded."""
        self._started = True
        for group in self.groups:
            group.keep_standbys()

    def fail_all(self, error: Exception) -> None:
        for group in self.groups:
            group.scheduler.fail_all(error)

    async def close(self) -> None:
        await asyncio.gather(*(group.close() for group in self.groups))
        self._engines.close()

    async def _drop_unused(self, group: WorkerGroup) -> None:
        """Workers of a device that its first model could not use would stay for nothing."""
        used = self._loads[group.device] or not group.unused
        if not used and self._groups.get(group.device) is group:
            del self._groups[group.device]
            await group.close()

    def _group(self, device: str) -> WorkerGroup:
        if device not in self._groups:
            scheduler = Scheduler(self._stats, self._max_attempts)
            self._groups[device] = WorkerGroup(
                device, scheduler, self._make_executor, self._standbys, self._stats, self._topology
            )
            self._groups[device].on_change = self.on_change
            if self._started:
                self._groups[device].keep_standbys()
        return self._groups[device]


def _head(spec: ModelSpec) -> Head | None:
    if spec.zero_shot is None:
        return None
    [text] = spec.public_inputs
    return ZeroShot(spec.zero_shot, Target(spec.name, str(spec.version)), text.name, spec.max_batch_size)
