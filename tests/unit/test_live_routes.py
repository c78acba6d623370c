"""Settings that change while a route runs: whole or not at all, seen by whoever looks, and there after a restart."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from eventually import PATIENCE
from live_fakes import Dials, Models, file_of, table_of
from offramp_adapters.routes.plan import Target
from offramp_adapters.routes.single import SingleRoute
from offramp_adapters.routes.strategy import Level
from offramp_server.endpoints import RouteInfo
from offramp_server.errors import (
    ConfigurationError,
    Conflict,
    FailedPrecondition,
    InvalidRequest,
    NotFound,
    Unavailable,
)
from offramp_server.repository.route_toml import RouteFile
from offramp_server.routing.live import LiveRoutes
from offramp_server.routing.overrides import Override, RouteChange, SettingsStore, SettingsUpdate
from offramp_server.routing.table import RouteTable
from offramp_server.store.database import Database
from offramp_server.store.route_settings import ROUTE_SETTINGS, RouteSettings

FILE = file_of(Dials())


@dataclass
class Rig:
    models: Models
    table: RouteTable
    store: SettingsStore
    live: LiveRoutes
    clock: list[float]
    level: list[Level]

    async def set(self, by: str = "ana", etag: str = "", **values: float) -> RouteInfo:
        return await self.live.update("r", SettingsUpdate(values, etag=etag), by)

    def settings(self) -> dict[str, float]:
        return dict(self.live.route("r").settings)

    async def history(self) -> list[tuple[str, str, dict[str, float], dict[str, float]]]:
        changes = await self.live.changes("r", None, 100)
        return [(change.kind, change.by, dict(change.before), dict(change.after)) for change in changes]


@asynccontextmanager
async def rig(path: Path | None = None, store: SettingsStore | None = None) -> AsyncIterator[Rig]:
    """A server's routes; with a path a second one is the first one started again."""
    database = Database(path, (ROUTE_SETTINGS,))
    try:
        models, clock, level = Models(), [1000.0], [Level.NORMAL]
        table, store = table_of(models), store or RouteSettings(database)
        live = LiveRoutes(table, store, lambda: level[0], lambda: clock[0])
        yield Rig(models, table, store, live, clock, level)
    finally:
        await database.close()


@asynccontextmanager
async def serving(path: Path | None = None, file: RouteFile = FILE) -> AsyncIterator[Rig]:
    async with rig(path) as server:
        await server.live.load("r", file)
        yield server


async def test_a_change_is_for_the_next_request_and_not_for_those_under_way() -> None:
    async with serving() as server:
        route = server.table.get("r")
        assert route is not None
        under_way = route.ready()

        info = await server.set(left=0.75)

        assert (info.settings, info.file_settings) == ({"left": 0.75, "right": 0.5}, {"left": 0.25})
        assert (info.updated_at, info.updated_by) == (1000.0, "ana")
        assert server.table.get("r") is route
        assert route.ready() is not under_way
        assert route.ready().endpoint.fingerprint != under_way.endpoint.fingerprint


async def test_of_two_writers_with_one_etag_one_wins_and_the_other_is_told() -> None:
    async with serving() as server:
        etag = server.live.route("r").etag

        outcomes = await asyncio.gather(
            server.set("ana", etag, left=0.1), server.set("ben", etag, left=0.9), return_exceptions=True
        )

        [lost] = [outcome for outcome in outcomes if isinstance(outcome, Conflict)]
        [won] = [outcome for outcome in outcomes if isinstance(outcome, RouteInfo)]
        assert won.etag in str(lost)
        assert etag in str(lost)
        assert server.settings() == dict(won.settings)
        assert len(await server.history()) == 1


async def test_writers_without_an_etag_change_only_what_they_name() -> None:
    values = {f"dial{number}": 0.0 for number in range(20)}
    async with serving(file=file_of(Dials(values, most=math.inf))) as server:
        await asyncio.gather(*(server.live.update("r", SettingsUpdate({key: 0.5}), "ana") for key in values))

        assert set(server.settings().values()) == {0.5}
        assert len(await server.history()) == 20


async def test_the_etag_of_every_state_is_its_own_and_comes_back_with_it() -> None:
    async with serving() as server:
        first = server.live.route("r").etag
        second = (await server.set(etag=first, left=0.3)).etag
        third = (await server.set(etag=second, left=0.4)).etag
        assert len({first, second, third}) == 3
        assert (await server.set(etag=third, left=0.25)).etag == first


async def test_a_change_outlasts_a_restart_with_who_made_it_and_when(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    async with serving(path) as server:
        server.clock[0] = 1234.5
        before = await server.set("ana", left=0.75)

    async with serving(path) as server:
        assert server.live.route("r") == before
        assert await server.history() == [("updated", "ana", {"left": 0.25}, {"left": 0.75})]
        assert (await server.set(etag=before.etag, right=0.1)).settings == {"left": 0.75, "right": 0.1}


async def test_a_change_outlasts_unloading() -> None:
    async with serving() as server:
        await server.set(left=0.75)
        server.live.remove("r")
        assert server.live.routes() == []
        with pytest.raises(NotFound):
            await server.set(left=0.5)

        await server.live.load("r", FILE)

        assert server.settings()["left"] == 0.75


async def test_a_file_that_says_something_else_wins_and_that_is_recorded(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "state.db"
    async with serving(path) as server:
        await server.set("ana", left=0.75)
        server.clock[0] = 2000.0

        await server.live.load("r", file_of(Dials({"left": 0.3, "right": 0.5}), "second"))

        info = server.live.route("r")
        assert (info.settings, info.file_settings) == ({"left": 0.3, "right": 0.5}, {})
        assert (info.updated_at, info.updated_by) == (2000.0, "route.toml")
        assert (await server.history())[0] == ("file", "route.toml", {"left": 0.75}, {"left": 0.3})
        assert "what was set live is given up (file): left 0.75 -> 0.3" in caplog.text

    # The old file does not bring it back.
    async with serving(path) as server:
        assert server.settings()["left"] == 0.25


async def test_a_file_that_was_changed_while_the_server_was_down_wins(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    async with serving(path) as server:
        await server.set(left=0.75)
    async with serving(path, file_of(Dials({"right": 0.5}), "second")) as server:
        assert server.settings() == {"right": 0.5}
        assert (await server.history())[0] == ("file", "route.toml", {"left": 0.75}, {})


async def test_a_file_that_cannot_be_served_changes_nothing() -> None:
    async with serving() as server:
        before = await server.set(left=0.75)

        with pytest.raises(ConfigurationError, match='no model "x"'):
            await server.live.load("r", file_of(Dials(model="x"), "second"))

        assert server.live.route("r") == before
        assert len(await server.history()) == 1


async def test_what_was_set_and_fits_no_more_is_given_up_and_recorded(tmp_path: Path) -> None:
    """The file is the same, and the server, or a model, has changed."""
    path = tmp_path / "state.db"
    async with serving(path) as server:
        await server.set(left=1.0, right=1.0)
    async with serving(path, file_of(Dials(most=1.5))) as server:
        assert server.settings() == {"left": 0.25, "right": 0.5}
        assert [kind for kind, *_ in await server.history()] == ["dropped", "updated"]


async def test_what_was_set_waits_for_a_model_that_is_not_there_yet(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    async with serving(path) as server:
        await server.set(left=0.75)
    async with rig(path) as server:
        server.models.names = set()
        with pytest.raises(ConfigurationError):
            await server.live.load("r", FILE)
        server.models.change("m")
        await server.live.load("r", FILE)
        assert server.settings()["left"] == 0.75


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"letf": 0.5}, 'route "r" has no setting "letf"; did you mean "left"?'),
        ({"left": 0.5, "zzz": 0.5}, 'route "r" has no setting "zzz"; there is "left", "right"'),
        ({"left": math.nan}, 'route "r": left: expected a number, got nan'),
        ({"left": math.inf}, 'route "r": left: expected a number, got inf'),
        ({"right": 0.1, "left": 1.5}, 'route "r": left: expected a number from 0 to 1, got 1.5'),
        ({"left": 1.0, "right": 1.0}, "all together may be 1.5"),
    ],
)
async def test_what_cannot_be_is_refused_whole(values: dict[str, float], sentence: str) -> None:
    async with serving(file=file_of(Dials(most=1.5))) as server:
        before = server.live.route("r")
        for validate_only in (True, False):
            with pytest.raises(InvalidRequest) as caught:
                await server.live.update("r", SettingsUpdate(values, validate_only=validate_only), "ana")
            assert sentence in str(caught.value)
        assert server.live.route("r") == before
        assert await server.history() == []


async def test_a_route_without_settings_says_so() -> None:
    async with rig() as server:
        await server.live.load("r", RouteFile(SingleRoute(Target("m")), "d"))
        with pytest.raises(InvalidRequest, match='route "r" is of the kind single, which has nothing to set'):
            await server.set(left=0.5)
        assert server.live.route("r").settings == {}


async def test_a_check_says_what_would_be_and_changes_nothing() -> None:
    async with serving() as server:
        before = server.live.route("r")
        would = await server.live.update("r", SettingsUpdate({"left": 0.75}, validate_only=True), "ana")
        assert would.settings["left"] == 0.75
        assert server.live.route("r") == before
        assert would.etag == (await server.set(left=0.75)).etag


async def test_settings_go_back_to_the_file_one_by_one_or_all_together() -> None:
    async with serving() as server:
        await server.set(left=0.75, right=0.75)
        assert (await server.live.update("r", SettingsUpdate(reset=frozenset({"left"})), "ben")).settings == {
            "left": 0.25,
            "right": 0.75,
        }
        await server.set(left=0.9)
        info = await server.live.update("r", SettingsUpdate({"left": 0.6}, reset_others=True), "ben")
        assert info.settings == {"left": 0.6, "right": 0.5}
        info = await server.live.update("r", SettingsUpdate(reset_others=True), "cy")
        assert (info.settings, info.file_settings, info.updated_by) == ({"left": 0.25, "right": 0.5}, {}, "cy")
        with pytest.raises(InvalidRequest, match="did you mean"):
            await server.live.update("r", SettingsUpdate(reset=frozenset({"lef"})), "ben")


async def test_a_change_to_what_is_already_so_is_no_change() -> None:
    async with serving() as server:
        before = await server.set("ana", left=0.75)
        assert await server.set("ben", left=0.75) == before
        assert await server.set("ben", before.etag, right=0.5) == before
        assert len(await server.history()) == 1


async def test_settings_of_a_route_that_is_not_ready_are_not_changed() -> None:
    async with serving() as server:
        server.models.change()
        with pytest.raises(
            FailedPrecondition, match=r'route "r" is not ready, so .* no model "m"; change them once it is'
        ):
            await server.set(left=0.75)
        server.models.change("m")
        assert (await server.set(left=0.75)).ready


class FailingStore:
    """A disk that is full, or one that takes its time."""

    def __init__(self, error: Exception | None = None, saved: Override | None = None) -> None:
        self.error = error
        self.saved = saved
        self.asked = asyncio.Event()
        self.go_on = asyncio.Event()
        self.recorded: list[RouteChange] = []

    async def override(self, route: str) -> Override | None:
        return self.saved

    async def record(self, change: RouteChange, override: Override) -> None:
        if self.error is not None:
            raise self.error
        self.asked.set()
        await self.go_on.wait()
        self.recorded.append(change)

    async def changes(self, route: str, before: int | None, limit: int) -> Sequence[RouteChange]:
        return self.recorded


async def test_what_cannot_be_stored_does_not_take_effect() -> None:
    async with rig(store=FailingStore(FailedPrecondition("the disk is full"))) as server:
        await server.live.load("r", FILE)
        before = server.live.route("r")
        with pytest.raises(FailedPrecondition, match="the disk is full"):
            await server.set(left=0.75)
        assert server.live.route("r") == before


async def test_a_route_whose_file_has_changed_is_served_though_the_disk_does_not_take_that() -> None:
    saved = Override({"left": 0.75}, "of an older file", 900.0, "ana")
    async with rig(store=FailingStore(FailedPrecondition("the disk is full"), saved)) as server:
        await server.live.load("r", FILE)
        assert server.settings() == {"left": 0.25, "right": 0.5}
        assert server.live.route("r").ready


async def test_a_caller_who_goes_away_leaves_no_half_of_a_change() -> None:
    store = FailingStore()
    async with rig(store=store) as server:
        await server.live.load("r", FILE)
        caller = asyncio.create_task(server.set(left=0.75))
        await store.asked.wait()
        caller.cancel()
        with pytest.raises(asyncio.CancelledError):
            await caller
        assert server.settings()["left"] == 0.25

        store.go_on.set()
        # Whoever comes next comes after all of it.
        assert (await server.set(right=0.1)).settings == {"left": 0.75, "right": 0.1}
        assert len(store.recorded) == 2


async def test_a_route_that_goes_while_its_change_is_stored_stays_gone() -> None:
    store = FailingStore()
    async with rig(store=store) as server:
        await server.live.load("r", FILE)
        caller = asyncio.create_task(server.set(left=0.75))
        await store.asked.wait()
        server.live.remove("r")
        store.go_on.set()
        with pytest.raises(NotFound, match="unloaded meanwhile"):
            await caller
        assert server.live.routes() == []


async def test_a_watch_sees_the_state_at_once_and_each_change() -> None:
    async with serving() as server:
        watch = server.live.watch()
        async with asyncio.timeout(PATIENCE):
            assert [route.settings["left"] for route in await anext(watch)] == [0.25]
            for value in (0.3, 0.4, 0.5):
                await server.set(left=value)
                assert [route.settings["left"] for route in await anext(watch)] == [value]
            server.models.change()
            assert [route.ready for route in await anext(watch)] == [False]
            server.live.remove("r")
            assert await anext(watch) == []
        await watch.aclose()


async def test_a_watch_tells_the_level_of_load() -> None:
    async with serving() as server:
        watch = server.live.watch()
        assert [route.level for route in await anext(watch)] == ["normal"]
        server.level[0] = Level.OVERLOADED
        server.live.notify()
        assert [route.level for route in await anext(watch)] == ["overloaded"]


async def test_who_reads_slowly_keeps_nobody_waiting_and_gets_the_latest_state() -> None:
    async with serving() as server:
        slow = server.live.watch()
        await anext(slow)
        for number in range(1, 101):
            await server.set(left=number / 100)

        assert [route.settings["left"] for route in await anext(slow)] == [1.0]
        waiting = asyncio.ensure_future(anext(slow))
        server.live.notify()
        done, _ = await asyncio.wait([waiting], timeout=0)
        assert not done
        waiting.cancel()


async def test_a_watch_ends_as_unavailable_when_the_server_drains() -> None:
    async with serving() as server:
        waiting, late = server.live.watch(), server.live.watch()
        await anext(waiting)
        server.live.drain()
        async with asyncio.timeout(PATIENCE):
            for watch in (waiting, late):
                with pytest.raises(Unavailable, match="draining"):
                    await anext(watch)


async def test_history_comes_in_parts_and_is_there_for_routes_that_have_gone() -> None:
    async with serving() as server:
        for value in (0.1, 0.2, 0.3):
            await server.set(left=value)
        server.live.remove("r")

        first = await server.live.changes("r", None, 2)
        rest = await server.live.changes("r", first[-1].number, 2)

        assert [change.after["left"] for change in (*first, *rest)] == [0.3, 0.2, 0.1]
        assert await server.live.changes("r", rest[-1].number, 2) == []
        with pytest.raises(NotFound):
            await server.live.changes("x", None, 2)
