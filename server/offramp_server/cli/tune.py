"""`offramp tune`: choose the engines of a repository before a server does."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from offramp_common.extras import needs_extra
from offramp_common.tables import table

from offramp_server.cli.commands import Commands
from offramp_server.cli.failures import UsageError
from offramp_server.config import TuningSettings, load_settings

if TYPE_CHECKING:
    from offramp_server.model_spec import ModelSpec
    from offramp_server.tuning.ahead import Tuned, Wanted
    from offramp_server.tuning.decision import Decision

DESCRIPTION = """\
Compare the engines that can run each model of a repository on this machine, and
remember the fastest that answers as the plain one does, so that servers start
with it at once. Each candidate is built and tried in a process of its own. A model
whose model.toml names an engine gets that one; what has to be built for it is.

What is remembered already is shown and not found out again, unless something was
left out for want of time, memory or disk space. Exits with 1 if an engine that
model.toml names cannot run here, and if the disk is too full to build engines. Run
it where, and as whom, the server is to run, while nothing else does.
"""
EPILOG = """\
What is remembered lies in engines.cache of the configuration, by default in
~/.cache/offramp/engines. It holds for this model, machine, number of threads and
these versions of the libraries.
"""
HEADER = ("", "ENGINE", "1 ITEM", "BATCH OF {}", "DIFFERENCE", "")


def add_to(commands: Commands) -> None:
    parser = commands.add_parser(
        "tune",
        help="choose the engines of a repository before a server does",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("repository", type=Path, metavar="DIR")
    parser.add_argument("--model", action="append", metavar="NAME", help="only this one; may be given several times")
    parser.add_argument("--budget", type=float, metavar="SECONDS", help="for each model (default: as many as it takes)")
    parser.add_argument("--again", action="store_true", help="whatever is remembered")
    parser.add_argument("--config", type=Path, metavar="FILE", help="settings of the server in TOML")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    if options.budget is not None and options.budget <= 0:
        raise UsageError(f"--budget: expected more than 0 seconds, got {options.budget:g}")
    settings = load_settings(options.config).engines
    with needs_extra("server", "offramp tune"):
        from offramp_server.repository.reader import check_repository
        from offramp_server.tuning.ahead import Wanted, model_names, read_what_can_be

    check_repository(options.repository)
    specs, problems = read_what_can_be(options.repository, options.model or model_names(options.repository))
    for problem in problems:
        print(f"left out: {problem}", file=sys.stderr)
    found = asyncio.run(_tune(specs, settings, Wanted(options.budget, options.again), options.json))
    if options.json:
        print(json.dumps([_as_json(each) for each in found], indent=2))
    return 1 if problems or any(each.decision is None or each.decision.disk_full for each in found) else 0


async def _tune(specs: list[ModelSpec], settings: TuningSettings, wanted: Wanted, quiet: bool) -> list[Tuned]:
    """Says what becomes of each as soon as that is known."""
    from offramp_server.core import build_engines
    from offramp_server.machine.plan import read_topology
    from offramp_server.telemetry.stats import Stats
    from offramp_server.tuning.ahead import tune_ahead

    engines = build_engines(replace(settings, tune="at-load"), Stats())
    found = []
    try:
        print(f"{len(specs)} to tune; this may take minutes", file=sys.stderr)
        async for each in tune_ahead(specs, engines, read_topology(), wanted):
            found.append(each)
            if not quiet:
                print("\n".join(_lines(each)), flush=True)
    finally:
        engines.close()
    return found


def _lines(tuned: Tuned) -> Iterator[str]:
    yield f"{tuned.spec.name} version {tuned.spec.version} on {tuned.device}"
    decision = tuned.decision
    if decision is None:
        yield f"  {tuned.problem}"
    else:
        yield f"  {decision.choice.label}, {decision.choice.reason}" + (" (remembered)" if decision.remembered else "")
        rows = list(_rows(decision))
        if rows:
            header = [cell.format(tuned.full_batch) for cell in HEADER]
            text = table(header, rows, right=range(2, 5))
            yield "\n".join(f"  {line}" for line in text.splitlines())
        if decision.by_threads:
            each = (
                f"{n}: {taken.first * 1e3:.3g} and {taken.full * 1e3:.3g}" for n, taken in decision.by_threads.items()
            )
            yield f"  ms by threads, for 1 item and the batch: {', '.join(each)}"
    yield ""


def _rows(decision: Decision) -> Iterator[tuple[str, ...]]:
    for label, each in decision.measurements.items():
        chosen = "*" if label == decision.choice.label else ""
        note = decision.choice.rejected.get(label, "")
        yield chosen, label, f"{each.first * 1e3:.3g} ms", f"{each.full * 1e3:.3g} ms", f"{each.difference:.1e}", note
    for label, reason in decision.choice.rejected.items():
        if label not in decision.measurements:
            yield "", label, "", "", "", reason


def _as_json(tuned: Tuned) -> dict[str, Any]:
    found: dict[str, Any] = {"model": tuned.spec.name, "version": tuned.spec.version, "device": tuned.device}
    if tuned.decision is None:
        return found | {"problem": tuned.problem}
    decision = asdict(tuned.decision)
    artifacts = tuned.decision.choice.artifacts
    choice = decision.pop("choice") | {"artifacts": None if artifacts is None else str(artifacts)}
    return found | {"batch": tuned.full_batch, **choice, **decision}
