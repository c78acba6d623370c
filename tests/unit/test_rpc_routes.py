"""RouteService: pages that neither repeat nor skip, masks that say what changes, watches that tell differences."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from offramp.v1 import route_service_pb2 as pb
from offramp_server.endpoints import RouteInfo, RouteTarget
from offramp_server.errors import InvalidRequest, NotFound, OfframpError, Unavailable
from offramp_server.routing.overrides import RouteChange, SettingsUpdate
from offramp_server.rpc.route_service import RouteCalls
from rpc_fakes import FakeContext, FakeRoutes

CONTEXT = FakeContext()
TARGETS = (RouteTarget("student", "", "7", "stage", "fast"), RouteTarget("teacher", "3", "3", "stage", "teacher"))


def route(name: str, **fields: Any) -> RouteInfo:
    return RouteInfo(name, "early_exit", TARGETS, ready=True, **fields)


def calls(*names: str) -> tuple[RouteCalls, FakeRoutes]:
    routes = FakeRoutes([route(name) for name in names])
    return RouteCalls(routes, lambda context: "ana", lambda context: True), routes


async def names_of(service: RouteCalls, **request: int | str) -> tuple[list[str], str]:
    response = await service.list_routes(pb.ListRoutesRequest(**request), CONTEXT)  # type: ignore[arg-type]
    return [route.name for route in response.routes], response.next_page_token


async def test_a_route_is_described() -> None:
    service, routes = calls()
    routes.infos = [
        route(
            "fashion",
            etag="e",
            settings={"threshold.fast": 0.9},
            file_settings={"threshold.fast": 0.8},
            updated_at=1.25,
            updated_by="ana",
            epoch=3,
            level="busy",
        ),
        RouteInfo("sad", "single", (RouteTarget("x"),), ready=False, reason='model "x" is not there'),
    ]

    ready = (await service.get_route(pb.GetRouteRequest(name="routes/fashion"), CONTEXT)).route
    sad = (await service.get_route(pb.GetRouteRequest(name="routes/sad"), CONTEXT)).route

    assert (ready.name, ready.kind, ready.state) == ("routes/fashion", pb.ROUTE_KIND_EARLY_EXIT, pb.ROUTE_STATE_READY)
    assert [(model.name, model.version, model.resolved_version, model.label) for model in ready.models] == [
        ("student", "", "7", "fast"), ("teacher", "3", "3", "teacher"),
    ]  # fmt: skip
    assert {model.role for model in ready.models} == {pb.ROUTE_MODEL_ROLE_STAGE}
    assert (dict(ready.settings), dict(ready.file_settings)) == ({"threshold.fast": 0.9}, {"threshold.fast": 0.8})
    assert (ready.etag, ready.updated_by, ready.epoch, ready.load_level) == ("e", "ana", 3, pb.LOAD_LEVEL_BUSY)
    assert ready.update_time.ToJsonString() == "1970-01-01T00:00:01.250Z"
    assert (sad.state, sad.reason) == (pb.ROUTE_STATE_UNAVAILABLE, 'model "x" is not there')
    assert (sad.models[0].role, sad.HasField("update_time")) == (pb.ROUTE_MODEL_ROLE_UNSPECIFIED, False)


async def test_who_does_not_manage_the_server_is_not_told_who_does() -> None:
    changed = route("fashion", updated_by="ana", updated_at=1.0)
    routes = FakeRoutes([changed], states=[[changed]])
    service = RouteCalls(routes, lambda context: "app", lambda context: False)
    got = (await service.get_route(pb.GetRouteRequest(name="routes/fashion"), CONTEXT)).route
    [listed] = (await service.list_routes(pb.ListRoutesRequest(), CONTEXT)).routes
    one = await anext(service.watch_route(pb.WatchRouteRequest(name="routes/fashion"), CONTEXT))
    every = await anext(service.watch_routes(pb.WatchRoutesRequest(), CONTEXT))
    for shown in (got, listed, one.route, every.routes[0]):
        assert (shown.updated_by, shown.HasField("update_time")) == ("", True)


async def test_routes_come_by_name_and_in_pages() -> None:
    service, _ = calls("c", "a", "ö", "b", "d")

    first, token = await names_of(service, page_size=2)
    second, token = await names_of(service, page_size=2, page_token=token)
    third, end = await names_of(service, page_size=2, page_token=token)

    assert [*first, *second, *third] == ["routes/a", "routes/b", "routes/c", "routes/d", "routes/ö"]
    assert end == ""
    assert (await names_of(service, page_size=5))[1] == ""


async def test_a_route_that_goes_between_two_pages_moves_no_other() -> None:
    service, routes = calls("a", "b", "c")
    _, token = await names_of(service, page_size=2)
    routes.infos = [info for info in routes.infos if info.name != "b"]

    assert await names_of(service, page_size=2, page_token=token) == (["routes/c"], "")


async def test_pages_have_a_default_and_a_largest_size() -> None:
    service, _ = calls(*(f"r{number:04}" for number in range(1001)))

    assert len((await names_of(service))[0]) == 100
    assert len((await names_of(service, page_size=5000))[0]) == 1000


@pytest.mark.parametrize(
    ("request_fields", "message"),
    [({"page_size": -1}, "page_size: expected a number from 0, got -1"), ({"page_token": "?"}, "page_token: expected")],
)
async def test_a_wrong_page_is_refused(request_fields: dict[str, int | str], message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        await names_of(calls("a")[0], **request_fields)


async def test_a_name_has_its_form_and_exists() -> None:
    service, _ = calls("a")

    for name in ("", "a", "routes/"):
        wrong = pytest.raises(InvalidRequest, match='expected a name of the form "routes/NAME"')
        with wrong:
            await service.get_route(pb.GetRouteRequest(name=name), CONTEXT)
        with wrong:
            await service.update_route(pb.UpdateRouteRequest(route=pb.Route(name=name)), CONTEXT)
        with wrong:
            await service.list_route_changes(pb.ListRouteChangesRequest(parent=name), CONTEXT)
        with wrong:
            await anext(service.watch_route(pb.WatchRouteRequest(name=name), CONTEXT))
    with pytest.raises(NotFound):
        await service.get_route(pb.GetRouteRequest(name="routes/b"), CONTEXT)


VALUE = {"threshold.fast": 0.5}


@pytest.mark.parametrize(
    ("settings", "paths", "expected"),
    [
        (VALUE, [], SettingsUpdate(VALUE)),
        (VALUE, ["settings"], SettingsUpdate(VALUE, reset_others=True)),
        ({}, ["settings"], SettingsUpdate(reset_others=True)),
        (VALUE, ["settings.threshold.fast"], SettingsUpdate(VALUE)),
        (VALUE, ["settings.`threshold.fast`", "settings.audit_rate"], SettingsUpdate(VALUE, frozenset({"audit_rate"}))),
    ],
)
async def test_a_mask_says_which_settings_change_and_which_go_back_to_the_file(
    settings: dict[str, float], paths: list[str], expected: SettingsUpdate
) -> None:
    service, routes = calls("a")
    message = pb.Route(name="routes/a", settings=settings)

    answer = await service.update_route(
        pb.UpdateRouteRequest(route=message, update_mask=FieldMask(paths=paths)), CONTEXT
    )

    assert answer.route.name == "routes/a"
    assert routes.updates == [("a", expected, "ana")]


async def test_an_etag_and_the_wish_only_to_check_are_passed_on() -> None:
    service, routes = calls("a")
    message = pb.Route(name="routes/a", etag="e", settings=VALUE)

    await service.update_route(pb.UpdateRouteRequest(route=message, validate_only=True), CONTEXT)

    assert routes.updates == [("a", SettingsUpdate(VALUE, etag="e", validate_only=True), "ana")]


@pytest.mark.parametrize(
    ("paths", "sentence"),
    [
        (["kind"], 'update_mask: expected "settings" or "settings.KEY", got "kind"'),
        (["settings."], 'got "settings."'),
        (["*"], r'got "\*"'),
        (["settings.audit_rate"], 'route.settings: "threshold.fast" is not in update_mask'),
        (["settings", "settings.audit_rate"], '"settings" already says all that "settings.audit_rate" could'),
    ],
)
async def test_a_mask_that_means_nothing_is_refused(paths: list[str], sentence: str) -> None:
    service, routes = calls("a")
    request = pb.UpdateRouteRequest(route=pb.Route(name="routes/a", settings=VALUE), update_mask=FieldMask(paths=paths))

    with pytest.raises(InvalidRequest, match=sentence):
        await service.update_route(request, CONTEXT)
    assert routes.updates == []


async def taken(answers: AsyncIterator[Any]) -> tuple[list[Any], Exception]:
    """Every answer, and what they ended with."""
    found: list[Any] = []
    while True:
        try:
            found.append(await anext(answers))
        except (OfframpError, StopAsyncIteration) as error:
            return found, error


async def test_a_watch_of_all_routes_tells_what_is_new_has_changed_or_has_gone() -> None:
    service, routes = calls()
    changed = route("b", etag="2")
    routes.states = [[route("a"), route("b")], [route("a"), changed], [changed, route("c")]]

    answers, end = await taken(service.watch_routes(pb.WatchRoutesRequest(), CONTEXT))

    assert [[route.name for route in answer.routes] for answer in answers] == [
        ["routes/a", "routes/b"], ["routes/b"], ["routes/c"],
    ]  # fmt: skip
    assert [list(answer.removed) for answer in answers] == [[], [], ["routes/a"]]
    assert isinstance(end, Unavailable)


async def test_a_watch_of_no_routes_says_so_at_once() -> None:
    service, routes = calls()
    routes.states = [[]]

    answers, _ = await taken(service.watch_routes(pb.WatchRoutesRequest(), CONTEXT))

    assert answers == [pb.WatchRoutesResponse()]


async def test_a_watch_of_one_route_is_not_told_of_others_and_ends_with_the_route() -> None:
    service, routes = calls("a", "b")
    routes.states = [[route("a"), route("b")], [route("a"), route("b", etag="2")], [route("a", etag="3")], []]

    answers, end = await taken(service.watch_route(pb.WatchRouteRequest(name="routes/a"), CONTEXT))

    assert [answer.route.etag for answer in answers] == ["", "3"]
    assert isinstance(end, NotFound)
    assert str(end) == 'route "a" was unloaded'
    with pytest.raises(NotFound):
        await anext(service.watch_route(pb.WatchRouteRequest(name="routes/x"), CONTEXT))


async def test_changes_come_in_pages_the_latest_first() -> None:
    service, routes = calls("a")
    routes.history = [RouteChange("a", "updated", 1.0, "ana", {"x": 0.0}, {"x": 1.0}, number) for number in (9, 8, 3)]
    routes.history.append(RouteChange("a", "file", 1.0, "route.toml", {"old": 0.5}, {}, 2))

    first = await service.list_route_changes(pb.ListRouteChangesRequest(parent="routes/a", page_size=2), CONTEXT)
    request = pb.ListRouteChangesRequest(parent="routes/a", page_size=2, page_token=first.next_page_token)
    second = await service.list_route_changes(request, CONTEXT)

    assert [change.name for change in (*first.changes, *second.changes)] == [
        "routes/a/changes/9", "routes/a/changes/8", "routes/a/changes/3", "routes/a/changes/2",
    ]  # fmt: skip
    assert second.next_page_token == ""
    assert first.changes[0].settings[0] == pb.SettingChange(key="x", before=0.0, after=1.0)
    assert (second.changes[1].kind, second.changes[1].changed_by) == (pb.ROUTE_CHANGE_KIND_FILE, "route.toml")
    assert not second.changes[1].settings[0].HasField("after")


@pytest.mark.parametrize("token", ["?", "YQ==", "LTE="])
async def test_a_wrong_page_of_changes_is_refused(token: str) -> None:
    with pytest.raises(InvalidRequest, match="page_token"):
        await calls("a")[0].list_route_changes(pb.ListRouteChangesRequest(parent="routes/a", page_token=token), CONTEXT)
