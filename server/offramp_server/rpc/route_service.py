"""offramp.v1.RouteService: the routes and the strategy behind each."""

from __future__ import annotations

import base64
from types import MappingProxyType

from offramp.v1 import route_service_pb2 as pb
from offramp_common.text import quoted

from offramp_server.endpoints import RouteInfo
from offramp_server.errors import InvalidRequest
from offramp_server.rpc.ports import Serving
from offramp_server.transport.interface import CallContext, Service

_COLLECTION = "routes/"
_DEFAULT_PAGE_SIZE = 100
_MAX_PAGE_SIZE = 1000
_KINDS = MappingProxyType({"single": pb.ROUTE_KIND_SINGLE})


class RouteCalls:
    """offramp.v1.RouteService."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving

    async def list_routes(self, request: pb.ListRoutesRequest, context: CallContext) -> pb.ListRoutesResponse:
        if request.page_size < 0:
            raise InvalidRequest(f"page_size: expected a number from 0, got {request.page_size}")
        size = min(request.page_size or _DEFAULT_PAGE_SIZE, _MAX_PAGE_SIZE)
        after = _name_of_token(request.page_token)
        # By name and not by position, so that a route that comes or goes between two pages moves no other.
        rest = sorted((route for route in self._serving.routes() if route.name > after), key=lambda route: route.name)
        token = _token_of_name(rest[size - 1].name) if len(rest) > size else ""
        return pb.ListRoutesResponse(routes=[_message(route) for route in rest[:size]], next_page_token=token)

    async def get_route(self, request: pb.GetRouteRequest, context: CallContext) -> pb.GetRouteResponse:
        if not request.name.startswith(_COLLECTION) or request.name == _COLLECTION:
            raise InvalidRequest(f'expected a name of the form "routes/NAME", got {quoted(request.name)}')
        return pb.GetRouteResponse(route=_message(self._serving.route(request.name.removeprefix(_COLLECTION))))


def route_service(serving: Serving) -> Service:
    return Service.of(pb.DESCRIPTOR.services_by_name["RouteService"], RouteCalls(serving))


def _message(route: RouteInfo) -> pb.Route:
    return pb.Route(
        name=_COLLECTION + route.name,
        kind=_KINDS.get(route.kind, pb.ROUTE_KIND_UNSPECIFIED),
        models=[pb.RouteModel(name=name, version=version) for name, version in route.models],
        state=pb.ROUTE_STATE_READY if route.ready else pb.ROUTE_STATE_UNAVAILABLE,
        reason=route.reason,
    )


def _token_of_name(name: str) -> str:
    return base64.urlsafe_b64encode(name.encode()).decode()


def _name_of_token(token: str) -> str:
    try:
        return base64.b64decode(token, altchars=b"-_", validate=True).decode()
    except ValueError:
        raise InvalidRequest("page_token: expected the next_page_token of the page before, unchanged") from None
