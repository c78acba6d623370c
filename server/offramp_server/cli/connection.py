"""The options by which a command reaches a running server."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from offramp_client import TLS, AsyncClient, Client, RetryPolicy
from offramp_client.target import is_loopback

from offramp_server.cli.failures import UsageError, usage_errors

DEFAULT_TARGET = "localhost:8001"


def server_options(*, optional: bool = False, inherited: bool = False) -> argparse.ArgumentParser:
    """A parent parser for commands that are clients; `optional` for those that do without a server too.

    `inherited`: for an action of a command that has the options itself, which are then taken before and after it.
    """
    parser = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS if inherited else None)
    group = parser.add_argument_group("server")
    default = None if optional else os.environ.get("OFFRAMP_TARGET", DEFAULT_TARGET)
    words = f"default: OFFRAMP_TARGET, or {DEFAULT_TARGET}"
    if optional:
        words = "a running server; without it models run in this process"
    group.add_argument("--target", "--address", default=argparse.SUPPRESS if inherited else default,
                       metavar="HOST:PORT", help=words)  # fmt: skip
    group.add_argument("--timeout", type=float, metavar="SECONDS",
                       help="for one call; default 10, for loading and unloading 300")  # fmt: skip
    _add_token_options(group)
    group.add_argument("--tls", action="store_true", help="encrypt; trust the authorities that come with gRPC")
    group.add_argument("--tls-ca", metavar="PEM", help="encrypt; trust these authorities instead")
    group.add_argument("--tls-certificate", metavar="PEM", help="this client's certificate, for mutual TLS")
    group.add_argument("--tls-key", metavar="PEM", help="the certificate's private key")
    group.add_argument("--tls-server-name", metavar="NAME", help="what the certificate says, if not the target's host")
    return parser


def _add_token_options(group: argparse._ArgumentGroup) -> None:
    token = group.add_mutually_exclusive_group()
    token.add_argument("--token", help="bearer token; other users of this machine may see it, unlike OFFRAMP_TOKEN")
    token.add_argument("--token-file", type=Path, metavar="FILE", help="a file that holds the token")
    group.add_argument("--allow-insecure-token", action="store_true",
                       help="send the token to another machine without TLS")  # fmt: skip


def connect(options: argparse.Namespace) -> Client:
    with usage_errors():
        return Client(options.target, **_arguments(options))


def connect_async(options: argparse.Namespace) -> AsyncClient:
    """A client that never tries again, for a caller who counts what fails."""
    with usage_errors():
        return AsyncClient(options.target, retries=RetryPolicy(max_attempts=1), **_arguments(options))


def call_timeout(options: argparse.Namespace) -> dict[str, Any]:
    """The argument `timeout` of a call whose default is longer than that of others."""
    return {} if options.timeout is None else {"timeout": options.timeout}


def _arguments(options: argparse.Namespace) -> dict[str, Any]:
    tls, token = _tls(options), _token(options)
    if token and not (tls or options.allow_insecure_token or is_loopback(options.target)):
        raise UsageError(
            f'the token would go to "{options.target}" unencrypted; use --tls or --tls-ca, '
            "or --allow-insecure-token if something else encrypts the connection"
        )
    arguments = {"tls": tls, "token": token, "allow_insecure_token": options.allow_insecure_token}
    return {**arguments, **call_timeout(options)}


def _tls(options: argparse.Namespace) -> TLS | None:
    given = (options.tls_ca, options.tls_certificate, options.tls_key, options.tls_server_name)
    return TLS(*given) if options.tls or any(given) else None


def _token(options: argparse.Namespace) -> str | None:
    if options.token_file is not None:
        return str(options.token_file.read_text()).strip()
    return options.token or os.environ.get("OFFRAMP_TOKEN") or None
