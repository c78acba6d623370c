"""Routes, their settings, and who changed them: plain data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from google.protobuf.message import Message
from offramp.v1 import route_service_pb2 as pb

from offramp_client.metadata import enum_name

_COLLECTION = "routes/"


@dataclass(frozen=True, slots=True)
class RouteModel:
    """A model, or another route, that a route may run."""

    name: str
    #: Empty: the latest version that is ready.
    version: str
    #: The version that runs now; empty for a route, and for what cannot answer.
    resolved_version: str = ""
    #: "member", "stage", "arm" or "shadow"; empty for the only one of a route.
    role: str = ""
    #: What the route calls it, as in the names of its settings.
    label: str = ""


@dataclass(frozen=True, slots=True)
class Route:
    """A name that is called like a model, and the strategy behind it.

    Servers that cannot change routes while they run leave everything from `etag` on as it is by default.
    """

    name: str
    #: "single", "ensemble", "early_exit" or "split".
    kind: str
    #: In the order of the file: of an early exit from the first stage to the reference.
    models: tuple[RouteModel, ...]
    ready: bool
    #: Which of its models cannot answer, and why.
    reason: str
    #: Stands for the file and the settings as they are; `update_route` takes it.
    etag: str = ""
    #: What can be changed while the route runs, and its value: "threshold.student", "weight.a", "audit_rate".
    settings: Mapping[str, float] = field(default_factory=dict)
    #: Of these settings, what route.toml says where that is not what is.
    file_settings: Mapping[str, float] = field(default_factory=dict)
    #: When settings were last changed while the route ran (UTC), and by whom; None: never.
    updated_at: datetime | None = None
    updated_by: str = ""
    #: Rises with a change of what the route's answers are judged as: models, stages, temperatures; not thresholds.
    epoch: int = 0
    #: "idle", "normal", "busy" or "overloaded".
    load_level: str = ""

    @classmethod
    def from_message(cls, message: pb.Route) -> Route:
        return cls(
            route_name(message.name),
            enum_name(pb.RouteKind, message.kind, "ROUTE_KIND_").lower(),
            tuple(_model(model) for model in message.models),
            message.state == pb.ROUTE_STATE_READY,
            message.reason,
            message.etag,
            dict(message.settings),
            dict(message.file_settings),
            _time(message, "update_time"),
            message.updated_by,
            message.epoch,
            _said(pb.LoadLevel, message.load_level, "LOAD_LEVEL_"),
        )


@dataclass(frozen=True, slots=True)
class SettingChange:
    """One setting before and after; None where the route had or has no such setting."""

    key: str
    before: float | None
    after: float | None


@dataclass(frozen=True, slots=True)
class RouteChange:
    """What was changed of a route while it ran."""

    #: Rises from change to change.
    number: int
    #: "updated" by a caller, "file": route.toml was changed and counts again, "dropped": no longer possible.
    kind: str
    #: UTC.
    at: datetime | None
    #: A token's name, the name in a certificate, an address, or "route.toml".
    by: str
    settings: tuple[SettingChange, ...]

    @classmethod
    def from_message(cls, message: pb.RouteChange) -> RouteChange:
        return cls(
            int(message.name.rpartition("/")[2]),
            _said(pb.RouteChangeKind, message.kind, "ROUTE_CHANGE_KIND_"),
            _time(message, "change_time"),
            message.changed_by,
            tuple(
                SettingChange(
                    change.key,
                    change.before if change.HasField("before") else None,
                    change.after if change.HasField("after") else None,
                )
                for change in message.settings
            ),
        )


def resource_name(route: str) -> str:
    """Of a route's name, or of what is one already."""
    return _COLLECTION + route_name(route)


def route_name(resource: str) -> str:
    return resource.removeprefix(_COLLECTION)


def update_request(
    name: str, settings: Mapping[str, float], reset: Iterable[str], etag: str | None, validate_only: bool
) -> pb.UpdateRouteRequest:
    """Raises ValueError for a key that is both set and reset, or if there is nothing to do."""
    back = _keys(reset)
    both = sorted(back & settings.keys())
    if both:
        raise ValueError(f'the setting "{both[0]}" is given a value and is to be reset; give one of the two')
    if not settings and not back:
        raise ValueError("nothing to change; give settings={...} or reset=[...], or call reset_route")
    request = pb.UpdateRouteRequest(validate_only=validate_only)
    request.route.CopyFrom(pb.Route(name=resource_name(name), etag=etag or "", settings=settings))
    if back:
        request.update_mask.paths.extend(f"settings.{key}" for key in sorted(back | settings.keys()))
    return request


def reset_request(name: str, etag: str | None) -> pb.UpdateRouteRequest:
    request = pb.UpdateRouteRequest(route=pb.Route(name=resource_name(name), etag=etag or ""))
    request.update_mask.paths.append("settings")
    return request


def apply(routes: Mapping[str, Route], message: pb.WatchRoutesResponse) -> dict[str, Route]:
    """All routes by name, after what has changed of them."""
    gone = {route_name(name) for name in message.removed}
    kept = {name: route for name, route in routes.items() if name not in gone}
    changed = map(Route.from_message, message.routes)
    return dict(sorted({**kept, **{route.name: route for route in changed}}.items()))


def _keys(reset: Iterable[str]) -> set[str]:
    if isinstance(reset, str):
        raise TypeError("reset= takes the keys as a list, got a single str")
    return set(reset)


def _model(message: pb.RouteModel) -> RouteModel:
    role = _said(pb.RouteModelRole, message.role, "ROUTE_MODEL_ROLE_")
    return RouteModel(message.name, message.version, message.resolved_version, role, message.label)


def _said(enum: Any, number: int, prefix: str) -> str:
    """Empty where the server says nothing."""
    return enum_name(enum, number, prefix).lower() if number else ""


def _time(message: Message, name: str) -> datetime | None:
    return getattr(message, name).ToDatetime(UTC) if message.HasField(name) else None
