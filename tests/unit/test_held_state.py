"""What stages may expect of outputs that stay where they were computed, with batches finished by hand."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import numpy as np
import pytest
from offramp_adapters.routes.held import Held
from offramp_adapters.routes.plan import StateLost
from offramp_server.errors import DeadlineExceeded
from offramp_server.scheduling.batch import Batch, BatchSink
from offramp_server.scheduling.held import HeldMemory
from offramp_server.scheduling.lane import Lane
from offramp_server.scheduling.scheduler import Scheduler
from offramp_server.scheduling.work import Answer, Timing, Work
from offramp_server.telemetry.stats import ModelStats, Stats
from offramp_server.workers.kept import HeldInput, KeptOutputs, places_of
from open_inference.tensor import Tensor
from scheduling_fakes import HandClock, HandExecutor, on_hand_clock, settle, spec, values_of, work

ROW_BYTES = 4


class KeepingExecutor(HandExecutor):
    """Doubles its input, keeps the result where it is asked to, and takes inputs from there."""

    def __init__(self, sink: BatchSink, name: str, room: int = 1 << 20) -> None:
        super().__init__(sink, name)
        self.kept = KeptOutputs()
        self.held = HeldMemory(asyncio.get_running_loop(), room, self.kept.release)
        self.inputs: list[list[tuple[Tensor, list[Tensor]]]] = []
        self.computed: list[list[float]] = []

    def submit(self, batch: Batch) -> None:
        """Nobody but the executor knows what it holds."""
        self.batches.append(batch)
        self.seen.append([] if batch.held else values_of(batch))
        # As every executor does at once: of who is cancelled the inputs are gone later.
        self.inputs.append(batch.joined_inputs())

    def finish(self, infer_ns: int = 1_000_000, rows: int | None = None) -> None:
        batch = self.batches.pop(0)
        [(whole, parts)] = self.inputs.pop(0)
        if isinstance(whole, Held):
            [whole] = self.kept.resolved([HeldInput("x", "FP32", whole.shape, b"", places_of(whole))])
            values = whole.numpy()
        else:
            values = np.concatenate([part.numpy() for part in parts])
        self.computed.append([float(value) for value in values.ravel()])
        outputs = [Tensor.from_numpy("y", values * 2)]
        if batch.keep:
            self.kept.keep(batch.keep, outputs)
            if batch.keep.only_kept:
                outputs = [Tensor("y", "FP32", outputs[0].shape, b"")]
        self.sink.completed(self, batch, outputs, Timing(1, infer_ns, 1))


class Bench:
    """Two stages on two executors."""

    def __init__(self, loop: HandClock, room: int = 1 << 20) -> None:
        self.loop = loop
        self.scheduler = Scheduler(Stats(), max_attempts=2, loop=loop, clock=lambda: int(loop.now * 1e9))
        self.first, self.second = (
            Lane(handle, spec(max_queue_items=1000), ModelStats(), {1: 0.01}) for handle in (1, 2)
        )
        for lane in (self.first, self.second):
            self.scheduler.open_lane(lane)
        self.executors = [KeepingExecutor(self.scheduler, name, room) for name in ("one", "two")]
        for executor in self.executors:
            self.scheduler.attach(executor)
        self.one, self.two = self.executors

    def begin(self, values: float | Sequence[float], keep: int = 1, **fields: Any) -> asyncio.Task[Answer]:
        return asyncio.create_task(self.scheduler.run(self.first, work(values, keep=keep, **fields)))

    def go_on(self, state: Tensor, **fields: Any) -> asyncio.Task[Answer]:
        assert isinstance(state, Held)
        future: asyncio.Future[Answer] = self.loop.create_future()
        request = Work([state], state.shape[0], ("held", 1), future, home=state.home, depth=1, **fields)
        return asyncio.create_task(self.scheduler.run(self.second, request))

    async def state_of(self, values: float | Sequence[float], executor: KeepingExecutor) -> Tensor:
        """What one request leaves with this executor, which is idle."""
        task = self.begin(values)
        await settle()
        executor.finish()
        await settle()
        return task.result().outputs[0]

    async def finish_all(self) -> None:
        while any(executor.batches for executor in self.executors):
            for executor in self.executors:
                if executor.batches:
                    executor.finish()
            await settle()

    @property
    def kept(self) -> list[int]:
        """Batches of which something is left, by executor."""
        return [len(executor.kept) for executor in self.executors]


Scenario = Callable[[Bench], Coroutine[Any, Any, None]]


def play(scenario: Scenario, room: int = 1 << 20) -> None:
    loop = HandClock()

    async def run() -> None:
        bench = Bench(loop, room)
        await scenario(bench)
        await settle()
        # Whatever a test is about: in the end nothing is left.
        assert bench.kept == [0, 0]
        assert [executor.held.bytes for executor in bench.executors] == [0, 0]

    on_hand_clock(run(), loop)


def values(task: asyncio.Task[Answer]) -> list[float]:
    return [float(value) for value in task.result().outputs[0].numpy().ravel()]


def test_what_is_kept_does_not_travel_and_the_next_stage_computes_with_it() -> None:
    async def scenario(bench: Bench) -> None:
        state = await bench.state_of([1, 2, 3], bench.one)
        assert isinstance(state, Held)
        assert (state.name, state.datatype, state.shape, state.home) == ("y", "FP32", (3, 1), "one")
        assert len(state.data) == 0
        deferred = bench.go_on(state.take([2, 0]))
        await settle()
        bench.one.finish()
        await settle()
        assert bench.one.computed == [[1, 2, 3], [6, 2]]
        assert values(deferred) == [12, 4]

    play(scenario)


def test_survivors_of_several_batches_share_the_next_one() -> None:
    async def scenario(bench: Bench) -> None:
        states = [await bench.state_of([value, value + 1], bench.one) for value in (1, 10)]
        busy = [bench.begin(value, keep=0) for value in (50, 60, 70)]
        await settle()
        deferred = [bench.go_on(state.take([1])) for state in states if isinstance(state, Held)]
        states.clear()
        await settle()
        await bench.finish_all()
        assert bench.one.computed[-1] == [4, 22]
        assert [values(task) for task in deferred] == [[8], [44]]
        await asyncio.gather(*busy)

    play(scenario)


def test_only_the_executor_that_has_the_state_computes_with_it_and_others_take_what_is_for_anybody() -> None:
    async def scenario(bench: Bench) -> None:
        state = await bench.state_of(1, bench.one)
        busy = bench.begin(2, keep=0)
        await settle()
        deferred = bench.go_on(state)
        other = bench.begin(3, keep=0)
        await settle()
        # It is at home where somebody is busy, and the idle one does not wait for it.
        assert bench.two.seen == [[3]]
        bench.one.finish()
        await settle()
        bench.one.finish()
        bench.two.finish()
        await settle()
        assert values(deferred) == [4]
        await asyncio.gather(busy, other)

    play(scenario)


def test_a_request_that_wants_its_outputs_gets_them_although_its_batch_mates_keep_theirs() -> None:
    async def scenario(bench: Bench) -> None:
        keeps, takes = bench.begin(1), bench.begin(2, keep=0)
        await settle()
        bench.one.finish()
        await settle()
        assert isinstance(keeps.result().outputs[0], Held)
        assert values(takes) == [4]
        deferred = bench.go_on(keeps.result().outputs[0])
        await settle()
        await bench.finish_all()
        assert values(deferred) == [4]

    play(scenario)


def test_state_is_there_for_as_long_as_somebody_refers_to_rows_of_it() -> None:
    async def scenario(bench: Bench) -> None:
        state = await bench.state_of([1, 2], bench.one)
        assert isinstance(state, Held)
        audit = state.take([0])
        deferred = bench.go_on(state.take([1]))
        del state
        await settle()
        await bench.finish_all()
        assert values(deferred) == [8]
        assert bench.kept == [1, 0]
        audited = bench.go_on(audit, background=True)
        del audit
        await bench.loop.advance(1)
        await bench.finish_all()
        assert values(audited) == [4]

    play(scenario)


def test_state_of_a_request_that_is_cancelled_while_its_batch_is_under_way_is_there_for_the_batch() -> None:
    async def scenario(bench: Bench) -> None:
        state = await bench.state_of([1, 2], bench.one)
        assert isinstance(state, Held)
        victim, mate = (bench.go_on(state.take([row])) for row in (0, 1))
        del state
        await settle()
        assert bench.one.batches[0].items == 2
        victim.cancel()
        await settle()
        bench.one.finish()
        await settle()
        assert values(mate) == [8]

    play(scenario)


def test_state_that_comes_for_nobody_is_let_go_of() -> None:
    async def scenario(bench: Bench) -> None:
        task = bench.begin(1)
        await settle()
        task.cancel()
        await settle()
        bench.one.finish()

    play(scenario)


def test_state_of_a_request_whose_deadline_passes_is_let_go_of() -> None:
    async def scenario(bench: Bench) -> None:
        state = await bench.state_of(1, bench.one)
        busy = bench.begin(2, keep=0)
        await settle()
        late = bench.go_on(state, deadline=5.0)
        del state
        await settle()
        await bench.loop.advance(6)
        with pytest.raises(DeadlineExceeded):
            late.result()
        assert bench.kept == [0, 0]
        bench.one.finish()
        await busy

    play(scenario)


def test_where_there_is_no_room_state_travels() -> None:
    async def scenario(bench: Bench) -> None:
        kept = await bench.state_of([1, 2, 3, 4], bench.one)
        assert bench.one.held.bytes == 4 * ROW_BYTES
        travels = await bench.state_of(5, bench.one)
        assert isinstance(kept, Held)
        assert not isinstance(travels, Held)
        assert travels.numpy().tolist() == [[10]]
        del kept
        await settle()
        assert isinstance(await bench.state_of(6, bench.one), Held)

    play(scenario, room=4 * ROW_BYTES)


def test_state_of_a_worker_that_dies_is_lost_to_those_who_wait_and_those_who_come() -> None:
    async def scenario(bench: Bench) -> None:
        states = [await bench.state_of(value, bench.one) for value in range(7)]
        computing = bench.go_on(states[0])
        await settle()
        ahead = [bench.go_on(state) for state in states[1:5]]
        waiting = bench.go_on(states[5])
        await settle()
        assert bench.one.in_flight == 2
        bench.one.die()
        await settle()
        for task in (computing, *ahead, waiting, bench.go_on(states[6])):
            with pytest.raises(StateLost, match="worker one"):
                await task
        bench.one.inputs.clear()
        # An error knows the frames that it has come through, and with them these.
        states.clear()

    play(scenario)


def test_requests_that_brought_their_inputs_are_computed_again_when_a_worker_dies() -> None:
    async def scenario(bench: Bench) -> None:
        task = bench.begin(1)
        await settle()
        bench.one.die()
        await settle()
        bench.two.finish()
        await settle()
        state = task.result().outputs[0]
        assert isinstance(state, Held)
        assert state.home == "two"
        task.cancel()

    play(scenario)


def test_nothing_is_left_after_random_cancellations() -> None:
    async def scenario(bench: Bench) -> None:
        coins = random.Random(3)

        async def two_stages(rows: int) -> None:
            answer = await bench.begin([float(row) for row in range(rows)])
            state = answer.outputs[0]
            assert isinstance(state, Held)
            survivors = [row for row in range(rows) if coins.random() < 0.5]
            if survivors:
                expected = [4.0 * row for row in survivors]
                deferred = bench.go_on(state.take(survivors))
                del answer, state
                await deferred
                assert values(deferred) == expected

        tasks: list[asyncio.Task[None]] = []
        for _ in range(200):
            tasks.append(asyncio.create_task(two_stages(coins.randint(1, 4))))
            if coins.random() < 0.4:
                coins.choice(tasks).cancel()
            for _ in range(coins.randint(0, 3)):
                await asyncio.sleep(0)
            executor = coins.choice(bench.executors)
            if executor.batches and coins.random() < 0.5:
                executor.finish()
        await bench.finish_all()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert {type(outcome) for outcome in outcomes} == {type(None), asyncio.CancelledError}
        await bench.finish_all()

    play(scenario)
