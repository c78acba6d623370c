"""The report of the transports: figures of each scenario, and each server as a share of the controls."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks.harness.machine import Machine
from benchmarks.harness.report import ECHO, FIGURES, MISSING, NOISY, QUIET_CORES, mean, show
from benchmarks.harness.samples import Sample, Samples
from benchmarks.harness.scaling import Growth
from benchmarks.harness.scaling_report import servers
from benchmarks.harness.tables import one_line, table, without_home
from benchmarks.servers.offramp import GRPCIO, NATIVE, server_name

CPP_ECHO = "C++ gRPC echo"
CONTROLS = ((ECHO, "aio echo"), (CPP_ECHO, "C++ echo"))
RATIOS: Sequence[tuple[str, Callable[[Sample, Sample], float]]] = (
    ("rate", lambda ours, theirs: ours.rate / theirs.rate),
    # Too short a run may have used none that is counted.
    ("CPU", lambda ours, theirs: ours.cpu_us / theirs.cpu_us if theirs.cpu_us else math.inf),
)
# c, figure, and what it should be at most, or at least.
TARGETS = ((1, "CPU", 0.35), (32, "CPU", 0.2), (32, "rate", 5.0))


@dataclass(frozen=True)
class Scenario:
    """`name` is the workload's in the samples."""

    name: str
    title: str
    concurrency: Sequence[int]


def to_markdown(
    command: str,
    client: str,
    machine: Machine,
    rounds: int,
    seconds: float,
    scenarios: Sequence[Scenario],
    growths: Sequence[Growth],
) -> str:
    samples = Samples([each.sample for growth in growths for each in growth.measured])
    others = [each.sample.other_cores for growth in growths for each in growth.measured]
    heading = f"""\
# Transports, {machine.date}

`{command}`

{machine.cpu}, {machine.cores} cores shared by server and client, {machine.memory_gib} GiB; {machine.system}; Python
{machine.python}. Client: {client}, and our own for metadata; c connections with one call in flight each. Medians of
{rounds} interleaved rounds of about {seconds:g} s; ratios are taken within a round and then summarised. Each answer was
compared with the model's before and after. Other processes used {mean(others):.2f} cores meanwhile,
{max(others, default=0.0):.2f} at worst.
{NOISY if mean(others) > QUIET_CORES else ""}"""
    parts = [heading, targets(samples), *(section(samples, scenario) for scenario in scenarios), absent(growths)]
    return without_home("\n".join(filter(None, [*parts, servers(growths)])))


def section(samples: Samples, scenario: Scenario) -> str:
    """Figures, and rate and CPU per call as shares of the controls' and of the same server's over grpcio."""
    against = [title for _, title in CONTROLS] + ["over grpcio"]
    ratios = [f"{figure} / {title}" for title in against for figure, _ in RATIOS]
    columns = ["c", "server", "answers per s", "p50 ms", "p99 ms", "CPU us", *ratios, "+-"]
    rows = [
        [str(c), server, *row(samples, scenario, server, c)]
        for c in scenario.concurrency
        for server in samples.servers(scenario.name)
        if samples.cell(server, scenario.name, c)
    ]
    return f"## {scenario.title}\n\n{table(columns, rows)}"


def row(samples: Samples, scenario: Scenario, server: str, c: int) -> list[str]:
    found = [(samples.summary(server, scenario.name, c, figure), form) for _, figure, form in FIGURES]
    rate = found[0][0]
    controls = [name for name, _ in CONTROLS] + [over_grpcio(server)]
    ratios = [ratio(samples, scenario, server, control, c, compare) for control in controls for _, compare in RATIOS]
    spread = MISSING if rate is None else f"{rate.spread / 2:.0%}"
    return [*(show(summary, form) for summary, form in found), *ratios, spread]


def ratio(
    samples: Samples, scenario: Scenario, server: str, control: str, c: int, compare: Callable[[Sample, Sample], float]
) -> str:
    if server == control:
        return MISSING
    return show(samples.paired(server, control, scenario.name, c, compare), ".2f")


def over_grpcio(server: str) -> str:
    """What the server is called that differs in nothing but the transport; the server itself if that is its own."""
    names = {server_name(mode, NATIVE): server_name(mode, GRPCIO) for mode in ("in-process", "process")}
    return names.get(server, server)


def targets(samples: Samples) -> str:
    """What the transport was written for: an engine in process, plain calls."""
    server = server_name("in-process", NATIVE)
    compare = dict(RATIOS)
    rows = []
    for c, figure, wanted in TARGETS:
        found = [
            samples.paired(server, control, "plain", c, compare[figure]) for control in (ECHO, over_grpcio(server))
        ]
        if any(found):
            asked = f"{'<=' if figure == 'CPU' else '>='} {wanted:g}"
            rows.append([f"{figure}, c={c}", asked, *(show(summary, ".2f") for summary in found)])
    if not rows:
        return ""
    columns = ["of plain calls, native, in process", "aimed at", "of grpc.aio's echo", "of Offramp over grpcio"]
    return f"## What it is for\n\n{table(columns, rows)}"


def absent(growths: Sequence[Growth]) -> str:
    rows = [[server, one_line(reason)] for growth in growths for server, reason in growth.not_run.items()]
    return f"## Not run, or not to the end\n\n{table(['server', 'reason'], rows)}" if rows else ""
