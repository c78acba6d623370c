"""`offramp check`: say what a repository would serve, without serving it."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from offramp_common.extras import needs_extra

from offramp_server.cli.commands import Commands

DESCRIPTION = """\
Read every folder of a model repository as the server would, without loading a
model: files, configuration, checksums, names, what hides in a .pt2, and whether
the engines and devices that model.toml asks for are on this machine. Exits with 1
if the server would refuse any of it. What only an engine itself can say of a
model is found out when it is loaded, or by `offramp tune`.
"""


def add_to(commands: Commands) -> None:
    parser = commands.add_parser(
        "check",
        help="validate a model repository",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("repository", type=Path, metavar="DIR")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    with needs_extra("server", "offramp check"):
        from offramp_server.repository.check import check

        report = check(options.repository)
    for line in report.lines:
        print(line)
    for problem in report.problems:
        print(f"problem: {problem}", file=sys.stderr)
    return 1 if report.problems else 0
