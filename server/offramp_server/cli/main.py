"""The command `offramp`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version

from offramp_client.errors import OfframpError as ServerError
from offramp_common.errors import OfframpError
from offramp_compression.cli import COMMANDS as COMPRESSION

from offramp_server.cli import (
    audits,
    bench,
    calibrate,
    check,
    doctor,
    fit_ensemble,
    infer,
    models,
    routes,
    serve,
    token,
    tune,
)
from offramp_server.cli.failures import Refused, UsageError

OK, REFUSED, USAGE, INTERRUPTED = 0, 1, 2, 130

EPILOG = """\
exit codes: 0 done; 1 the server refused, or a check found problems; 2 an
option, a file or the configuration cannot be used as given.
"offramp COMMAND --help" says more.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the process's exit code."""
    options = build_parser().parse_args(arguments)
    try:
        status: int = options.run(options)
        # Here, where a reader that has gone away can still be dealt with.
        sys.stdout.flush()
        return status
    except (UsageError, OfframpError) as error:
        return _fail(f"error: {error}", USAGE)
    except ServerError as error:
        return _fail(f"{error.code}: {error}", REFUSED)
    except Refused as error:
        return _fail(str(error), REFUSED)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # The interpreter flushes stdout once more when it ends, which would fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return REFUSED


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="offramp",
        description="Serve models over gRPC, talk to a server, and make smaller models out of good ones.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"offramp {version('offramp')}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in (
        serve,
        check,
        doctor,
        tune,
        models,
        routes,
        audits,
        infer,
        bench,
        token,
        calibrate,
        fit_ensemble,
        *COMPRESSION,
    ):
        command.add_to(commands)
    return parser


def _fail(message: str, status: int) -> int:
    print(f"offramp: {message}", file=sys.stderr)
    return status
