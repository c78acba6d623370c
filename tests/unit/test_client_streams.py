"""What an app that streams requests over one call relies on, with the blocking and with the asyncio client."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import numpy as np
import pytest
from client_fakes import KINDS, FakeServer, client_of
from eventually import PATIENCE
from offramp_client import AsyncClient, InferRequest, errors

Connect = Callable[..., Any]


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer() as server:
        yield server


@pytest.fixture(params=KINDS)
def connect(request: pytest.FixtureRequest, server: FakeServer) -> Iterator[Connect]:
    made: list[Any] = []

    def connect(**options: Any) -> Any:
        made.append(client_of(request.param, server.target, **options))
        return made[-1]

    yield connect
    for client in made:
        client.close()


def numbered(count: int, model: str = "echo") -> list[InferRequest]:
    return [InferRequest(model, {"x": np.array([i])}, request_id=str(i)) for i in range(count)]


def endless() -> Iterator[InferRequest]:
    """One request, and then nothing while the stream stays open."""
    yield from numbered(1)
    threading.Event().wait(30)


async def endless_async() -> AsyncIterator[InferRequest]:
    yield numbered(1)[0]
    await asyncio.Event().wait()


def test_answers_come_in_the_order_of_the_requests(connect: Connect) -> None:
    answers = list(connect().infer_stream(numbered(100)))

    assert [(answer.id, int(answer["x"][0]), answer.error) for answer in answers] == [
        (str(i), i, None) for i in range(100)
    ]


def test_a_stream_without_requests_has_no_answers(connect: Connect) -> None:
    assert list(connect().infer_stream([])) == []


def test_a_request_that_fails_does_not_disturb_the_others(connect: Connect) -> None:
    good, bad, last = connect().infer_stream([*numbered(1), *numbered(1, "busy"), *numbered(1)])

    assert (good["x"], last["x"]) == (np.array([0]), np.array([0]))
    assert isinstance(bad.error, errors.ResourceExhausted)
    assert (bad.id, bad.error.message) == ("0", 'no model "busy"')
    assert (bad.error.retry_after, bad.error.request_id) == (0.5, "r-1")
    with pytest.raises(errors.ResourceExhausted):
        bad["x"]
    with pytest.raises(errors.ResourceExhausted):
        _ = bad.outputs


def test_an_error_that_the_server_does_not_classify_is_unknown(connect: Connect) -> None:
    (answer,) = connect().infer_stream(numbered(1, "nobody"))
    assert (type(answer.error), str(answer.error)) == (errors.Unknown, 'no model "nobody"')


def test_the_end_of_the_stream_by_an_error_is_raised_and_not_tried_again(connect: Connect, server: FakeServer) -> None:
    answers = connect().infer_stream([*numbered(1), *numbered(1, "broken stream"), *numbered(1)])

    assert next(answers).error is None
    with pytest.raises(errors.Unavailable, match="draining"):
        next(answers)
    assert [request.model_name for _, request, *_ in server.seen] == ["echo", "broken stream"]


def test_the_servers_reason_is_told_even_if_it_ends_the_stream_while_requests_are_written(connect: Connect) -> None:
    client = connect()
    for _ in range(10):
        answers = client.infer_stream([*numbered(1, "broken stream"), *numbered(200)])
        with pytest.raises(errors.Unavailable, match="draining"):
            next(answers)


def test_an_exception_of_the_callers_own_comes_after_the_answers_before_it(connect: Connect) -> None:
    def requests() -> Iterator[InferRequest]:
        yield from numbered(2)
        raise LookupError("no more images")

    answers = connect().infer_stream(requests())

    assert [next(answers).id, next(answers).id] == ["0", "1"]
    with pytest.raises(LookupError, match="no more images"):
        next(answers)


@pytest.mark.parametrize(
    ("request_", "sentence"),
    [
        (InferRequest("echo", {"x": np.zeros(1, complex)}), '"x": numpy type complex128 does not travel'),
        (InferRequest("echo", {}, timeout=-1.0), "a timeout is a positive number"),
    ],
)
def test_a_request_that_cannot_be_sent_comes_after_the_answers_before_it(
    connect: Connect, request_: InferRequest, sentence: str
) -> None:
    answers = connect().infer_stream([*numbered(1), request_])

    assert next(answers).id == "0"
    with pytest.raises((TypeError, ValueError), match=sentence):
        next(answers)


def test_each_request_tells_the_server_how_long_it_may_take(connect: Connect, server: FakeServer) -> None:
    own = InferRequest("echo", {}, timeout=0.25)
    list(connect(timeout=3.0).infer_stream([*numbered(1), own]))
    list(connect(timeout=None).infer_stream(numbered(1)))

    sent = [request.parameters["timeout"].int64_param for _, request, *_ in server.seen]
    assert sent == [3_000_000, 250_000, 0]


def test_a_stream_may_have_a_deadline_as_a_whole(connect: Connect) -> None:
    client = connect()
    answers = client.infer_stream(endless_async() if hasattr(client, "_runner") else endless(), timeout=0.2)

    with pytest.raises(errors.DeadlineExceeded):
        list(answers)


@pytest.mark.parametrize("timeout", [0, -1.0, float("nan")])
def test_a_deadline_that_is_none_is_refused_at_once(server: FakeServer, timeout: float) -> None:
    for client in (client_of("blocking", server.target), AsyncClient(server.target)):
        with pytest.raises(ValueError, match="a timeout is a positive number"):
            client.infer_stream([], timeout=timeout)


def test_a_caller_who_stops_listening_ends_the_call_on_the_server(server: FakeServer) -> None:
    with client_of("blocking", server.target) as client:
        answers = client.infer_stream(endless())
        next(answers)
        answers.close()
        assert server.cancelled.wait(PATIENCE)


async def test_an_asyncio_caller_who_stops_listening_ends_the_call_on_the_server(server: FakeServer) -> None:
    async with AsyncClient(server.target) as client:
        answers = client.infer_stream(endless_async())
        assert (await anext(answers)).id == "0"
        await answers.aclose()  # type: ignore[attr-defined]
        assert await asyncio.to_thread(server.cancelled.wait, PATIENCE)


async def test_requests_may_be_made_from_the_answers_before_them(server: FakeServer) -> None:
    queue: asyncio.Queue[int | None] = asyncio.Queue()

    async def requests() -> AsyncIterator[InferRequest]:
        while (number := await queue.get()) is not None:
            yield InferRequest("echo", {"x": np.array([number])})

    async with AsyncClient(server.target) as client:
        queue.put_nowait(1)
        numbers = []
        async for answer in client.infer_stream(requests()):
            numbers.append(int(answer["x"][0]))
            queue.put_nowait(numbers[-1] * 2 if numbers[-1] < 16 else None)

    assert numbers == [1, 2, 4, 8, 16]
