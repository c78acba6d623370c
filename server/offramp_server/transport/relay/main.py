"""The process of a front end, started by `processes.launch_process`; its descriptors are inherited."""

from __future__ import annotations

import argparse
import asyncio
import logging
import socket
import sys

from offramp_server.collector import spare_what_stays
from offramp_server.event_loop import event_loop_factory
from offramp_server.machine.parent import die_with, end_with_parent_only
from offramp_server.telemetry import logs
from offramp_server.transport.relay.front_end import run_front_end
from offramp_server.workers.allocator import tune_allocator


def main(arguments: list[str]) -> int:
    options = _parse(arguments)
    end_with_parent_only()
    # The end of the link tells as well, but not a process that is busy.
    die_with(options.parent)
    tune_allocator()
    spare_what_stays()
    log = logs.install(logging.WARNING)
    link = socket.socket(fileno=options.link)
    sockets = [socket.socket(fileno=descriptor) for descriptor in options.listen]
    with asyncio.Runner(loop_factory=event_loop_factory()) as runner:
        in_order = runner.run(
            run_front_end(link, sockets, lambda level, format: log.configure(level=level, format=format))
        )
    return 0 if in_order else 1


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="A front end of offramp serve; not meant to be started by hand.")
    parser.add_argument("--parent", type=int, required=True, help="process id of the server")
    parser.add_argument("--link", type=int, required=True, help="descriptor of the socket to the server")
    parser.add_argument("--listen", type=int, action="append", required=True, help="descriptor of a listening socket")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
