"""What a thread got although nobody waits for it any more is given back."""

from __future__ import annotations

import asyncio
import threading

import pytest
from offramp_server.tuning.threads import undone_if_cancelled


@pytest.mark.parametrize("fails", [False, True])
async def test_what_is_cancelled_is_undone_once_it_was_done(fails: bool) -> None:
    begun, go_on, undone = asyncio.Event(), threading.Event(), list[str]()
    loop = asyncio.get_running_loop()

    def call() -> str:
        loop.call_soon_threadsafe(begun.set)
        go_on.wait()
        if fails:
            raise OSError("the disk is gone")
        return "held"

    waiting = asyncio.create_task(undone_if_cancelled(call, undone.append))
    await begun.wait()
    waiting.cancel()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert undone == ([] if fails else ["held"])


async def test_what_is_waited_for_is_returned_and_stays_done() -> None:
    undone = list[str]()
    assert await undone_if_cancelled(lambda: "held", undone.append) == "held"
    assert undone == []
