"""Owns the queues of one device: forms batches, sends them to executors, and hands out what comes back.

Everything runs on the event loop's thread and nothing here waits. Batches form whenever an executor has room and
grow while none has: continuous batching without a delay timer. Only what nobody waits for is held back for a moment.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Iterator, Sequence

from offramp_adapters.routes.plan import StateLost
from open_inference.tensor import Tensor

from offramp_server.errors import DeadlineExceeded, ModelFailed, Unavailable
from offramp_server.scheduling.batch import Batch, Executor
from offramp_server.scheduling.expiry import ExpiryTimer
from offramp_server.scheduling.held import Keep, KeptBatch
from offramp_server.scheduling.lane import Lane
from offramp_server.scheduling.policy import ShallowFirst
from offramp_server.scheduling.rows import copy_whole, split_kept, split_rows
from offramp_server.scheduling.work import Answer, Timing, Work
from offramp_server.telemetry.stats import Stats

# Callers who call again as soon as they are answered leave an executor idle for a moment. A batch that nobody waits for
# and that slips in there keeps all of them waiting (docs/adr/0006: half of the throughput lost at eight callers). So it
# is begun only if nobody has come for as long as it takes; but for no longer than this, or audits would never be made
# where it is never quiet for long.
MAX_QUIET_NS = 5_000_000
# uvloop's timers are no finer: a shorter one would be asked for over and over.
TIMER_SECONDS = 0.001


class Scheduler:
    """The lanes and executors of one device."""

    def __init__(
        self,
        stats: Stats,
        max_attempts: int,
        loop: asyncio.AbstractEventLoop | None = None,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        """`clock`: monotonic nanoseconds."""
        self._loop = loop or asyncio.get_running_loop()
        self._clock = clock
        self._stats = stats
        self._max_attempts = max_attempts
        self._policy = ShallowFirst(clock)
        self._lanes: dict[int, Lane] = {}
        # Those with requests that wait.
        self._waiting: dict[int, Lane] = {}
        # Each with whether some of the batch that it was sent last may come back for a deeper stage.
        self._executors: dict[Executor, bool] = {}
        self._sequence = itertools.count(1)
        self._kept = itertools.count(1)
        self._expiry = ExpiryTimer(self._loop, self._expire)
        self._pump_is_due = False
        # A request has been sent by itself in this turn of the loop.
        self._one_went_alone = False
        # Nanoseconds that executors have computed what somebody waited for.
        self.foreground_ns = 0
        # When the last of that was ready.
        self._foreground_ended_ns = -MAX_QUIET_NS
        self._quiet_timer: asyncio.TimerHandle | None = None
        # Stands in for the futures of requests that have ended.
        self._over: asyncio.Future[Answer] = self._loop.create_future()
        self._over.cancel()

    # What the repository does

    def open_lane(self, lane: Lane) -> None:
        self._lanes[lane.handle] = lane
        self._pump_soon()

    async def close_lane(self, lane: Lane) -> None:
        """Wait until the lane's requests are answered, then forget it. The caller has stopped sending new ones."""
        await lane.wait_idle()
        self._lanes.pop(lane.handle, None)
        self._waiting.pop(lane.handle, None)

    def attach(self, executor: Executor) -> None:
        self._executors[executor] = False
        self._pump_soon()

    def detach(self, executor: Executor) -> None:
        self._executors.pop(executor, None)
        for lane in self._lanes.values():
            for work in list(lane.queue.at_home(executor.name)):
                work.fail(_state_lost(executor.name))

    def wake(self) -> None:
        """An executor has come to hold another model."""
        self._pump_soon()

    # What a request does

    async def run(self, lane: Lane, work: Work) -> Answer:
        """Queue the request and wait for its answer.

        Raises Overloaded at once, DeadlineExceeded when its time runs out while it waits, ModelFailed, and StateLost if
        inputs that it has left with an executor are gone. If the caller is cancelled, the request leaves the queue;
        what a worker already computes is finished and thrown away.
        """
        if work.home:
            self._check_home(lane, work)
        lane.admit(work.items, work.background)
        work.sequence = next(self._sequence)
        work.enqueued_ns = self._clock()
        work.arrived_ns = work.arrived_ns or work.enqueued_ns
        lane.enter(work)
        try:
            # A turn of the loop costs as much as a trivial batch that might grow in it.
            if not (lane.cost.trivial and self._send_at_once(lane, work)):
                self._wait_in_queue(lane, work)
                self._pump_soon()
            if work.deadline is not None and work.waits:
                self._expiry.watch(work.deadline, lane, work)
            return await work.future
        finally:
            self._take_out(lane, work)
            lane.leave(work)
            # The expiry heap may hold on to the request until its deadline; neither what it brought nor its answer
            # must stay with it.
            work.inputs = ()
            work.future = self._over

    def fail_lane(self, handle: int, error: Exception) -> None:
        """Answer everything in this lane with this error: nobody is left who could compute it."""
        lane = self._lanes.get(handle)
        for work in lane.entered if lane is not None else ():
            work.fail(error)

    def fail_all(self, error: Exception) -> None:
        """Answer everything with this error, also what is being computed: the end of a drain that took too long."""
        for handle in self._lanes:
            self.fail_lane(handle, error)

    # What an executor reports

    def completed(self, executor: Executor, batch: Batch, outputs: Sequence[Tensor], timing: Timing) -> None:
        kept = None if batch.keep is None else executor.held.kept(batch.keep, outputs)
        lane = self._lanes.get(batch.handle)
        if lane is not None:
            lane.cost.learn(batch.items, timing.cost_seconds)
            if not batch.works[0].background:
                self.foreground_ns += timing.infer_ns
                self._foreground_ended_ns = self._clock()
            lane.stats.executed(batch.items, timing.input_ns, timing.infer_ns, timing.output_ns)
            lane.stats.out_of_memory_splits += timing.splits
            self._answer(lane, batch, outputs, timing, executor.name, kept)
        self._pump_soon()

    def failed(self, executor: Executor, batch: Batch, message: str) -> None:
        """One request's values may have made the model raise: each is computed again by itself, so that its batch
        mates are not disturbed."""
        if len(batch.works) == 1:
            batch.works[0].fail(ModelFailed(message))
        else:
            self._send_again(batch, alone=True)
        self._pump_soon()

    def lost(self, executor: Executor, batches: Sequence[Batch], computing: bool) -> None:
        """Re-send what the dead executor had. Only what it was computing may have killed it, and counts an attempt."""
        self.detach(executor)
        for batch in batches:
            suspect = computing and batch is batches[0]
            if batch.held:
                # Nobody else could compute them. The next time each of them comes, it brings its inputs along.
                for work in batch.works:
                    work.fail(_state_lost(executor.name))
                continue
            for work in batch.works:
                work.attempts += suspect
            self._send_again(batch, alone=suspect)
        self._pump_soon()

    # How loaded it is

    @property
    def workers(self) -> int:
        return len(self._executors)

    def first_in_queues(self) -> Iterator[Work]:
        """Those whose turn it is, of each queue in which somebody waits."""
        for lane in self._waiting.values():
            work = lane.queue.first()
            if work is not None:
                yield work

    def backlog_seconds(self) -> float:
        """How long it takes to compute what somebody waits for."""
        seconds = sum(
            (lane.queue.items - lane.queue.background_items) * lane.cost.per_item for lane in self._waiting.values()
        )
        return seconds / max(1, len(self._executors))

    # How batches form

    def _check_home(self, lane: Lane, work: Work) -> None:
        if not any(executor.name == work.home and executor.holds(lane.handle) for executor in self._executors):
            work.inputs = ()
            raise _state_lost(work.home)

    def _wait_in_queue(self, lane: Lane, work: Work) -> None:
        lane.queue.push(work)
        self._waiting[lane.handle] = lane

    def _send_at_once(self, lane: Lane, work: Work) -> bool:
        """A batch of its own for the first request of a turn, if it finds nobody waiting and an executor idle. Those
        that come in the same turn share the next batch."""
        if self._waiting or self._one_went_alone:
            return False
        for executor in self._executors:
            at_home = work.home in ("", executor.name)
            if executor.in_flight == 0 and at_home and executor.holds(lane.handle):
                if self._drop_expired([work]):
                    self._one_went_alone = True
                    self._loop.call_soon(self._turn_is_over)
                    self._submit(executor, lane, [work], work.enqueued_ns)
                return True
        return False

    def _turn_is_over(self) -> None:
        self._one_went_alone = False

    def _pump_soon(self) -> None:
        # One pass for everything that arrives in this turn of the loop, so that it can share a batch.
        if self._waiting and not self._pump_is_due:
            self._pump_is_due = True
            self._loop.call_soon(self._pump_due)

    def _pump_due(self) -> None:
        self._pump_is_due = False
        self._pump()

    def _pump(self) -> None:
        """Send until nothing waits, or no executor has room: one batch to each in turn, the idle ones first."""
        sent = True
        while sent and self._waiting:
            sent = False
            for executor in sorted(self._executors, key=_in_flight):
                if executor.in_flight < executor.slots and self._send_one(executor):
                    sent = True

    def _send_one(self, executor: Executor) -> bool:
        chosen = self._policy.choose(self._waiting.values(), executor, self._executors[executor])
        if chosen is None:
            return False
        lane, head = chosen
        if head.background and not self._is_quiet(lane):
            return False
        limit = lane.cost.background_items if head.background else None
        works = self._drop_expired(lane.queue.take_batch(head, limit))
        if not lane.queue.requests:
            del self._waiting[lane.handle]
        if works:
            self._submit(executor, lane, works, self._clock())
        return True

    def _submit(self, executor: Executor, lane: Lane, works: list[Work], now_ns: int) -> None:
        items = keep = 0
        may_continue = False
        for work in works:
            items += work.items
            keep |= work.keep
            may_continue = may_continue or work.may_continue
        batch = Batch(lane.handle, works, items, now_ns, lane.cost.trivial)
        if keep and executor.held.has_room:
            batch.keep = Keep(next(self._kept), keep, keep & _not_kept_by_all(works))
        if works[0].home:
            batch.held = [work.inputs for work in works]
        self._executors[executor] = may_continue
        executor.submit(batch)

    def _is_quiet(self, lane: Lane) -> bool:
        """Whether a batch that nobody waits for may be begun. If not, it is asked again once that could be."""
        quiet_ns = min(MAX_QUIET_NS, round(lane.cost.per_batch * 1e9))
        left = quiet_ns - (self._clock() - self._foreground_ended_ns)
        if left > 0 and self._quiet_timer is None:
            self._quiet_timer = self._loop.call_later(max(left / 1e9, TIMER_SECONDS), self._quiet_over)
        return left <= 0

    def _quiet_over(self) -> None:
        self._quiet_timer = None
        self._pump_soon()

    def _drop_expired(self, works: list[Work]) -> list[Work]:
        now = self._loop.time()
        live = []
        for work in works:
            if work.deadline is not None and work.deadline <= now:
                self._fail_expired(work)
            else:
                live.append(work)
        return live

    # How requests end

    def _answer(
        self, lane: Lane, batch: Batch, outputs: Sequence[Tensor], timing: Timing, home: str, kept: KeptBatch | None
    ) -> None:
        try:
            if batch.keep is not None and kept is not None:
                items, wanted = [work.items for work in batch.works], [work.keep for work in batch.works]
                answers = split_kept(outputs, items, wanted, batch.keep, kept, home)
            elif lane.spec.batches:
                answers = split_rows(outputs, [work.items for work in batch.works])
            else:
                answers = [copy_whole(outputs)]
        except (ModelFailed, ValueError) as error:
            for work in batch.works:
                work.fail(ModelFailed(str(error)))
            return
        for work, tensors in zip(batch.works, answers, strict=True):
            if work.waits:
                work.future.set_result(Answer(tensors, batch.sent_ns - work.enqueued_ns, timing))

    def _send_again(self, batch: Batch, alone: bool) -> None:
        lane = self._lanes.get(batch.handle)
        for work in batch.works:
            if not work.waits:
                continue
            if lane is None:
                work.fail(Unavailable("the model was unloaded"))
            elif work.attempts >= self._max_attempts:
                work.fail(ModelFailed(f"the worker died on each of {work.attempts} attempts to compute this request"))
            else:
                work.alone = work.alone or alone
                self._stats.resends[lane.spec.name] += 1
                self._wait_in_queue(lane, work)

    def _expire(self, lane: Lane, work: Work) -> None:
        if work.waits:
            self._fail_expired(work)
            self._take_out(lane, work)

    def _take_out(self, lane: Lane, work: Work) -> None:
        """Of the queue, if it is still there."""
        if work.queued:
            lane.queue.discard(work)
            if not lane.queue.requests:
                self._waiting.pop(lane.handle, None)

    @staticmethod
    def _fail_expired(work: Work) -> None:
        work.fail(DeadlineExceeded("the request's deadline passed before its answer was ready"))


def _in_flight(executor: Executor) -> int:
    return executor.in_flight


def _not_kept_by_all(works: Sequence[Work]) -> int:
    """A bit for each output that one of them does not want to be kept, but brought."""
    kept_by_all = ~0
    for work in works:
        kept_by_all &= work.keep
    return ~kept_by_all


def _state_lost(home: str) -> StateLost:
    return StateLost(f"worker {home}, which held what an earlier stage had computed, is gone")
