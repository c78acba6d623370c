"""Closed-loop load from a grpc.aio client, for machines without h2load and for more than one request.

`python -m benchmarks.runtimes.grpc_load TARGET CONCURRENCY CALLS ANSWER_BYTES` reads serialised requests from standard
input, each behind its length (four bytes, big-endian), which every connection sends in turn, and prints one line of
JSON: `{"seconds": s, "latencies_s": [...]}`.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Sequence

import grpc

from benchmarks.runtimes.route_load import METHOD, unpack

# A pool of its own makes a channel a connection of its own.
OPTIONS = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1)]


async def call_in_a_row(
    target: str, requests: Sequence[bytes], first: int, calls: int, answer_bytes: int
) -> list[float]:
    async with grpc.aio.insecure_channel(target, OPTIONS) as channel:
        infer = channel.unary_unary(METHOD)
        taken: list[float] = []
        for index in range(first, first + calls):
            request = requests[index % len(requests)]
            started = time.perf_counter()
            answer = await infer(request)
            taken.append(time.perf_counter() - started)
            if len(answer) < answer_bytes:
                raise SystemExit(f"an answer of {len(answer)} bytes that should bring {answer_bytes}")
        return taken


async def main(target: str, concurrency: int, calls: int, answer_bytes: int) -> None:
    requests = list(unpack(sys.stdin.buffer.read()))
    shares = [calls // concurrency + (index < calls % concurrency) for index in range(concurrency)]
    started = time.perf_counter()
    # Connections begin with different requests.
    rows = await asyncio.gather(
        *(call_in_a_row(target, requests, index, share, answer_bytes) for index, share in enumerate(shares))
    )
    seconds = time.perf_counter() - started
    print(json.dumps({"seconds": seconds, "latencies_s": [taken for row in rows for taken in row]}))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], *(int(argument) for argument in sys.argv[2:])))
