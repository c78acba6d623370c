"""`offramp doctor`: what this machine has for a server, and what keeps one from starting."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from offramp_server.cli.commands import Commands

if TYPE_CHECKING:
    from offramp_server.doctor.section import Section

DESCRIPTION = """\
Look at the machine, its GPUs, the engines, the configuration, the ports and the
model repository, and say what is missing and how to get it. No model is loaded
and nothing is changed. Exits with 0 if a server could start, else with 1; a
warning is something that it can start without.
"""


def add_to(commands: Commands) -> None:
    parser = commands.add_parser(
        "doctor",
        help="say what this machine has for a server, and what is wrong",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model-repository", type=Path, metavar="DIR", help="look into it as `offramp check` does")
    parser.add_argument("--config", type=Path, metavar="FILE", help="settings in TOML, as for `offramp serve`")
    parser.add_argument("--import", dest="import_libraries", action="store_true",
                        help="import each engine's library in a process of its own, which takes seconds")  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    # Not before somebody wants it: it looks at most of the server.
    from offramp_server.doctor.examine import as_json, examine

    sections = examine(options.model_repository, options.config, import_libraries=options.import_libraries)
    print(json.dumps(as_json(sections), indent=2) if options.json else "\n".join(_text(sections)))
    return 1 if any(section.problems for section in sections) else 0


def _text(sections: Sequence[Section]) -> Iterator[str]:
    width = max(len(label) for section in sections for label, _ in section.lines)
    for section in sections:
        yield section.name
        yield from (f"  {label.ljust(width)}  {text}" for label, text in section.lines)
    # Last, where they are read.
    for section in sections:
        yield from (f"warning: {warning}" for warning in section.warnings)
    problems = [problem for section in sections for problem in section.problems]
    yield from (f"problem: {problem}" for problem in problems)
    yield f"a server could not start: {len(problems)} problems" if problems else "a server could start"
