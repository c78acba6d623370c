"""Reads a model repository: what a folder says, checked against what is in it. Nothing is kept between calls."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from offramp_adapters.routes.strategy import Definition
from offramp_common.formats.onnx_file import read_onnx
from offramp_common.formats.pt2_archive import read_pt2
from offramp_common.formats.source_model import SourceModel

from offramp_server.errors import ConfigurationError, LoadError
from offramp_server.model_spec import ModelSpec
from offramp_server.repository.assemble import Candidate, assemble
from offramp_server.repository.layout import (
    ModelFolder,
    check_repository,
    find_folder,
    find_model,
    folder_names,
    is_route,
    model_file,
)
from offramp_server.repository.manifest import FileHashes, verify_manifests
from offramp_server.repository.model_toml import ModelToml, read_model_toml
from offramp_server.repository.route_toml import RouteFile, read_route_file

__all__ = ["check_repository", "find_route", "folder_names", "is_route", "read_model", "read_route"]


def read_model(repository: Path, name: str) -> tuple[ModelSpec, ...]:
    """The versions of a model that should be served, in ascending order.

    Raises NotFound, ConfigurationError or LoadError; one version that cannot be served refuses them all.
    """
    with _failures_named(repository / name):
        model = find_model(repository, name)
        settings = read_model_toml(model.toml)
        return tuple(_read_version(model, version, settings) for version in _wanted_versions(model, settings))


def read_route(repository: Path, name: str) -> Definition:
    """Raises NotFound or ConfigurationError. Whether its models are there is known only when they are loaded."""
    return find_route(repository, name).definition


def find_route(repository: Path, name: str) -> RouteFile:
    """As `read_route`, with what tells one state of the file from another."""
    with _failures_named(repository / name):
        return read_route_file(find_folder(repository, name))


@contextmanager
def _failures_named(folder: Path) -> Iterator[None]:
    """Files may vanish or be unreadable at any moment."""
    try:
        yield
    except OSError as error:
        raise LoadError(f"{error.filename or folder}: cannot be read: {error.strerror}") from None


def _wanted_versions(model: ModelFolder, settings: ModelToml) -> list[int]:
    present = list(model.versions)
    if settings.versions == "latest":
        return present[-1:]
    if settings.versions == "all":
        return present
    missing = set(settings.versions) - set(present)
    if missing:
        known = ", ".join(map(str, present))
        raise ConfigurationError(f"{model.toml}: versions: there is no version {min(missing)}; there are: {known}")
    return sorted(set(settings.versions))


def _read_version(model: ModelFolder, version: int, settings: ModelToml) -> ModelSpec:
    folder = model.versions[version]
    hashes = FileHashes()
    # Before anything is parsed: a manifest vouches for what the parsers are given.
    verify_manifests(model, folder, hashes)
    source = _read_source(model_file(folder))
    size = sum(path.stat().st_size for path in (source.path, *source.external))
    digest = hashes.digest(source.path, source.external)
    return assemble(Candidate(model.name, version, model.path, source, settings, digest, size, hashes))


def _read_source(path: Path) -> SourceModel:
    return read_pt2(path) if path.suffix == ".pt2" else read_onnx(path)
