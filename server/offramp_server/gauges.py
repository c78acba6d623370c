"""What the server is like right now, collected for those who watch it."""

from __future__ import annotations

from collections.abc import Iterator

from offramp_server.core import Core
from offramp_server.telemetry.gauges import Gauges, ModelGauges, WorkerGauges


def gauges_of(core: Core) -> Gauges:
    return Gauges(
        ready=lambda: core.serving.ready,
        requests_in_flight=lambda: core.admission.in_flight,
        models=lambda: list(_models(core)),
        workers=lambda: list(_workers(core)),
        load_level=lambda: core.load_monitor.level,
    )


def _models(core: Core) -> Iterator[ModelGauges]:
    ready = set()
    for model in core.models.loaded():
        name, version = model.spec.name, str(model.spec.version)
        ready.add((name, version))
        queue = model.lane.queue
        yield ModelGauges(name, version, True, queue.requests, queue.items, model.report.engine)
    for entry in core.models.index():
        if (entry.name, entry.version) not in ready:
            yield ModelGauges(entry.name, entry.version, False)


def _workers(core: Core) -> Iterator[WorkerGauges]:
    for group in core.backend.groups:
        for executor in group.actives:
            yield WorkerGauges(group.device, "ready", executor.process_id)
        for executor in group.standbys:
            yield WorkerGauges(group.device, "standby", executor.process_id)
