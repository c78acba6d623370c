"""What a request may expect of the scheduler, with time and computation moved by hand."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from offramp_server.errors import DeadlineExceeded, ModelFailed, Overloaded, Unavailable
from offramp_server.scheduling.batch import Batch
from offramp_server.scheduling.lane import Lane
from offramp_server.scheduling.scheduler import Scheduler
from offramp_server.scheduling.work import Answer, Work
from offramp_server.telemetry.stats import Stats
from scheduling_fakes import HandClock, HandExecutor, lane, on_hand_clock, settle, work


class Bench:
    """A scheduler with one lane and one executor."""

    def __init__(self, loop: HandClock, **spec_fields: Any) -> None:
        self.loop = loop
        self.stats = Stats()
        self.scheduler = Scheduler(self.stats, max_attempts=2, loop=loop)
        self.lane = lane(**spec_fields)
        self.scheduler.open_lane(self.lane)
        self.executor = HandExecutor(self.scheduler)
        self.scheduler.attach(self.executor)

    def ask(self, values: float | list[float], to: Lane | None = None, **fields: Any) -> asyncio.Task[Answer]:
        return asyncio.create_task(self.scheduler.run(to or self.lane, work(values, **fields)))


Scenario = Callable[[Bench], Coroutine[Any, Any, None]]


def play(scenario: Scenario, **spec_fields: Any) -> None:
    loop = HandClock()

    async def run() -> None:
        await scenario(Bench(loop, **spec_fields))

    on_hand_clock(run(), loop)


def values(task: asyncio.Task[Answer]) -> list[float]:
    return [float(value) for value in task.result().outputs[0].numpy().ravel()]


def test_requests_that_arrive_together_share_a_batch_and_get_their_own_rows() -> None:
    async def scenario(bench: Bench) -> None:
        first, second = bench.ask(1), bench.ask([2, 3])
        await settle()
        assert bench.executor.seen == [[1, 2, 3]]
        bench.executor.finish()
        await settle()
        assert values(first) == [2]
        assert values(second) == [4, 6]

    play(scenario)


def test_a_batch_grows_while_the_worker_is_busy_and_leaves_when_it_is_free() -> None:
    async def scenario(bench: Bench) -> None:
        bench.ask(1)
        await settle()
        later = [bench.ask(value) for value in (2, 3, 4)]
        await settle()
        assert bench.executor.seen == [[1]]
        bench.executor.finish()
        await settle()
        assert bench.executor.seen == [[1], [2, 3, 4]]
        bench.executor.finish()
        await settle()
        assert [values(task) for task in later] == [[4], [6], [8]]

    play(scenario)


def test_a_full_batch_is_sent_ahead_to_a_busy_worker_but_not_a_third() -> None:
    async def scenario(bench: Bench) -> None:
        tasks = [bench.ask(1)]
        await settle()
        tasks += [bench.ask(value) for value in range(2, 10)]
        await settle()
        assert bench.executor.seen == [[1], [2, 3, 4, 5]]
        while bench.executor.batches:
            bench.executor.finish()
            await settle()
        assert len(bench.executor.seen) == 3
        await asyncio.gather(*tasks)

    play(scenario)


def test_trivial_batches_are_sent_ahead_at_any_size() -> None:
    async def scenario(bench: Bench) -> None:
        first = bench.ask(1)
        await settle()
        second = bench.ask(2)
        await settle()
        assert bench.executor.seen == [[1], [2]]
        bench.executor.finish()
        bench.executor.finish()
        await asyncio.gather(first, second)

    play(scenario, seconds=0.00005)


def test_trivial_requests_that_come_in_one_turn_share_a_batch_but_for_the_first() -> None:
    class AtOnce(HandExecutor):
        """As a thread executor does what is trivial."""

        def submit(self, batch: Batch) -> None:
            super().submit(batch)
            self.finish(infer_ns=50_000)

    async def scenario(bench: Bench) -> None:
        bench.scheduler.detach(bench.executor)
        executor = AtOnce(bench.scheduler)
        bench.scheduler.attach(executor)
        await asyncio.gather(*(bench.ask(value) for value in (1, 2, 3)))
        assert executor.seen == [[1], [2, 3]]
        # Nobody else comes in this turn, and so nobody waits for its end.
        alone = bench.ask(4)
        await asyncio.sleep(0)
        assert executor.seen == [[1], [2, 3], [4]]
        await alone

    play(scenario, seconds=0.00005)


def test_a_request_larger_than_the_room_left_waits_for_the_next_batch_and_is_not_overtaken() -> None:
    async def scenario(bench: Bench) -> None:
        tasks = [bench.ask([1, 2]), bench.ask([3, 4, 5]), bench.ask(6)]
        await settle()
        bench.executor.finish()
        await settle()
        assert bench.executor.seen == [[1, 2], [3, 4, 5, 6]]
        bench.executor.finish()
        await asyncio.gather(*tasks)

    play(scenario)


def test_requests_of_different_shapes_never_share_a_batch() -> None:
    async def scenario(bench: Bench) -> None:
        tasks = [bench.ask(1, shape_key="a"), bench.ask(2, shape_key="b"), bench.ask(3, shape_key="a")]
        await settle()
        bench.executor.finish()
        await settle()
        assert bench.executor.seen == [[1, 3], [2]]
        bench.executor.finish()
        await asyncio.gather(*tasks)

    play(scenario)


def test_priority_goes_before_age() -> None:
    async def scenario(bench: Bench) -> None:
        tasks = [bench.ask(0)]
        await settle()
        tasks += [bench.ask(1), bench.ask(2, priority=1)]
        await settle()
        bench.executor.finish()
        await settle()
        assert bench.executor.seen[1] == [2, 1]
        bench.executor.finish()
        await asyncio.gather(*tasks)

    play(scenario)


def test_the_model_whose_head_is_oldest_is_served_next() -> None:
    async def scenario(bench: Bench) -> None:
        other = lane(handle=2, name="other")
        bench.scheduler.open_lane(other)
        tasks = [bench.ask(0)]
        await settle()
        tasks += [bench.ask(1, to=other), bench.ask(2)]
        await settle()
        bench.executor.finish()
        await settle()
        bench.executor.finish()
        await settle()
        assert bench.executor.seen == [[0], [1], [2]]
        bench.executor.finish()
        await asyncio.gather(*tasks)

    play(scenario)


def test_a_cancelled_request_is_never_computed_and_its_mates_are_not_disturbed() -> None:
    async def scenario(bench: Bench) -> None:
        busy = bench.ask(0)
        await settle()
        victim, mate = bench.ask(1), bench.ask(2)
        await settle()
        victim.cancel()
        await settle()
        assert bench.lane.queue.items == 1
        bench.executor.finish()
        await settle()
        bench.executor.finish()
        await settle()
        assert bench.executor.seen == [[0], [2]]
        assert values(mate) == [4]
        await busy

    play(scenario)


def test_a_request_cancelled_while_it_is_computed_leaves_its_batch_whole() -> None:
    async def scenario(bench: Bench) -> None:
        victim, mate = bench.ask(1), bench.ask(2)
        await settle()
        victim.cancel()
        await settle()
        bench.executor.finish()
        await settle()
        assert values(mate) == [4]
        assert not bench.lane.entered

    play(scenario)


def test_a_deadline_that_passes_in_the_queue_is_answered_then_and_there_although_the_worker_is_stuck() -> None:
    async def scenario(bench: Bench) -> None:
        stuck = bench.ask(0)
        await settle()
        late = bench.ask(1, deadline=5.0)
        await bench.loop.advance(4.9)
        assert not late.done()
        await bench.loop.advance(0.2)
        with pytest.raises(DeadlineExceeded):
            late.result()
        bench.executor.finish()
        await settle()
        assert bench.executor.seen == [[0]]
        await stuck

    play(scenario)


def test_deadlines_fire_in_their_own_order_whatever_the_order_of_arrival() -> None:
    async def scenario(bench: Bench) -> None:
        stuck = bench.ask(0)
        await settle()
        slow, quick = bench.ask(1, deadline=9.0), bench.ask(2, deadline=3.0)
        await bench.loop.advance(3.5)
        assert quick.done()
        assert not slow.done()
        await bench.loop.advance(6)
        assert slow.done()
        for task in (slow, quick):
            with pytest.raises(DeadlineExceeded):
                task.result()
        bench.executor.finish()
        await stuck

    play(scenario)


@pytest.mark.parametrize("seconds", [0.01, 0.00005])
def test_a_request_that_comes_too_late_is_not_computed_at_all(seconds: float) -> None:
    async def scenario(bench: Bench) -> None:
        bench.loop.now = 10.0
        with pytest.raises(DeadlineExceeded):
            await bench.ask(1, deadline=9.0)
        assert bench.executor.seen == []
        assert not bench.lane.entered

    play(scenario, seconds=seconds)


def test_a_full_queue_refuses_at_once_and_says_when_to_come_back() -> None:
    async def scenario(bench: Bench) -> None:
        busy = bench.ask(0)
        await settle()
        waiting = [bench.ask(value) for value in (1, 2)]
        await settle()
        with pytest.raises(Overloaded, match="2 items wait") as refusal:
            await bench.ask(3)
        assert refusal.value.retry_after == pytest.approx(0.02)
        for _ in range(2):
            bench.executor.finish()
            await settle()
        await asyncio.gather(busy, *waiting)

    play(scenario, max_queue_items=2)


def test_when_a_batch_raises_each_request_is_computed_again_by_itself_and_only_the_bad_one_fails() -> None:
    async def scenario(bench: Bench) -> None:
        good, bad, other = bench.ask(1), bench.ask(666), bench.ask(3)
        await settle()
        bench.executor.raise_error("RuntimeError: index 666 is out of range")
        await settle()
        while bench.executor.batches:
            if bench.executor.computing == [666]:
                bench.executor.raise_error("RuntimeError: index 666 is out of range")
            else:
                bench.executor.finish()
            await settle()
        assert bench.executor.seen == [[1, 666, 3], [1], [666], [3]]
        assert values(good) == [2]
        assert values(other) == [6]
        with pytest.raises(ModelFailed, match="index 666"):
            bad.result()

    play(scenario)


def test_what_a_dead_worker_had_is_computed_by_the_next_one() -> None:
    async def scenario(bench: Bench) -> None:
        tasks = [bench.ask(value) for value in (1, 2)]
        await settle()
        bench.executor.die()
        await settle()
        standby = HandExecutor(bench.scheduler)
        bench.scheduler.attach(standby)
        await settle()
        while standby.batches:
            standby.finish()
            await settle()
        assert [values(task) for task in tasks] == [[2], [4]]
        assert bench.stats.resends["double"] == 2

    play(scenario)


def test_a_request_that_kills_every_worker_it_meets_is_given_up_and_takes_nobody_with_it() -> None:
    async def scenario(bench: Bench) -> None:
        poison, innocent = bench.ask(666), bench.ask(2)
        deaths = 0
        worker = bench.executor
        await settle()
        while not (poison.done() and innocent.done()):
            if 666 in worker.computing:
                deaths += 1
                worker.die()
                worker = HandExecutor(bench.scheduler)
                bench.scheduler.attach(worker)
            else:
                worker.finish()
            await settle()
        assert deaths == 2
        assert values(innocent) == [4]
        with pytest.raises(ModelFailed, match="each of 2 attempts"):
            poison.result()

    play(scenario)


def test_workers_that_die_before_they_begin_cost_a_request_nothing() -> None:
    async def scenario(bench: Bench) -> None:
        task = bench.ask(1)
        worker = bench.executor
        for _ in range(5):
            await settle()
            worker.die(computing=False)
            worker = HandExecutor(bench.scheduler)
            bench.scheduler.attach(worker)
        await settle()
        worker.finish()
        await settle()
        assert values(task) == [2]

    play(scenario)


def test_batches_that_only_waited_in_a_dead_worker_do_not_count_as_attempts() -> None:
    async def scenario(bench: Bench) -> None:
        executing = bench.ask(1)
        await settle()
        waiting = [bench.ask(value) for value in (2, 3, 4, 5)]
        await settle()
        assert len(bench.executor.batches) == 2
        queued = bench.executor.batches[1].works
        bench.executor.die()
        assert [entry.attempts for entry in queued] == [0, 0, 0, 0]
        standby = HandExecutor(bench.scheduler)
        bench.scheduler.attach(standby)
        await settle()
        while standby.batches:
            standby.finish()
            await settle()
        assert standby.seen == [[1], [2, 3, 4, 5]]
        await asyncio.gather(executing, *waiting)

    play(scenario)


def test_a_model_that_answers_with_the_wrong_number_of_rows_fails_its_requests_and_not_the_server() -> None:
    async def scenario(bench: Bench) -> None:
        tasks = [bench.ask(1), bench.ask(2)]
        await settle()
        bench.executor.finish(rows=1)
        await settle()
        for task in tasks:
            with pytest.raises(ModelFailed, match="expected 2 rows"):
                task.result()

    play(scenario)


def test_closing_a_lane_waits_for_its_last_request() -> None:
    async def scenario(bench: Bench) -> None:
        last = bench.ask(1)
        await settle()
        closing = asyncio.create_task(bench.scheduler.close_lane(bench.lane))
        await settle()
        assert not closing.done()
        bench.executor.finish()
        await settle()
        assert closing.done()
        await last

    play(scenario)


def test_when_nobody_is_left_to_compute_those_who_wait_are_told() -> None:
    async def scenario(bench: Bench) -> None:
        bench.scheduler.detach(bench.executor)
        task = bench.ask(1)
        await settle()
        bench.scheduler.fail_all(Unavailable("shutting down"))
        await settle()
        with pytest.raises(Unavailable):
            task.result()

    play(scenario)


def test_giving_up_answers_also_those_that_are_being_computed_and_keeps_the_counts_right() -> None:
    async def scenario(bench: Bench) -> None:
        tasks = [bench.ask(value) for value in range(4)]
        await settle()
        waiting = [bench.ask(value) for value in (5, 6)]
        await settle()
        waiting[0].cancel()
        bench.scheduler.fail_all(Unavailable("shutting down"))
        await settle()
        for task in [*tasks, waiting[1]]:
            with pytest.raises(Unavailable):
                task.result()
        assert (bench.lane.queue.requests, bench.lane.queue.items) == (0, 0)
        # Its batch comes back to nobody.
        bench.executor.finish()
        await settle()

    play(scenario)


def test_neither_what_a_request_brought_nor_its_answer_is_kept_until_its_deadline() -> None:
    async def scenario(bench: Bench) -> None:
        entry: Work = work(1, deadline=1000.0)
        task = asyncio.create_task(bench.scheduler.run(bench.lane, entry))
        await settle()
        bench.executor.finish()
        answer = await task
        assert entry.inputs == ()
        assert not any(answer in gc.get_referents(held) for held in gc.get_referents(entry))
        # It still knows that it is over.
        await bench.loop.advance(2000)
        assert not entry.waits

    play(scenario)


def test_a_thousand_cancelled_requests_leave_nothing_behind() -> None:
    async def scenario(bench: Bench) -> None:
        busy = bench.ask(0)
        await settle()
        tasks = [bench.ask(value) for value in range(1000)]
        await settle()
        for task in tasks:
            task.cancel()
        await settle()
        assert bench.lane.queue.requests == 0
        bench.executor.finish()
        await settle()
        # One batch was full and had left for the worker before anybody cancelled; of the rest none is computed.
        assert bench.executor.seen == [[0], [0, 1, 2, 3]]
        bench.executor.finish()
        await settle()
        assert len(bench.executor.seen) == 2
        assert not bench.lane.entered
        await busy

    play(scenario, max_queue_items=2000)


def test_a_request_cancelled_in_the_turn_in_which_a_worker_becomes_free_is_skipped() -> None:
    async def scenario(bench: Bench) -> None:
        busy = bench.ask(0)
        await settle()
        victim = bench.ask(1)
        await settle()
        # The pump comes before the victim's own task, which would take it out of the queue.
        bench.executor.finish()
        victim.cancel()
        await settle()
        follower = bench.ask(2)
        await settle()
        bench.executor.finish()
        await asyncio.gather(busy, follower)
        assert bench.executor.seen == [[0], [2]]
        assert bench.lane.queue.items == 0

    play(scenario)


def test_a_model_with_a_full_queue_does_not_keep_another_s_single_request_waiting() -> None:
    async def scenario(bench: Bench) -> None:
        other = lane(handle=2, name="other")
        bench.scheduler.open_lane(other)
        tasks = [bench.ask(value) for value in range(1, 9)]
        await settle()
        single = bench.ask(100, to=other)
        for _ in range(4):
            tasks += [bench.ask(value) for value in range(1, 9)]
            await settle()
            bench.executor.finish()
            await settle()
        assert [100] in bench.executor.seen
        while bench.executor.batches:
            bench.executor.finish()
            await settle()
        await asyncio.gather(single, *tasks)

    play(scenario)


def test_an_idle_worker_gets_the_next_batch_before_a_busy_one_is_sent_it_ahead() -> None:
    async def scenario(bench: Bench) -> None:
        second = HandExecutor(bench.scheduler)
        bench.scheduler.attach(second)
        tasks = [bench.ask(value) for value in range(8)]
        await settle()
        assert bench.executor.seen == [[0, 1, 2, 3]]
        assert second.seen == [[4, 5, 6, 7]]
        bench.executor.finish()
        second.finish()
        await asyncio.gather(*tasks)

    play(scenario)


def test_a_request_that_was_cancelled_in_the_queue_does_not_slow_down_those_of_trivial_models() -> None:
    async def scenario(bench: Bench) -> None:
        slow = lane(handle=2, name="slow", seconds=1.0)
        bench.scheduler.open_lane(slow)
        busy = bench.ask(0, to=slow)
        await settle()
        victim = bench.ask(1, to=slow)
        await settle()
        victim.cancel()
        bench.executor.finish()
        await settle()
        quick = bench.ask(2)
        # One turn: the task's own.
        await asyncio.sleep(0)
        assert bench.executor.seen == [[0], [2]]
        bench.executor.finish()
        await asyncio.gather(busy, quick)

    play(scenario, seconds=0.00005)


def test_a_model_whose_cost_nobody_has_measured_is_not_taken_for_trivial() -> None:
    async def scenario(bench: Bench) -> None:
        tasks = [bench.ask(1)]
        await settle()
        tasks.append(bench.ask(2))
        await settle()
        assert bench.executor.seen == [[1]]
        # It may show itself to be trivial.
        bench.executor.finish(infer_ns=1000)
        await settle()
        assert bench.lane.cost.trivial
        bench.executor.finish()
        await asyncio.gather(*tasks)

    play(scenario, seconds=0.0)


def test_a_request_larger_than_the_queue_may_be_is_let_in_when_nobody_waits() -> None:
    async def scenario(bench: Bench) -> None:
        large = bench.ask([1, 2, 3, 4])
        await settle()
        waiting = bench.ask(5)
        await settle()
        with pytest.raises(Overloaded):
            await bench.ask([1, 2, 3, 4])
        for _ in range(2):
            bench.executor.finish()
            await settle()
        await asyncio.gather(large, waiting)

    play(scenario, max_queue_items=2)


def test_a_batch_is_sent_ahead_only_if_it_is_full_of_the_shape_whose_turn_it_is() -> None:
    async def scenario(bench: Bench) -> None:
        tasks = [bench.ask(0)]
        await settle()
        tasks += [bench.ask(1, shape_key="b"), *(bench.ask(value) for value in (2, 3, 4))]
        await settle()
        assert bench.executor.seen == [[0]]
        for _ in range(3):
            bench.executor.finish()
            await settle()
        assert bench.executor.seen == [[0], [1], [2, 3, 4]]
        await asyncio.gather(*tasks)

    play(scenario)


def test_a_request_that_was_in_a_batch_that_killed_its_worker_never_shares_one_again() -> None:
    async def scenario(bench: Bench) -> None:
        suspect = bench.ask(1)
        await settle()
        late = bench.ask(2, priority=1)
        bench.executor.die()
        await settle()
        next_worker = HandExecutor(bench.scheduler)
        bench.scheduler.attach(next_worker)
        await settle()
        assert next_worker.seen == [[2], [1]]
        for _ in range(2):
            next_worker.finish()
            await settle()
        await asyncio.gather(suspect, late)

    play(scenario)
