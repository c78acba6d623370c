"""The report of a scaling run: for each dimension a table and a picture."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness.machine import Machine
from benchmarks.harness.plots import colours_of, grid, legend
from benchmarks.harness.report import NOISY, QUIET_CORES
from benchmarks.harness.samples import Sample
from benchmarks.harness.scaling import Dimension, Growth, Measured, Started
from benchmarks.harness.tables import one_line, table, without_home

LINE_STYLES = ("-", "--")
# Value, server, series.
Cell = tuple[float, str, str]
BYTES_UNITS = ("B", "KiB", "MiB")


def heading(command: str, client: str, machine: Machine, rounds: int, seconds: float, growths: Sequence[Growth]) -> str:
    others = [each.sample.other_cores for growth in growths for each in growth.measured] or [0.0]
    return f"""\
# Scaling, {machine.date}

`{command}`

{machine.cpu}, {machine.cores} cores shared by server and client, {machine.memory_gib} GiB; {machine.system}; Python
{machine.python}. Client: {client}. Medians of {rounds} interleaved rounds of about {seconds:g} s. Other processes used
{statistics.mean(others):.2f} cores meanwhile, {max(others):.2f} at worst.
{NOISY if statistics.mean(others) > QUIET_CORES else ""}"""


def section(dimension: Dimension, growth: Growth, picture: str) -> str:
    parts = [f"## {dimension.title}\n", rates(dimension, growth)]
    if dimension.starts_matter:
        parts.append(starts(dimension, growth))
    parts.append(f"![{dimension.title}]({picture})\n")
    if growth.not_run:
        rows = [[server, one_line(reason)] for server, reason in growth.not_run.items()]
        parts.append(table(["not run, or not to the end", "reason"], rows))
    return without_home("\n".join(parts))


def rates(dimension: Dimension, growth: Growth) -> str:
    columns = [dimension.axis, "server", dimension.rate_title, "p50 ms", "p99 ms", "server CPU us per call"]
    rows = []
    for (x, server, series), samples in cells(growth.measured).items():
        factor = dimension.rate_factor(x)
        rows.append(
            [
                value(dimension, x),
                f"{server}, {series}" if series else server,
                f"{factor * middle(samples, lambda sample: sample.rate):,.1f}",
                f"{middle(samples, lambda sample: sample.p50_ms):,.2f}",
                f"{middle(samples, lambda sample: sample.p99_ms):,.2f}",
                f"{middle(samples, lambda sample: sample.cpu_us):,.0f}",
            ]
        )
    return table(columns, rows)


def starts(dimension: Dimension, growth: Growth) -> str:
    columns = [dimension.axis, "server", "s from its start to all ready", "MiB then"]
    return table(
        columns,
        [
            [value(dimension, start.x), start.server, f"{start.ready_s:,.1f}", f"{start.memory_mib:,.0f}"]
            for start in growth.started
        ],
    )


def value(dimension: Dimension, x: float) -> str:
    return in_bytes(x) if "bytes" in dimension.axis else f"{x:,.0f}"


def in_bytes(count: float) -> str:
    unit = 0
    while count >= 1024 and unit < len(BYTES_UNITS) - 1:
        count, unit = count / 1024, unit + 1
    return f"{count:g} {BYTES_UNITS[unit]}"


def cells(measured: Sequence[Measured]) -> dict[Cell, list[Sample]]:
    """Samples by value, server and series, in the order of the run."""
    found: dict[Cell, list[Sample]] = {}
    for each in measured:
        found.setdefault((each.x, each.sample.server, each.series), []).append(each.sample)
    return found


def middle(samples: Sequence[Sample], figure: Callable[[Sample], float]) -> float:
    return statistics.median(map(figure, samples))


def servers(growths: Sequence[Growth]) -> str:
    versions = {server: said for growth in growths for server, said in growth.versions.items()}
    notes = {server: note for growth in growths for server, note in growth.notes.items()}
    rows = [
        [server, ", ".join(f"{package} {release}" for package, release in said.items()), notes[server]]
        for server, said in versions.items()
    ]
    return f"## Servers\n\n{table(['server', 'versions', 'set-up'], rows)}"


def draw(dimension: Dimension, growth: Growth, path: Path) -> None:
    """Rate and median latency over what grows; where starts matter, time to ready and memory as well."""
    figure, axes = grid(4 if dimension.starts_matter else 2)
    samples = cells(growth.measured)
    draw_lines(axes[0], samples, lambda x, cell: dimension.rate_factor(x) * middle(cell, lambda each: each.rate))
    draw_lines(axes[1], samples, lambda x, cell: middle(cell, lambda each: each.p50_ms))
    titles = [dimension.rate_title, "p50 ms"]
    if dimension.starts_matter:
        draw_starts(axes[2], growth.started, lambda start: start.ready_s)
        draw_starts(axes[3], growth.started, lambda start: start.memory_mib)
        titles += ["s to ready", "MiB when ready"]
    for plot, title in zip(axes, titles, strict=True):
        plot.set_xscale("log")
        plot.set_yscale("log")
        plot.set_xlabel(dimension.axis)
        plot.set_ylabel(title)
        plot.grid(alpha=0.3)
    legend(figure, axes)
    figure.savefig(path, dpi=110)


def draw_lines(plot: Any, samples: dict[Cell, list[Sample]], figure: Callable[[float, list[Sample]], float]) -> None:
    lines: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for (x, server, series), cell in samples.items():
        lines.setdefault((server, series), []).append((x, figure(x, cell)))
    colours = colours_of(dict.fromkeys(server for server, _ in lines))
    styles = dict(zip(dict.fromkeys(series for _, series in lines), LINE_STYLES, strict=False))
    for (server, series), points in lines.items():
        name = f"{server}, {series}" if series else server
        plot.plot(*zip(*points, strict=True), "o", linestyle=styles[series], color=colours[server], label=name)


def draw_starts(plot: Any, started: Sequence[Started], figure: Callable[[Started], float]) -> None:
    names = list(dict.fromkeys(start.server for start in started))
    colours = colours_of(names)
    for name in names:
        points = [(start.x, figure(start)) for start in started if start.server == name]
        # The legend has this colour from the other plots.
        plot.plot(*zip(*points, strict=True), "s-", color=colours[name])
