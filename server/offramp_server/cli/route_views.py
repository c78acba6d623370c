"""What `offramp routes` prints for people."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from offramp_client import Route, RouteChange, RouteModel, SettingChange
from offramp_common.tables import table


def overview(routes: Sequence[Route]) -> str:
    """One line for each route. A setting that is not what route.toml says has a star."""
    header = ("NAME", "KIND", "READY", "TARGETS", "EXITS", "SETTINGS")
    rows = [
        (
            route.name,
            route.kind,
            "yes" if route.ready else "no",
            ", ".join(dict.fromkeys(map(_target, route.models))),
            ", ".join(model.label for model in route.models if model.role == "stage"),
            " ".join(_settings(route)),
        )
        for route in routes
    ]
    notes = [f"\n{route.name}: {route.reason}" for route in routes if not route.ready]
    return table(header, rows) + "".join(notes)


def one(route: Route) -> str:
    facts = [
        ("name", route.name),
        ("kind", route.kind),
        ("ready", "yes" if route.ready else f"no: {route.reason}"),
        ("load level", route.load_level),
        ("epoch", str(route.epoch)),
        ("etag", route.etag),
        ("changed", f"{_time(route.updated_at)} by {route.updated_by}" if route.updated_at else "never while it ran"),
    ]
    parts = [table(*_split(facts)), table(*_models(route.models))]
    if route.settings:
        settings = [
            (key, f"{value:g}", f"{route.file_settings.get(key, value):g}") for key, value in route.settings.items()
        ]
        parts.append(table(("SETTING", "VALUE", "IN ROUTE.TOML"), sorted(settings), right=(1, 2)))
    return "\n\n".join(parts)


def line(route: Route) -> str:
    """A state of a route that is watched."""
    state = "ready" if route.ready else f"not ready: {route.reason};"
    words = [route.name, state, f"level={route.load_level}", f"epoch={route.epoch}", f"etag={route.etag}"]
    return " ".join([*words, *_settings(route)])


def gone(name: str) -> str:
    return f"{name} unloaded"


def history(changes: Sequence[RouteChange]) -> str:
    rows = [
        (str(change.number), _time(change.at), change.by, change.kind, ", ".join(map(_change, change.settings)))
        for change in changes
    ]
    return table(("NUMBER", "TIME", "BY", "KIND", "SETTINGS"), rows, right=(0,))


def _split(facts: Sequence[tuple[str, str]]) -> tuple[tuple[str, str], Sequence[tuple[str, str]]]:
    return facts[0], facts[1:]


def _models(models: Sequence[RouteModel]) -> tuple[Sequence[str], Sequence[Sequence[str]]]:
    rows = [
        (model.role, model.label, model.name, model.version or "latest", model.resolved_version) for model in models
    ]
    return ("ROLE", "LABEL", "MODEL", "VERSION", "RUNS NOW"), rows


def _target(model: RouteModel) -> str:
    version = model.version or model.resolved_version
    return f"{model.name}:{version}" if version else model.name


def _settings(route: Route) -> list[str]:
    return [
        f"{key}={value:g}{'*' if key in route.file_settings else ''}" for key, value in sorted(route.settings.items())
    ]


def _change(change: SettingChange) -> str:
    return f"{change.key} {_value(change.before)} -> {_value(change.after)}"


def _value(value: float | None) -> str:
    return "(none)" if value is None else f"{value:g}"


def _time(at: datetime | None) -> str:
    return "" if at is None else f"{at:%Y-%m-%d %H:%M:%S} UTC"
