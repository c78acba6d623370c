"""Pictures of a run."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from benchmarks.harness.open_loop import OpenSample
from benchmarks.harness.report import BARE, ECHO, Run
from benchmarks.harness.samples import Samples
from benchmarks.servers.offramp import IN_PROCESS, WORKER

BAR_WIDTH = 0.8
FIXED_COLOURS: Mapping[str, str] = {
    WORKER: "tab:red", IN_PROCESS: "lightcoral", BARE: "lightgrey", ECHO: "dimgrey", "Triton": "tab:green",
    "MLServer": "tab:blue", "KServe": "tab:orange",
}  # fmt: skip
COLOURS = ("deepskyblue", "tab:purple", "tab:olive", "tab:pink", "tab:brown")
COLUMN_INCHES, ROW_INCHES = 5.5, 3.6


def draw_closed(run: Run, path: Path) -> None:
    """Answers per second by workload and concurrency, one colour for each server."""
    samples = Samples(run.outcome.samples)
    colours = colours_of(sample.server for sample in run.outcome.samples)
    figure, axes = grid(len(run.workloads))
    for plot, workload in zip(axes, run.workloads, strict=False):
        draw_bars(plot, samples, workload, run.concurrency, colours)
    legend(figure, axes)
    figure.savefig(path, dpi=110)


def draw_bars(
    plot: Any, samples: Samples, workload: str, concurrency: Sequence[int], colours: Mapping[str, str]
) -> None:
    servers = samples.servers(workload)
    width = BAR_WIDTH / len(servers)
    for index, server in enumerate(servers):
        places = [group - BAR_WIDTH / 2 + (index + 0.5) * width for group in range(len(concurrency))]
        cells = [[sample.rate for sample in samples.cell(server, workload, c)] or [math.nan] for c in concurrency]
        rates = [statistics.median(cell) for cell in cells]
        spread = [
            [rate - min(cell) for rate, cell in zip(rates, cells, strict=True)],
            [max(cell) - rate for rate, cell in zip(rates, cells, strict=True)],
        ]
        plot.bar(places, rates, width, yerr=spread, color=colours[server], label=server, error_kw={"linewidth": 0.8})
    plot.set_xticks(range(len(concurrency)), [f"c={c}" for c in concurrency])
    plot.set_title(workload)
    plot.set_ylabel("answers per s")
    plot.grid(axis="y", alpha=0.3)
    if workload == "identity":
        # Bare compute does nothing there and would be all that is seen.
        plot.set_yscale("log")


def draw_open(samples: Sequence[OpenSample], path: Path) -> None:
    """Share answered in time and 99th percentile, over the rate offered; a row for each workload."""
    workloads = list(dict.fromkeys(sample.workload for sample in samples))
    colours = colours_of(sample.server for sample in samples)
    figure, axes = grid(2 * len(workloads))
    for row, workload in enumerate(workloads):
        mine = [sample for sample in samples if sample.workload == workload]
        answered, latency = axes[2 * row], axes[2 * row + 1]
        over_rate(answered, mine, colours, lambda sample: 100 * sample.in_time / sample.requests)
        over_rate(latency, mine, colours, lambda sample: sample.p99_ms)
        answered.set_ylabel("answered in time, %")
        answered.set_ylim(0, 105)
        latency.set_ylabel("p99 ms (not drawn: not answered in time)")
        latency.set_yscale("log")
        for plot in (answered, latency):
            plot.set_title(workload)
            plot.set_xlabel("offered per s, Poisson")
    legend(figure, axes)
    figure.savefig(path, dpi=110)


def over_rate(
    plot: Any, samples: Sequence[OpenSample], colours: Mapping[str, str], figure: Callable[[OpenSample], float]
) -> None:
    for server in dict.fromkeys(sample.server for sample in samples):
        mine = [sample for sample in samples if sample.server == server]
        rates = sorted({sample.rate for sample in mine})
        values = [statistics.median(figure(sample) for sample in mine if sample.rate == rate) for rate in rates]
        plot.plot(rates, values, "o-", color=colours[server], label=server)
    plot.grid(alpha=0.3)


def grid(count: int) -> tuple[Figure, list[Any]]:
    """Two plots in each row; one that is not needed is left out."""
    columns = min(2, count)
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(COLUMN_INCHES * columns, ROW_INCHES * rows + 0.6), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for unneeded in axes[count:]:
        unneeded.remove()
    return figure, axes[:count]


def legend(figure: Figure, axes: Sequence[Any]) -> None:
    """One for all plots, with every server that is in any of them."""
    found = {name: line for plot in axes for line, name in zip(*plot.get_legend_handles_labels(), strict=True)}
    figure.legend(found.values(), found.keys(), loc="outside lower center", ncols=3, fontsize="small")


def colours_of(servers: Iterable[str]) -> dict[str, str]:
    """The same server has the same colour in every picture."""
    found: dict[str, str] = {}
    for server in servers:
        free = [colour for colour in COLOURS if colour not in found.values()]
        beginnings = [colour for beginning, colour in FIXED_COLOURS.items() if server.startswith(beginning)]
        found[server] = next((colour for colour in [*beginnings, *free] if colour not in found.values()), "black")
    return found
