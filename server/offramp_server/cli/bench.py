"""`offramp bench`: how fast a running server answers."""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import math
from collections.abc import Sequence

import numpy as np
from offramp_client import AsyncClient
from offramp_common.tables import line

from offramp_server.cli import declared
from offramp_server.cli.commands import Commands
from offramp_server.cli.connection import connect, connect_async, server_options
from offramp_server.cli.failures import Refused
from offramp_server.cli.load import Call, Measurement, closed_loop, open_loop
from offramp_server.cli.samples import VARIABLE_LENGTH, Inputs, random_inputs

DESCRIPTION = """\
Send made-up requests to a model or route for a while, and print answers per
second, latencies and errors.

The client is Python with asyncio. On a machine that it shares with the server
both compete for the cores, and one client alone cannot keep a fast server busy.
The column "client" says how many cores it took: near 1.00 it is the client that
is measured. benchmarks/README.md has measurements without that cost.

Nothing is retried. A caller that was refused waits for as long as the server
asks, or 10 ms. With --open-loop a latency counts from the moment at which the
request should have left.
"""
# Different inputs in turn, so that a cache anywhere on the way does not answer.
DIFFERENT_INPUTS = 16
PERCENTILES = (50, 90, 99)
HEADER = ("load", "answers/s", "p50 ms", "p90 ms", "p99 ms", "client", "errors")
WIDTHS = (8, 9, 9, 9, 9, 6, 20)
RIGHT = range(6)


def add_to(commands: Commands) -> None:
    parser = commands.add_parser(
        "bench",
        parents=[server_options()],
        help="measure a running server",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", metavar="MODEL", help="a model or a route")
    parser.add_argument("--model-version", default="", metavar="VERSION", help="default: the server chooses")
    load = parser.add_mutually_exclusive_group()
    load.add_argument("--concurrency", type=_counts, default=[1, 8, 32], metavar="N,N,...",
                      help="callers that each wait for their answer; a period for each N (default 1,8,32)")  # fmt: skip
    load.add_argument("--open-loop", type=_positive, metavar="RATE",
                      help="instead: requests at random times, RATE a second on average")  # fmt: skip
    parser.add_argument("--seconds", type=_positive, default=5.0, help="length of one period (default 5)")
    parser.add_argument("--batch-size", type=_count, default=1, metavar="N", help="items in a request (default 1)")
    parser.add_argument("--shape", action="append", default=[], type=_shape, metavar="NAME=D,D,...",
                        help=f"one item's dimensions where they vary (default {VARIABLE_LENGTH} each)")  # fmt: skip
    parser.add_argument("--max-waiting", type=_count, default=1000, metavar="N",
                        help="with --open-loop: unanswered ones beyond which none is sent (default 1000)")  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print one JSON object for each period")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    with connect(options) as client:
        model = declared.ask(client, options.model, options.model_version)
    random = np.random.default_rng(0)
    shapes = dict(options.shape)
    inputs = [random_inputs(model, options.batch_size, shapes, random) for _ in range(DIFFERENT_INPUTS)]
    return asyncio.run(_measure_all(options, inputs))


async def _measure_all(options: argparse.Namespace, inputs: Sequence[Inputs]) -> int:
    answers = 0
    async with connect_async(options) as client:
        call = _call(client, options, inputs)
        # The first one connects, and raises what would be wrong with all of them.
        await call()
        if not options.json:
            print(line(HEADER, WIDTHS, right=RIGHT), flush=True)
        for load in [options.open_loop] if options.open_loop else options.concurrency:
            measurement = await _measure(call, load, options)
            answers += len(measurement.latencies)
            print(_json(load, measurement) if options.json else _row(load, measurement), flush=True)
    if not answers:
        raise Refused("no request was answered")
    return 0


def _call(client: AsyncClient, options: argparse.Namespace, inputs: Sequence[Inputs]) -> Call:
    turn = itertools.cycle(inputs)
    return lambda: client.infer(options.model, next(turn), version=options.model_version)


async def _measure(call: Call, load: float, options: argparse.Namespace) -> Measurement:
    if options.open_loop:
        return await open_loop(call, load, options.seconds, options.max_waiting)
    return await closed_loop(call, int(load), options.seconds)


def _row(load: float, measurement: Measurement) -> str:
    percentiles = [f"{measurement.percentile(percent) * 1e3:.2f}" for percent in PERCENTILES]
    failed = {**measurement.errors, **({"not sent": measurement.unsent} if measurement.unsent else {})}
    errors = ", ".join(f"{code}: {count}" for code, count in failed.items()) or "none"
    cells = (f"{load:g}", f"{measurement.rate:.1f}", *percentiles, f"{measurement.client_load:.2f}", errors)
    return line(cells, WIDTHS, right=RIGHT)


def _json(load: float, measurement: Measurement) -> str:
    return json.dumps(
        {
            "load": load,
            "seconds": measurement.seconds,
            "answers": len(measurement.latencies),
            "answers_per_second": measurement.rate,
            "latency_seconds": {f"p{p}": measurement.percentile(p) for p in PERCENTILES}
            if measurement.latencies
            else {},
            "client_cores": measurement.client_load,
            "errors": measurement.errors,
            "not_sent": measurement.unsent,
        }
    )


def _counts(text: str) -> list[int]:
    return [_count(part) for part in text.split(",")]


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise argparse.ArgumentTypeError(f'expected a whole number from 1, got "{text}"')
    return int(text)


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f'expected a positive number, got "{text}"')
    return value


def _shape(text: str) -> tuple[str, list[int]]:
    name, equals, dims = text.partition("=")
    if not (name and equals):
        raise argparse.ArgumentTypeError(f'expected NAME=D,D,..., got "{text}"')
    return name, _counts(dims)
