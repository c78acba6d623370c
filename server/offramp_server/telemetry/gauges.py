"""What the server is like right now: plain values that exporters ask for when they are scraped."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from offramp_server.engine_report import EngineReport


@dataclass(frozen=True, slots=True)
class ModelGauges:
    """One version of one model of the repository."""

    model: str
    version: str
    ready: bool
    # Waiting for a batch.
    queue_requests: int = 0
    queue_items: int = 0
    # None until it is loaded.
    engine: EngineReport | None = None


@dataclass(frozen=True, slots=True)
class WorkerGauges:
    """One living worker. `state` is ready or standby."""

    device: str
    state: str
    # Its process; None: it runs in this one.
    pid: int | None = None


@dataclass(frozen=True, slots=True)
class Gauges:
    """Each is called once for a scrape, on the event loop's thread, and must not wait."""

    ready: Callable[[], bool]
    requests_in_flight: Callable[[], int]
    models: Callable[[], Iterable[ModelGauges]]
    workers: Callable[[], Iterable[WorkerGauges]]
    # 0 idle, 1 normal, 2 busy, 3 overloaded.
    load_level: Callable[[], int]
