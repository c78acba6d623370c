"""Models and routes of a repository that a command asks: in this process, or through a running server."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from offramp_adapters.routes.plan import Target
from offramp_adapters.routes.strategy import Endpoint, TensorFacts
from offramp_client import AsyncClient
from offramp_common.extras import needs_extra
from open_inference.tensor import Tensor

from offramp_server.cli.connection import connect_async

if TYPE_CHECKING:
    from offramp_server.serving import Serving


@dataclass(frozen=True, slots=True)
class Asked:
    """One model or route, and what its BYTES are: text, image, or "" for neither."""

    target: Target
    endpoint: Endpoint
    preprocess: str = ""


class Asker(Protocol):
    """What can be asked. Raises the errors of the server or of the client."""

    async def describe(self, target: Target) -> Asked: ...

    async def infer(self, target: Target, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        """All outputs."""
        ...


@asynccontextmanager
async def open_asker(options: argparse.Namespace, repository: Path, targets: Iterable[Target]) -> AsyncIterator[Asker]:
    """The server of `options.target`, or without one the `targets` of the repository, in this process, on the engines
    that would serve them."""
    if options.target is not None:
        async with connect_async(options) as client:
            yield _Running(client)
        return
    with needs_extra("server", "running models"):
        from offramp_server.core import serve_in_process
    with tempfile.TemporaryDirectory(prefix="offramp-") as scratch:
        _link(Path(scratch), repository, {target.name for target in targets})
        async with serve_in_process(scratch) as serving:
            yield _InProcess(serving)


def _link(scratch: Path, repository: Path, names: Iterable[str]) -> None:
    """A repository of these folders and of what the routes among them run: what else there is would only be loaded."""
    from offramp_server.repository.reader import is_route, read_route

    for name in names:
        link, folder = scratch / name, (repository / name).resolve()
        if link.exists() or not folder.is_dir():
            continue
        link.symlink_to(folder, target_is_directory=True)
        if is_route(folder):
            _link(scratch, repository, {target.name for target in read_route(repository, name).targets})


class _InProcess:
    def __init__(self, serving: Serving) -> None:
        self._serving = serving

    async def describe(self, target: Target) -> Asked:
        found = self._serving.endpoint(target.name, target.version)
        inputs = tuple(TensorFacts(spec.name, spec.datatype, spec.dims, spec.labels) for spec in found.inputs)
        outputs = tuple(TensorFacts(spec.name, spec.datatype, spec.dims, spec.labels) for spec in found.outputs)
        endpoint = Endpoint(inputs, outputs, found.max_batch_size)
        return Asked(target, endpoint, found.parameters.get("preprocess", ""))

    async def infer(self, target: Target, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        from offramp_server.inference import InferRequest

        response = await self._serving.infer(InferRequest(target.name, inputs, target.version))
        return response.outputs


class _Running:
    def __init__(self, client: AsyncClient) -> None:
        self._client = client

    async def describe(self, target: Target) -> Asked:
        config = await self._client.model_config(target.name, target.version)
        labels = config.labels
        inputs = tuple(TensorFacts(info.name, info.datatype, info.shape) for info in config.inputs)
        outputs = tuple(
            TensorFacts(info.name, info.datatype, info.shape, labels.get(info.name, ())) for info in config.outputs
        )
        endpoint = Endpoint(inputs, outputs, config.max_batch_size)
        return Asked(target, endpoint, config.parameters.get("preprocess", ""))

    async def infer(self, target: Target, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        result = await self._client.infer(target.name, {each.name: each for each in inputs}, version=target.version)
        return [Tensor.from_numpy(name, array) for name, array in result.outputs.items()]
