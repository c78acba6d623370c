"""`offramp serve`: serve a model repository until a signal says stop."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from offramp_common.extras import needs_extra

from offramp_server.cli.commands import Commands
from offramp_server.config import load_settings

DESCRIPTION = """\
Serve the models and routes of a repository. Once all are loaded, one line is
printed:

  ready grpc=HOST:PORT http=HOST:PORT models=N

or grpc=unix:PATH, which is what clients take as well.

SIGTERM or Ctrl-C ends it in order: refuse new requests, finish those in flight,
stop the workers, exit with 0. A second signal ends it at once.
"""
EPILOG = """\
Every setting may also stand in the configuration file, or in the environment:
grpc_port of [server] is OFFRAMP_SERVER__GRPC_PORT. Options come first, then the
environment, then the file.
"""


def add_to(commands: Commands) -> None:
    parser = commands.add_parser(
        "serve",
        help="serve a model repository",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model-repository", type=Path, required=True, metavar="DIR")
    parser.add_argument("--config", type=Path, metavar="FILE", help="settings in TOML")
    # The destinations are the dotted keys that the options override.
    setting = parser.add_argument_group("settings").add_argument
    setting("--host", dest="server.host", metavar="HOST", help="address to listen on (default 127.0.0.1)")
    setting("--grpc-port", dest="server.grpc_port", type=int, metavar="PORT", help="default 8001; 0 takes a free one")
    setting("--grpc-socket", dest="server.grpc_socket", type=os.path.abspath, metavar="PATH",
            help="a Unix socket to serve gRPC on instead of host and port")  # fmt: skip
    setting("--http-port", dest="server.http_port", type=int, metavar="PORT",
            help="metrics and probes; default 8002; 0 takes a free one")  # fmt: skip
    setting("--front-ends", dest="server.front_ends", type=int, metavar="N",
            help="processes that speak gRPC at the port for the server (default 1: it does so itself)")  # fmt: skip
    setting("--in-process", dest="workers.mode", action="store_const", const="in-process",
            help="run models on a thread of the server: nothing contains a crash")  # fmt: skip
    setting("--no-tune", dest="engines.tune", action="store_const", const="never",
            help="compare no engines while models are loaded; what is remembered is used")  # fmt: skip
    setting("--poll-interval", dest="repository.poll_interval", type=float, metavar="SECONDS",
            help="look for changes of the repository so often (default: only when a client asks)")  # fmt: skip
    setting("--log-level", dest="logging.level", metavar="LEVEL", help="debug, info (default), warning or error")
    setting("--log-format", dest="logging.format", metavar="FORMAT", help="text (default) or json")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    overrides = {key: value for key, value in vars(options).items() if "." in key and value is not None}
    settings = load_settings(options.config, overrides)
    with needs_extra("server", "offramp serve"):
        from offramp_server import app
    return app.run(options.model_repository, settings)
