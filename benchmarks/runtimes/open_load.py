"""Open-loop load: requests come when a Poisson process says so, whether or not those before them were answered.

`python -m benchmarks.runtimes.open_load TARGET SEED DEADLINE_SECONDS SECONDS:RATE [SECONDS:RATE ...]`, with options for
the number of connections and for the moment of the first phase, so that several clients begin at once, reads serialised
requests from standard input, each behind its length (four bytes, big-endian), and sends them in a random order at the
rates given, one after the other. It writes one line of JSON with an entry for each request (when it was due, which it
was, how long after that it was sent, how long after that it ended, and how), and behind it the answers, each behind its
length; an empty one had none.

Time is taken from the moment at which a request was due: a client that is late itself must not make the server look
good. A call that was not answered within the deadline is given up.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import random
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import grpc

from benchmarks.runtimes.route_load import METHOD, pack, shuffled, unpack

# What a call gets that is late before it is sent.
LEAST_SECONDS = 0.001


@dataclass
class Sent:
    """One entry for each request, in the order in which they ended."""

    # Seconds since 1970, to be compared with the server's log.
    began: float = 0.0
    # Seconds since then.
    due: list[float] = field(default_factory=list)
    requests: list[int] = field(default_factory=list)
    latencies_s: list[float] = field(default_factory=list)
    # Of these, how long the client needed to send it.
    late_s: list[float] = field(default_factory=list)
    statuses: list[str] = field(default_factory=list)


def arrivals(phases: Sequence[tuple[float, float]], draw: random.Random) -> Iterator[float]:
    """Times of a Poisson process with the (seconds, rate per second) of `phases`, one after the other."""
    start = 0.0
    for seconds, rate in phases:
        at = start + draw.expovariate(rate)
        while at < start + seconds:
            yield at
            at += draw.expovariate(rate)
        start += seconds


async def main(options: argparse.Namespace) -> None:
    seed, deadline = options.seed, options.deadline
    requests = list(unpack(sys.stdin.buffer.read()))
    draw, order = random.Random(seed), shuffled(len(requests), seed)
    sent, answers = Sent(), list[bytes]()
    own_pool = [("grpc.use_local_subchannel_pool", 1)]
    channels = [grpc.aio.insecure_channel(options.target, own_pool) for _ in range(options.connections)]
    await asyncio.gather(*(channel.channel_ready() for channel in channels))
    await asyncio.sleep(max(0.0, options.begin - time.time()))
    calls = itertools.cycle([channel.unary_unary(METHOD) for channel in channels])
    sent.began, started = time.time(), time.perf_counter()

    async def call(infer: Any, due: float, request: int) -> None:
        late = time.perf_counter() - started - due
        left = deadline - late
        answer, status = b"", "OK"
        try:
            answer = await infer(requests[request], timeout=max(LEAST_SECONDS, left))
        except grpc.aio.AioRpcError as error:
            status = error.code().name
        sent.latencies_s.append(time.perf_counter() - started - due)
        sent.late_s.append(late)
        sent.due.append(due)
        sent.requests.append(request)
        sent.statuses.append(status)
        answers.append(answer)

    async with asyncio.TaskGroup() as group:
        for due in arrivals(options.phases, draw):
            await asyncio.sleep(max(0.0, due - (time.perf_counter() - started)))
            group.create_task(call(next(calls), due, next(order)))
    await asyncio.gather(*(channel.close() for channel in channels))
    sys.stdout.buffer.write(json.dumps(asdict(sent)).encode() + b"\n" + pack(answers))


def phase(text: str) -> tuple[float, float]:
    seconds, _, rate = text.partition(":")
    return float(seconds), float(rate)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("target")
    parser.add_argument("seed", type=int)
    parser.add_argument("deadline", type=float)
    parser.add_argument("phases", type=phase, nargs="+")
    parser.add_argument("--connections", type=int, default=8)
    parser.add_argument("--begin", type=float, default=0.0, help="seconds since 1970; at once if that has passed")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    asyncio.run(main(parse(sys.argv[1:])))
