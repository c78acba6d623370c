"""The report of a run: Markdown for people, JSON with every sample for everything else."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks.harness.experiment import Outcome
from benchmarks.harness.machine import Machine
from benchmarks.harness.open_loop import OpenPlan
from benchmarks.harness.open_report import open_section
from benchmarks.harness.samples import Sample, Samples, Summary
from benchmarks.harness.tables import as_json, one_line, table, without_home
from benchmarks.servers.offramp import GRPCIO, IN_PROCESS, WORKER, server_name

ECHO = "grpc.aio echo"
BARE = "bare compute"
MISSING = "-"
QUIET_CORES = 0.15
NOISY = "**The machine was not quiet: these figures show that the benchmark runs, and nothing else.**\n"
FIGURES: Sequence[tuple[str, Callable[[Sample], float], str]] = (
    ("answers per s", lambda sample: sample.rate, ",.0f"),
    ("p50 ms", lambda sample: sample.p50_ms, ",.2f"),
    ("p99 ms", lambda sample: sample.p99_ms, ",.2f"),
    ("server CPU us per call", lambda sample: sample.cpu_us, ",.0f"),
)


@dataclass(frozen=True)
class Run:
    """A finished run and how it was made."""

    command: str
    client: str
    machine: Machine
    seconds: float
    rounds: int
    workloads: Sequence[str]
    concurrency: Sequence[int]
    outcome: Outcome
    open_plan: OpenPlan | None = None


def to_json(run: Run) -> str:
    """Return every sample, with times in the units of their names, null for what never ended.

    Folders under the home are written with `~`.
    """
    return as_json(dataclasses.asdict(run))


def to_markdown(run: Run) -> str:
    samples = Samples(run.outcome.samples)
    parts = [heading(run)]
    parts += [workload_table(samples, workload, run.concurrency) for workload in run.workloads]
    parts += [ratios_to_echo(samples, run), process_hop(samples, run), against_bare_compute(samples, run)]
    parts += [against_peers(samples, run)]
    parts += [open_section(run.outcome.open_samples, run.open_plan), not_run(run), servers(run)]
    return without_home("\n".join(part for part in parts if part))


def heading(run: Run) -> str:
    machine = run.machine
    others = [sample.other_cores for sample in run.outcome.samples]
    return f"""\
# Serving benchmark, {machine.date}

`{run.command}`

{machine.cpu}, {machine.cores} cores shared by server and client, {machine.memory_gib} GiB; {machine.system}; Python
{machine.python}. Client: {run.client}, c connections with one call in flight each. Medians of {run.rounds}
interleaved rounds of about {run.seconds:g} s; +- is half the distance between the extremes of answers per s. Load
average at the start {machine.load_average}; other processes used {mean(others):.2f} cores while this was measured,
{max(others, default=0.0):.2f} at worst.
{NOISY if mean(others) > QUIET_CORES else ""}"""


def workload_table(samples: Samples, workload: str, concurrency: Sequence[int]) -> str:
    columns = ["c", "server", *(title for title, _, _ in FIGURES), "+-"]
    rows = [
        [str(c), server, *figures(samples, server, workload, c)]
        for c in concurrency
        for server in samples.servers(workload)
    ]
    return f"## {workload}\n\n{table(columns, rows)}"


def figures(samples: Samples, server: str, workload: str, concurrency: int) -> list[str]:
    summaries = [samples.summary(server, workload, concurrency, figure) for _, figure, _ in FIGURES]
    shown = [show(summary, form) for summary, (_, _, form) in zip(summaries, FIGURES, strict=True)]
    rate = summaries[0]
    return [*shown, MISSING if rate is None else f"{rate.spread / 2:.0%}"]


def ratios_to_echo(samples: Samples, run: Run) -> str:
    rows = [
        [
            server,
            *(show(samples.paired(server, ECHO, "identity", c, cpu_ratio), ".2f") for c in run.concurrency),
        ]
        for server in samples.servers("identity")
        if server not in (ECHO, BARE)
    ]
    if not rows or not samples.servers("identity").count(ECHO):
        return ""
    columns = ["server", *(f"c={c}" for c in run.concurrency)]
    return f"## identity: server CPU per call over that of a plain grpc.aio echo\n\n{table(columns, rows)}"


def process_hop(samples: Samples, run: Run) -> str:
    rows = []
    for workload in run.workloads:
        for c in run.concurrency:
            cpu = samples.paired(WORKER, IN_PROCESS, workload, c, lambda a, b: a.cpu_us - b.cpu_us)
            p50 = samples.paired(WORKER, IN_PROCESS, workload, c, lambda a, b: (a.p50_ms - b.p50_ms) * 1e3)
            rate = samples.paired(WORKER, IN_PROCESS, workload, c, lambda a, b: a.rate / b.rate)
            if cpu is not None:
                rows.append([workload, str(c), show(cpu, "+,.0f"), show(p50, "+,.0f"), show(rate, ".2f")])
    if not rows:
        return ""
    columns = ["workload", "c", "CPU us per call", "p50 us", "answers per s, ratio"]
    return f"## What the process hop costs: worker process against in-process\n\n{table(columns, rows)}"


def against_bare_compute(samples: Samples, run: Run) -> str:
    computing = [workload for workload in run.workloads if workload != "identity"]
    low, high = min(run.concurrency), max(run.concurrency)
    rows = [
        [
            workload,
            server,
            show(samples.paired(server, BARE, workload, high, lambda a, b: a.rate / b.rate), ".0%"),
            show(samples.paired(server, BARE, workload, low, lambda a, b: a.p50_ms - b.p50_ms), "+.2f"),
        ]
        for workload in computing
        for server in samples.servers(workload)
        if server != BARE
    ]
    if not rows:
        return ""
    columns = ["workload", "server", f"answers per s at c={high}, share of bare", f"p50 at c={low} over bare, ms"]
    return f"## Real models against bare compute\n\n{table(columns, rows)}"


def against_peers(samples: Samples, run: Run) -> str:
    """A table for each transport of the server that took part; the native one is held against the other as well."""
    grpcio = server_name("process", GRPCIO)
    never = [ECHO, BARE, IN_PROCESS, server_name("in-process", GRPCIO), WORKER]
    tables = (divided_by(samples, run, WORKER, never), divided_by(samples, run, grpcio, [*never, grpcio]))
    return "\n".join(filter(None, tables))


def divided_by(samples: Samples, run: Run, ours: str, left_out: Sequence[str]) -> str:
    def ratio(peer: str, workload: str, c: int, compare: Callable[[Sample, Sample], float]) -> str:
        return show(samples.paired(ours, peer, workload, c, compare), ".2f")

    rows = [
        [
            workload,
            peer,
            *(ratio(peer, workload, c, lambda a, b: a.rate / b.rate) for c in run.concurrency),
            *(ratio(peer, workload, c, lambda a, b: a.p99_ms / b.p99_ms) for c in run.concurrency),
        ]
        for workload in run.workloads
        for peer in samples.servers(workload)
        if peer not in left_out and ours in samples.servers(workload)
    ]
    if not rows:
        return ""
    titles = [*(f"answers per s, c={c}" for c in run.concurrency), *(f"p99, c={c}" for c in run.concurrency)]
    return f"## {ours}, divided by each peer\n\n{table(['workload', 'peer', *titles], rows)}"


def not_run(run: Run) -> str:
    rows = [[name, f"not run: {one_line(reason)}"] for name, reason in run.outcome.not_run.items()]
    return f"## Not run, or not to the end\n\n{table(['server', 'reason'], rows)}" if rows else ""


def servers(run: Run) -> str:
    rows = [
        [name, ", ".join(f"{package} {version}" for package, version in versions.items()), run.outcome.notes[name]]
        for name, versions in run.outcome.versions.items()
    ]
    return f"## Servers\n\n{table(['server', 'versions', 'set-up'], rows)}"


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def cpu_ratio(ours: Sample, control: Sample) -> float:
    return ours.cpu_us / control.cpu_us


def show(summary: Summary | None, form: str) -> str:
    return MISSING if summary is None else format(summary.median, form)
