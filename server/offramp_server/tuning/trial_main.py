"""The process in which candidates of one engine are tried: `python -m offramp_server.tuning.trial_main`.

Requests come as lines of JSON on standard input, answers go to what standard output was at the start; what libraries
print is sent to standard error.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from offramp_server.tuning.guard import guarded

if TYPE_CHECKING:
    from offramp_server.workers.engines.kind import EngineKind

STDOUT, STDERR = 1, 2
NICENESS = 10


def main(arguments: Sequence[str], kinds: Sequence[EngineKind] | None = None) -> int:
    """Serve until standard input ends. `kinds`: the engines there are, every one unless given."""
    options = _parse(arguments)
    replies = os.dup(STDOUT)
    os.dup2(STDERR, STDOUT)
    if options.in_background:
        os.nice(NICENESS)
    guarded(replies, options.max_memory)
    # Not before the guard has split off, which needs none of it.
    from offramp_server.tuning.steps import Steps
    from offramp_server.workers.allocator import tune_allocator

    tune_allocator()
    steps = Steps(kinds)
    for line in sys.stdin.buffer:
        message = json.loads(line)
        reply = {"id": message["id"], **steps.carry_out(message)}
        os.write(replies, json.dumps(reply).encode() + b"\n")
    return 0


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="A trial of an engine; not meant to be started by hand.")
    parser.add_argument("--in-background", action="store_true", help="let other processes compute first")
    parser.add_argument("--max-memory", type=int, default=0, help="bytes of resident memory; 0: as much as there is")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
