"""The whole server as one object, on free ports of this process."""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest
from eventually import eventually_here
from model_repository import write_add_sub
from offramp_server.app import Server
from offramp_server.config import RepositorySettings, ServerSettings, Settings, WorkerSettings
from offramp_server.errors import Unavailable
from offramp_server.inference import InferRequest
from offramp_server.rpc.health_board import Health
from offramp_server.telemetry.logs import LogControl
from open_inference.tensor import Tensor


@asynccontextmanager
async def running(repository: Path, poll_interval: float = 0.0) -> AsyncIterator[Server]:
    settings = Settings(
        server=ServerSettings(grpc_port=0, http_port=0),
        workers=WorkerSettings(mode="in-process"),
        repository=RepositorySettings(poll_interval=poll_interval),
    )
    server = Server(repository, settings, LogControl(logging.NullHandler()))
    try:
        await server.open()
        await server.load()
        yield server
        await server.drain()
    finally:
        await server.close()


def write_route(repository: Path, name: str, model: str) -> None:
    (repository / name).mkdir(exist_ok=True)
    (repository / name / "route.toml").write_text(f'kind = "single"\nmodel = "{model}"\n')


def add_sub_request(model: str) -> InferRequest:
    return InferRequest(model, [Tensor.from_numpy("x", np.ones((1, 4), np.float32))])


async def test_health_follows_models_and_routes_as_they_come_and_go(repository: Path) -> None:
    write_add_sub(repository)
    write_route(repository, "stable", "add_sub")
    async with running(repository) as server:
        assert server.health.status("add_sub") is Health.SERVING
        assert server.health.status("stable") is Health.SERVING
        await server.core.serving.unload("add_sub")
        assert server.health.status("add_sub") is Health.NOT_SERVING
        assert server.health.status("stable") is Health.NOT_SERVING
        await server.core.serving.unload("stable")
        assert server.health.status("stable") is None
        await server.core.serving.load("add_sub")
        assert server.health.status("add_sub") is Health.SERVING
    assert server.health.status("add_sub") is Health.NOT_SERVING


async def test_a_watched_repository_is_followed_without_being_asked(repository: Path) -> None:
    write_add_sub(repository)
    async with running(repository, poll_interval=0.01) as server:
        write_add_sub(repository, version=2)
        await eventually_here(lambda: server.core.models.versions("add_sub") == ("2",))


async def test_a_folder_may_turn_from_a_model_into_a_route_and_back(repository: Path) -> None:
    write_add_sub(repository)
    write_add_sub(repository, "other")
    async with running(repository) as server:
        serving = server.core.serving
        shutil.rmtree(repository / "other" / "1")
        write_route(repository, "other", "add_sub")
        await serving.load("other")
        assert serving.endpoint("other").composing == ("add_sub",)
        assert server.core.models.versions("other") == ()
        (repository / "other" / "route.toml").unlink()
        write_add_sub(repository, "other")
        await serving.load("other")
        assert serving.endpoint("other").composing == ()
        assert [entry.state for entry in serving.index() if entry.name == "other"] == ["READY"]


async def test_what_is_ready_answers_while_the_rest_still_loads(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_add_sub(repository, name="early")
    write_add_sub(repository, name="late")
    settings = Settings(server=ServerSettings(grpc_port=0, http_port=0), workers=WorkerSettings(mode="in-process"))
    server = Server(repository, settings, LogControl(logging.NullHandler()))
    serving, turn = server.core.serving, asyncio.Event()
    load = server.core.models.load

    async def load_in_turn(name: str) -> None:
        if name == "late":
            await turn.wait()
        await load(name)

    monkeypatch.setattr(server.core.models, "load", load_in_turn)
    try:
        await server.open()
        loading = asyncio.create_task(server.load())
        await eventually_here(lambda: serving.accepting and serving.index()[0].state == "READY")
        assert (await serving.infer(add_sub_request("early"))).model == "early"
        with pytest.raises(Unavailable, match=r'"late".*the server is starting, and has not loaded everything'):
            await serving.infer(add_sub_request("late"))
        assert not serving.ready
        turn.set()
        await loading
        assert (await serving.infer(add_sub_request("late"))).model == "late"
    finally:
        await server.close()
