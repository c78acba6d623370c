"""Closed-loop load of many different requests, from a grpc.aio client in a process of its own.

`python -m benchmarks.runtimes.route_load TARGET CONCURRENCY SECONDS SEED` reads serialised requests from standard
input, each behind its length (four bytes, big-endian), and sends them in a random order, over and over, one in flight
on each connection. It writes one line of JSON (seconds in all, and of each call which request it sent and how long it
took), and behind it the answers in the same order, each behind its length. Nothing is parsed while time is taken.
"""

from __future__ import annotations

import asyncio
import json
import random
import struct
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import grpc

METHOD = "/inference.GRPCInferenceService/ModelInfer"
_LENGTH = struct.Struct(">I")


@dataclass
class Calls:
    """What came back, in the order in which it did."""

    requests: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    answers: list[bytes] = field(default_factory=list)


def unpack(data: bytes) -> Iterator[bytes]:
    position = 0
    while position < len(data):
        [length] = _LENGTH.unpack_from(data, position)
        yield data[position + _LENGTH.size : position + _LENGTH.size + length]
        position += _LENGTH.size + length


def pack(messages: list[bytes]) -> bytes:
    return b"".join(_LENGTH.pack(len(message)) + message for message in messages)


async def call_until(target: str, requests: list[bytes], end: float, order: Iterator[int], calls: Calls) -> None:
    # A pool of its own makes this channel a connection of its own.
    async with grpc.aio.insecure_channel(target, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        infer = channel.unary_unary(METHOD)
        while (started := time.perf_counter()) < end:
            chosen = next(order)
            answer = await infer(requests[chosen])
            calls.seconds.append(time.perf_counter() - started)
            calls.requests.append(chosen)
            calls.answers.append(answer)


def shuffled(count: int, seed: int) -> Iterator[int]:
    """Every request once in a random order, then all again in another."""
    draw = random.Random(seed)
    while True:
        yield from draw.sample(range(count), count)


async def main(target: str, concurrency: int, seconds: float, seed: int) -> None:
    requests = list(unpack(sys.stdin.buffer.read()))
    order, calls = shuffled(len(requests), seed), Calls()
    started = time.perf_counter()
    end = started + seconds
    await asyncio.gather(*(call_until(target, requests, end, order, calls) for _ in range(concurrency)))
    spent = time.perf_counter() - started
    said = json.dumps({"seconds": spent, "requests": calls.requests, "latencies_s": calls.seconds})
    sys.stdout.buffer.write(said.encode() + b"\n" + pack(calls.answers))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4])))
