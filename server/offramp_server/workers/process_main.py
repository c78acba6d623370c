"""The worker process: computes the batches that the front end puts into shared slabs.

Started by `ProcessExecutor` as `python -m offramp_server.workers.process_main`; its descriptors are inherited. The main
thread computes; a second thread serves the control socket (load, unload) and ends the process when the front end
is gone, so that loading a model never holds up another model's requests.
"""

from __future__ import annotations

import argparse
import gc
import logging
import os
import socket
import sys
import threading

from offramp_server.errors import LoadError
from offramp_server.machine.numa import parse_cpu_list
from offramp_server.machine.parent import die_with, end_with_parent_only
from offramp_server.workers.allocator import tune_allocator
from offramp_server.workers.compute import ComputeLoop
from offramp_server.workers.control import ControlChannel, Message, load_report_to_wire, load_request_from_wire
from offramp_server.workers.host import ModelHost
from offramp_server.workers.slab import Slab

log = logging.getLogger("offramp.worker")


def main(arguments: list[str]) -> int:
    options = _parse(arguments)
    end_with_parent_only()
    # The control socket's end tells as well, but not a process that is deep inside a kernel.
    die_with(options.parent)
    _stay_on(options.cpus)
    logging.basicConfig(stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s", level=logging.WARNING)
    tune_allocator()
    host = ModelHost(options.gpu_memory_share)
    control = ControlChannel(socket.socket(fileno=options.control))
    threading.Thread(target=_serve_control, args=(control, host), daemon=True).start()
    ComputeLoop(host, options.requests, options.responses, [Slab(descriptor) for descriptor in options.slab]).run()
    return 0


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="A worker of offramp serve; not meant to be started by hand.")
    parser.add_argument("--parent", type=int, required=True, help="process id of the front end")
    parser.add_argument("--control", type=int, required=True, help="descriptor of the control socket")
    parser.add_argument("--requests", type=int, required=True, help="eventfd that counts batches to compute")
    parser.add_argument("--responses", type=int, required=True, help="eventfd that counts computed batches")
    parser.add_argument("--slab", type=int, action="append", required=True, help="memfd of a slab, in order")
    parser.add_argument("--cpus", type=parse_cpu_list, default=frozenset(), help="processors to stay on, as 0-3,8")
    parser.add_argument("--gpu-memory-share", type=float, default=1.0, help="of a GPU's memory, what it may take")
    return parser.parse_args(arguments)


def _stay_on(cpus: frozenset[int]) -> None:
    """Threads that are started later stay there as well. Memory comes from the node of who touches it first."""
    if cpus:
        try:
            # Those of numpy's BLAS are there since it was imported.
            for thread in os.listdir("/proc/self/task"):
                os.sched_setaffinity(int(thread), cpus)
        except OSError as error:
            # They were taken away since the server started. It is slower, and not wrong.
            log.warning("cannot stay on processors %s: %s", sorted(cpus), error)


def _serve_control(control: ControlChannel, host: ModelHost) -> None:
    for message in control.messages():
        control.send(_answer(message, host))
    # The front end is gone. Nothing here is worth an orderly end, and a computing thread would not notice one.
    os._exit(0)


def _answer(message: Message, host: ModelHost) -> Message:
    reply: Message = {"id": message["id"]}
    try:
        if message["do"] == "load":
            handle, spec, placement = load_request_from_wire(message)
            reply["report"] = load_report_to_wire(host.load(handle, spec, placement))
        elif message["do"] == "unload":
            host.unload(int(message["handle"]))
        elif message["do"] == "release":
            host.kept.release(message["kept"])
        elif message["do"] == "ping":
            reply["kept"] = len(host.kept)
    except LoadError as error:
        reply["error"] = str(error)
    except Exception as error:
        log.exception("%s failed", message["do"])
        reply["error"] = f"{type(error).__name__}: {error}"
    if "error" in reply:
        # What was loaded until then is in cycles, as exported programs are, and the error has held on to it.
        gc.collect()
    return reply


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
