"""The server behind the wire: takes a request to the model or route that it names, and knows what there is.

Nothing here knows gRPC. `rpc/` turns messages into calls of `Serving`; `serve_in_process` hands it to embedders.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import suppress

from offramp_adapters.routes.strategy import Answer as RouteAnswer
from offramp_adapters.routes.strategy import RouteRefused, Run, Strategy
from offramp_common.text import quoted
from open_inference.tensor import Tensor

from offramp_server import describe
from offramp_server.endpoints import EndpointInfo, IndexEntry, RouteInfo
from offramp_server.errors import InvalidRequest, NotFound, OfframpError, Unavailable
from offramp_server.inference import InferRequest, InferResponse, ParameterValue
from offramp_server.repository.catalog import Catalog
from offramp_server.repository.registry import ModelRegistry
from offramp_server.repository.routes import RouteTable
from offramp_server.scheduling.admission import Admission
from offramp_server.scheduling.work import DEFAULT_PRIORITY, Work
from offramp_server.telemetry.stats import Stats
from offramp_server.telemetry.tracing import record_request
from offramp_server.validation import Limits, validate
from offramp_server.workers.backend import LoadedModel

# The version that a route shows: it has none of its own, and clients expect a number.
ROUTE_VERSION = "1"


class Serving:
    """Answers requests while it is open. Runs on one event loop."""

    def __init__(
        self,
        models: ModelRegistry,
        routes: RouteTable,
        catalog: Catalog,
        admission: Admission,
        limits: Limits,
        stats: Stats,
    ) -> None:
        self._models = models
        self._routes = routes
        self._catalog = catalog
        self._admission = admission
        self._limits = limits
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
            outputs = await self._infer_model(model, request)
            return InferResponse(model.spec.name, str(model.spec.version), request.id, outputs)
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
        try:
            outputs, ran = await self._follow(strategy, request)
            status = "ok"
        except OfframpError as error:
            status = error.reason
            raise
        except asyncio.CancelledError:
            status = "cancelled"
            raise
        finally:
            self.stats.route_requests[request.model, status] += 1
        parameters: dict[str, ParameterValue] = {"offramp_route": strategy.kind, "offramp_models": ",".join(ran)}
        return InferResponse(request.model, ROUTE_VERSION, request.id, outputs, parameters)

    async def _follow(self, strategy: Strategy, request: InferRequest) -> tuple[Sequence[Tensor], list[str]]:
        """Run what the strategy decides until it answers; also the models that ran, as name:version."""
        ran = []
        try:
            decision = strategy.begin(request.parameters)
            while isinstance(decision, Run):
                model = self._models.get(decision.model.name, decision.model.version)
                outputs = await self._infer_model(model, request)
                ran.append(f"{model.spec.name}:{model.spec.version}")
                decision = strategy.resume(decision, outputs)
        except RouteRefused as error:
            raise InvalidRequest(str(error)) from error
        assert isinstance(decision, RouteAnswer)
        return decision.outputs, ran

    async def _infer_model(self, model: LoadedModel, request: InferRequest) -> list[Tensor]:
        started = time.monotonic_ns()
        stats = model.lane.stats
        try:
            valid = validate(request, model.spec.inputs, model.spec.outputs, model.spec.max_batch_size, self._limits)
            work = Work(
                valid.tensors, valid.items, valid.shape_key, self._loop.create_future(),
                request.priority or DEFAULT_PRIORITY, self._deadline(request, model),
            )  # fmt: skip
            answer = await model.run(work)
        except OfframpError as error:
            stats.failed(error.reason, time.monotonic_ns() - started)
            raise
        except asyncio.CancelledError:
            stats.failed("cancelled", time.monotonic_ns() - started)
            raise
        timing = answer.timing
        stats.answered(
            valid.items, answer.queue_ns, timing.input_ns, timing.infer_ns, timing.output_ns,
            time.monotonic_ns() - started,
        )  # fmt: skip
        record_request(model.spec.name, answer.queue_ns, timing.infer_ns)
        return _named(answer.outputs, model, request.outputs)

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


def _named(outputs: Sequence[Tensor], model: LoadedModel, wanted: Sequence[str]) -> list[Tensor]:
    """Workers send outputs by position; here they get the model's public names and the order that was asked for."""
    for spec, tensor in zip(model.spec.outputs, outputs, strict=True):
        tensor.name = spec.name
    if not wanted:
        return list(outputs)
    by_name = {tensor.name: tensor for tensor in outputs}
    return [by_name[name] for name in wanted]
