"""`offramp check`: everything a repository would serve, and everything that keeps it from being served."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

from offramp_adapters.routes.plan import Target
from offramp_adapters.routes.strategy import Definition

from offramp_server.errors import NotFound, OfframpError
from offramp_server.model_spec import ModelSpec, TensorSpec
from offramp_server.preprocess.load import load_preprocessor
from offramp_server.repository.layout import check_repository, folder_names, is_route, unrelated_folders
from offramp_server.repository.reader import read_model, read_route
from offramp_server.routing.binding import BoundModel, Broken, bind_all, spec_endpoint
from offramp_server.workers.unfit import unfit, visible_gpus


@dataclass(frozen=True, slots=True)
class Report:
    """What `check` found, ready to print."""

    lines: tuple[str, ...]
    # One sentence each; empty: everything can be served.
    problems: tuple[str, ...]
    # Every version that could be read, and how many routes.
    specs: tuple[ModelSpec, ...]
    routes: int


@dataclass(slots=True)
class _Findings:
    models: dict[str, tuple[ModelSpec, ...]] = field(default_factory=dict)
    routes: dict[str, Definition] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def check(repository: Path) -> Report:
    """Read every folder without loading a model, and ask whether its engine and its device are here. Raises
    ConfigurationError if there is no repository at all."""
    check_repository(repository)
    found = _Findings()
    for name in folder_names(repository):
        try:
            if is_route(repository / name):
                found.routes[name] = read_route(repository, name)
            else:
                found.models[name] = _read(repository, name)
        except OfframpError as error:
            found.problems.append(str(error))
    found.problems += _route_problems(repository, found)
    found.problems += _unfit(found)
    specs = tuple(chain.from_iterable(found.models.values()))
    return Report(tuple(_lines(repository, found)), tuple(found.problems), specs, len(found.routes))


def _read(repository: Path, name: str) -> tuple[ModelSpec, ...]:
    versions = read_model(repository, name)
    for spec in versions:
        # Needs no worker, and has files and extras of its own.
        load_preprocessor(spec)
    return versions


def _unfit(found: _Findings) -> Iterator[str]:
    gpus = visible_gpus()
    return filter(None, (unfit(spec, gpus) for versions in found.models.values() for spec in versions))


def _route_problems(repository: Path, found: _Findings) -> Iterator[str]:
    def lookup(target: Target) -> BoundModel:
        return BoundModel(spec_endpoint(_spec(repository, found, target)))

    for name, bound in bind_all(found.routes, lookup).items():
        if isinstance(bound, Broken):
            yield f'route "{name}": {bound.problem}'


def _spec(repository: Path, found: _Findings, target: Target) -> ModelSpec:
    """What the target would be served as. Raises NotFound."""
    versions = found.models.get(target.name)
    if versions is None and (repository / target.name).is_dir():
        raise NotFound(f'its model "{target.name}" cannot be served')
    if versions is None:
        raise NotFound(f'there is no model "{target.name}"; there are: {", ".join(found.models) or "none"}')
    for spec in reversed(versions):
        if target.version in ("", str(spec.version)):
            return spec
    served = ", ".join(str(spec.version) for spec in versions)
    raise NotFound(f'model "{target.name}" serves no version {target.version}; it serves: {served}')


def _lines(repository: Path, found: _Findings) -> Iterator[str]:
    for name, versions in found.models.items():
        yield f"model {name}"
        for spec in versions:
            yield from _version_lines(spec)
    for name, route in found.routes.items():
        yield f"route {name}: {route.kind} of {', '.join(map(_reference, route.targets))}"
    for name in unrelated_folders(repository):
        yield f"ignored {name}: neither a model nor a route"


def _version_lines(spec: ModelSpec) -> Iterator[str]:
    batches = f"batches of up to {spec.max_batch_size}" if spec.batches else "no batch dimension"
    yield f"  version {spec.version}: {spec.format}, {spec.size_bytes} bytes, {batches}, engine {spec.engine.backend}"
    yield f"    in:  {_tensor_list(spec.public_inputs)}"
    if spec.preprocess is not None:
        yield f"         {spec.preprocess.kind}, made into {_tensor_list(spec.inputs)}"
    yield f"    out: {_tensor_list(spec.public_outputs)}"
    if spec.zero_shot is not None:
        yield f"         zero-shot over {len(spec.zero_shot.labels)} labels, by {_tensor_list(spec.outputs)}"


def _tensor_list(tensors: Sequence[TensorSpec]) -> str:
    return ", ".join(map(str, tensors))


def _reference(model: Target) -> str:
    return f"{model.name} version {model.version}" if model.version else model.name
