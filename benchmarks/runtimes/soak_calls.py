"""Calls of every kind from real gRPC clients: what they ask, how they end it, and which ends are right.

Tensors go to `any-width`, a model that returns its input, and items of 64 numbers to `route`, a cascade of such models.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import grpc
from offramp.v1 import route_service_pb2 as routes
from open_inference import grpc_predict_v2_pb2 as pb

SERVICE = "/inference.GRPCInferenceService/"
WATCH = "/offramp.v1.RouteService/WatchRoute"
MODEL, ROUTE, ROUTE_ITEM = "any-width", "route", 64
OPTIONS = (("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1))
# Nothing here is meant to take so long.
TIMEOUT_S = 30.0
STREAMED = 20
# Numbers of a large message: up to 4 MB.
LARGE = (10_000, 1_000_000)


def request(count: int, model: str = MODEL) -> pb.ModelInferRequest:
    message = pb.ModelInferRequest(model_name=model)
    message.inputs.add(name="input", datatype="FP32", shape=[1, count])
    message.raw_input_contents.append(os.urandom(64) * (count * 4 // 64))
    return message


class Wrong(Exception):
    """An answer that is not the request's."""


def check(asked: pb.ModelInferRequest, answer: pb.ModelInferResponse) -> None:
    if answer.raw_output_contents[0] != asked.raw_input_contents[0]:
        raise Wrong(f"{asked.model_name}: another tensor than the one that was sent")


class Client:
    """A channel, and one method for each kind of call. They raise RpcError as the server says, and Wrong."""

    def __init__(self, target: str, draw: random.Random) -> None:
        self._draw = draw
        self._channel = grpc.insecure_channel(target, OPTIONS)
        self._infer = self._channel.unary_unary(
            f"{SERVICE}ModelInfer", pb.ModelInferRequest.SerializeToString, pb.ModelInferResponse.FromString
        )
        self._stream = self._channel.stream_stream(
            f"{SERVICE}ModelStreamInfer",
            pb.ModelInferRequest.SerializeToString,
            pb.ModelStreamInferResponse.FromString,
        )
        self._watch = self._channel.unary_stream(
            WATCH, routes.WatchRouteRequest.SerializeToString, routes.WatchRouteResponse.FromString
        )
        self._ready = self._channel.unary_unary(
            f"{SERVICE}ModelReady", pb.ModelReadyRequest.SerializeToString, pb.ModelReadyResponse.FromString
        )

    def close(self) -> None:
        self._channel.close()

    def plain(self) -> None:
        self._ask(request(ROUTE_ITEM))

    def route(self) -> None:
        self._ask(request(ROUTE_ITEM, ROUTE))

    def metadata(self) -> None:
        pairs = [("traceparent", f"00-{os.urandom(16).hex()}-{os.urandom(8).hex()}-01"), ("id-bin", os.urandom(20))]
        self._ask(request(ROUTE_ITEM), metadata=pairs)

    def large_metadata(self) -> None:
        """More than the server takes."""
        self._ask(request(ROUTE_ITEM), metadata=[("x-large", "a" * 20_000)])

    def gzip(self) -> None:
        self._ask(request(self._draw.randrange(64, 64_000, 64)), compression=grpc.Compression.Gzip)

    def deflate(self) -> None:
        self._ask(request(self._draw.randrange(64, 64_000, 64)), compression=grpc.Compression.Deflate)

    def large(self) -> None:
        self._ask(request(self._draw.randrange(*LARGE) // 64 * 64))

    def ready(self) -> None:
        self._ready(pb.ModelReadyRequest(name=MODEL), timeout=TIMEOUT_S)

    def unknown_model(self) -> None:
        self._ask(request(ROUTE_ITEM, "no-such-model"))

    def wrong_shape(self) -> None:
        message = request(ROUTE_ITEM)
        message.inputs[0].shape[:] = [1, ROUTE_ITEM + 1]
        self._ask(message)

    def no_protobuf(self) -> None:
        # The first byte ends in a wire type that there is not, whatever follows.
        self._channel.unary_unary(f"{SERVICE}ModelInfer")(b"\xff" + os.urandom(30), timeout=TIMEOUT_S)

    def no_method(self) -> None:
        self._channel.unary_unary(f"{SERVICE}NoSuchMethod")(b"", timeout=TIMEOUT_S)

    def cancelled(self) -> None:
        future = self._infer.future(request(self._draw.choice((ROUTE_ITEM, LARGE[0] * 64))), timeout=TIMEOUT_S)
        time.sleep(self._draw.choice((0.0, 0.001, 0.005)))
        future.cancel()

    def deadline(self) -> None:
        self._ask(request(self._draw.choice((ROUTE_ITEM, 64_000))), timeout=self._draw.uniform(0.0002, 0.005))

    def stream(self) -> None:
        asked = [request(ROUTE_ITEM) for _ in range(STREAMED)]
        answers = list(self._stream(iter(asked), timeout=TIMEOUT_S))
        if len(answers) != STREAMED:
            raise Wrong(f"{len(answers)} answers to {STREAMED} requests")
        for one, answer in zip(asked, answers, strict=True):
            check(one, answer.infer_response)

    def stream_left(self) -> None:
        answers = self._stream(iter([request(ROUTE_ITEM) for _ in range(STREAMED)]), timeout=TIMEOUT_S)
        next(answers)
        answers.cancel()

    def stream_of_a_slow_reader(self) -> None:
        """Of more than flow control lets the server send ahead."""
        answers = self._stream(iter([request(LARGE[0]) for _ in range(STREAMED)]), timeout=TIMEOUT_S)
        for _ in range(self._draw.randrange(1, STREAMED)):
            time.sleep(self._draw.uniform(0, 0.1))
            next(answers)
        answers.cancel()

    def stream_of_a_slow_sender(self) -> None:
        def requests() -> Iterator[pb.ModelInferRequest]:
            for _ in range(5):
                time.sleep(self._draw.uniform(0, 0.1))
                yield request(ROUTE_ITEM)

        if len(list(self._stream(requests(), timeout=TIMEOUT_S))) != 5:
            raise Wrong("a slow sender was not answered")

    def watch(self) -> None:
        """A stream of the server's, which would never end."""
        changes = self._watch(routes.WatchRouteRequest(name=f"routes/{ROUTE}"), timeout=TIMEOUT_S)
        next(changes)
        changes.cancel()

    def _ask(self, asked: pb.ModelInferRequest, timeout: float = TIMEOUT_S, **more: Any) -> None:
        check(asked, self._infer(asked, timeout=timeout, **more))


@dataclass(frozen=True)
class Kind:
    """How often it comes, and how it may end beside OK."""

    call: Callable[[Client], None]
    weight: int
    ends: Sequence[grpc.StatusCode] = ()
    # Whether OK is right too.
    may_succeed: bool = True


_CODE = grpc.StatusCode
KINDS: Mapping[str, Kind] = {
    kind.call.__name__: kind
    for kind in (
        Kind(Client.plain, 8),
        Kind(Client.route, 4),
        Kind(Client.metadata, 4),
        Kind(Client.gzip, 1),
        Kind(Client.deflate, 1),
        Kind(Client.large, 1),
        Kind(Client.ready, 1),
        Kind(Client.large_metadata, 1, [_CODE.RESOURCE_EXHAUSTED], may_succeed=False),
        Kind(Client.unknown_model, 1, [_CODE.NOT_FOUND], may_succeed=False),
        Kind(Client.wrong_shape, 1, [_CODE.INVALID_ARGUMENT], may_succeed=False),
        Kind(Client.no_protobuf, 1, [_CODE.INVALID_ARGUMENT, _CODE.INTERNAL], may_succeed=False),
        Kind(Client.no_method, 1, [_CODE.UNIMPLEMENTED], may_succeed=False),
        Kind(Client.cancelled, 2),
        Kind(Client.deadline, 2, [_CODE.DEADLINE_EXCEEDED]),
        Kind(Client.stream, 2),
        Kind(Client.stream_left, 2),
        Kind(Client.stream_of_a_slow_reader, 1),
        Kind(Client.stream_of_a_slow_sender, 1),
        Kind(Client.watch, 1),
    )
}


def once(client: Client, name: str) -> tuple[str, bool]:
    """How a call of that kind ended, and whether that is right."""
    kind = KINDS[name]
    try:
        kind.call(client)
    except grpc.RpcError as error:
        return error.code().name, error.code() in kind.ends
    except Wrong as error:
        return str(error), False
    return "OK", kind.may_succeed


def call_until(end: float, target: str, seed: int, note: Callable[[str, str, bool], None]) -> None:
    """Calls of random kinds, one after the other, over connections that are given up now and then. `end` is on
    time.monotonic()."""
    draw = random.Random(seed)
    names, weights = list(KINDS), [kind.weight for kind in KINDS.values()]
    while time.monotonic() < end:
        with closing(Client(target, draw)) as client:
            for name in draw.choices(names, weights, k=draw.randrange(1, 200)):
                if time.monotonic() >= end:
                    return
                note(name, *once(client, name))
