"""What our own channels make of connections that end, stop, or are replaced while calls are in flight."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from eventually import PATIENCE, eventually
from http2_peer import data
from offramp_client import errors
from offramp_common.http2 import frames
from offramp_common.http2.errors import ErrorCode
from scripted_calls import answering, framed, once, well
from scripted_server import HEAD, Conversation, ScriptedServer


def _all_of(answers: Any) -> None:
    with suppress(errors.OfframpError):
        list(answers)


async def test_a_new_connection_is_heard_while_somebody_waits_for_the_old_one() -> None:
    """A stream goes on where it is after a server's farewell, for as long as it likes."""

    def draining(server: Conversation) -> None:
        server.greet()
        number = server.request()
        server.say(server.fields(number, *HEAD), data(number, framed(b"")))
        server.say(frames.goaway(number, ErrorCode.NO_ERROR, ""))
        server.until_gone()

    with ScriptedServer(draining, answering(well)) as server, ThreadPoolExecutor(1) as pool:
        client = once("blocking native", server.target, keepalive=None)
        answers = client.watch_routes()
        next(answers)
        pool.submit(_all_of, answers)
        exchange = client._channel._exchange
        await eventually(lambda: exchange._wanted is not None)
        try:
            assert client.server_metadata(timeout=PATIENCE / 4).name == "scripted"
        finally:
            client.close()
