"""What a connection may keep of what its peer does not read."""

from __future__ import annotations

import asyncio
import socket

from offramp_common.write_parts import write_parts


class Writer(asyncio.Protocol):
    def __init__(self) -> None:
        self.pauses = 0

    def pause_writing(self) -> None:
        self.pauses += 1


async def test_who_writes_in_parts_is_paused_while_nobody_reads() -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        transport, writer = await asyncio.get_running_loop().create_connection(Writer, sock=ours)
        write_parts(transport, [bytes(1_000_000)] * 3)
        transport.abort()
        assert writer.pauses == 1


async def test_parts_arrive_in_their_order() -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        transport, _ = await asyncio.get_running_loop().create_connection(Writer, sock=ours)
        write_parts(transport, [b"one", memoryview(b"two"), b"three"])
        assert theirs.recv(100) == b"onetwothree"
        transport.abort()
