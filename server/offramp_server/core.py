"""Puts together everything behind the wire: models, routes, queues and workers. No ports, no signals."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from offramp_server.config import LimitSettings, Settings, TuningSettings, WorkerSettings
from offramp_server.errors import ConfigurationError, Unavailable
from offramp_server.machine.cores import usable_cores
from offramp_server.machine.identity import describe_device
from offramp_server.machine.plan import read_topology
from offramp_server.model_runner import ModelRunner
from offramp_server.preparation import Preparation
from offramp_server.preprocess.pool import PreprocessPool
from offramp_server.repository import reader
from offramp_server.repository.catalog import Catalog
from offramp_server.repository.registry import ModelRegistry
from offramp_server.routing.follow_ups import FollowUpLimits, FollowUps
from offramp_server.routing.follower import Follower
from offramp_server.routing.live import LiveRoutes
from offramp_server.routing.load import LoadMonitor
from offramp_server.routing.recorder import Recorder
from offramp_server.routing.table import RouteTable
from offramp_server.scheduling.admission import Admission
from offramp_server.scheduling.scheduler import Scheduler
from offramp_server.serving import Serving
from offramp_server.store.audits import SCHEMA as AUDITS
from offramp_server.store.database import Database
from offramp_server.store.epochs import Epochs
from offramp_server.store.location import open_store
from offramp_server.store.route_settings import ROUTE_SETTINGS, RouteSettings
from offramp_server.telemetry.stats import Stats
from offramp_server.tuning.cache import EngineCache, default_folder
from offramp_server.tuning.engines import Engines
from offramp_server.tuning.trial import StartTrial
from offramp_server.tuning.trial_process import start_trial
from offramp_server.tuning.tuner import Tuner
from offramp_server.validation import Limits
from offramp_server.workers.backend import Backend
from offramp_server.workers.engines.catalogue import engine_kinds
from offramp_server.workers.engines.kind import EngineKind
from offramp_server.workers.executor import ModelExecutor
from offramp_server.workers.group import DeathHandler, ExecutorFactory
from offramp_server.workers.process_executor import ProcessExecutor
from offramp_server.workers.thread_executor import ThreadExecutor


@dataclass(frozen=True, slots=True)
class Core:
    """The running parts that the outer layers need."""

    settings: Settings
    serving: Serving
    models: ModelRegistry
    catalog: Catalog
    admission: Admission
    backend: Backend
    preprocessing: PreprocessPool
    follow_ups: FollowUps
    recorder: Recorder
    database: Database
    routes: RouteTable
    load_monitor: LoadMonitor

    async def load(self) -> None:
        """Load the repository. What is ready answers from then on, before the rest is."""
        self.serving.accepting = True
        await self.catalog.load_all()
        self.serving.ready = True
        self.backend.keep_standbys()

    async def drain(self) -> bool:
        """Refuse what is new, finish what is there, and give up what takes too long. Whether nothing was given up."""
        until = time.monotonic() + self.settings.server.drain_timeout
        answered = await self.serving.drain(self.settings.server.drain_timeout)
        # Nobody waits for what follows answers, but evidence is worth the seconds that are left.
        await self.follow_ups.drain(max(0.0, until - time.monotonic()))
        await self.follow_ups.close()
        if not answered:
            self.backend.fail_all(Unavailable("the server is shutting down"))
        return answered

    async def close(self) -> None:
        self.serving.live = self.serving.accepting = self.serving.ready = False
        await self.follow_ups.close()
        # Without a drain there may be requests left, which no worker would answer any more.
        self.backend.fail_all(Unavailable("the server is shutting down"))
        self.load_monitor.close()
        await self.preprocessing.close()
        await self.models.close()
        await self.backend.close()
        await self.recorder.close()
        await self.database.close()


def build_core(
    repository: Path, settings: Settings, make_engines: Callable[[TuningSettings, Stats], Engines] | None = None
) -> Core:
    """On the running event loop. Loads nothing yet. Raises ConfigurationError."""
    reader.check_repository(repository)
    stats = Stats()
    workers = settings.workers
    standbys = workers.standby if workers.mode == "process" else 0
    engines = (make_engines or build_engines)(settings.engines, stats)
    backend = Backend(executor_factory(workers), standbys, workers.max_attempts, stats, read_topology(), engines)
    models = ModelRegistry(lambda name: reader.read_model(repository, name), backend, stats)
    backend.on_change = models.show_problems
    database = open_store(repository, settings.store, (AUDITS, ROUTE_SETTINGS))
    epochs = Epochs(database, time.time)
    routes = RouteTable(models, epochs.current)
    live_routes = LiveRoutes(routes, RouteSettings(database), lambda: load_monitor.level)
    catalog = Catalog(repository, models, live_routes)
    admission = Admission(settings.limits.max_in_flight)
    preprocessing = PreprocessPool(settings.preprocess.threads or max(1, usable_cores() // 2))
    preparation = Preparation(preprocessing, request_limits(settings))
    runner = ModelRunner(preparation)
    models.before_ready = runner.try_out
    follow_ups = FollowUps(_follow_up_limits(settings.limits), stats)
    routes.on_remove = follow_ups.drop
    recorder = Recorder(database, epochs, time.time)
    load_monitor = LoadMonitor(settings.load, backend.schedulers, lambda: admission.in_flight, stats)
    load_monitor.on_change = live_routes.notify
    follower = Follower(runner, follow_ups, recorder, stats, load_monitor.arrival)
    serving = Serving(models, routes, catalog, admission, runner, follower, stats, live_routes)
    return Core(
        settings,
        serving,
        models,
        catalog,
        admission,
        backend,
        preprocessing,
        follow_ups,
        recorder,
        database,
        routes,
        load_monitor,
    )


def build_engines(
    settings: TuningSettings,
    stats: Stats,
    kinds: Sequence[EngineKind] | None = None,
    start_trial: StartTrial = start_trial,
) -> Engines:
    """What chooses engines on this machine, of all that there are unless given. Raises ConfigurationError if the cache
    cannot be trusted."""
    kinds = engine_kinds() if kinds is None else kinds
    cache = EngineCache(settings.cache or default_folder(os.environ), settings.max_cache_bytes)
    return Engines(settings, cache, Tuner(settings, cache, stats, start_trial, kinds), describe_device, kinds, stats)


def _follow_up_limits(limits: LimitSettings) -> FollowUpLimits:
    return FollowUpLimits(limits.max_follow_ups, limits.max_follow_up_bytes, limits.max_follow_up_age)


def request_limits(settings: Settings) -> Limits:
    return Limits(
        max_tensor_bytes=settings.server.max_message_bytes,
        max_name_length=settings.limits.max_name_length,
        max_entries=settings.limits.max_tensors,
        max_batch_items=settings.limits.max_batch_items,
    )


def executor_factory(settings: WorkerSettings) -> ExecutorFactory:
    """Raises ConfigurationError if this system cannot have workers of that kind."""
    if settings.mode == "process" and sys.platform != "linux":
        raise ConfigurationError(
            'workers.mode = "process" needs Linux (memfd and eventfd); use "in-process" on this system'
        )

    def make_process(name: str, scheduler: Scheduler, on_death: DeathHandler, cpus: Sequence[int]) -> ModelExecutor:
        return ProcessExecutor(
            name,
            scheduler,
            on_death,
            settings.startup_timeout,
            settings.hang_timeout,
            settings.max_held_bytes,
            cpus,
            settings.gpu_memory_share,
        )

    # A thread shares the processors of the whole server.
    def make_thread(name: str, scheduler: Scheduler, on_death: DeathHandler, _: Sequence[int]) -> ModelExecutor:
        return ThreadExecutor(name, scheduler, settings.max_held_bytes)

    return make_process if settings.mode == "process" else make_thread


@asynccontextmanager
async def serve_in_process(repository: Path | str, settings: Settings | None = None) -> AsyncIterator[Serving]:
    """The server without a wire, for tests and for embedding.

        async with serve_in_process("models") as serving:
            response = await serving.infer(InferRequest("fashion-student", [Tensor.from_numpy("image", image)]))

    Unless `settings` say otherwise, models run in a thread of this process, and none is tuned, which would take
    processes. Raises ConfigurationError.
    """
    settings = settings or Settings(workers=WorkerSettings(mode="in-process"), engines=TuningSettings("never"))
    core = build_core(Path(repository), settings)
    try:
        await core.load()
        yield core.serving
        await core.drain()
    finally:
        await core.close()
