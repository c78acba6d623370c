"""offramp.v1.RouteService: the routes, the strategy behind each, and settings that change while they run."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import aclosing

from offramp.v1 import route_service_pb2 as pb
from offramp_common.text import quoted

from offramp_server.endpoints import RouteInfo
from offramp_server.errors import NotFound
from offramp_server.rpc.ports import RouteControl
from offramp_server.rpc.route_messages import (
    change_message,
    last_of,
    number_of,
    page_size,
    resource_name,
    route_message,
    route_name,
    settings_update,
    token_of,
)
from offramp_server.transport.interface import CallContext, Service


class RouteCalls:
    """offramp.v1.RouteService."""

    def __init__(
        self, routes: RouteControl, caller: Callable[[CallContext], str], manages: Callable[[CallContext], bool]
    ) -> None:
        """`caller` says who calls, for the record; `manages`, whether he may know what is in it."""
        self._routes = routes
        self._caller = caller
        self._manages = manages

    async def list_routes(self, request: pb.ListRoutesRequest, context: CallContext) -> pb.ListRoutesResponse:
        size, last = page_size(request.page_size), last_of(request.page_token)
        # By name and not by position, so that a route that comes or goes between two pages moves no other.
        rest = sorted((route for route in self._routes.routes() if route.name > last), key=lambda route: route.name)
        token = token_of(rest[size - 1].name) if len(rest) > size else ""
        shown = [route_message(route, self._manages(context)) for route in rest[:size]]
        return pb.ListRoutesResponse(routes=shown, next_page_token=token)

    async def get_route(self, request: pb.GetRouteRequest, context: CallContext) -> pb.GetRouteResponse:
        route = self._routes.route(route_name(request.name))
        return pb.GetRouteResponse(route=route_message(route, self._manages(context)))

    async def update_route(self, request: pb.UpdateRouteRequest, context: CallContext) -> pb.UpdateRouteResponse:
        name, update = route_name(request.route.name), settings_update(request)
        route = await self._routes.update(name, update, self._caller(context))
        return pb.UpdateRouteResponse(route=route_message(route, self._manages(context)))

    async def watch_route(
        self, request: pb.WatchRouteRequest, context: CallContext
    ) -> AsyncIterator[pb.WatchRouteResponse]:
        name, with_caller = route_name(request.name), self._manages(context)
        before = self._routes.route(name)
        yield pb.WatchRouteResponse(route=route_message(before, with_caller))
        async with aclosing(self._routes.watch()) as states:
            async for state in states:
                now = {route.name: route for route in state}.get(name)
                if now is None:
                    raise NotFound(f"route {quoted(name)} was unloaded")
                if now != before:
                    yield pb.WatchRouteResponse(route=route_message(now, with_caller))
                before = now

    async def watch_routes(
        self, request: pb.WatchRoutesRequest, context: CallContext
    ) -> AsyncIterator[pb.WatchRoutesResponse]:
        before: Mapping[str, RouteInfo] = {}
        with_callers = self._manages(context)
        async with aclosing(self._routes.watch()) as states:
            async for state in states:
                now = {route.name: route for route in state}
                yield _difference(before, now, with_callers)
                before = now

    async def list_route_changes(
        self, request: pb.ListRouteChangesRequest, context: CallContext
    ) -> pb.ListRouteChangesResponse:
        size = page_size(request.page_size)
        # One more, to know whether there is another page.
        found = await self._routes.changes(route_name(request.parent), number_of(request.page_token), size + 1)
        token = token_of(str(found[size - 1].number)) if len(found) > size else ""
        return pb.ListRouteChangesResponse(
            changes=[change_message(change) for change in found[:size]], next_page_token=token
        )


def _difference(
    before: Mapping[str, RouteInfo], now: Mapping[str, RouteInfo], with_callers: bool
) -> pb.WatchRoutesResponse:
    changed = [route for name, route in now.items() if before.get(name) != route]
    return pb.WatchRoutesResponse(
        routes=[route_message(route, with_callers) for route in changed],
        removed=[resource_name(name) for name in before.keys() - now.keys()],
    )


def route_service(
    routes: RouteControl, caller: Callable[[CallContext], str], manages: Callable[[CallContext], bool]
) -> Service:
    return Service.of(pb.DESCRIPTOR.services_by_name["RouteService"], RouteCalls(routes, caller, manages))
