"""`offramp check`: everything a repository would serve, and everything that keeps it from being served."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from offramp_adapters.routes.strategy import ModelRef, Strategy

from offramp_server.errors import OfframpError
from offramp_server.model_spec import ModelSpec, TensorSpec
from offramp_server.preprocess.load import load_preprocessor
from offramp_server.repository.layout import check_repository, folder_names, is_route, unrelated_folders
from offramp_server.repository.reader import read_model, read_route


@dataclass(frozen=True, slots=True)
class Report:
    """What `check` found, ready to print."""

    lines: tuple[str, ...]
    # One sentence each; empty: everything can be served.
    problems: tuple[str, ...]


@dataclass(slots=True)
class _Findings:
    models: dict[str, tuple[ModelSpec, ...]] = field(default_factory=dict)
    routes: dict[str, Strategy] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def check(repository: Path) -> Report:
    """Read every folder without loading a model. Raises ConfigurationError if there is no repository at all."""
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
    for name, route in found.routes.items():
        found.problems += [f'route "{name}": {problem}' for problem in _dangling(repository, found, route)]
    return Report(tuple(_lines(repository, found)), tuple(found.problems))


def _read(repository: Path, name: str) -> tuple[ModelSpec, ...]:
    versions = read_model(repository, name)
    for spec in versions:
        # Needs no worker, and has files and extras of its own.
        load_preprocessor(spec)
    return versions


def _dangling(repository: Path, found: _Findings, route: Strategy) -> Iterator[str]:
    for model in route.models:
        if model.name in found.routes:
            yield f'"{model.name}" is a route; name a model'
        elif model.name in found.models:
            versions = [str(spec.version) for spec in found.models[model.name]]
            if model.version and model.version not in versions:
                yield f'model "{model.name}" serves no version {model.version}; it serves: {", ".join(versions)}'
        elif (repository / model.name).is_dir():
            yield f'its model "{model.name}" cannot be served'
        else:
            yield f'there is no model "{model.name}"; there are: {", ".join(found.models) or "none"}'


def _lines(repository: Path, found: _Findings) -> Iterator[str]:
    for name, versions in found.models.items():
        yield f"model {name}"
        for spec in versions:
            yield from _version_lines(spec)
    for name, route in found.routes.items():
        yield f"route {name}: {route.kind} of {', '.join(map(_reference, route.models))}"
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


def _reference(model: ModelRef) -> str:
    return f"{model.name} version {model.version}" if model.version else model.name
