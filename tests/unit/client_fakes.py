"""A small real gRPC server that speaks the protocol, and one way to drive both clients in a test."""

from __future__ import annotations

import asyncio
import math
import threading
from collections import deque
from collections.abc import AsyncIterator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

import grpc
from eventually import PATIENCE
from google.protobuf.message_factory import GetMessageClass
from offramp.v1 import route_service_pb2 as routes_pb
from offramp_client import AsyncClient, Client, InferRequest, InferResult
from open_inference import grpc_predict_v2_pb2 as pb

T = TypeVar("T")
#: Of clients, for `client_of`.
KINDS = ("blocking", "blocking native", "asyncio", "asyncio native")
SERVICES = (
    pb.DESCRIPTOR.services_by_name["GRPCInferenceService"],
    routes_pb.DESCRIPTOR.services_by_name["RouteService"],
)


@dataclass
class Failure:
    """A status to answer with."""

    code: grpc.StatusCode
    message: str = "no"
    trailing: tuple[tuple[str, str], ...] = ()


@dataclass
class FakeServer:
    """Echoes inputs as outputs and answers the rest from its fields. Use it as a context manager."""

    credentials: Any = None
    port: int = 0
    #: Answered instead, one a call, before anything else.
    failures: deque[Failure] = field(default_factory=deque)
    #: Bytes to answer with instead of a message, for whatever method.
    garbage: bytes | None = None
    #: What every call brought along: (method, request, metadata, seconds left).
    seen: list[tuple[str, Any, dict[str, Any], float | None]] = field(default_factory=list)
    ready: bool = True
    declared: dict[str, str] = field(default_factory=lambda: {"x": "FP32"})
    response_parameters: dict[str, Any] = field(default_factory=dict)
    #: Set once a call of the model "slow" is being worked on, and once it was cancelled.
    working: threading.Event = field(default_factory=threading.Event)
    cancelled: threading.Event = field(default_factory=threading.Event)
    #: Lets the model "slow" answer.
    release: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> FakeServer:
        options = (("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", -1))
        self._server = grpc.server(ThreadPoolExecutor(8), options=options)
        for service in SERVICES:
            self._server.add_generic_rpc_handlers((self._handlers(service),))
        address = f"127.0.0.1:{self.port}"
        if self.credentials is None:
            self.port = self._server.add_insecure_port(address)
        else:
            self.port = self._server.add_secure_port(address, self.credentials)
        self._server.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.release.set()
        self._server.stop(None).wait()

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self.port}"

    def methods(self) -> list[str]:
        return [method for method, *_ in self.seen]

    def limits(self) -> list[float]:
        """Seconds that each call had left; infinite without a deadline."""
        return [math.inf if left is None else left for *_, left in self.seen]

    def last(self) -> Any:
        return self.seen[-1][1]

    def _handlers(self, service: Any) -> Any:
        return grpc.method_handlers_generic_handler(
            service.full_name, {method.name: self._handler(method) for method in service.methods}
        )

    def _handler(self, method: Any) -> Any:
        make, behaviour = grpc.unary_unary_rpc_method_handler, self._unary(method.name)
        if method.client_streaming:
            make, behaviour = grpc.stream_stream_rpc_method_handler, self._stream
        elif method.server_streaming:
            make = grpc.unary_stream_rpc_method_handler
        return make(
            behaviour,
            request_deserializer=GetMessageClass(method.input_type).FromString,
            response_serializer=lambda message: message.SerializeToString() if self.garbage is None else self.garbage,
        )

    def _unary(self, name: str) -> Any:
        def behaviour(request: Any, context: Any) -> Any:
            self.seen.append((name, request, dict(context.invocation_metadata()), context.time_remaining()))
            if self.failures:
                failure = self.failures.popleft()
                context.set_trailing_metadata(failure.trailing)
                context.abort(failure.code, failure.message)
            return getattr(self, f"_{name}")(request, context)

        return behaviour

    def _stream(self, requests: Iterator[Any], context: Any) -> Iterator[Any]:
        context.add_callback(self.cancelled.set)
        for request in requests:
            self.seen.append(("ModelStreamInfer", request, dict(context.invocation_metadata()), None))
            if request.model_name == "broken stream":
                context.abort(grpc.StatusCode.UNAVAILABLE, "draining")
            yield self._streamed(request, context)

    def _streamed(self, request: Any, context: Any) -> Any:
        if request.model_name == "echo":
            return pb.ModelStreamInferResponse(infer_response=self._ModelInfer(request, context))
        answer = pb.ModelStreamInferResponse(error_message=f'no model "{request.model_name}"')
        answer.infer_response.id = request.id
        if request.model_name == "busy":
            answer.infer_response.parameters["offramp_status"].string_param = "RESOURCE_EXHAUSTED"
            answer.infer_response.parameters["offramp_retry_after"].double_param = 0.5
            answer.infer_response.parameters["offramp_request_id"].string_param = "r-1"
        return answer

    def _ModelInfer(self, request: Any, context: Any) -> Any:
        if request.model_name == "slow":
            self._note_cancellation(context)
            self.working.set()
            self.release.wait(PATIENCE)
        names = [output.name for output in request.outputs]
        pairs = [
            pair
            for pair in zip(request.inputs, request.raw_input_contents, strict=True)
            if not names or pair[0].name in names
        ]
        response = pb.ModelInferResponse(
            model_name=request.model_name,
            model_version=request.model_version or "1",
            id=request.id,
            outputs=[
                pb.ModelInferResponse.InferOutputTensor(name=i.name, datatype=i.datatype, shape=i.shape)
                for i, _ in pairs
            ],
            raw_output_contents=[raw for _, raw in pairs],
        )
        for name, value in self.response_parameters.items():
            kind = {str: "string_param", int: "int64_param", float: "double_param", bool: "bool_param"}[type(value)]
            setattr(response.parameters[name], kind, value)
        return response

    def _ServerLive(self, request: Any, context: Any) -> Any:
        return pb.ServerLiveResponse(live=True)

    def _ServerReady(self, request: Any, context: Any) -> Any:
        return pb.ServerReadyResponse(ready=self.ready)

    def _ModelReady(self, request: Any, context: Any) -> Any:
        return pb.ModelReadyResponse(ready=self.ready and request.name == "echo")

    def _ServerMetadata(self, request: Any, context: Any) -> Any:
        return pb.ServerMetadataResponse(name="fake", version="1.2", extensions=["statistics"])

    def _ModelMetadata(self, request: Any, context: Any) -> Any:
        tensors = [
            pb.ModelMetadataResponse.TensorMetadata(name=name, datatype=datatype, shape=[-1, 2])
            for name, datatype in self.declared.items()
        ]
        return pb.ModelMetadataResponse(
            name=request.name, versions=["1", "2"], platform="fake", inputs=tensors, outputs=tensors
        )

    def _ModelConfig(self, request: Any, context: Any) -> Any:
        response = pb.ModelConfigResponse()
        config = response.config
        config.name, config.platform, config.backend, config.max_batch_size = request.name, "fake", "eager", 8
        config.input.add(name="x", data_type=12, dims=[-1])
        config.output.add(name="words", data_type=13, dims=[1])
        config.instance_group.add(count=2)
        config.instance_group.add(count=1)
        config.parameters["precision"].string_value = "fp32"
        return response

    def _ModelStatistics(self, request: Any, context: Any) -> Any:
        response = pb.ModelStatisticsResponse()
        model = response.model_stats.add(
            name=request.name or "echo", version="1", last_inference=5, inference_count=7, execution_count=3
        )
        model.inference_stats.queue.count, model.inference_stats.queue.ns = 4, 2_000_000_000
        model.batch_stats.add(batch_size=2).compute_infer.count = 3
        model.memory_usage.add(type="CPU", byte_size=1024)
        return response

    def _RepositoryIndex(self, request: Any, context: Any) -> Any:
        models = [("echo", "1", "READY", ""), ("bad", "1", "UNAVAILABLE", "broken file")]
        return pb.RepositoryIndexResponse(
            models=[
                pb.RepositoryIndexResponse.ModelIndex(name=name, version=version, state=state, reason=reason)
                for name, version, state, reason in models
                if not request.ready or state == "READY"
            ]
        )

    def _RepositoryModelLoad(self, request: Any, context: Any) -> Any:
        return pb.RepositoryModelLoadResponse()

    def _RepositoryModelUnload(self, request: Any, context: Any) -> Any:
        return pb.RepositoryModelUnloadResponse()

    def _ListRoutes(self, request: Any, context: Any) -> Any:
        page = int(request.page_token or 0)
        return routes_pb.ListRoutesResponse(
            routes=[self._route(f"r{page}")], next_page_token=str(page + 1) if page < 2 else ""
        )

    def _GetRoute(self, request: Any, context: Any) -> Any:
        return routes_pb.GetRouteResponse(route=self._route(request.name.removeprefix("routes/")))

    def _UpdateRoute(self, request: Any, context: Any) -> Any:
        answer = self._route(request.route.name.removeprefix("routes/"))
        answer.MergeFrom(routes_pb.Route(settings=request.route.settings, etag="after", updated_by="ana"))
        answer.update_time.FromMilliseconds(1500)
        return routes_pb.UpdateRouteResponse(route=answer)

    def _ListRouteChanges(self, request: Any, context: Any) -> Any:
        last = int(request.page_token or 6)
        numbers = range(last - 1, max(0, last - 1 - min(request.page_size or 2, 2)), -1)
        changes = [
            routes_pb.RouteChange(
                name=f"{request.parent}/changes/{number}",
                kind=routes_pb.ROUTE_CHANGE_KIND_UPDATED,
                changed_by="ana",
                settings=[routes_pb.SettingChange(key="weight.a", after=number)],
            )
            for number in numbers
        ]
        more = str(numbers[-1]) if numbers[-1] > 1 else ""
        return routes_pb.ListRouteChangesResponse(changes=changes, next_page_token=more)

    def _WatchRoute(self, request: Any, context: Any) -> Any:
        self._note_cancellation(context)
        for etag in ("1", "2"):
            answer = self._route(request.name.removeprefix("routes/"))
            answer.etag = etag
            yield routes_pb.WatchRouteResponse(route=answer)
        yield from self._linger(context)

    def _WatchRoutes(self, request: Any, context: Any) -> Any:
        self._note_cancellation(context)
        yield routes_pb.WatchRoutesResponse(routes=[self._route("b"), self._route("a")])
        yield routes_pb.WatchRoutesResponse(routes=[self._route("c")], removed=["routes/a"])
        yield from self._linger(context)

    def _note_cancellation(self, context: Any) -> None:
        """First of all: of a call that is cancelled, a generator is asked for nothing more."""
        if not context.add_callback(self.cancelled.set):
            # It was over before it came here.
            self.cancelled.set()

    def _linger(self, context: Any) -> Iterator[Any]:
        """Until the caller goes, or the server is to drain."""
        self.working.set()
        self.release.wait(PATIENCE)
        context.abort(grpc.StatusCode.UNAVAILABLE, "draining")
        yield

    def _route(self, name: str) -> Any:
        return routes_pb.Route(
            name=f"routes/{name}",
            kind=routes_pb.ROUTE_KIND_SINGLE,
            models=[routes_pb.RouteModel(name="echo", version="2")],
            state=routes_pb.ROUTE_STATE_READY,
        )


class Awaited:
    """The asyncio client with the blocking one's manners, so that one test holds for both."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client
        self._runner = asyncio.Runner()

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._client, name)
        return lambda *args, **options: self._runner.run(method(*args, **options))

    def infer_stream(self, requests: Iterable[InferRequest], **options: Any) -> Iterator[InferResult]:
        return self._each(self._client.infer_stream(requests, **options))

    def watch_route(self, *args: Any, **options: Any) -> Iterator[Any]:
        return self._each(self._client.watch_route(*args, **options))

    def watch_routes(self, **options: Any) -> Iterator[Any]:
        return self._each(self._client.watch_routes(**options))

    def _each(self, answers: Any) -> Iterator[Any]:
        try:
            while True:
                try:
                    yield self._runner.run(_next(answers))
                except StopAsyncIteration:
                    return
        finally:
            self._runner.run(answers.aclose())

    def __enter__(self) -> Awaited:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        self._runner.run(self._client.close())
        self._runner.close()


async def _next(answers: AsyncIterator[T]) -> T:
    return await anext(answers)


def client_of(kind: str, target: str, **options: Any) -> Any:
    """A client of either kind, to be used like the blocking one."""
    if kind.endswith(" native"):
        options["transport"] = "native"
    return Client(target, **options) if kind.startswith("blocking") else Awaited(AsyncClient(target, **options))
