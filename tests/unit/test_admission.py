"""Who gets into the server, and when it is empty."""

from __future__ import annotations

import asyncio

import pytest
from offramp_server.errors import Overloaded
from offramp_server.scheduling.admission import Admission
from scheduling_fakes import settle


async def test_whoever_comes_after_the_last_permit_is_refused_until_one_is_given_back() -> None:
    admission = Admission(2)
    admission.acquire()
    admission.acquire()
    with pytest.raises(Overloaded, match="2 requests are in flight") as refusal:
        admission.acquire()
    assert refusal.value.retry_after > 0
    admission.release()
    admission.acquire()
    assert admission.in_flight == 2


async def test_the_server_is_empty_when_the_last_has_left_and_not_before() -> None:
    admission = Admission(2)
    admission.acquire()
    admission.acquire()
    waiting = asyncio.create_task(admission.wait_empty(60))
    await settle()
    admission.release()
    await settle()
    assert not waiting.done()
    admission.release()
    assert await waiting
    assert await admission.wait_empty(0)


async def test_waiting_for_those_who_stay_ends_with_the_time_given() -> None:
    admission = Admission(1)
    admission.acquire()
    assert not await admission.wait_empty(0.01)
