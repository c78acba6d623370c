"""Calls of our own channels to servers that follow a script."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from client_fakes import client_of
from offramp_client import RetryPolicy, errors
from open_inference import grpc_predict_v2_pb2 as pb
from scripted_server import Conversation, ScriptedServer

METADATA = pb.ServerMetadataResponse(name="scripted").SerializeToString()

NATIVE_KINDS = ("blocking native", "asyncio native")
Play = Callable[[Conversation, int], None]


def once(kind: str, target: str, **options: Any) -> Any:
    return client_of(kind, target, retries=RetryPolicy(max_attempts=1), **options)


def answering(play: Play) -> Callable[[Conversation], None]:
    """A script that plays with the first request, and waits for the client to go."""

    def script(server: Conversation) -> None:
        server.greet()
        play(server, server.request())
        server.until_gone()

    return script


def well(server: Conversation, number: int) -> None:
    server.answer(number, METADATA)


def raised(kind: str, play: Play, **options: Any) -> errors.OfframpError:
    """What a call ends with, of which the server makes this."""
    with (
        ScriptedServer(answering(play)) as server,
        once(kind, server.target, **options) as client,
        pytest.raises(errors.OfframpError) as caught,
    ):
        client.server_metadata()
    return caught.value


def framed(message: bytes, flag: int = 0) -> bytes:
    return bytes((flag,)) + len(message).to_bytes(4) + message
