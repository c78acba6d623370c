"""Messages of RouteService to plain types and back."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from types import MappingProxyType

from google.protobuf.timestamp_pb2 import Timestamp
from offramp.v1 import route_service_pb2 as pb
from offramp_common.text import quoted

from offramp_server.endpoints import RouteInfo, RouteTarget
from offramp_server.errors import InvalidRequest
from offramp_server.routing.overrides import RouteChange, SettingsUpdate

_COLLECTION = "routes/"
_SETTINGS = "settings"
_DEFAULT_PAGE_SIZE = 100
_MAX_PAGE_SIZE = 1000
_KINDS = MappingProxyType(
    {
        "single": pb.ROUTE_KIND_SINGLE,
        "ensemble": pb.ROUTE_KIND_ENSEMBLE,
        "early_exit": pb.ROUTE_KIND_EARLY_EXIT,
        "split": pb.ROUTE_KIND_SPLIT,
    }
)
_ROLES = MappingProxyType(
    {
        "member": pb.ROUTE_MODEL_ROLE_MEMBER,
        "stage": pb.ROUTE_MODEL_ROLE_STAGE,
        "arm": pb.ROUTE_MODEL_ROLE_ARM,
        "shadow": pb.ROUTE_MODEL_ROLE_SHADOW,
    }
)
_LEVELS = MappingProxyType(
    {
        "idle": pb.LOAD_LEVEL_IDLE,
        "normal": pb.LOAD_LEVEL_NORMAL,
        "busy": pb.LOAD_LEVEL_BUSY,
        "overloaded": pb.LOAD_LEVEL_OVERLOADED,
    }
)
_CHANGES = MappingProxyType(
    {
        "updated": pb.ROUTE_CHANGE_KIND_UPDATED,
        "file": pb.ROUTE_CHANGE_KIND_FILE,
        "dropped": pb.ROUTE_CHANGE_KIND_DROPPED,
    }
)


# Names and pages


def route_name(name: str) -> str:
    """Of a resource name. Raises InvalidRequest."""
    if not name.startswith(_COLLECTION) or name == _COLLECTION:
        raise InvalidRequest(f'expected a name of the form "routes/NAME", got {quoted(name)}')
    return name.removeprefix(_COLLECTION)


def resource_name(route: str) -> str:
    return _COLLECTION + route


def page_size(wanted: int) -> int:
    """Raises InvalidRequest."""
    if wanted < 0:
        raise InvalidRequest(f"page_size: expected a number from 0, got {wanted}")
    return min(wanted or _DEFAULT_PAGE_SIZE, _MAX_PAGE_SIZE)


def token_of(last: str) -> str:
    """A page's token, which says after what the next one begins."""
    return base64.urlsafe_b64encode(last.encode()).decode()


def last_of(token: str) -> str:
    """Empty for the first page. Raises InvalidRequest."""
    try:
        return base64.b64decode(token, altchars=b"-_", validate=True).decode()
    except ValueError:
        raise _wrong_token() from None


def number_of(token: str) -> int | None:
    """As `last_of`, of pages of what is numbered; None for the first page."""
    last = last_of(token)
    if not last:
        return None
    if not (last.isascii() and last.isdecimal() and len(last) < 19):
        raise _wrong_token()
    return int(last)


def _wrong_token() -> InvalidRequest:
    return InvalidRequest("page_token: expected the next_page_token of the page before, unchanged")


# What comes


def settings_update(request: pb.UpdateRouteRequest) -> SettingsUpdate:
    """Raises InvalidRequest."""
    values, paths = dict(request.route.settings), list(request.update_mask.paths)
    everything, etag, validate_only = _SETTINGS in paths, request.route.etag, request.validate_only
    if everything or not paths:
        _check_paths(paths)
        return SettingsUpdate(values, frozenset(), everything, etag, validate_only)
    keys = set(_keys(paths))
    stray = sorted(values.keys() - keys)
    if stray:
        raise InvalidRequest(
            f"route.settings: {quoted(stray[0])} is not in update_mask; name it there as well, or leave it out"
        )
    return SettingsUpdate(values, frozenset(keys - values.keys()), False, etag, validate_only)


def _check_paths(paths: list[str]) -> None:
    for path in paths:
        if path != _SETTINGS:
            raise InvalidRequest(f'update_mask: "settings" already says all that {quoted(path)} could; leave one out')


def _keys(paths: list[str]) -> Iterator[str]:
    for path in paths:
        field, _, key = path.partition(".")
        if field != _SETTINGS or not key.strip("`"):
            raise InvalidRequest(
                f'update_mask: expected "settings" or "settings.KEY", got {quoted(path)}; '
                "nothing else of a route can be changed while it runs"
            )
        # A key that has dots may be written in backticks (AIP-161).
        yield key.removeprefix("`").removesuffix("`")


# What goes


def route_message(route: RouteInfo, with_caller: bool) -> pb.Route:
    """`with_caller`: say who changed it last."""
    message = pb.Route(
        name=resource_name(route.name),
        kind=_KINDS.get(route.kind, pb.ROUTE_KIND_UNSPECIFIED),
        models=[_model_message(target) for target in route.targets],
        state=pb.ROUTE_STATE_READY if route.ready else pb.ROUTE_STATE_UNAVAILABLE,
        reason=route.reason,
        etag=route.etag,
        settings=route.settings,
        file_settings=route.file_settings,
        updated_by=route.updated_by if with_caller else "",
        epoch=route.epoch,
        load_level=_LEVELS[route.level],
    )
    if route.updated_at is not None:
        message.update_time.CopyFrom(_timestamp(route.updated_at))
    return message


def _model_message(target: RouteTarget) -> pb.RouteModel:
    return pb.RouteModel(
        name=target.name,
        version=target.version,
        resolved_version=target.resolved,
        role=_ROLES.get(target.role, pb.ROUTE_MODEL_ROLE_UNSPECIFIED),
        label=target.label,
    )


def change_message(change: RouteChange) -> pb.RouteChange:
    keys = sorted({*change.before, *change.after})
    return pb.RouteChange(
        name=f"{resource_name(change.route)}/changes/{change.number}",
        kind=_CHANGES[change.kind],
        change_time=_timestamp(change.at),
        changed_by=change.by,
        settings=[
            pb.SettingChange(key=key, before=change.before.get(key), after=change.after.get(key)) for key in keys
        ],
    )


def _timestamp(seconds: float) -> Timestamp:
    microseconds = round(seconds * 1e6)
    return Timestamp(seconds=microseconds // 10**6, nanos=microseconds % 10**6 * 1000)
