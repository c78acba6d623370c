"""What the calls do, whatever carries them.

A call is a plan: a generator that yields the next thing to do (send these bytes, wait so long), is told how that
went, and returns the result. The two clients only carry plans out, one blocking and one awaiting, so that retries,
deadlines, polling and paging are written once and are tested without a network or a clock.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeAlias, TypeVar, cast

from google.protobuf.message import Message
from offramp.v1 import route_service_pb2 as routes_pb
from open_inference import grpc_predict_v2_pb2 as pb

from offramp_client import classification, inference, routes
from offramp_client._methods import Method, methods_of
from offramp_client.classification import Classification, ClassifyOptions, Front, Items
from offramp_client.errors import DeadlineExceeded, InvalidArgument, OfframpError, Unavailable
from offramp_client.inference import InferRequest, InferResult
from offramp_client.metadata import IndexEntry, ModelConfig, ModelMetadata, ServerMetadata
from offramp_client.options import CLIENT_DEFAULT, Timeout
from offramp_client.retry import Deadline, RetryPolicy, check_timeout
from offramp_client.routes import Route, RouteChange
from offramp_client.statistics import ModelStatistics

T = TypeVar("T")

_ONCE = RetryPolicy(max_attempts=1)
_POLLING = RetryPolicy(initial_backoff=0.05, max_backoff=0.5)


@dataclass(frozen=True, slots=True)
class Send:
    """Send `payload` and give back the answer's bytes, or throw the typed error."""

    method: Method
    payload: bytes
    #: Seconds; None: no limit.
    timeout: float | None


@dataclass(frozen=True, slots=True)
class Pause:
    """Do nothing for a while."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Done(Generic[T]):
    """The plan has ended with this result."""

    result: T


@dataclass(frozen=True, slots=True)
class Watch(Generic[T]):
    """Send `payload`, and give on what `read` makes of each answer."""

    method: Method
    payload: bytes
    read: Callable[[bytes], T]


Step: TypeAlias = Send | Pause
#: Of a step: the answer's bytes, why there is none, or None after a pause.
Outcome: TypeAlias = bytes | OfframpError | None
Plan: TypeAlias = Generator[Step, Any, T]


def proceed(plan: Plan[T], outcome: Outcome) -> Step | Done[T]:
    """Tell a plan how its last step went (None to begin) and get the next one. Raises what the plan raises."""
    try:
        return plan.throw(outcome) if isinstance(outcome, OfframpError) else plan.send(outcome)
    except StopIteration as end:
        return Done(end.value)


class Planner:
    """Makes the plans. `clock` counts seconds, `chance` draws uniformly from [0, 1)."""

    def __init__(
        self,
        timeout: float | None,
        retries: RetryPolicy,
        clock: Callable[[], float],
        chance: Callable[[], float],
    ) -> None:
        check_timeout(timeout)
        self._timeout = timeout
        self._retries = retries
        self._clock = clock
        self._chance = chance
        self._inference = methods_of(pb.DESCRIPTOR, "GRPCInferenceService")
        self._routes = methods_of(routes_pb.DESCRIPTOR, "RouteService")
        # Datatypes of inputs by (model, version), for requests that are to be cast.
        self._datatypes: dict[tuple[str, str], Mapping[str, str]] = {}
        # By (model, version), of models that have classified.
        self._configs: dict[tuple[str, str], ModelConfig] = {}

    @property
    def methods(self) -> list[Method]:
        """All that the plans may send to."""
        return [*self._inference.values(), *self._routes.values()]

    @property
    def stream(self) -> Method:
        return self._inference["ModelStreamInfer"]

    def infer(self, request: InferRequest, *, cast: bool, timeout: Timeout) -> Plan[InferResult]:
        deadline = self._deadline(timeout)
        datatypes = (yield from self._datatypes_of(request, deadline)) if cast else None
        payload = inference.encode(request, datatypes)
        try:
            answer = yield from self._call(self._inference["ModelInfer"], payload, deadline)
        except InvalidArgument:
            # Perhaps another version was loaded meanwhile: ask again next time.
            self._datatypes.pop((request.model, request.version), None)
            raise
        return inference.decode(answer)

    def classify(self, model: str, items: Items, options: ClassifyOptions) -> Plan[list[Classification]]:
        """One answer for each item, in as many requests as the model's batch size takes."""
        classes = classification.count(options)
        deadline = self._deadline(options.get("timeout", CLIENT_DEFAULT))
        front = yield from self._front_of(model, items.kind, options, deadline)
        found: list[Classification] = []
        for request in classification.requests(model, items, front, options):
            payload = inference.encode(request, classes=classes)
            try:
                answer = yield from self._call(self._inference["ModelInfer"], payload, deadline)
            except InvalidArgument as error:
                # Perhaps another version was loaded meanwhile: ask again next time.
                self._configs.pop((model, request.version), None)
                if not found:
                    raise
                raise classification.counted_from(len(found), error) from error
            found += classification.read_answer(inference.decode(answer), front)
        return found

    def encode_streamed(self, request: InferRequest) -> bytes:
        """The deadline of a stream is not that of one of its requests, whose own therefore travels inside it."""
        limit = self._timeout if request.timeout is None else request.timeout
        check_timeout(limit)
        return inference.encode(request, limit=limit)

    def decode_streamed(self, payload: bytes) -> InferResult:
        return inference.decode_streamed(cast(pb.ModelStreamInferResponse, self.stream.parse(payload)))

    def is_live(self, timeout: Timeout) -> Plan[bool]:
        answer = yield from self._probe("ServerLive", pb.ServerLiveRequest(), timeout)
        return answer is not None and answer.live

    def is_ready(self, timeout: Timeout) -> Plan[bool]:
        answer = yield from self._probe("ServerReady", pb.ServerReadyRequest(), timeout)
        return answer is not None and answer.ready

    def is_model_ready(self, name: str, version: str, timeout: Timeout) -> Plan[bool]:
        answer = yield from self._probe("ModelReady", pb.ModelReadyRequest(name=name, version=version), timeout)
        return answer is not None and answer.ready

    def wait_until_ready(self, model: str | None, version: str, timeout: float | None) -> Plan[None]:
        deadline = Deadline(self._clock, timeout)
        attempt = 1
        while (reason := (yield from self._not_ready(model, version, deadline))) is not None:
            pause = _POLLING.backoff(attempt, self._chance())
            if not deadline.allows(pause):
                raise DeadlineExceeded(f"not ready after {timeout:g} s: {reason}")
            yield Pause(pause)
            attempt += 1

    def server_metadata(self, timeout: Timeout) -> Plan[ServerMetadata]:
        answer = yield from self._ask("ServerMetadata", pb.ServerMetadataRequest(), timeout)
        return ServerMetadata.from_message(answer)

    def model_metadata(self, name: str, version: str, timeout: Timeout) -> Plan[ModelMetadata]:
        answer = yield from self._ask("ModelMetadata", pb.ModelMetadataRequest(name=name, version=version), timeout)
        return ModelMetadata.from_message(answer)

    def model_config(self, name: str, version: str, timeout: Timeout) -> Plan[ModelConfig]:
        answer = yield from self._ask("ModelConfig", pb.ModelConfigRequest(name=name, version=version), timeout)
        return ModelConfig.from_message(answer)

    def model_statistics(self, name: str, version: str, timeout: Timeout) -> Plan[list[ModelStatistics]]:
        request = pb.ModelStatisticsRequest(name=name, version=version)
        answer = yield from self._ask("ModelStatistics", request, timeout)
        return [ModelStatistics.from_message(model) for model in answer.model_stats]

    def repository_index(self, ready: bool, timeout: Timeout) -> Plan[list[IndexEntry]]:
        answer = yield from self._ask("RepositoryIndex", pb.RepositoryIndexRequest(ready=ready), timeout)
        return [IndexEntry.from_message(model) for model in answer.models]

    def load_model(self, name: str, timeout: Timeout) -> Plan[None]:
        request = pb.RepositoryModelLoadRequest(model_name=name)
        yield from self._ask("RepositoryModelLoad", request, timeout, _ONCE)

    def unload_model(self, name: str, timeout: Timeout) -> Plan[None]:
        request = pb.RepositoryModelUnloadRequest(model_name=name)
        yield from self._ask("RepositoryModelUnload", request, timeout, _ONCE)

    def list_routes(self, timeout: Timeout) -> Plan[list[Route]]:
        found = yield from self._pages("ListRoutes", routes_pb.ListRoutesRequest(), "routes", timeout)
        return [Route.from_message(route) for route in found]

    def get_route(self, name: str, timeout: Timeout) -> Plan[Route]:
        request = routes_pb.GetRouteRequest(name=routes.resource_name(name))
        return Route.from_message((yield from self._ask_routes("GetRoute", request, timeout)).route)

    def update_route(self, request: routes_pb.UpdateRouteRequest, timeout: Timeout) -> Plan[Route]:
        # With an etag a second attempt would collide with a first one whose answer was lost.
        retries = _ONCE if request.route.etag else None
        return Route.from_message((yield from self._ask_routes("UpdateRoute", request, timeout, retries)).route)

    def route_changes(self, name: str, limit: int | None, timeout: Timeout) -> Plan[list[RouteChange]]:
        if limit is not None and limit < 1:
            raise ValueError(f"limit counts changes: at least 1, got {limit}")
        request = routes_pb.ListRouteChangesRequest(parent=routes.resource_name(name), page_size=limit or 0)
        found = yield from self._pages("ListRouteChanges", request, "changes", timeout, limit)
        return [RouteChange.from_message(change) for change in found]

    def watch_route(self, name: str) -> Watch[Route]:
        method = self._routes["WatchRoute"]
        payload = routes_pb.WatchRouteRequest(name=routes.resource_name(name)).SerializeToString()
        return Watch(method, payload, lambda answer: Route.from_message(cast(Any, method.parse(answer)).route))

    def watch_routes(self) -> Watch[Mapping[str, Route]]:
        method = self._routes["WatchRoutes"]
        known: dict[str, Route] = {}

        def read(answer: bytes) -> Mapping[str, Route]:
            nonlocal known
            known = routes.apply(known, cast(routes_pb.WatchRoutesResponse, method.parse(answer)))
            return known

        return Watch(method, routes_pb.WatchRoutesRequest().SerializeToString(), read)

    def _pages(
        self, method: str, request: Any, field: str, timeout: Timeout, limit: int | None = None
    ) -> Plan[list[Any]]:
        """What `field` has on every page, or on as many as have `limit` of it."""
        deadline = self._deadline(timeout)
        found: list[Any] = []
        while True:
            answer = yield from self._call(self._routes[method], request.SerializeToString(), deadline)
            found.extend(getattr(answer, field))
            request.page_token = answer.next_page_token
            if not answer.next_page_token or (limit is not None and len(found) >= limit):
                return found[:limit]

    def _ask_routes(
        self, method: str, request: Message, timeout: Timeout, retries: RetryPolicy | None = None
    ) -> Plan[Any]:
        payload = request.SerializeToString()
        return (yield from self._call(self._routes[method], payload, self._deadline(timeout), retries))

    def _datatypes_of(self, request: InferRequest, deadline: Deadline) -> Plan[Mapping[str, str]]:
        key = request.model, request.version
        if key not in self._datatypes:
            question = pb.ModelMetadataRequest(name=request.model, version=request.version).SerializeToString()
            answer = yield from self._call(self._inference["ModelMetadata"], question, deadline)
            self._datatypes[key] = {tensor.name: tensor.datatype for tensor in answer.inputs}
        return self._datatypes[key]

    def _front_of(self, model: str, kind: str, options: ClassifyOptions, deadline: Deadline) -> Plan[Front]:
        key = model, options.get("version", "")
        config = self._configs.get(key)
        if config is None:
            question = pb.ModelConfigRequest(name=model, version=key[1]).SerializeToString()
            answer = yield from self._call(self._inference["ModelConfig"], question, deadline)
            config = ModelConfig.from_message(answer)
        front = classification.find_front(config, kind, options)
        # Only now: a model that does not fit may be another one the next time.
        self._configs[key] = config
        return front

    def _not_ready(self, model: str | None, version: str, deadline: Deadline) -> Plan[str | None]:
        """Why not; None: it is ready."""
        name, request = _readiness(model, version)
        method = self._inference[name]
        try:
            payload = yield Send(method, request.SerializeToString(), deadline.remaining(self._timeout))
        except (Unavailable, DeadlineExceeded) as error:
            return error.message
        answer: Any = method.parse(payload)
        return None if answer.ready else "the server answers and says that it is not"

    def _probe(self, method: str, request: Message, timeout: Timeout) -> Plan[Any]:
        """The answer; None if nobody answers. Probes are asked again by whoever asks them."""
        try:
            return (yield from self._ask(method, request, timeout, _ONCE))
        except Unavailable:
            return None

    def _ask(self, method: str, request: Message, timeout: Timeout, retries: RetryPolicy | None = None) -> Plan[Any]:
        payload = request.SerializeToString()
        return (yield from self._call(self._inference[method], payload, self._deadline(timeout), retries))

    def _call(
        self, method: Method, payload: bytes, deadline: Deadline, retries: RetryPolicy | None = None
    ) -> Plan[Any]:
        policy = retries or self._retries
        attempt = 1
        while True:
            try:
                return method.parse((yield Send(method, payload, deadline.remaining())))
            except Unavailable as error:
                pause = self._pause_after(error, attempt, policy)
                if attempt == policy.max_attempts or not deadline.allows(pause):
                    raise
            yield Pause(pause)
            attempt += 1

    def _pause_after(self, error: OfframpError, attempt: int, policy: RetryPolicy) -> float:
        return policy.backoff(attempt, self._chance()) if error.retry_after is None else error.retry_after

    def _deadline(self, timeout: Timeout) -> Deadline:
        return Deadline(self._clock, self._timeout if timeout is CLIENT_DEFAULT else timeout)


def _readiness(model: str | None, version: str) -> tuple[str, Message]:
    if model is None:
        return "ServerReady", pb.ServerReadyRequest()
    return "ModelReady", pb.ModelReadyRequest(name=model, version=version)
