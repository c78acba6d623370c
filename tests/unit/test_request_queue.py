"""What the queue and the timer of deadlines keep of requests that have ended: not much."""

from __future__ import annotations

import asyncio

from offramp_server.scheduling import expiry, queue
from offramp_server.scheduling.expiry import ExpiryTimer
from offramp_server.scheduling.queue import RequestQueue
from offramp_server.scheduling.work import Work
from scheduling_fakes import lane, work


async def test_a_queue_whose_head_never_moves_does_not_fill_up_with_cancelled_requests() -> None:
    waiting = RequestQueue(4)
    head = work(0, priority=1)
    waiting.push(head)
    for value in range(10 * queue.SWEEP_ABOVE):
        cancelled = work(value, sequence=value)
        waiting.push(cancelled)
        cancelled.future.cancel()
        waiting.discard(cancelled)
    assert waiting.requests == waiting.items == 1
    assert waiting._entries <= queue.SWEEP_ABOVE + 1
    assert waiting.take_batch(head) == [head]


async def test_the_timer_forgets_answered_requests_long_before_their_deadlines() -> None:
    expired: list[Work] = []
    loop = asyncio.get_running_loop()
    timer = ExpiryTimer(loop, lambda _, request: expired.append(request))
    model = lane()
    late = work(0)
    timer.watch(loop.time() + 1000, model, late)
    for value in range(3 * expiry.SWEEP_ABOVE):
        answered = work(value)
        timer.watch(loop.time() + 1000, model, answered)
        answered.future.cancel()
    assert len(timer._heap) <= expiry.SWEEP_ABOVE + 2
    assert late in [entry[3] for entry in timer._heap]
