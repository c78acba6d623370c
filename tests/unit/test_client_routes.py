"""Routes through both clients: read, changed, watched."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import grpc
import numpy as np
import pytest
from client_fakes import KINDS, Failure, FakeServer, client_of
from eventually import PATIENCE
from offramp.v1 import route_service_pb2 as pb
from offramp_client import Route, RouteChange, RouteModel, SettingChange, errors

X = np.zeros((1, 2), np.float32)


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer() as server:
        yield server


@pytest.fixture(params=KINDS)
def client(request: pytest.FixtureRequest, server: FakeServer) -> Iterator[Any]:
    with client_of(request.param, server.target) as client:
        yield client


def test_every_page_of_routes_is_fetched(client: Any) -> None:
    routes = client.routes()

    assert [route.name for route in routes] == ["r0", "r1", "r2"]


def test_a_server_that_knows_nothing_of_settings_leaves_them_empty(client: Any) -> None:
    assert client.route("r0") == Route("r0", "single", (RouteModel("echo", "2"),), True, "")


def test_what_a_route_says_of_itself_is_read(server: FakeServer, client: Any) -> None:
    message = pb.Route(
        name="routes/r",
        kind=pb.ROUTE_KIND_EARLY_EXIT,
        models=[pb.RouteModel(name="m", resolved_version="3", role=pb.ROUTE_MODEL_ROLE_STAGE, label="fast")],
        settings={"threshold.fast": 0.5},
        file_settings={"threshold.fast": 0.75},
        etag="e",
        epoch=4,
        load_level=pb.LOAD_LEVEL_OVERLOADED,
        updated_by="ana",
    )
    message.update_time.FromMilliseconds(1500)
    server.garbage = pb.GetRouteResponse(route=message).SerializeToString()

    assert client.route("r") == Route(
        "r",
        "early_exit",
        (RouteModel("m", "", "3", "stage", "fast"),),
        False,
        "",
        "e",
        {"threshold.fast": 0.5},
        {"threshold.fast": 0.75},
        datetime(1970, 1, 1, 0, 0, 1, 500_000, UTC),
        "ana",
        4,
        "overloaded",
    )


@pytest.mark.parametrize("name", ["fashion", "routes/fashion"])
def test_a_route_is_found_by_its_name(client: Any, server: FakeServer, name: str) -> None:
    assert client.route(name).name == "fashion"
    assert server.last().name == "routes/fashion"


def test_a_kind_of_route_that_this_client_does_not_know_stays_a_number(client: Any, server: FakeServer) -> None:
    server.garbage = b"\x0a\x04\x0a\x00\x10\x63"
    assert client.route("x").kind == "99"


def test_settings_are_changed_as_named(client: Any, server: FakeServer) -> None:
    route = client.update_route("fashion", {"weight.a": 2}, etag="e")

    assert server.last() == pb.UpdateRouteRequest(
        route=pb.Route(name="routes/fashion", settings={"weight.a": 2.0}, etag="e")
    )
    assert (route.settings, route.etag, route.updated_by) == ({"weight.a": 2.0}, "after", "ana")
    assert route.updated_at == datetime(1970, 1, 1, 0, 0, 1, 500_000, UTC)


def test_settings_go_back_to_the_file_one_by_one_or_all_together(client: Any, server: FakeServer) -> None:
    client.update_route("r", {"a": 2}, reset=["b"], validate_only=True)
    assert sorted(server.last().update_mask.paths) == ["settings.a", "settings.b"]
    assert (dict(server.last().route.settings), server.last().validate_only) == ({"a": 2.0}, True)

    client.reset_route("r", etag="e")
    assert list(server.last().update_mask.paths) == ["settings"]
    assert (dict(server.last().route.settings), server.last().route.etag) == ({}, "e")


@pytest.mark.parametrize(
    ("change", "error", "sentence"),
    [
        (lambda client: client.update_route("r"), ValueError, "nothing to change"),
        (lambda client: client.update_route("r", {"a": 1}, reset=["a"]), ValueError, '"a" is given a value and is to'),
        (lambda client: client.update_route("r", reset="a"), TypeError, "reset= takes the keys as a list"),
        (lambda client: client.route_changes("r", limit=0), ValueError, "limit counts changes: at least 1, got 0"),
    ],
)
def test_a_change_that_means_nothing_is_not_sent(
    client: Any, server: FakeServer, change: Callable[[Any], Any], error: type[Exception], sentence: str
) -> None:
    with pytest.raises(error, match=sentence):
        change(client)
    assert server.seen == []


def test_what_somebody_else_has_changed_is_aborted_and_not_tried_again(client: Any, server: FakeServer) -> None:
    server.failures.append(Failure(grpc.StatusCode.ABORTED, "changed since"))
    with pytest.raises(errors.Aborted, match="changed since"):
        client.update_route("r", {"a": 1}, etag="old")
    assert server.methods() == ["UpdateRoute"]


def test_a_change_is_tried_again_only_where_that_cannot_collide_with_itself(client: Any, server: FakeServer) -> None:
    server.failures.append(Failure(grpc.StatusCode.UNAVAILABLE))
    client.update_route("r", {"a": 1})
    assert server.methods() == ["UpdateRoute"] * 2

    server.failures.append(Failure(grpc.StatusCode.UNAVAILABLE))
    with pytest.raises(errors.Unavailable):
        client.update_route("r", {"a": 1}, etag="e")
    assert server.methods() == ["UpdateRoute"] * 3


def test_the_history_is_fetched_as_far_as_it_is_wanted(client: Any, server: FakeServer) -> None:
    assert [change.number for change in client.route_changes("r")] == [5, 4, 3, 2, 1]
    assert len(server.seen) == 3
    assert [change.number for change in client.route_changes("r", limit=3)] == [5, 4, 3]
    assert client.route_changes("r", limit=1) == [
        RouteChange(5, "updated", None, "ana", (SettingChange("weight.a", None, 5.0),))
    ]


def test_a_watched_route_comes_with_each_change_until_nobody_reads_on(client: Any, server: FakeServer) -> None:
    watch = client.watch_route("fashion")
    assert [(route.name, route.etag) for route in (next(watch), next(watch))] == [("fashion", "1"), ("fashion", "2")]
    assert not server.cancelled.is_set()
    watch.close()
    assert server.cancelled.wait(PATIENCE)


def test_all_watched_routes_come_by_name_with_each_change(client: Any) -> None:
    watch = client.watch_routes()
    assert [list(routes) for routes in (next(watch), next(watch))] == [["a", "b"], ["b", "c"]]
    watch.close()


def test_a_watch_ends_as_the_server_says(client: Any, server: FakeServer) -> None:
    server.release.set()
    with pytest.raises(errors.Unavailable, match="draining"):
        list(client.watch_routes())
    server.release.clear()
    with pytest.raises(errors.DeadlineExceeded):
        list(client.watch_route("r", timeout=0.1))


def test_a_server_that_is_not_offramp_has_no_routes(client: Any, server: FakeServer) -> None:
    for call in (client.routes, lambda: client.update_route("r", {"a": 1}), lambda: list(client.watch_routes())):
        server.failures.append(Failure(grpc.StatusCode.UNIMPLEMENTED))
        with pytest.raises(errors.Unimplemented):
            call()


def test_a_request_says_which_exits_it_wants(client: Any, server: FakeServer) -> None:
    client.infer("echo", {"x": X}, max_exit="fast", min_confidence=0.75)
    sent = server.last().parameters
    assert sent["offramp_max_exit"].string_param == "fast"
    assert sent["offramp_min_confidence"].double_param == 0.75

    client.infer("echo", {"x": X}, max_exit=1)
    assert server.last().parameters["offramp_max_exit"].int64_param == 1
    assert "offramp_min_confidence" not in server.last().parameters
