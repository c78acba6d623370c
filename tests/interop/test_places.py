"""Where clients find the server, and how they know each other: Unix sockets, IPv6, TLS, mutual TLS."""

from __future__ import annotations

import json
import socket
import ssl
from collections.abc import Callable
from typing import Any

import pytest
from calling import Call, Channel, Opening, Tls
from client_certificates import Authority, KeyPair
from echo import EchoServer
from echo_server import SERVICE
from eventually import PATIENCE
from offramp_server.transport.interface import Code
from python_clients import client_context

from clients import TLS_VERSION

Opened = Callable[[Opening], Channel]
LARGE = bytes(300_000)


def seen(channel: Channel) -> Any:
    """What the server knows of the caller, who can send and get large messages."""
    assert channel.begin(Call(SERVICE + "unary", (LARGE,))).outcome().answers == (LARGE,)
    ended = channel.begin(Call(SERVICE + "describe")).outcome()
    assert (ended.code, ended.message) == (Code.OK, "")
    return json.loads(ended.answers[0])


def refusal(channel: Channel) -> Code:
    return channel.begin(Call(SERVICE + "unary")).outcome().code


@pytest.mark.parametrize(("listener", "peer"), [("plain", "ipv4:127.0.0.1:"), ("ipv6", "ipv6:["), ("unix", "unix:")])
def test_over_each_kind_of_socket(opened: Opened, echo: EchoServer, listener: str, peer: str) -> None:
    found = seen(opened(Opening(echo.targets[listener])))
    # gRPC's core has the brackets percent-encoded.
    assert found["peer"].replace("%5B", "[").startswith(peer)
    assert found["identity"] is None


def test_tls(opened: Opened, echo: EchoServer) -> None:
    target = echo.targets["tls"]
    assert seen(opened(Opening(target, Tls(echo.authority.certificate))))["identity"] is None
    assert refusal(opened(Opening(target, Tls(Authority().certificate)))) is Code.UNAVAILABLE
    assert refusal(opened(Opening(target))) is Code.UNAVAILABLE


@pytest.mark.needs(TLS_VERSION)
@pytest.mark.parametrize("version", ["TLSv1.2", "TLSv1.3"])
def test_versions_of_tls(opened: Opened, echo: EchoServer, version: str) -> None:
    seen(opened(Opening(echo.targets["tls"], Tls(echo.authority.certificate, version=version))))


def test_mutual_tls_knows_its_clients(opened: Opened, echo: EchoServer) -> None:
    tls = proving(echo, echo.authority.sign("alice"))
    assert seen(opened(Opening(echo.targets["mutual"], tls)))["identity"] == "alice"


@pytest.mark.parametrize("proof", ["none", "a stranger's", "an expired one"])
def test_mutual_tls_refuses_who_proves_nothing(opened: Opened, echo: EchoServer, proof: str) -> None:
    tls = {
        "none": Tls(echo.authority.certificate),
        "a stranger's": proving(echo, Authority().sign("alice")),
        "an expired one": proving(echo, echo.authority.sign("alice", expired=True)),
    }[proof]
    assert refusal(opened(Opening(echo.targets["mutual"], tls))) is Code.UNAVAILABLE


def proving(echo: EchoServer, pair: KeyPair) -> Tls:
    return Tls(echo.authority.certificate, pair.certificate, pair.key)


@pytest.mark.parametrize("protocols", [[], ["http/1.1"]])
def test_who_does_not_ask_for_http2_in_its_handshake_is_disconnected(echo: EchoServer, protocols: list[str]) -> None:
    context = client_context(Tls(echo.authority.certificate), protocols)
    assert first_byte(echo.targets["tls"], context) == b""
    assert first_byte(echo.targets["tls"], client_context(Tls(echo.authority.certificate))) != b""


def first_byte(target: str, context: ssl.SSLContext) -> bytes:
    """What the server says to the beginning of HTTP/2; nothing if it hangs up."""
    host, _, port = target.rpartition(":")
    try:
        with (
            socket.create_connection((host, int(port)), PATIENCE) as plain,
            context.wrap_socket(plain, server_hostname=host) as secured,
        ):
            secured.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes.fromhex("000000040000000000"))
            return secured.recv(1)
    except (ssl.SSLError, ConnectionError):
        return b""
