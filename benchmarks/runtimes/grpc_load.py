"""Closed-loop load from a grpc.aio client, for machines without h2load.

`python -m benchmarks.runtimes.grpc_load TARGET CONCURRENCY CALLS ANSWER_BYTES` reads a serialised request from
standard input and prints one line of JSON: `{"seconds": s, "latencies_s": [...]}`.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time

import grpc

METHOD = "/inference.GRPCInferenceService/ModelInfer"


async def call_in_a_row(target: str, request: bytes, calls: int, answer_bytes: int) -> list[float]:
    # A pool of its own makes this channel a connection of its own.
    async with grpc.aio.insecure_channel(target, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        infer = channel.unary_unary(METHOD)
        taken: list[float] = []
        for _ in range(calls):
            started = time.perf_counter()
            answer = await infer(request)
            taken.append(time.perf_counter() - started)
            if len(answer) < answer_bytes:
                raise SystemExit(f"an answer of {len(answer)} bytes that should bring {answer_bytes}")
        return taken


async def main(target: str, concurrency: int, calls: int, answer_bytes: int) -> None:
    request = sys.stdin.buffer.read()
    shares = [calls // concurrency + (index < calls % concurrency) for index in range(concurrency)]
    started = time.perf_counter()
    rows = await asyncio.gather(*(call_in_a_row(target, request, share, answer_bytes) for share in shares))
    seconds = time.perf_counter() - started
    print(json.dumps({"seconds": seconds, "latencies_s": [taken for row in rows for taken in row]}))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], *(int(argument) for argument in sys.argv[2:])))
