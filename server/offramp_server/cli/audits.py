"""`offramp audits`: what a server's store says of a route's answers."""

from __future__ import annotations

import argparse
import json
import sqlite3
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

from offramp_adapters.audits.loss import ExitTotals, interval, rate
from offramp_common.tables import table

from offramp_server.cli.commands import Commands
from offramp_server.cli.failures import Refused, UsageError
from offramp_server.store.audits import (
    Gap,
    StoredEpoch,
    exit_totals,
    gaps,
    latest_epochs,
    reference_stage,
    route_epochs,
)
from offramp_server.store.database import read_file
from offramp_server.store.location import default_path
from offramp_server.store.schema import check_ours, file_errors

DESCRIPTION = """\
Show what is known of how often a route's early answers differ from those of its
reference, for each epoch: a new one begins whenever a model, an engine, a
temperature or the meaning of agreement changes. Reads the store of a server on
this machine, which may be running.

EXITS are the shares of the stages, AUDITED the early answers that were to be
compared, LOST those of them for which that came to nothing. DISAGREE is the
estimated share of all answers that differ, with bounds that hold with the given
confidence for one look at a number of items that was fixed before; lost audits
count as agreeing for the lower bound, and as disagreeing for the upper one.
MISSING are comparisons that were made and could not be stored, FAILED requests
that were not answered although something of them was computed (docs/audits.md).
"""

HEADER = ("EPOCH", "BEGAN", "ITEMS", "EXITS", "AUDITED", "LOST", "DISAGREE", "BOUNDS", "MISSING", "FAILED")
RIGHT = (0, 2, 4, 5, 6, 8, 9)


@dataclass(frozen=True, slots=True)
class EpochReport:
    """One epoch. Shares are of its items; None: nothing is known."""

    epoch: int
    # Seconds since 1970.
    began: float
    items: int
    exits: tuple[float, ...]
    audited: int
    lost: int
    disagreement: float | None
    low: float
    high: float
    missing_items: int
    failed_requests: int
    # Items that came while the rate of audits was 0: nothing above is about them.
    unseen: int
    subject: str


def add_to(commands: Commands) -> None:
    parser = commands.add_parser(
        "audits",
        help="show how often a route's early answers differ from its reference's",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("route", metavar="ROUTE")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--store", type=Path, metavar="FILE", help="the server's store.path")
    where.add_argument("--model-repository", type=Path, metavar="DIR",
                       help="the repository of a server that was not told a path")  # fmt: skip
    parser.add_argument("--confidence", type=_share, default=0.95, metavar="P", help="of the bounds (default 0.95)")
    parser.add_argument("--json", action="store_true", help="print JSON, with what each epoch was judged as")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    path = options.store or default_path(options.model_repository)
    if not path.is_file():
        raise UsageError(f"there is no file {path}; a server makes one, unless its store is elsewhere or in memory")
    with file_errors(path):
        reports = read_file(path, lambda connection: _reports(connection, path, options.route, 1 - options.confidence))
    if options.json:
        print(json.dumps([asdict(report) for report in reports], indent=2))
        return 0
    print(table(HEADER, [_row(report) for report in reports], right=RIGHT))
    _explain(reports)
    return 0


def _reports(connection: sqlite3.Connection, path: Path, route: str, delta: float) -> list[EpochReport]:
    check_ours(connection, path)
    found = route_epochs(connection, route)
    if not found:
        known = ", ".join(sorted(latest_epochs(connection))) or "none"
        raise Refused(f'nothing is stored of a route "{route}"; routes: {known}')
    return [_report(connection, epoch, delta) for epoch in found]


def _report(connection: sqlite3.Connection, epoch: StoredEpoch, delta: float) -> EpochReport:
    by_exit = exit_totals(connection, epoch.id)
    whole = ExitTotals()
    for totals in by_exit.values():
        whole.add(totals)
    last = reference_stage(connection, epoch.id)
    early = sum(totals.audited for exit, totals in by_exit.items() if exit != last)
    missing: Sequence[Gap] = gaps(connection, epoch.id)
    return EpochReport(
        epoch.number, epoch.began, whole.items, _shares(by_exit, last), early, whole.lost, rate(whole),
        *interval(whole, delta), sum(gap.audited for gap in missing), sum(gap.requests for gap in missing),
        whole.unseen, epoch.subject,
    )  # fmt: skip


def _shares(by_exit: dict[int, ExitTotals], last: int | None) -> tuple[float, ...]:
    items = sum(totals.items for totals in by_exit.values())
    stages = max([*by_exit, -1 if last is None else last]) + 1 if items else 0
    return tuple(by_exit.get(exit, ExitTotals()).items / items for exit in range(stages))


def _row(report: EpochReport) -> tuple[str, ...]:
    known = report.disagreement is not None
    return (
        str(report.epoch),
        datetime.fromtimestamp(report.began).astimezone().isoformat(" ", "seconds"),
        str(report.items),
        "/".join(f"{share:.1%}" for share in report.exits) or "-",
        str(report.audited),
        str(report.lost),
        f"{report.disagreement:.3%}" if known else "-",
        f"{report.low:.3%} to {report.high:.3%}" if known else "-",
        str(report.missing_items),
        str(report.failed_requests),
    )


def _explain(reports: Sequence[EpochReport]) -> None:
    for report in reports:
        if report.unseen:
            print(
                f"\nepoch {report.epoch}: {report.unseen} items came while the rate of audits was 0; "
                "what is said above is not about them"
            )


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f'expected a number between 0 and 1, got "{text}"')
    return value
