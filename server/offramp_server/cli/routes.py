"""`offramp routes`: the routes of a server, and their settings while they run."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from offramp_client import DeadlineExceeded, Route

from offramp_server.cli import route_views
from offramp_server.cli.commands import Commands
from offramp_server.cli.connection import connect, server_options
from offramp_server.cli.failures import UsageError, usage_errors

DESCRIPTION = """\
Show the routes of a running server, or change their settings while they run:
thresholds, weights, shares, the rate of audits. A change is for the requests that
come from then on, and outlasts restarts, until route.toml is changed. Without
ACTION: list.
"""


def add_to(commands: Commands) -> None:
    parser = commands.add_parser(
        "routes",
        parents=[server_options()],
        help="show and change a server's routes",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_json(parser, inherited=False)
    parser.set_defaults(run=run_list)
    actions = parser.add_subparsers(metavar="ACTION")
    _add(actions, "list", run_list, "show all routes")
    _add_name(_add(actions, "get", run_get, "show one route"))
    _add_set(actions)
    reset = _add_name(_add(actions, "reset", run_reset, "take settings back to what route.toml says"))
    reset.add_argument("keys", nargs="*", metavar="KEY", help="only these; default: all")
    _add_etag(reset)
    watch = _add(actions, "watch", run_watch, "show routes as they are and each change, until Ctrl-C or --timeout")
    watch.add_argument("name", nargs="?", metavar="NAME", help="only this route")
    history = _add_name(_add(actions, "history", run_history, "show who has changed what, the latest first"))
    history.add_argument("--limit", type=int, default=20, metavar="N", help="at most so many (default 20)")


def _add(actions: Commands, name: str, run: Any, words: str) -> argparse.ArgumentParser:
    parser = actions.add_parser(name, parents=[server_options(inherited=True)], help=words, description=f"{words}.")
    _add_json(parser, inherited=True)
    parser.set_defaults(run=run)
    return parser


def _add_set(actions: Commands) -> None:
    parser = _add_name(_add(actions, "set", run_set, "change settings, all that are given or none"))
    parser.add_argument("settings", nargs="+", type=_setting, metavar="KEY=NUMBER",
                        help="for example threshold.student=0.9 audit_rate=0.01")  # fmt: skip
    parser.add_argument("--check", action="store_true", help="only check, and show what the route would be")
    _add_etag(parser)


def _add_name(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    parser.add_argument("name", metavar="NAME")
    return parser


def _add_json(parser: argparse.ArgumentParser, inherited: bool) -> None:
    default = argparse.SUPPRESS if inherited else False
    parser.add_argument("--json", action="store_true", default=default, help="print JSON")


def _add_etag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--etag", metavar="ETAG", help="only if the route has not changed since it had this etag")


def run_list(options: argparse.Namespace) -> int:
    with connect(options) as client:
        routes = client.routes()
    print(_json([_plain(route) for route in routes]) if options.json else route_views.overview(routes))
    return 0


def run_get(options: argparse.Namespace) -> int:
    with connect(options) as client:
        _show(client.route(options.name), options)
    return 0


def run_set(options: argparse.Namespace) -> int:
    with connect(options) as client, usage_errors():
        route = client.update_route(
            options.name, _settings(options.settings), etag=options.etag, validate_only=options.check
        )
    _show(route, options)
    return 0


def run_reset(options: argparse.Namespace) -> int:
    with connect(options) as client:
        if options.keys:
            route = client.update_route(options.name, reset=options.keys, etag=options.etag)
        else:
            route = client.reset_route(options.name, etag=options.etag)
    _show(route, options)
    return 0


def run_watch(options: argparse.Namespace) -> int:
    before: Mapping[str, Route] = {}
    states: Iterable[Mapping[str, Route]]
    with connect(options) as client:
        if options.name:
            states = ({route.name: route} for route in client.watch_route(options.name, timeout=options.timeout))
        else:
            states = client.watch_routes(timeout=options.timeout)
        try:
            for state in states:
                _show_changes(before, state, options.json)
                before = state
        except DeadlineExceeded:
            # The time to watch that was asked for.
            return 0
    return 0


def run_history(options: argparse.Namespace) -> int:
    with connect(options) as client, usage_errors():
        changes = client.route_changes(options.name, limit=options.limit)
    print(_json([_plain(change) for change in changes]) if options.json else route_views.history(changes))
    return 0


def _show(route: Route, options: argparse.Namespace) -> None:
    print(_json(_plain(route)) if options.json else route_views.one(route))


def _show_changes(before: Mapping[str, Route], now: Mapping[str, Route], as_json: bool) -> None:
    for name, route in now.items():
        if before.get(name) != route:
            print(json.dumps(_plain(route), default=_time) if as_json else route_views.line(route), flush=True)
    for name in before.keys() - now.keys():
        print(json.dumps({"name": name, "removed": True}) if as_json else route_views.gone(name), flush=True)


def _setting(text: str) -> tuple[str, float]:
    key, _, value = text.partition("=")
    try:
        return key, float(value)
    except ValueError:
        raise argparse.ArgumentTypeError(f'expected KEY=NUMBER, as threshold.student=0.9, got "{text}"') from None


def _settings(pairs: list[tuple[str, float]]) -> dict[str, float]:
    settings = dict(pairs)
    if len(settings) < len(pairs):
        raise UsageError("routes set: a setting is given twice")
    return settings


def _plain(record: Any) -> dict[str, object]:
    return dataclasses.asdict(record)


def _json(document: object) -> str:
    return json.dumps(document, indent=2, default=_time)


def _time(value: datetime) -> str:
    return value.isoformat()
