"""The report of a load in steps: a table by phase, a picture over time."""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from benchmarks.harness.machine import Machine
from benchmarks.harness.report import NOISY, QUIET_CORES
from benchmarks.harness.steps import Columns, Plan, Turn
from benchmarks.harness.tables import table

FIXED, LEVELS = "fixed", "levels"
PHASES = ("before", "surge", "after")
# Seconds over which the picture takes a share.
BIN_S = 0.5
COLOURS = MappingProxyType({FIXED: "tab:red", LEVELS: "tab:blue"})
LEVEL_NAMES = ("idle", "normal", "busy", "overloaded")


def heading(
    command: str, machine: Machine, capacity: float, plan: Plan, turns: Sequence[Turn], options: argparse.Namespace
) -> str:
    others = [each.other_cores for each in turns]
    noisy = NOISY if statistics.mean(others) > QUIET_CORES else ""
    idle, normal, busy, overloaded = options.thresholds
    rates = ", ".join(f"{rate:,.0f}/s for {seconds:g} s" for seconds, rate in plan.phases)
    return f"""\
# A surge at a cascade, with and without levels of load, {machine.date}

`{command}`

{machine.cpu}, {machine.cores} cores shared by server and client (grpc.aio, {machine.system}; Python {machine.python}).
{options.teacher} alone answers {capacity:,.0f} requests/s to {options.callers} callers. Load: Poisson, {rates};
a caller waits {plan.deadline:g} s. The cascade's threshold is {normal:g}; "levels" has {idle:g} when idle, {busy:g}
when busy and {overloaded:g} when overloaded, where it sheds {options.shed:.0%}. {plan.rounds} rounds in turns, medians.
Other processes used {statistics.mean(others):.2f} cores meanwhile, {max(others):.2f} at worst.
{noisy}"""


def phase_table(turns: Sequence[Turn], plan: Plan) -> str:
    rows = []
    for name, (start, end) in zip(phase_names(plan), pairwise(plan.edges), strict=True):
        for route in (FIXED, LEVELS):
            parts = [Columns.of(each, plan.deadline).during(start, end) for each in turns if each.route == route]
            rows.append((name, route, *phase_cells(parts, end - start)))
    columns = (
        "phase", "route", "offered/s", "answered in time", "refused", "accuracy of answers", "right, of all offered",
        "p50 ms", "p99 ms", "by the student",
    )  # fmt: skip
    return table(columns, rows)


def phase_cells(parts: Sequence[Columns], seconds: float) -> tuple[str, ...]:
    def median(figure: Callable[[Columns], float]) -> float:
        return statistics.median(map(figure, parts))

    return (
        f"{median(lambda part: len(part.due) / seconds):,.0f}",
        f"{median(lambda part: part.share_answered):.1%}",
        f"{median(lambda part: float(part.refused.mean())):.1%}",
        f"{median(lambda part: part.accuracy):.2%}",
        f"{median(lambda part: part.share_right):.2%}",
        f"{median(lambda part: part.percentile_ms(50)):.1f}",
        f"{median(lambda part: part.percentile_ms(99)):.1f}",
        f"{median(lambda part: part.share_early):.1%}",
    )


def phase_names(plan: Plan) -> list[str]:
    if len(plan.phases) == len(PHASES):
        return list(PHASES)
    return [f"{number}" for number in range(1, len(plan.phases) + 1)]


def bins(plan: Plan) -> NDArray[np.float64]:
    return np.arange(0.0, plan.edges[-1], BIN_S)


def binned(turn: Turn, plan: Plan) -> dict[str, object]:
    """What the plot shows, and not every request."""
    columns = Columns.of(turn, plan.deadline)
    parts = [columns.during(start, start + BIN_S) for start in bins(plan)]
    return {
        "route": turn.route,
        "round": turn.round,
        "began": turn.began,
        "other_cores": turn.other_cores,
        "offered": [len(part.due) for part in parts],
        "answered": [int(part.answered.sum()) for part in parts],
        "refused": [int(part.refused.sum()) for part in parts],
        "right": [int((part.right & part.answered).sum()) for part in parts],
    }


def draw(turns: Sequence[Turn], levels: Sequence[tuple[float, str]], plan: Plan, path: Path) -> None:
    figure = Figure(figsize=(9, 9), layout="constrained")
    rate, answered, accuracy, level = figure.subplots(4, sharex=True)
    for route in (FIXED, LEVELS):
        mine = [each for each in turns if each.route == route]
        over_time(rate, mine, plan, lambda part: float(part.answered.sum()) / BIN_S)
        over_time(answered, mine, plan, lambda part: 100 * part.share_answered)
        over_time(accuracy, mine, plan, lambda part: 100 * part.accuracy)
        for each in mine:
            draw_level(level, each, levels, plan)
    for (start, end), (_, offered) in zip(pairwise(plan.edges), plan.phases, strict=True):
        rate.hlines(offered, start, end, "black", "dashed", label="offered" if start == 0 else None)
    for axes, title in (
        (rate, "answered in time, per s"), (answered, "answered in time, %"),
        (accuracy, "accuracy of answers, %"), (level, "level of load"),
    ):  # fmt: skip
        axes.set_ylabel(title)
        axes.grid(alpha=0.3)
    level.set_yticks(range(len(LEVEL_NAMES)), LEVEL_NAMES)
    level.set_xlabel(f"seconds; thin lines are rounds, thick ones their means over {BIN_S:g} s")
    rate.legend(loc="upper right")
    figure.savefig(path, dpi=110)


def over_time(axes: Any, turns: Sequence[Turn], plan: Plan, figure: Callable[[Columns], float]) -> None:
    starts = bins(plan)
    rows = []
    for turn in turns:
        columns = Columns.of(turn, plan.deadline)
        rows.append([figure(columns.during(start, start + BIN_S)) for start in starts])
        axes.plot(starts + BIN_S / 2, rows[-1], color=COLOURS[turn.route], linewidth=0.6, alpha=0.4)
    means = [np.nanmean(column) if np.isfinite(column).any() else np.nan for column in np.array(rows).T]
    axes.plot(starts + BIN_S / 2, means, color=COLOURS[turns[0].route], linewidth=2, label=turns[0].route)


def draw_level(axes: Any, turn: Turn, levels: Sequence[tuple[float, str]], plan: Plan) -> None:
    """As the server had it, whichever route was called: "fixed" does nothing about it."""
    before = [level for at, level in levels if at <= turn.began]
    times, heights = [0.0], [LEVEL_NAMES.index(before[-1] if before else "normal")]
    for at, level in levels:
        if turn.began < at <= turn.began + plan.edges[-1]:
            times.append(at - turn.began)
            heights.append(LEVEL_NAMES.index(level))
    axes.step([*times, plan.edges[-1]], [*heights, heights[-1]], where="post", color=COLOURS[turn.route], alpha=0.7)
