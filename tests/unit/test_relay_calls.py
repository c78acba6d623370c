"""Calls over a link end as they would without one, and neither side gets far ahead of the other."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import pytest
from eventually import eventually_here
from native_client import Handlers
from offramp_common.grpc_framing.messages import Packed
from offramp_server.transport.interface import CallContext, CallFailed, Code, Method
from offramp_server.transport.relay.relayed_call import WINDOW_BYTES
from relay_pair import Context, Sent, linked
from scheduling_fakes import settle

MESSAGE = bytes(10_000)


async def failure(call: Any) -> CallFailed:
    with pytest.raises(CallFailed) as caught:
        await call
    return caught.value


class Told(Handlers):
    """Keeps what it is told of a call, and says something besides its answer."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[Any, ...]] = []

    async def echo(self, request: bytes, context: CallContext) -> bytes:
        self.seen.append((context.peer, context.identity, dict(context.metadata), context.deadline))
        context.set_trailing("said", "yes")
        if request == b"fail":
            raise CallFailed(Code.NOT_FOUND, "nothing ☃ here", {"why": "because"})
        return request


async def test_a_handler_is_told_what_the_front_end_knows_and_is_heard_there() -> None:
    handlers = Told()
    async with linked(handlers=handlers) as pair:
        fields = [(b"key", b"old"), (b"key", b"new"), (b"raw-bin", b"AP8")]
        deadline = asyncio.get_running_loop().time() + 60
        context = Context(deadline, fields, identity="alice")
        assert await pair.ask("echo", b"hello", context) == b"hello"
        assert context.trailing == [("said", "yes")]
        [(peer, identity, metadata, there)] = handlers.seen
        assert (peer, identity, metadata) == (context.peer, "alice", {"key": "new", "raw-bin": b"\0\xff"})
        assert there == pytest.approx(deadline, abs=30)


async def test_a_failure_has_its_code_message_and_trailing_metadata() -> None:
    async with linked(handlers=Told()) as pair:
        context = Context()
        failed = await failure(pair.ask("echo", b"fail", context))
        assert (failed.code, failed.message) == (Code.NOT_FOUND, "nothing ☃ here")
        assert context.trailing == [("said", "yes"), ("why", "because")]


async def test_metadata_that_is_none_fails_who_asks_for_it() -> None:
    async with linked(handlers=Told()) as pair:
        failed = await failure(pair.ask("echo", b"x", Context(fields=[(b"raw-bin", b"!")])))
        assert failed.code is Code.INVALID_ARGUMENT


async def test_a_large_message_keeps_no_small_one_waiting() -> None:
    large = bytes(range(256)) * 64 * 1024
    async with linked(max_message_bytes=len(large)) as pair:
        ends: list[str] = []
        slow, quick = pair.ask("echo", large), pair.ask("echo", b"small")
        slow.add_done_callback(lambda _: ends.append("large"))
        quick.add_done_callback(lambda _: ends.append("small"))
        assert await quick == b"small"
        assert await slow == large
        assert ends == ["small", "large"]


async def test_an_answer_over_the_limit_is_refused() -> None:
    async with linked(max_message_bytes=1000) as pair:
        assert (await failure(pair.ask("echo", bytes(1001)))).code is Code.RESOURCE_EXHAUSTED
        assert await pair.ask("echo", bytes(1000)) == bytes(1000)
        answers = pair.stream("flood", b"")
        assert (await failure(anext(answers))).code is Code.RESOURCE_EXHAUSTED


async def test_requests_that_the_server_does_not_take_are_refused_when_there_are_too_many() -> None:
    async with linked() as pair:
        pair.upstream.max_waiting_bytes = 1_000_000
        with pair.held_back():
            waiting = [pair.ask("echo", bytes(900_000)) for _ in range(3)]
            await settle()
            failed = await failure(pair.ask("echo", b"x"))
            assert failed.code is Code.RESOURCE_EXHAUSTED
        ends = await asyncio.gather(*waiting, return_exceptions=True)
        assert ends[0] == bytes(900_000)


# Deadlines and cancellation


@pytest.mark.parametrize("name", ["wait", "wait-in-a-task"])
async def test_the_server_ends_a_call_whose_time_is_up_by_itself(name: str) -> None:
    async with linked() as pair:
        soon = Context(asyncio.get_running_loop().time() + 0.005)
        assert (await failure(pair.ask(name, b"x", soon))).code is Code.DEADLINE_EXCEEDED
        await pair.idle()
        assert pair.handlers.cancelled == 1


@pytest.mark.parametrize("name", ["wait", "wait-in-a-task"])
async def test_who_gives_up_cancels_the_handler(name: str) -> None:
    async with linked() as pair:
        call = pair.ask(name, b"x")
        await eventually_here(lambda: pair.handlers.running == 1)
        call.cancel()
        await asyncio.wait([call])
        assert (call.cancelled(), pair.handlers.cancelled, pair.relayed.running) == (True, 1, 0)


async def test_a_handler_that_outlives_its_call_counts_in_the_front_end_until_it_ends() -> None:
    async with linked() as pair:
        call = pair.ask("stubborn", b"x")
        await eventually_here(lambda: pair.handlers.running == 1)
        call.cancel()
        await eventually_here(lambda: pair.handlers.cancelled == 1)
        await settle()
        assert not call.done()
        pair.handlers.release.set()
        await asyncio.wait([call])
        assert call.cancelled()


async def test_a_call_that_is_given_up_before_it_was_handed_over_never_runs() -> None:
    async with linked() as pair:
        call = pair.ask("echo", bytes(900_000))
        with pair.held_back():
            await settle()
            call.cancel()
            await settle()
        await asyncio.wait([call])
        assert call.cancelled()
        assert pair.upstream.link.waiting_bytes == 0


async def test_an_answer_that_nobody_wants_any_more_is_not_sent() -> None:
    async with linked(max_message_bytes=10_000_000) as pair:
        link = pair.relayed.link
        with pair.held_back(pair.upstream):
            call = pair.ask("echo", bytes(10_000_000))
            await eventually_here(lambda: link.waiting_bytes == 10_000_000)
            call.cancel()
            await eventually_here(lambda: link.waiting_bytes < 1_000_000)
        await asyncio.wait([call])
        assert call.cancelled()


class Careful(Handlers):
    """Says whether the client had said that there are no more requests."""

    def __init__(self) -> None:
        super().__init__()
        self.ends: list[str] = []

    async def each(self, requests: AsyncIterator[bytes], context: CallContext) -> AsyncIterator[bytes]:
        try:
            async for request in requests:
                yield request
        except asyncio.CancelledError:
            self.ends.append("cancelled")
            raise
        self.ends.append("complete")


@pytest.mark.parametrize("ending", ["complete", "cancelled"])
async def test_a_stream_that_is_taken_back_is_not_one_that_is_complete(ending: str) -> None:
    handlers = Careful()
    async with linked(handlers=handlers) as pair:
        requests = Sent()
        answers = pair.stream("each", requests)
        requests.add(b"one")
        assert await anext(answers) == b"one"
        if ending == "complete":
            requests.end()
            assert [answer async for answer in answers] == []
        else:
            # As a front end does with a call that its client resets, however long it takes to the second step.
            waiting = asyncio.create_task(anext(answers))
            await settle()
            requests.drop()
            await settle()
            waiting.cancel()
            await asyncio.wait([waiting])
        assert handlers.ends == [ending]


class Collecting(Handlers):
    async def collect(self, requests: AsyncIterator[bytes], context: CallContext) -> bytes:
        return b"".join([request async for request in requests])


@pytest.mark.parametrize("name", ["each", "collect"])
async def test_a_request_that_cannot_be_unpacked_fails_its_call(name: str) -> None:
    handlers = Collecting()
    collect = Method("collect", "/s/collect", "bytes", bytes, True, False, handlers.collect)
    async with linked(handlers=handlers, more=(collect,)) as pair:
        requests = Sent()
        requests.add(b"one")
        requests.add(Packed(b"no gzip" * 1000, "gzip", 1_000_000))
        if name == "each":
            answers = pair.stream(name, requests)
            assert await anext(answers) == b"one"
            failed = await failure(anext(answers))
        else:
            failed = await failure(pair.ask(name, requests))
        assert (failed.code, "is not gzip" in failed.message) == (Code.INTERNAL, True)


# Neither side gets far ahead


async def test_a_handler_is_not_far_ahead_of_a_client_that_reads_slowly() -> None:
    async with linked() as pair:
        answers = pair.stream("flood", b"")
        await anext(answers)
        await settle()
        ahead = len(pair.handlers.read)
        assert ahead * len(MESSAGE) <= 2 * WINDOW_BYTES
        # It goes on as the client reads, and no faster.
        for _ in range(200):
            await anext(answers)
        await settle()
        assert 200 < len(pair.handlers.read) <= 200 + ahead
        await answers.aclose()


@pytest.mark.parametrize("size", [0, 10_000, 300_000])
async def test_a_client_is_not_far_ahead_of_a_handler_that_reads_slowly(size: int) -> None:
    count = 10_000 if size == 0 else 200
    async with linked() as pair:
        requests = Sent()
        for _ in range(count):
            requests.add(bytes(size))
        requests.end()
        answers = pair.stream("slow_reader", requests)
        answer = asyncio.create_task(anext(answers))
        await eventually_here(lambda: pair.relayed.running == 1)
        for _ in range(20):
            await settle()
        sent = count * (size + 64) - requests.unread_bytes
        assert sent <= WINDOW_BYTES + 2 * (size + 64)
        pair.handlers.release.set()
        assert await answer == b"read"
        assert [len(each) for each in pair.handlers.read] == [size] * count
        await answers.aclose()


async def test_what_the_server_keeps_of_a_client_counts_in_the_front_end_until_a_handler_has_it() -> None:
    async with linked() as pair:
        requests, context = Sent(), Context()
        requests.add(bytes(900_000))
        requests.add(b"beyond the window")
        requests.end()
        answers = pair.stream("slow_reader", requests, context)
        answer = asyncio.create_task(anext(answers))
        await eventually_here(lambda: context.held >= 900_000)
        # What has come is not what has been taken.
        await eventually_here(lambda: pair.upstream.link.waiting_bytes == 0)
        for _ in range(20):
            await settle()
        assert context.held >= 900_000
        pair.handlers.release.set()
        assert await answer == b"read"
        assert context.held == 0
        await answers.aclose()


async def test_a_stream_of_large_messages_goes_through() -> None:
    async with linked() as pair:
        requests = Sent()
        answers = pair.stream("each", requests)
        for number in range(10):
            requests.add(bytes([number]) * 900_000)
        requests.end()
        assert [answer[:1] async for answer in answers] == [bytes([number]) for number in range(10)]


# The end


async def test_when_the_link_is_lost_handlers_are_cancelled_and_callers_are_told() -> None:
    async with linked() as pair:
        calls = [pair.ask("wait", b"x"), pair.ask("wait-in-a-task", b"x")]
        requests = Sent()
        answers = pair.stream("each", requests)
        requests.add(b"one")
        await anext(answers)
        await eventually_here(lambda: pair.handlers.running == 2)
        pair.relayed.link.abort()
        for call in (*calls, anext(answers)):
            assert (await failure(call)).code is Code.UNAVAILABLE
        await pair.idle()
        assert pair.handlers.cancelled == 2
        assert (await failure(pair.ask("echo", b"x"))).code is Code.UNAVAILABLE


async def test_nothing_is_kept_of_calls_whatever_crosses_on_its_way() -> None:
    async with linked() as pair:
        for turns in range(30):
            call = pair.ask("echo", bytes(200_000))
            for _ in range(turns):
                await asyncio.sleep(0)
            call.cancel()
            with suppress(asyncio.CancelledError):
                await call
        await pair.idle()
        assert pair.upstream.link.waiting_bytes == pair.relayed.link.waiting_bytes == 0
