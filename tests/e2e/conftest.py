from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from model_files import write_add_sub_onnx, write_identity_onnx
from server_process import ServerProcess, serving
from shared_models import write_shared

SHARED_MEMORY_PREFIX = "/offramp_test_"


@pytest.fixture(scope="session", params=["grpcio", "native"])
def transport(request: pytest.FixtureRequest) -> dict[str, str]:
    """The environment of a server that speaks by it."""
    return {"OFFRAMP_SERVER__TRANSPORT": str(request.param)}


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory, transport: dict[str, str]) -> Iterator[ServerProcess]:
    """A server with worker processes that all tests of this folder may share: who unloads or kills starts another."""
    repository = tmp_path_factory.mktemp("shared")
    write_shared(repository)
    environment = {
        **transport,
        "OFFRAMP_SHARED_MEMORY__ENABLED": "true",
        "OFFRAMP_SHARED_MEMORY__PREFIX": SHARED_MEMORY_PREFIX,
    }
    with serving(repository, environment=environment) as server:
        yield server
        assert server.stop() == 0


@pytest.fixture(scope="session")
def small_repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models that load at once, for tests that start servers of their own."""
    repository = tmp_path_factory.mktemp("small")
    write_add_sub_onnx(repository / "add_sub" / "1" / "model.onnx")
    write_identity_onnx(repository / "text" / "1" / "model.onnx", "BYTES", ["batch", "n"])
    return repository


@pytest.fixture(scope="session")
def small_server(small_repository: Path, transport: dict[str, str]) -> Iterator[ServerProcess]:
    """Without worker processes, and with all other settings as they are by default, but that front ends carry the calls
    where they can."""
    front_ends = 2 if "native" in transport.values() else 1
    with serving(small_repository, ["--in-process", f"--front-ends={front_ends}"], transport) as server:
        yield server
        assert server.stop() == 0
