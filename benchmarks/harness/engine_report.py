"""The table of engines: Markdown and a picture."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from benchmarks.harness.engine_timing import Cell, ModelTimes
from benchmarks.harness.machine import Machine
from benchmarks.harness.report import NOISY, QUIET_CORES
from benchmarks.harness.tables import one_line, table

COLUMNS, COLUMN_INCHES, ROW_INCHES = 2, 7, 4


@dataclass(frozen=True)
class Auto:
    """What `offramp tune` took. `threads`: 0 where it left them to the server."""

    label: str
    threads: int
    reason: str


@dataclass(frozen=True)
class EngineRun:
    command: str
    machine: Machine
    versions: Mapping[str, str]
    rounds: int
    seconds: float
    # Cores that other processes used meanwhile.
    other_cores: float
    models: Sequence[ModelTimes]
    # By model; empty: it was not asked.
    auto: Mapping[str, Auto]


def to_markdown(run: EngineRun, picture: str) -> str:
    parts = [_heading(run), *(_model(times, run.auto.get(times.model)) for times in run.models)]
    if run.auto:
        parts.append(_auto(run))
    return "\n".join([*parts, f"![milliseconds by engine]({picture})\n"])


def median(cell: Cell) -> float:
    return statistics.median(cell.seconds)


def best(cells: Sequence[Cell], allowed: float) -> Cell:
    """The fastest of those that answer as the plain engine does."""
    return min((cell for cell in cells if cell.difference <= allowed), key=median)


def draw(run: EngineRun, path: Path) -> None:
    """Milliseconds per item with the fewest threads, by model and engine: one item, and a full batch."""
    rows = math.ceil(len(run.models) / COLUMNS)
    figure = Figure(figsize=(COLUMNS * COLUMN_INCHES, rows * ROW_INCHES), layout="constrained")
    axes = list(figure.subplots(rows, COLUMNS, squeeze=False).flat)
    for plot, times in zip(axes, run.models, strict=False):
        _bars(plot, times)
    for plot in axes[len(run.models) :]:
        plot.set_visible(False)
    figure.savefig(path, dpi=100)


def _heading(run: EngineRun) -> str:
    machine = run.machine
    versions = ", ".join(f"{name} {version}" for name, version in run.versions.items() if name != "python")
    return f"""\
# Engines on the CPU, {machine.date}

`{run.command}`

{machine.cpu}, {machine.cores} cores, {machine.memory_gib} GiB; {machine.system}; Python {machine.python}; {versions}.
All engines of a model are loaded in one process and take turns, {run.seconds:g} s each, in {run.rounds} rounds: medians
of the rounds' mean calls; +- is half the distance between the extremes, of the worst cell of a row. `difference` is
the largest one from the plain engine's answer, relative to that one's largest value. Other processes used
{run.other_cores:.2f} cores meanwhile.
{NOISY if run.other_cores > QUIET_CORES else ""}"""


def _model(times: ModelTimes, auto: Auto | None) -> str:
    places = sorted({(cell.threads, cell.items) for cell in times.cells})
    fastest = {place: best(_at(times, place), times.tolerance).label for place in places}
    columns = ["engine", *(_title(*place) for place in places), "+-", "difference", "prepared in"]
    rows = [
        [
            label,
            *(_ms(cell, fastest[place] == label) for place, cell in _row(times, label, places)),
            f"{max(_spread(cell) for _, cell in _row(times, label, places)):.0%}",
            f"{max(cell.difference for _, cell in _row(times, label, places)):.1e}",
            f"{times.prepared[label]:.1f} s",
        ]
        for label in dict.fromkeys(cell.label for cell in times.cells)
    ]
    left_out = "".join(f"* not run, {label}: {one_line(reason)}\n" for label, reason in times.left_out.items())
    said = (
        "" if auto is None else f"\n`auto` took {auto.label}, {auto.threads or 'the usual'} threads: {auto.reason}.\n"
    )
    return f"## {times.model}\n\n{table(columns, rows)}{said}\n{left_out}"


def _auto(run: EngineRun) -> str:
    rows = [row for times in run.models if times.model in run.auto for row in _gaps(times, run.auto[times.model])]
    columns = ["model", "threads, batch", "auto took", "ms", "the best is", "ms", "auto slower by"]
    return f"## What `auto` took, beside the best of the table\n\n{table(columns, rows)}"


def _gaps(times: ModelTimes, auto: Auto) -> Iterator[list[str]]:
    """With the threads that it took, or with each number that was timed."""
    for place in sorted({(cell.threads, cell.items) for cell in times.cells}):
        cells = _at(times, place)
        taken = next((cell for cell in cells if cell.label == auto.label), None)
        if taken is None or auto.threads not in (0, place[0]):
            continue
        first = best(cells, times.tolerance)
        gap = f"{median(taken) / median(first) - 1:.1%}"
        where = f"{place[0]}, {place[1]}"
        yield [times.model, where, taken.label, _ms(taken, False), first.label, _ms(first, False), gap]


def _at(times: ModelTimes, place: tuple[int, int]) -> list[Cell]:
    return [cell for cell in times.cells if (cell.threads, cell.items) == place]


def _row(times: ModelTimes, label: str, places: Sequence[tuple[int, int]]) -> list[tuple[tuple[int, int], Cell]]:
    found = {(cell.threads, cell.items): cell for cell in times.cells if cell.label == label}
    return [(place, found[place]) for place in places if place in found]


def _title(threads: int, items: int) -> str:
    return f"{threads} thread{'s' if threads > 1 else ''}, {items}: ms per item"


def _ms(cell: Cell, bold: bool) -> str:
    text = f"{median(cell) / cell.items * 1e3:.3g}"
    return f"**{text}**" if bold else text


def _spread(cell: Cell) -> float:
    return (max(cell.seconds) - min(cell.seconds)) / 2 / median(cell)


def _bars(plot: Any, times: ModelTimes) -> None:
    fewest = min(cell.threads for cell in times.cells)
    cells = [cell for cell in times.cells if cell.threads == fewest]
    labels = list(dict.fromkeys(cell.label for cell in cells))
    for at, items in enumerate(sorted({cell.items for cell in cells})):
        taken = {cell.label: median(cell) / items * 1e3 for cell in cells if cell.items == items}
        places = [index + (at - 0.5) * 0.4 for index in range(len(labels))]
        plot.barh(places, [taken[label] for label in labels], 0.4, label=f"batches of {items}")
    plot.set_yticks(range(len(labels)), labels, fontsize=7)
    plot.invert_yaxis()
    plot.set_title(f"{times.model}, {fewest} thread{'s' if fewest > 1 else ''}")
    plot.set_xlabel("ms per item")
    plot.grid(axis="x", alpha=0.3)
    plot.legend(fontsize=7)
