"""RouteService: pages that neither repeat nor skip."""

from __future__ import annotations

import pytest
from offramp.v1 import route_service_pb2 as pb
from offramp_server.endpoints import RouteInfo
from offramp_server.errors import InvalidRequest, NotFound
from offramp_server.rpc.route_service import RouteCalls
from rpc_fakes import FakeContext, FakeServing

CONTEXT = FakeContext()


def calls(*names: str) -> tuple[RouteCalls, FakeServing]:
    routes = [RouteInfo(name, "single", (("student", ""), ("teacher", "3")), ready=True) for name in names]
    serving = FakeServing(route_infos=routes)
    return RouteCalls(serving), serving


async def names_of(service: RouteCalls, **request: int | str) -> tuple[list[str], str]:
    response = await service.list_routes(pb.ListRoutesRequest(**request), CONTEXT)  # type: ignore[arg-type]
    return [route.name for route in response.routes], response.next_page_token


async def test_a_route_is_described() -> None:
    service, serving = calls("fashion")
    serving.route_infos.append(RouteInfo("sad", "single", (), ready=False, reason='model "x" is not there'))

    ready = (await service.get_route(pb.GetRouteRequest(name="routes/fashion"), CONTEXT)).route
    sad = (await service.get_route(pb.GetRouteRequest(name="routes/sad"), CONTEXT)).route

    assert (ready.name, ready.kind, ready.state) == ("routes/fashion", pb.ROUTE_KIND_SINGLE, pb.ROUTE_STATE_READY)
    assert [(model.name, model.version) for model in ready.models] == [("student", ""), ("teacher", "3")]
    assert (sad.state, sad.reason) == (pb.ROUTE_STATE_UNAVAILABLE, 'model "x" is not there')


async def test_routes_come_by_name_and_in_pages() -> None:
    service, _ = calls("c", "a", "ö", "b", "d")

    first, token = await names_of(service, page_size=2)
    second, token = await names_of(service, page_size=2, page_token=token)
    third, end = await names_of(service, page_size=2, page_token=token)

    assert [*first, *second, *third] == ["routes/a", "routes/b", "routes/c", "routes/d", "routes/ö"]
    assert end == ""
    assert (await names_of(service, page_size=5))[1] == ""


async def test_a_route_that_goes_between_two_pages_moves_no_other() -> None:
    service, serving = calls("a", "b", "c")
    _, token = await names_of(service, page_size=2)
    serving.route_infos = [info for info in serving.route_infos if info.name != "b"]

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
        with pytest.raises(InvalidRequest, match='expected a name of the form "routes/NAME"'):
            await service.get_route(pb.GetRouteRequest(name=name), CONTEXT)
    with pytest.raises(NotFound):
        await service.get_route(pb.GetRouteRequest(name="routes/b"), CONTEXT)
