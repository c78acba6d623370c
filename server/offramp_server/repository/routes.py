"""The table of routes."""

from __future__ import annotations

from collections.abc import Callable

from offramp_adapters.routes.strategy import Strategy

from offramp_server.endpoints import RouteInfo
from offramp_server.errors import OfframpError
from offramp_server.repository.registry import ModelRegistry


class RouteTable:
    """Routes by name. A change of a route takes effect for the next request."""

    def __init__(self, models: ModelRegistry) -> None:
        # Called after every change of what can answer.
        self.on_change: Callable[[], None] = lambda: None
        self._models = models
        self._routes: dict[str, Strategy] = {}

    def get(self, name: str) -> Strategy | None:
        return self._routes.get(name)

    def put(self, name: str, strategy: Strategy) -> None:
        """Raises NotFound or Unavailable if a model that it names cannot answer."""
        for model in strategy.models:
            self._models.get(model.name, model.version)
        self._routes[name] = strategy
        self.on_change()

    def remove(self, name: str) -> None:
        if self._routes.pop(name, None) is not None:
            self.on_change()

    def names(self) -> list[str]:
        return sorted(self._routes)

    def info(self, name: str) -> RouteInfo:
        """`name` has to be a route."""
        strategy = self._routes[name]
        reason = self._problem(strategy)
        models = tuple((model.name, model.version) for model in strategy.models)
        return RouteInfo(name, strategy.kind, models, ready=not reason, reason=reason)

    def _problem(self, strategy: Strategy) -> str:
        try:
            for model in strategy.models:
                self._models.get(model.name, model.version)
        except OfframpError as error:
            return str(error)
        return ""
