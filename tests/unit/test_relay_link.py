"""A link writes once in a turn of the loop, lets what is small pass what is large, and keeps the order of each call."""

from __future__ import annotations

import asyncio
from collections import defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st
from native_client import Socket
from offramp_server.transport.relay import frames
from offramp_server.transport.relay.frames import HEADER, FrameReader
from offramp_server.transport.relay.link import Link
from scheduling_fakes import settle

LARGE = bytes(range(256)) * 4096


class Peer:
    """Reads what a link writes, and puts messages together again."""

    def __init__(self, takers: dict[int, frames.Taker] | None = None) -> None:
        self.lost = 0
        self.link = Link(takers or {}, self._on_lost)
        self.socket = Socket()
        self.link.connection_made(self.socket)
        # In the order in which they were complete, and the kinds of all frames with their calls.
        self.messages: list[tuple[int, bytes]] = []
        self.frames: list[tuple[int, int]] = []
        self._parts: defaultdict[int, bytes] = defaultdict(bytes)
        self._reader = FrameReader({kind: self._taker(kind) for kind in range(1, frames.KINDS)})

    def _on_lost(self) -> None:
        self.lost += 1

    def _taker(self, kind: int) -> frames.Taker:
        def take(call: int, data: bytes, start: int, end: int) -> None:
            self.frames.append((kind, call))
            if kind == frames.PART:
                self._parts[call] += data[start:end]
            else:
                self.messages.append((call, self._parts.pop(call, b"") + data[start:end]))

        return take

    def hear(self) -> None:
        written, self.socket.written = self.socket.written, b""
        self._reader.feed(written)

    async def hear_all(self) -> None:
        await settle()
        while self.socket.written:
            self.hear()
            await settle()


async def test_what_is_sent_in_a_turn_is_one_write() -> None:
    peer = Peer()
    for call in range(20):
        peer.link.send(frames.ANSWER, call, b"x")
    await settle()
    assert peer.socket.writes == 1
    await peer.hear_all()
    assert peer.messages == [(call, b"x") for call in range(20)]


async def test_what_is_small_passes_what_is_large_and_large_messages_take_turns() -> None:
    peer = Peer()
    peer.link.send_message(frames.ANSWER, 1, LARGE)
    peer.link.send_message(frames.ANSWER, 2, LARGE)
    peer.link.send_message(frames.ANSWER, 3, b"small")
    await peer.hear_all()
    assert [call for call, _ in peer.messages] == [3, 1, 2]
    assert dict(peer.messages) == {1: LARGE, 2: LARGE, 3: b"small"}
    parts = [call for kind, call in peer.frames if kind == frames.PART]
    assert parts[:6] == [1, 2, 1, 2, 1, 2]


async def test_of_one_call_nothing_passes_anything() -> None:
    peer = Peer()
    peer.link.send_message(frames.MESSAGE, 1, LARGE)
    peer.link.send(frames.TRAILING, 1, b"t" * 100_000)
    peer.link.send(frames.END, 1)
    await peer.hear_all()
    assert peer.messages == [(1, LARGE), (1, b"t" * 100_000), (1, b"")]


async def test_a_socket_that_takes_nothing_is_given_nothing() -> None:
    peer = Peer()
    peer.link.pause_writing()
    peer.link.send_message(frames.ANSWER, 1, LARGE)
    peer.link.send(frames.ANSWER, 2, b"x")
    await settle()
    assert peer.socket.writes == 0
    assert peer.link.waiting_bytes == len(LARGE) + len(HEADER.pack(0, 0, 0)) + 1
    peer.link.resume_writing()
    await peer.hear_all()
    assert peer.messages == [(2, b"x"), (1, LARGE)]
    assert peer.link.waiting_bytes == 0


async def test_a_message_counts_until_all_of_it_has_gone() -> None:
    peer = Peer()
    peer.link.send_message(frames.ANSWER, 1, LARGE)
    await asyncio.sleep(0)
    peer.link.pause_writing()
    await settle()
    assert peer.socket.written
    assert peer.link.waiting_bytes == len(LARGE)


async def test_what_nobody_wants_any_more_is_not_sent() -> None:
    peer = Peer()
    peer.link.send_message(frames.ANSWER, 1, LARGE)
    peer.link.send(frames.END, 1)
    assert peer.link.forget(1)
    assert not peer.link.forget(1)
    await peer.hear_all()
    assert (peer.messages, peer.link.waiting_bytes) == ([], 0)


@pytest.mark.parametrize(
    "garbage", [HEADER.pack(0, 99, 1), HEADER.pack(0, frames.READY, 1)], ids=["unknown", "not for it"]
)
async def test_what_is_no_frame_ends_the_link(garbage: bytes) -> None:
    peer = Peer()
    peer.link.get_buffer(-1)[: len(garbage)] = garbage
    peer.link.buffer_updated(len(garbage))
    assert peer.socket.aborted
    peer.link.connection_lost(None)
    assert peer.lost == 1


async def test_a_link_that_is_lost_takes_what_is_sent_and_keeps_nothing() -> None:
    peer = Peer()
    peer.link.connection_lost(None)
    peer.link.send_message(frames.ANSWER, 1, LARGE)
    peer.link.send(frames.ANSWER, 2, b"x")
    await settle()
    assert (peer.socket.writes, peer.link.waiting_bytes) == (0, 0)


CALLS = st.integers(1, 4)
SEND = st.tuples(st.just("send"), CALLS, st.sampled_from([0, 1, 65_536, 65_537, 300_000]))
STEPS = st.lists(SEND | st.tuples(st.sampled_from(["pause", "resume", "turn", "forget"]), CALLS, st.just(0)))


@given(STEPS)
def test_every_message_arrives_whole_and_in_the_order_of_its_call(steps: list[tuple[str, int, int]]) -> None:
    asyncio.run(_arrive(steps))


async def _arrive(steps: list[tuple[str, int, int]]) -> None:
    peer = Peer()
    sent: defaultdict[int, list[bytes]] = defaultdict(list)
    # A call of which something was forgotten is over.
    over: set[int] = set()
    for number, (step, call, size) in enumerate(steps):
        if step == "send" and call not in over:
            message = bytes([number % 256]) * size
            sent[call].append(message)
            peer.link.send_message(frames.MESSAGE, call, message)
        elif step == "pause":
            peer.link.pause_writing()
        elif step == "resume":
            peer.link.resume_writing()
        elif step == "turn":
            await asyncio.sleep(0)
        elif step == "forget" and peer.link.forget(call):
            over.add(call)
    peer.link.resume_writing()
    await peer.hear_all()
    for call, messages in sent.items():
        arrived = [message for to, message in peer.messages if to == call]
        assert arrived == messages[: len(arrived)]
        assert call in over or len(arrived) == len(messages)
    assert peer.link.waiting_bytes == 0
