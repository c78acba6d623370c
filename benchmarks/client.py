"""Measure what a call costs the client: `python -m benchmarks.client`.

A server that answers at once runs in a process of its own. Reported is, for each transport of the SDK, in turns, what
the CPU of this process and the clock have to say: of the bare channel, bytes in and bytes out, and of `infer` with
everything that it does around it.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from offramp_client import AsyncClient, Client, InferRequest
from offramp_client._transports import TransportName
from offramp_client.inference import encode
from offramp_server.transport.interface import CallContext, ListenOptions, Method, Service
from offramp_server.transport.native.transport import NativeTransport
from open_inference import grpc_predict_v2_pb2 as pb

PATH = "/inference.GRPCInferenceService/ModelInfer"
TRANSPORTS: tuple[TransportName, ...] = ("grpcio", "native")
INPUTS = {"x": np.zeros((1, 64), np.float32)}
WARM_UP = 200


@dataclass(frozen=True)
class Figures:
    """Microseconds, but for the rate, which is of calls a second."""

    cpu: float
    p50: float
    rate: float


class Stopwatch:
    """Of calls made by this process."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self._cpu, self._since = time.process_time(), time.perf_counter()

    def figures(self) -> Figures:
        count, cpu, wall = len(self.times), time.process_time() - self._cpu, time.perf_counter() - self._since
        return Figures(cpu / count * 1e6, statistics.median(self.times) * 1e6, count / wall)


async def asyncio_load(call: Callable[[], Awaitable[object]], callers: int, calls: int) -> Figures:
    async def repeat(count: int, times: list[float]) -> None:
        for _ in range(count):
            began = time.perf_counter()
            await call()
            times.append(time.perf_counter() - began)

    await asyncio.gather(*(repeat(WARM_UP // callers + 1, []) for _ in range(callers)))
    watch = Stopwatch()
    await asyncio.gather(*(repeat(calls // callers, watch.times) for _ in range(callers)))
    return watch.figures()


def blocking_load(call: Callable[[], object], callers: int, calls: int) -> Figures:
    def repeat(count: int, times: list[float]) -> None:
        for _ in range(count):
            began = time.perf_counter()
            call()
            times.append(time.perf_counter() - began)

    def run(count: int, times: list[float]) -> None:
        threads = [threading.Thread(target=repeat, args=(count, times)) for _ in range(callers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    run(WARM_UP // callers + 1, [])
    watch = Stopwatch()
    run(calls // callers, watch.times)
    return watch.figures()


async def asyncio_turn(target: str, transport: TransportName, callers: int, calls: int) -> tuple[Figures, Figures]:
    """Of the channel, and of `infer`."""
    payload = encode(InferRequest("echo", INPUTS))
    async with AsyncClient(target, transport=transport) as client:
        await client.infer("echo", INPUTS)
        ask = client._call(PATH)
        channel = await asyncio_load(lambda: ask(payload, timeout=10.0, metadata=()), callers, calls)
        return channel, await asyncio_load(lambda: client.infer("echo", INPUTS), callers, calls)


def blocking_turn(target: str, transport: TransportName, callers: int, calls: int) -> tuple[Figures, Figures]:
    """Of the channel, and of `infer`."""
    payload = encode(InferRequest("echo", INPUTS))
    with Client(target, transport=transport) as client:
        client.infer("echo", INPUTS)
        ask = client._calls[PATH]
        channel = blocking_load(lambda: ask(payload, timeout=10.0, metadata=()), callers, calls)
        return channel, blocking_load(lambda: client.infer("echo", INPUTS), callers, calls)


def measure(target: str, client: str, transport: TransportName, callers: int, calls: int) -> tuple[Figures, Figures]:
    if client == "blocking":
        return blocking_turn(target, transport, callers, calls)
    return asyncio.run(asyncio_turn(target, transport, callers, calls))


@contextmanager
def server() -> Iterator[str]:
    """Its target."""
    command = [sys.executable, "-m", "benchmarks.client", "--serve"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield f"127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.kill()


async def serve() -> None:
    answer = pb.ModelInferResponse(model_name="echo", model_version="1", raw_output_contents=[bytes(256)])
    answer.outputs.add(name="y", datatype="FP32", shape=[1, 64])
    payload = answer.SerializeToString()

    async def infer(request: bytes, context: CallContext) -> bytes:
        return payload

    method = Method("ModelInfer", PATH, "bytes", bytes, False, False, infer, swift=True)
    service = Service("inference.GRPCInferenceService", pb.DESCRIPTOR, (method,))
    transport = NativeTransport([service], ListenOptions("127.0.0.1", 0))
    print(await transport.start(), flush=True)
    await asyncio.Event().wait()


def median(turns: Sequence[Figures]) -> Figures:
    return Figures(*(statistics.median(getattr(turn, name) for turn in turns) for name in ("cpu", "p50", "rate")))


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    if options.serve:
        asyncio.run(serve())
        return 0
    print("| client | in flight | transport | channel: CPU us a call, p50 us, calls/s | infer: CPU us a call, p50 us |")
    print("|---|---|---|---|---|")
    with server() as target:
        for client in options.clients:
            for callers in options.callers:
                report(target, client, callers, options)
    return 0


def report(target: str, client: str, callers: int, options: argparse.Namespace) -> None:
    turns: dict[TransportName, list[tuple[Figures, Figures]]] = {name: [] for name in TRANSPORTS}
    for _ in range(options.rounds):
        for name, done in turns.items():
            done.append(measure(target, client, name, callers, options.calls))
    for name, done in turns.items():
        channel, infer = (median(each) for each in zip(*done, strict=True))
        print(
            f"| {client} | {callers} | {name} | {channel.cpu:.0f}, {channel.p50:.0f}, {channel.rate:,.0f} "
            f"| {infer.cpu:.0f}, {infer.p50:.0f} |",
            flush=True,
        )


def parser() -> argparse.ArgumentParser:
    parsed = argparse.ArgumentParser(prog="python -m benchmarks.client", description=(__doc__ or "").splitlines()[0])
    parsed.add_argument("--clients", nargs="+", choices=("asyncio", "blocking"), default=["asyncio", "blocking"])
    parsed.add_argument("--callers", nargs="+", type=int, default=[1, 32], help="calls in flight")
    parsed.add_argument("--calls", type=int, default=4000, help="in each turn")
    parsed.add_argument("--rounds", type=int, default=3)
    parsed.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    return parsed


if __name__ == "__main__":
    raise SystemExit(main())
