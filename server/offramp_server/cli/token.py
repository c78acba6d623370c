"""`offramp token`: make a bearer token."""

from __future__ import annotations

import argparse
import hashlib
import secrets
import sys

from offramp_common.toml_schema import bind

from offramp_server.cli.commands import Commands
from offramp_server.config import TokenSettings

TOKEN_BYTES = 32
DESCRIPTION = """\
Make a random bearer token. It is shown on standard error, once, and is kept
nowhere. Standard output gets the table for the server's configuration file,
which holds its sha256; in a file named by auth.tokens_file the table is called
[[tokens]].
"""


def add_to(commands: Commands) -> None:
    parser = commands.add_parser(
        "token",
        help="make a bearer token",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", help="whose token it is; shown in the server's log")
    parser.add_argument("--role", choices=["infer", "admin"], required=True,
                        help="infer: call models; admin: load and unload them as well")  # fmt: skip
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    token = secrets.token_urlsafe(TOKEN_BYTES)
    digest = hashlib.sha256(token.encode()).hexdigest()
    table = {"name": options.name, "role": options.role, "sha256": digest}
    # The server's own rules, so that it will take what is printed here.
    bind(TokenSettings, table, "command line")
    print(f"token, shown only now: {token}", file=sys.stderr)
    print("[[auth.tokens]]", *(f'{key} = "{value}"' for key, value in table.items()), sep="\n")
    return 0
