"""What the server is like right now: plain values that exporters ask for when they are scraped."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

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
    # What it keeps of the outputs of early stages for later ones.
    held_bytes: int = 0


@dataclass(frozen=True, slots=True)
class RouteGauges:
    """One route of the repository."""

    route: str
    # 0: it is not ready.
    epoch: int
    # Names of its stages, if it has such.
    exits: tuple[str, ...] = ()
    # Names of its arms, if it has such.
    arms: tuple[str, ...] = ()
    # Estimated share of answers that differ from the reference's; None: nothing is known.
    disagreement: float | None = None
    # What can be changed live, as it is now.
    settings: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class StoreGauges:
    """Rows, since the server started."""

    durable: bool = False
    written: int = 0
    lost: int = 0
    overflowed: int = 0
    errors: int = 0
    # Now.
    buffered: int = 0
    held_requests: int = 0


@dataclass(frozen=True, slots=True)
class FollowUpGauges:
    """Audits and shadow copies under way, and the bytes of inputs that are kept for them."""

    count: int = 0
    bytes: int = 0


@dataclass(frozen=True, slots=True)
class FrontEndProcess:
    """One process that carries calls for the server."""

    number: int
    # None: it is being started again.
    pid: int | None
    connections: int


@dataclass(frozen=True, slots=True)
class FrontEndGauges:
    """None: the server carries its calls itself."""

    processes: tuple[FrontEndProcess, ...] = ()
    # Since the server started, by how they ended.
    restarts: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Gauges:
    """Each is called once for a scrape, on the event loop's thread, and must not wait."""

    ready: Callable[[], bool]
    requests_in_flight: Callable[[], int]
    models: Callable[[], Iterable[ModelGauges]]
    workers: Callable[[], Iterable[WorkerGauges]]
    # 0 idle, 1 normal, 2 busy, 3 overloaded.
    load_level: Callable[[], int]
    routes: Callable[[], Iterable[RouteGauges]] = tuple
    follow_ups: Callable[[], FollowUpGauges] = FollowUpGauges
    store: Callable[[], StoreGauges] = StoreGauges
    front_ends: Callable[[], FrontEndGauges] = FrontEndGauges
