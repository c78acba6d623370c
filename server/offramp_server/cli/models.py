"""`offramp models`: what a server's repository holds, and loading and unloading it."""

from __future__ import annotations

import argparse
import dataclasses
import json

from offramp_client import Client, IndexEntry, NotFound
from offramp_common.tables import table

from offramp_server.cli.commands import Commands
from offramp_server.cli.connection import call_timeout, connect, server_options


def add_to(commands: Commands) -> None:
    parser = commands.add_parser("models", help="list, load and unload a server's models")
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    server = server_options()

    listing = actions.add_parser("list", parents=[server], help="show the repository's models and routes")
    listing.add_argument("--ready", action="store_true", help="only those that can answer")
    listing.add_argument(
        "--verbose", "-v", action="store_true", help="also what is known of each: engine, labels, where it comes from"
    )
    listing.add_argument("--json", action="store_true", help="print JSON")
    listing.set_defaults(run=run_list)

    load = actions.add_parser("load", parents=[server], help="load a model or route, or what has changed in its folder")
    load.add_argument("name", metavar="NAME")
    load.set_defaults(run=run_load)

    unload = actions.add_parser("unload", parents=[server], help="take a model or route out of service")
    unload.add_argument("name", metavar="NAME")
    unload.set_defaults(run=run_unload)


def run_list(options: argparse.Namespace) -> int:
    with connect(options) as client:
        entries = client.repository_index(ready=options.ready)
        known = [_known(client, entry) for entry in entries] if options.verbose else [{} for _ in entries]
    if options.json:
        print(json.dumps([_as_json(entry, pairs) for entry, pairs in zip(entries, known, strict=True)], indent=2))
        return 0
    rows = [(entry.name, entry.version, entry.state, entry.reason) for entry in entries]
    print(table(("NAME", "VERSION", "STATE", "REASON"), rows))
    for entry, pairs in zip(entries, known, strict=True):
        if pairs:
            print(f"\n{entry.name} {entry.version}")
            print("\n".join(f"  {key} = {value}" for key, value in pairs.items()))
    return 0


def _known(client: Client, entry: IndexEntry) -> dict[str, str]:
    """The pairs of a model's configuration, in the order of their names."""
    try:
        return dict(sorted(client.model_config(entry.name, entry.version).parameters.items())) if entry.ready else {}
    except NotFound:
        # It has gone since it was listed.
        return {}


def _as_json(entry: IndexEntry, pairs: dict[str, str]) -> dict[str, object]:
    return {**dataclasses.asdict(entry), **({"parameters": pairs} if pairs else {})}


def run_load(options: argparse.Namespace) -> int:
    with connect(options) as client:
        client.load_model(options.name, **call_timeout(options))
    print(f"loaded {options.name}")
    return 0


def run_unload(options: argparse.Namespace) -> int:
    with connect(options) as client:
        client.unload_model(options.name, **call_timeout(options))
    print(f"unloaded {options.name}")
    return 0
