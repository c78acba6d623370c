"""The table of routes."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias, runtime_checkable

from offramp_adapters.routes.parts import Part, parts_of
from offramp_adapters.routes.plan import Target
from offramp_adapters.routes.strategy import Definition

from offramp_server.endpoints import RouteInfo, RouteTarget
from offramp_server.errors import ConfigurationError, LoadError, NotFound, Unavailable
from offramp_server.repository.registry import ModelRegistry
from offramp_server.routing.binding import Bound, BoundModel, BoundRoute, Broken, bind_all, bound_model
from offramp_server.store.epochs import Epoch
from offramp_server.workers.backend import LoadedModel

# The epoch of a route that is judged as this from now on.
EpochOf: TypeAlias = Callable[[str, str], Epoch]


@runtime_checkable
class Seeded(Protocol):
    """A definition that may ask for coins which fall alike each time, for tests."""

    @property
    def seed(self) -> int | None: ...


@dataclass(slots=True, eq=False)
class Route:
    """One route of the repository, and what lasts from one of its requests to the next."""

    name: str
    definition: Definition
    bound: Bound
    coin: Callable[[], float] = field(init=False)

    def __post_init__(self) -> None:
        self.coin = _coin(_seed(self.definition))

    @property
    def epoch(self) -> int:
        """The number of the present one; 0: the route is not ready."""
        return 0 if isinstance(self.bound, Broken) or self.bound.epoch is None else self.bound.epoch.number

    def redefine(self, definition: Definition) -> None:
        if _seed(definition) != _seed(self.definition):
            self.coin = _coin(_seed(definition))
        self.definition = definition

    def ready(self) -> BoundRoute:
        """What requests that come now run. Raises Unavailable if something is not there, or does not fit."""
        if isinstance(self.bound, Broken):
            raise Unavailable(f'route "{self.name}" is not ready: {self.bound.problem}')
        return self.bound


class RouteTable:
    """Routes by name. A change of a route, or of what it runs, takes effect for the next request."""

    def __init__(self, models: ModelRegistry, epoch_of: EpochOf) -> None:
        # Called after every change of what can answer.
        self.on_change: Callable[[], None] = lambda: None
        # Called with the name of a route that is gone.
        self.on_remove: Callable[[str], None] = lambda name: None
        self._epoch_of = epoch_of
        self._models = models
        self._routes: dict[str, Route] = {}
        models.on_change = self._rebind
        models.before_switch = self._check_versions

    def get(self, name: str) -> Route | None:
        return self._routes.get(name)

    def names(self) -> list[str]:
        return sorted(self._routes)

    def put(self, name: str, definition: Definition) -> None:
        """Raises ConfigurationError if it does not fit what it names, or what it names cannot answer; then whatever
        was there before stays."""
        bound = self._checked(name, definition)
        if name in self._routes:
            self._routes[name].redefine(definition)
        else:
            self._routes[name] = Route(name, definition, bound[name])
        self._take(bound)

    def check(self, name: str, definition: Definition) -> None:
        """Raises ConfigurationError if `put` would."""
        self._checked(name, definition)

    def replace(self, name: str, definition: Definition) -> None:
        """Put what has been checked. If what it names has changed since then, and it does not fit any more, the route
        is not ready, as it would be had that changed a little later."""
        self._routes[name].redefine(definition)
        self._rebind()

    def remove(self, name: str) -> None:
        if self._routes.pop(name, None) is not None:
            self.on_remove(name)
            self._rebind()

    def info(self, name: str) -> RouteInfo:
        """`name` has to be a route."""
        route = self._routes[name]
        below = route.bound.below if isinstance(route.bound, BoundRoute) else {}
        targets = tuple(_target_info(part, below.get(part.target)) for part in parts_of(route.definition))
        problem = route.bound.problem if isinstance(route.bound, Broken) else ""
        return RouteInfo(name, route.definition.kind, targets, ready=not problem, reason=problem, epoch=route.epoch)

    def _checked(self, name: str, definition: Definition) -> dict[str, Bound]:
        """Every route as it would be with this one. Raises ConfigurationError."""
        bound = bind_all({**self._definitions(), name: definition}, self._model)
        new = bound[name]
        if isinstance(new, Broken):
            raise ConfigurationError(f'route "{name}": {new.problem}')
        for other, problem in self._broken_by(bound):
            raise ConfigurationError(f'route "{name}": route "{other}" runs it, and would not fit: {problem}')
        return bound

    def _rebind(self) -> None:
        self._take(bind_all(self._definitions(), self._model))

    def _check_versions(self, name: str, loaded: Sequence[LoadedModel]) -> None:
        """Raises LoadError if a route that answers now would not fit these versions of a model."""

        def lookup(target: Target) -> BoundModel:
            if target.name != name:
                return self._model(target)
            for model in reversed(loaded):
                if target.version in ("", str(model.spec.version)):
                    return bound_model(model)
            raise NotFound(f'model "{name}" would have no version {target.version} any more')

        for other, problem in self._broken_by(bind_all(self._definitions(), lookup)):
            raise LoadError(
                f'model "{name}": route "{other}" runs it, and would not fit: {problem}; '
                "change or unload that route first"
            )

    def _broken_by(self, bound: Mapping[str, Bound]) -> Iterator[tuple[str, str]]:
        """Routes that answer now and would not, and why."""
        for name, route in self._routes.items():
            then = bound[name]
            if isinstance(then, Broken) and not isinstance(route.bound, Broken):
                yield name, then.problem

    def _take(self, bound: Mapping[str, Bound]) -> None:
        for name, route in self._routes.items():
            route.bound = now = bound[name]
            if isinstance(now, BoundRoute):
                now.epoch, now.coin = self._epoch_of(name, now.subject), route.coin
        self.on_change()

    def _definitions(self) -> dict[str, Definition]:
        return {name: route.definition for name, route in self._routes.items()}

    def _model(self, target: Target) -> BoundModel:
        return bound_model(self._models.get(target.name, target.version))


def _seed(definition: Definition) -> int | None:
    return definition.seed if isinstance(definition, Seeded) else None


def _coin(seed: int | None) -> Callable[[], float]:
    """Nobody can foresee the system's: what a client sends cannot be chosen for how it will fall."""
    return random.SystemRandom().random if seed is None else random.Random(seed).random  # noqa: S311


def _target_info(part: Part, bound: BoundModel | BoundRoute | None) -> RouteTarget:
    loaded = bound.model if isinstance(bound, BoundModel) else None
    resolved = "" if loaded is None else str(loaded.spec.version)
    return RouteTarget(part.target.name, part.target.version, resolved, part.role, part.label)
