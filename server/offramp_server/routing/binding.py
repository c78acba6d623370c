"""Definitions of routes become strategies: what they name is looked up, routes over routes included."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from offramp_adapters.audits.subject import answering, subject
from offramp_adapters.routes.plan import Target
from offramp_adapters.routes.strategy import Definition, Endpoint, RouteInvalid, Strategy, TensorFacts
from offramp_common.text import quoted

from offramp_server.errors import OfframpError
from offramp_server.model_spec import ModelSpec, TensorSpec
from offramp_server.routing.nesting import nesting_problems
from offramp_server.store.epochs import Epoch
from offramp_server.workers.backend import LoadedModel


@dataclass(frozen=True, slots=True)
class BoundModel:
    """A model that a route runs. The version is fixed here: a request sees no reload between two of its stages."""

    endpoint: Endpoint
    # None: nothing is loaded, a repository is only checked.
    model: LoadedModel | None = None


@dataclass(slots=True, eq=False)
class BoundRoute:
    """A route with everything that it runs."""

    name: str
    endpoint: Endpoint
    strategy: Strategy
    # What its answers are judged as: another text asks for new evidence.
    subject: str
    below: Mapping[Target, BoundModel | BoundRoute] = field(default_factory=dict)
    # Each once, those of routes below included.
    models: tuple[LoadedModel, ...] = ()
    # Of the requests that run this, which may last longer than the route is in the table. None: it does not serve, and
    # was only bound to see whether it could.
    epoch: Epoch | None = None
    coin: Callable[[], float] | None = None


@dataclass(frozen=True, slots=True)
class Broken:
    """A route that cannot answer."""

    problem: str


# Raises an OfframpError if the model cannot answer.
ModelLookup: TypeAlias = Callable[[Target], BoundModel]
Bound: TypeAlias = BoundRoute | Broken


def bind_all(definitions: Mapping[str, Definition], model: ModelLookup) -> dict[str, Bound]:
    """Every definition, bound to models and to each other."""
    binder = _Binder(definitions, model)
    return {name: binder.route(name) for name in definitions}


class _Binder:
    def __init__(self, definitions: Mapping[str, Definition], model: ModelLookup) -> None:
        self._definitions = definitions
        self._model = model
        # What cannot be bound is known beforehand, so that binding the rest comes to an end.
        self._bound: dict[str, Bound] = {name: Broken(text) for name, text in nesting_problems(definitions).items()}

    def route(self, name: str) -> Bound:
        if name not in self._bound:
            self._bound[name] = self._bind(name)
        return self._bound[name]

    def _bind(self, name: str) -> Bound:
        definition = self._definitions[name]
        try:
            below = {target: self._target(target) for target in definition.targets}
            endpoints = {target: each.endpoint for target, each in below.items()}
            strategy = definition.bind(endpoints)
        except (RouteInvalid, OfframpError) as error:
            return Broken(str(error))
        return BoundRoute(
            name,
            _endpoint(definition, strategy, endpoints),
            strategy,
            _subject(definition, endpoints),
            below,
            _models(below.values()),
        )

    def _target(self, target: Target) -> BoundModel | BoundRoute:
        if target.name not in self._definitions:
            return self._model(target)
        if target.version:
            raise RouteInvalid(f'"{target.name}" is a route, which has no version {quoted(target.version)}')
        below = self.route(target.name)
        if isinstance(below, Broken):
            raise RouteInvalid(f'route "{target.name}": {below.problem}')
        return below


def _models(below: Iterable[BoundModel | BoundRoute]) -> tuple[LoadedModel, ...]:
    models: dict[int, LoadedModel] = {}
    for each in below:
        found = each.models if isinstance(each, BoundRoute) else () if each.model is None else (each.model,)
        models.update((id(model), model) for model in found)
    return tuple(models.values())


def _endpoint(definition: Definition, strategy: Strategy, endpoints: Mapping[Target, Endpoint]) -> Endpoint:
    face = strategy.face
    given = {output.name: output for output in endpoints[face.gives].outputs}
    said = [answering(definition), *(endpoints[target].fingerprint for target in definition.targets)]
    return Endpoint(
        endpoints[face.takes].inputs,
        tuple(given[name] for name in face.outputs),
        face.max_batch_size,
        face.scores,
        hashlib.sha256("\n".join(said).encode()).hexdigest(),
    )


def _subject(definition: Definition, endpoints: Mapping[Target, Endpoint]) -> str:
    below = (f"{target}: {endpoints[target].fingerprint}" for target in definition.targets)
    return "\n".join((subject(definition), *below))


def bound_model(model: LoadedModel) -> BoundModel:
    engine = model.report.engine
    executes = f"{engine.backend} {engine.device} {engine.precision}"
    return BoundModel(spec_endpoint(model.spec, executes, model.group.device), model)


def spec_endpoint(spec: ModelSpec, engine: str = "", device: str = "") -> Endpoint:
    """`engine`: what executes it, for the fingerprint. `device`: where, if it is loaded."""
    return Endpoint(
        _facts(spec.public_inputs),
        _facts(spec.public_outputs),
        spec.max_batch_size,
        fingerprint=f"{spec.name}:{spec.version} {spec.digest} {engine}",
        device=device,
        metadata=spec.metadata,
    )


def _facts(specs: tuple[TensorSpec, ...]) -> tuple[TensorFacts, ...]:
    return tuple(TensorFacts(spec.name, spec.datatype, spec.dims, spec.labels) for spec in specs)
