"""What the server is like right now, collected for those who watch it."""

from __future__ import annotations

from collections.abc import Iterator

from offramp_adapters.audits.loss import rate
from offramp_adapters.routes.parts import parts_of

from offramp_server.core import Core
from offramp_server.routing.binding import BoundRoute
from offramp_server.routing.overrides import settings_of
from offramp_server.telemetry.gauges import (
    FollowUpGauges,
    FrontEndGauges,
    FrontEndProcess,
    Gauges,
    ModelGauges,
    RouteGauges,
    StoreGauges,
    WorkerGauges,
)
from offramp_server.transport.interface import Transport
from offramp_server.transport.relay.transport import RelayTransport

# Roles of a route's parts: one that may answer early, one that has a share of the traffic.
STAGE, ARM = "stage", "arm"


def gauges_of(core: Core, transport: Transport | None = None) -> Gauges:
    return Gauges(
        ready=lambda: core.serving.ready,
        requests_in_flight=lambda: core.admission.in_flight,
        models=lambda: list(_models(core)),
        workers=lambda: list(_workers(core)),
        load_level=lambda: core.load_monitor.level,
        routes=lambda: list(_routes(core)),
        follow_ups=lambda: FollowUpGauges(core.follow_ups.under_way, core.follow_ups.held_bytes),
        store=lambda: _store(core),
        front_ends=lambda: _front_ends(transport),
    )


def _front_ends(transport: Transport | None) -> FrontEndGauges:
    if not isinstance(transport, RelayTransport):
        return FrontEndGauges()
    seats = (FrontEndProcess(seat.number, seat.pid, seat.connections) for seat in transport.seats)
    return FrontEndGauges(tuple(seats), transport.restarts)


def _models(core: Core) -> Iterator[ModelGauges]:
    ready = set()
    for model in core.models.loaded():
        name, version = model.spec.name, str(model.spec.version)
        ready.add((name, version))
        queue = model.lane.queue
        yield ModelGauges(name, version, not model.problem, queue.requests, queue.items, model.report.engine)
    for entry in core.models.index():
        if (entry.name, entry.version) not in ready:
            yield ModelGauges(entry.name, entry.version, False)


def _routes(core: Core) -> Iterator[RouteGauges]:
    for name in core.routes.names():
        route = core.routes.get(name)
        assert route is not None
        exits, arms = (
            tuple(part.label for part in parts_of(route.definition) if part.role == role) for role in (STAGE, ARM)
        )
        epoch = route.bound.epoch if isinstance(route.bound, BoundRoute) else None
        disagreement = None if epoch is None or not exits else rate(epoch.total)
        yield RouteGauges(name, route.epoch, exits, arms, disagreement, settings_of(route.definition))


def _store(core: Core) -> StoreGauges:
    counters = core.database.counters
    return StoreGauges(
        core.database.durable,
        counters.rows,
        counters.lost,
        core.recorder.overflowed,
        counters.errors,
        core.database.buffered,
        core.recorder.held,
    )


def _workers(core: Core) -> Iterator[WorkerGauges]:
    for group in core.backend.groups:
        for executor in group.actives:
            yield WorkerGauges(group.device, "ready", executor.process_id, executor.held.bytes)
        for executor in group.standbys:
            yield WorkerGauges(group.device, "standby", executor.process_id)
