"""A repository that is watched: what is changed there is followed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import pytest
from eventually import PATIENCE
from offramp_server.errors import LoadError
from offramp_server.repository.watcher import Fingerprint, fingerprints, watch_repository

INTERVAL = 0.005


class FakeCatalog:
    """Notes what it is asked to do, and may fail at it."""

    def __init__(self) -> None:
        self.asked: asyncio.Queue[str] = asyncio.Queue()
        self.error: Exception | None = None

    async def load(self, name: str) -> None:
        self._note(f"load {name}")

    async def unload(self, name: str) -> None:
        self._note(f"unload {name}")

    def _note(self, what: str) -> None:
        self.asked.put_nowait(what)
        if self.error is not None:
            raise self.error

    async def next(self) -> str:
        return await asyncio.wait_for(self.asked.get(), PATIENCE)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    for name in ("first", "second"):
        write(tmp_path, name, "1")
    return tmp_path


def write(repository: Path, name: str, text: str) -> None:
    (repository / name / "1").mkdir(parents=True, exist_ok=True)
    (repository / name / "1" / "model.onnx").write_text(text)


@asynccontextmanager
async def watched(repository: Path, served: dict[str, Fingerprint] | None = None) -> AsyncIterator[FakeCatalog]:
    catalog = FakeCatalog()
    served = fingerprints(repository) if served is None else served
    watching = asyncio.create_task(watch_repository(repository, cast("Any", catalog), INTERVAL, served))
    try:
        yield catalog
    finally:
        watching.cancel()
        assert isinstance((await asyncio.gather(watching, return_exceptions=True))[0], asyncio.CancelledError)


async def test_a_folder_that_changes_is_loaded_and_no_other(repository: Path) -> None:
    async with watched(repository) as catalog:
        write(repository, "second", "changed")
        assert await catalog.next() == "load second"
        write(repository, "third", "new")
        assert await catalog.next() == "load third"
        assert catalog.asked.empty()


async def test_a_folder_that_goes_away_is_unloaded(repository: Path) -> None:
    async with watched(repository) as catalog:
        (repository / "first" / "1" / "model.onnx").unlink()
        (repository / "first" / "1").rmdir()
        assert await catalog.next() == "unload first"


async def test_what_changed_while_the_server_was_loading_is_followed(repository: Path) -> None:
    read = fingerprints(repository)
    write(repository, "first", "changed while the others were loaded")
    async with watched(repository, read) as catalog:
        assert await catalog.next() == "load first"


@pytest.mark.parametrize("error", [LoadError("no model"), RuntimeError("unforeseen")])
async def test_a_folder_that_cannot_be_followed_is_reported_once_and_the_watch_goes_on(
    repository: Path, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    async with watched(repository) as catalog:
        catalog.error = error
        write(repository, "first", "broken")
        assert await catalog.next() == "load first"
        catalog.error = None
        write(repository, "second", "changed")
        assert await catalog.next() == "load second"
    assert str(error) in caplog.text
