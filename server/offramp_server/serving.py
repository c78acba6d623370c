"""The server behind the wire: takes a request to the model or route that it names, and knows what there is.

Nothing here knows gRPC. `rpc/` turns messages into calls of `Serving`; `serve_in_process` hands it to embedders.
"""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import replace

from offramp_adapters.routes.parameters import MODELS, ROUTE
from offramp_adapters.routes.plan import Answer
from offramp_common.text import did_you_mean, quoted

from offramp_server import describe
from offramp_server.endpoints import EndpointInfo, IndexEntry
from offramp_server.errors import NotFound, OfframpError, Unavailable
from offramp_server.inference import InferRequest, InferResponse
from offramp_server.model_runner import ModelRunner
from offramp_server.repository.catalog import Catalog
from offramp_server.repository.registry import ModelRegistry
from offramp_server.routing.follower import Follower
from offramp_server.routing.live import LiveRoutes
from offramp_server.routing.table import Route, RouteTable
from offramp_server.scheduling.admission import Admission
from offramp_server.telemetry.stats import Stats
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
        runner: ModelRunner,
        follower: Follower,
        stats: Stats,
        live_routes: LiveRoutes,
    ) -> None:
        # Their settings, to be read, changed and watched.
        self.live_routes = live_routes
        self._models = models
        self._routes = routes
        self._catalog = catalog
        self._admission = admission
        self._runner = runner
        self._follower = follower
        self.stats = stats
        self.live = True
        # Requests are taken. While the repository loads, what is ready already answers.
        self.accepting = False
        # All of the repository is loaded, or has failed to.
        self.ready = False

    # Requests

    async def infer(self, request: InferRequest) -> InferResponse:
        """Answer one request. Raises an OfframpError; cancelling the awaiting task takes the request back."""
        try:
            if not self.accepting:
                raise Unavailable("the server is starting or draining")
            self._admission.acquire()
        except OfframpError as error:
            self._count_refusal(request, error.reason)
            raise
        try:
            request.arrived_ns = time.monotonic_ns()
            route = self._routes.get(request.model)
            if route is not None:
                return _route_response(route, request, await self._follower.answer(route, request))
            model = self._model_to_be(request.model, request.version)
            answer = await self._runner.run(model, request)
            return _response(model.spec.name, str(model.spec.version), request, answer)
        finally:
            self._admission.release()

    def _count_refusal(self, request: InferRequest, reason: str) -> None:
        """Only of what is there: made-up names must not fill the metrics."""
        if self._routes.get(request.model) is not None:
            self.stats.route(request.model).ended(reason, 0, 0)
            return
        with suppress(OfframpError):
            self._models.get(request.model, request.version).lane.stats.failed(reason, 0)

    # What there is

    def endpoint(self, name: str, version: str = "") -> EndpointInfo:
        """Raises NotFound or Unavailable."""
        route = self._routes.get(name)
        if route is None:
            return describe.model(self._model(name, version), self._models.versions(name))
        if version not in ("", ROUTE_VERSION):
            raise NotFound(f'route "{name}" has no version {quoted(version)}, only {ROUTE_VERSION}')
        return describe.route(route.ready(), ROUTE_VERSION)

    def model_ready(self, name: str, version: str = "") -> bool:
        """Raises NotFound for a name that the server has never heard of."""
        if name not in self._known_names():
            raise self._unknown(name)
        try:
            self.endpoint(name, version)
        except OfframpError:
            return False
        return self.accepting

    def index(self) -> list[IndexEntry]:
        routes = [self._routes.info(name) for name in self._routes.names()]
        entries = [
            IndexEntry(route.name, ROUTE_VERSION, "READY" if route.ready else "UNAVAILABLE", route.reason)
            for route in routes
        ]
        return sorted([*self._models.index(), *entries], key=lambda entry: entry.name)

    def _model(self, name: str, version: str) -> LoadedModel:
        """Raises NotFound or Unavailable."""
        try:
            return self._models.get(name, version)
        except NotFound:
            if name in self._known_names():
                raise
            raise self._unknown(name) from None

    def _model_to_be(self, name: str, version: str) -> LoadedModel:
        """While the server starts, what it does not know may be what it has not come to."""
        try:
            return self._model(name, version)
        except NotFound as error:
            if self.ready:
                raise
            raise Unavailable(f"{error}; the server is starting, and has not loaded everything") from error

    def _unknown(self, name: str) -> NotFound:
        return NotFound(f"there is no model or route {quoted(name)}{did_you_mean(name, self._known_names())}")

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
        self.accepting = self.ready = False
        self.live_routes.drain()
        return await self._admission.wait_empty(timeout)


def _response(model: str, version: str, request: InferRequest, answer: Answer) -> InferResponse:
    return InferResponse(model, version, request.id, answer.outputs, answer.parameters, answer.labels)


def _route_response(route: Route, request: InferRequest, answer: Answer) -> InferResponse:
    how = {ROUTE: route.definition.kind, MODELS: ",".join(answer.models)}
    return _response(route.name, ROUTE_VERSION, request, replace(answer, parameters={**answer.parameters, **how}))
