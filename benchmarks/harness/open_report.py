"""The tables of an open loop."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence

from benchmarks.harness.open_loop import OpenPlan, OpenSample
from benchmarks.harness.tables import table

COLUMNS = (
    "offered per s", "server", "answered in time", "p50 ms", "p99 ms", "refused", "server CPU us per request",
    "client late, p99 ms",
)  # fmt: skip


def open_section(samples: Sequence[OpenSample], plan: OpenPlan | None) -> str:
    """Return a table for each workload, and how the load was made; nothing without samples."""
    if not samples or plan is None:
        return ""
    workloads = dict.fromkeys(sample.workload for sample in samples)
    tables = [f"### {name}\n\n{open_table([s for s in samples if s.workload == name], plan)}" for name in workloads]
    return "\n".join([introduction(plan), *tables])


def introduction(plan: OpenPlan) -> str:
    return f"""\
## Open loop

{plan.clients} client processes (grpc.aio) with one connection each; Poisson arrivals from the same seeds for every
server, {plan.seconds:g} s, medians of {plan.rounds} rounds. The rates are the same for all servers of a workload:
{shares(plan.of_slowest)} of what the slowest, and {shares(plan.of_fastest)} of what the fastest answered in the closed
loop, at most {plan.most_per_s:,.0f}/s, which is what the clients can send. Latency runs from the moment at which a
request was due; one that was not answered within {plan.deadline_s:g} s counts as longer than that. How late a client
was in sending is part of the latency and told beside it: clients and server share the cores.
"""


def shares(values: Sequence[float]) -> str:
    return " and ".join(f"{value:.0%}" for value in values)


def open_table(samples: Sequence[OpenSample], plan: OpenPlan) -> str:
    cells: dict[tuple[float, str], list[OpenSample]] = {}
    for sample in samples:
        cells.setdefault((sample.rate, sample.server), []).append(sample)
    # Rates rise; servers stay in the order of the run.
    ordered = sorted(cells.items(), key=lambda item: item[0][0])
    return table(COLUMNS, [row(rate, server, cell, plan) for (rate, server), cell in ordered])


def row(rate: float, server: str, cell: Sequence[OpenSample], plan: OpenPlan) -> list[str]:
    def median(figure: Callable[[OpenSample], float]) -> float:
        return statistics.median(map(figure, cell))

    return [
        f"{rate:,.0f}",
        server,
        f"{median(lambda sample: sample.in_time / sample.requests):.1%}",
        waited(median(lambda sample: sample.p50_ms), plan.deadline_s),
        waited(median(lambda sample: sample.p99_ms), plan.deadline_s),
        f"{median(lambda sample: sample.refused / sample.requests):.1%}",
        f"{median(lambda sample: sample.cpu_us):,.0f}",
        f"{median(lambda sample: sample.late_p99_ms):,.1f}",
    ]


def waited(milliseconds: float, deadline_s: float) -> str:
    return f"> {deadline_s * 1e3:,.0f}" if math.isinf(milliseconds) else f"{milliseconds:,.1f}"
