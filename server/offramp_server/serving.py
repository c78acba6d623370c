"""The server behind the wire: takes a request to the model or route that it names, and knows what there is.

Nothing here knows gRPC. `rpc/` turns messages into calls of `Serving`; `serve_in_process` hands it to embedders.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from offramp_adapters.routes.strategy import Answer, RouteRefused, Run, Strategy
from offramp_adapters.zero_shot.labels import LABELS_PARAMETER
from offramp_common.text import quoted
from open_inference.tensor import BYTES, Tensor, encode_bytes

from offramp_server import describe
from offramp_server.endpoints import EndpointInfo, IndexEntry, RouteInfo
from offramp_server.errors import InvalidRequest, LoadError, NotFound, OfframpError, Unavailable
from offramp_server.inference import InferRequest, InferResponse
from offramp_server.preparation import Preparation
from offramp_server.repository.catalog import Catalog
from offramp_server.repository.registry import ModelRegistry
from offramp_server.repository.routes import RouteTable
from offramp_server.scheduling.admission import Admission
from offramp_server.scheduling.work import DEFAULT_PRIORITY, Timing, Work
from offramp_server.telemetry.stats import Stats
from offramp_server.telemetry.tracing import record_request
from offramp_server.validation import check_requested
from offramp_server.workers.backend import LoadedModel

# The version that a route shows: it has none of its own, and clients expect a number.
ROUTE_VERSION = "1"
# What a model that takes texts is tried with before it serves.
_SAMPLE_TEXT = "warm-up"


@dataclass(frozen=True, slots=True)
class _Computed:
    """One run of one model."""

    outputs: list[Tensor]
    items: int
    queue_ns: int
    timing: Timing


class Serving:
    """Answers requests while it is open. Runs on one event loop."""

    def __init__(
        self,
        models: ModelRegistry,
        routes: RouteTable,
        catalog: Catalog,
        admission: Admission,
        preparation: Preparation,
        stats: Stats,
    ) -> None:
        self._models = models
        self._routes = routes
        self._catalog = catalog
        self._admission = admission
        self._preparation = preparation
        self._loop = asyncio.get_running_loop()
        self.stats = stats
        self.live = True
        self.ready = False

    # Requests

    async def infer(self, request: InferRequest) -> InferResponse:
        """Answer one request. Raises an OfframpError; cancelling the awaiting task takes the request back."""
        try:
            if not self.ready:
                raise Unavailable("the server is starting or draining")
            self._admission.acquire()
        except OfframpError as error:
            self._count_refusal(request, error.reason)
            raise
        try:
            strategy = self._routes.get(request.model)
            if strategy is not None:
                return await self._infer_route(strategy, request)
            model = self._models.get(request.model, request.version)
            answer = await self._infer_model(model, request)
            return _response(model.spec.name, str(model.spec.version), request, answer)
        finally:
            self._admission.release()

    def _count_refusal(self, request: InferRequest, reason: str) -> None:
        """Only of what is there: made-up names must not fill the metrics."""
        if self._routes.get(request.model) is not None:
            self.stats.route_requests[request.model, reason] += 1
            return
        with suppress(OfframpError):
            self._models.get(request.model, request.version).lane.stats.failed(reason, 0)

    async def _infer_route(self, strategy: Strategy, request: InferRequest) -> InferResponse:
        status = "internal"
        ran: list[str] = []

        async def run(decision: Run) -> Answer:
            model = self._models.get(decision.model.name, decision.model.version)
            answer = await self._infer_model(model, _with_inputs(request, decision))
            ran.append(f"{model.spec.name}:{model.spec.version}")
            return answer

        try:
            answer = await _follow(strategy, request, run)
            status = "ok"
        except OfframpError as error:
            status = error.reason
            raise
        except asyncio.CancelledError:
            status = "cancelled"
            raise
        finally:
            self.stats.route_requests[request.model, status] += 1
        parameters = {**answer.parameters, "offramp_route": strategy.kind, "offramp_models": ",".join(ran)}
        return _response(request.model, ROUTE_VERSION, request, replace(answer, parameters=parameters))

    async def _infer_model(self, model: LoadedModel, request: InferRequest) -> Answer:
        started = time.monotonic_ns()
        stats = model.lane.stats
        try:
            if model.head is None:
                if LABELS_PARAMETER in request.parameters:
                    raise _labels_are_fixed(model)
                computed = await self._compute(model, request, self._deadline(request, model))
                answer = Answer(computed.outputs)
            else:
                answer, computed = await self._follow_head(model.head, model, request)
        except OfframpError as error:
            stats.failed(error.reason, time.monotonic_ns() - started)
            raise
        except asyncio.CancelledError:
            stats.failed("cancelled", time.monotonic_ns() - started)
            raise
        timing = computed.timing
        stats.answered(
            computed.items, computed.queue_ns, timing.input_ns, timing.infer_ns, timing.output_ns,
            time.monotonic_ns() - started,
        )  # fmt: skip
        return replace(answer, outputs=_wanted(answer.outputs, request.outputs)) if request.outputs else answer

    async def _follow_head(self, head: Strategy, model: LoadedModel, request: InferRequest) -> tuple[Answer, _Computed]:
        """What the model's head makes of its outputs, and the run over the request's own inputs."""
        check_requested(request.outputs, model.spec.public_outputs)
        # One for all runs, and of all outputs.
        deadline = self._deadline(request, model)
        whole = replace(request, outputs=())
        runs: list[_Computed] = []

        async def run(decision: Run) -> Answer:
            runs.append(await self._compute(model, _with_inputs(whole, decision), deadline))
            return Answer(runs[-1].outputs)

        with model.lane.expected():
            answer = await _follow(head, request, run)
        return answer, runs[0]

    async def _compute(self, model: LoadedModel, request: InferRequest, deadline: float | None) -> _Computed:
        """Raises an OfframpError."""
        valid = await self._preparation.inputs(model, request, deadline)
        work = Work(
            valid.tensors, valid.items, valid.shape_key, self._loop.create_future(),
            request.priority or DEFAULT_PRIORITY, deadline,
        )  # fmt: skip
        answer = await model.run(work)
        for spec, tensor in zip(model.spec.outputs, answer.outputs, strict=True):
            # Workers send outputs by position.
            tensor.name = spec.name
        record_request(model.spec.name, answer.queue_ns, answer.timing.infer_ns)
        return _Computed(answer.outputs, valid.items, answer.queue_ns, answer.timing)

    def _deadline(self, request: InferRequest, model: LoadedModel) -> float | None:
        timeout = model.spec.batching.default_timeout
        if request.deadline is None and timeout > 0:
            return self._loop.time() + timeout
        return request.deadline

    # What there is

    def endpoint(self, name: str, version: str = "") -> EndpointInfo:
        """Raises NotFound or Unavailable."""
        strategy = self._routes.get(name)
        if strategy is None:
            return describe.model(self._models.get(name, version), self._models.versions(name))
        if version not in ("", ROUTE_VERSION):
            raise NotFound(f'route "{name}" has no version {quoted(version)}, only {ROUTE_VERSION}')
        first = strategy.models[0]
        return describe.route(name, strategy, self._models.get(first.name, first.version), ROUTE_VERSION)

    def model_ready(self, name: str, version: str = "") -> bool:
        """Raises NotFound for a name that the server has never heard of."""
        if name not in self._known_names():
            raise NotFound(f"there is no model or route {quoted(name)}")
        try:
            self.endpoint(name, version)
        except OfframpError:
            return False
        return self.ready

    def index(self) -> list[IndexEntry]:
        routes = [self._routes.info(name) for name in self._routes.names()]
        entries = [
            IndexEntry(route.name, ROUTE_VERSION, "READY" if route.ready else "UNAVAILABLE", route.reason)
            for route in routes
        ]
        return sorted([*self._models.index(), *entries], key=lambda entry: entry.name)

    def routes(self) -> list[RouteInfo]:
        return [self._routes.info(name) for name in self._routes.names()]

    def route(self, name: str) -> RouteInfo:
        """Raises NotFound."""
        if self._routes.get(name) is None:
            known = ", ".join(self._routes.names()) or "none"
            raise NotFound(f"there is no route {quoted(name)}; routes: {known}")
        return self._routes.info(name)

    def _known_names(self) -> set[str]:
        return {entry.name for entry in self.index()}

    async def try_out(self, model: LoadedModel) -> None:
        """Before it serves: a head computes what it answers from, and whoever comes first would wait for that.

        Raises LoadError.
        """
        if model.head is None:
            return
        [text] = model.spec.public_inputs
        sample = Tensor(text.name, BYTES, (1, 1), encode_bytes([_SAMPLE_TEXT]))
        try:
            await self._follow_head(model.head, model, InferRequest(model.spec.name, [sample]))
        except OfframpError as error:
            raise LoadError(f'model "{model.spec.name}": it does not answer: {error}') from error

    # Changes

    async def load(self, name: str) -> None:
        """Load or reload the model or route of that folder. Raises NotFound, ConfigurationError or LoadError."""
        await self._catalog.load(name)

    async def unload(self, name: str) -> None:
        """Raises NotFound."""
        await self._catalog.unload(name)

    async def drain(self, timeout: float) -> bool:
        """Refuse new requests and wait for those in flight, at most `timeout` seconds. Whether all were answered."""
        self.ready = False
        return await self._admission.wait_empty(timeout)


async def _follow(strategy: Strategy, request: InferRequest, run: Callable[[Run], Awaitable[Answer]]) -> Answer:
    """Run what the strategy decides until it answers. Raises InvalidRequest for what it refuses."""
    try:
        decision = strategy.begin(request.parameters)
        while isinstance(decision, Run):
            decision = strategy.resume(decision, await _told_apart(decision, run))
    except RouteRefused as error:
        raise InvalidRequest(str(error)) from error
    return decision


async def _told_apart(decision: Run, run: Callable[[Run], Awaitable[Answer]]) -> Answer:
    """An error in inputs that the caller did not send has to say whose they are."""
    try:
        return await run(decision)
    except InvalidRequest as error:
        if decision.inputs is None:
            raise
        raise InvalidRequest(f"{decision.inputs_are}: {error}") from error


def _labels_are_fixed(model: LoadedModel) -> InvalidRequest:
    """Or the model would answer as if it had heard the request's labels."""
    return InvalidRequest(
        f'parameter "{LABELS_PARAMETER}": model "{model.spec.name}" has labels of its own and no [zero_shot] table; '
        "leave the parameter out"
    )


def _with_inputs(request: InferRequest, decision: Run) -> InferRequest:
    return request if decision.inputs is None else replace(request, inputs=decision.inputs)


def _wanted(outputs: Sequence[Tensor], names: Sequence[str]) -> list[Tensor]:
    by_name = {tensor.name: tensor for tensor in outputs}
    return [by_name[name] for name in names]


def _response(model: str, version: str, request: InferRequest, answer: Answer) -> InferResponse:
    return InferResponse(model, version, request.id, answer.outputs, answer.parameters, answer.labels)
