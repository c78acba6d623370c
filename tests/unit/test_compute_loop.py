"""The order in which a worker begins, finishes and answers batches, with real slabs and an engine that takes notes."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from engine_models import model_spec
from memory_engines import Doubling, Staging, rows
from offramp_server.scheduling.held import Keep
from offramp_server.workers import frame
from offramp_server.workers.compute import ComputeLoop
from offramp_server.workers.host import ModelHost, Placement
from offramp_server.workers.slab import Slab

STAGING, PLAIN = 1, 2
SPEC = model_spec(Path("model.pt2"), ["x FP32 1"], ["y FP32 1"])
# Seconds; nothing that works reaches it.
PATIENCE = 60.0


class Bench:
    """A loop, and the front end's side of its slabs."""

    def __init__(self, host: ModelHost) -> None:
        self.requests = os.eventfd(0, os.EFD_SEMAPHORE)
        self.responses = os.eventfd(0, os.EFD_NONBLOCK)
        self.slabs = [Slab.create(f"test-{turn}") for turn in range(3)]
        self.loop = ComputeLoop(host, self.requests, self.responses, self.slabs)
        self._sent = self._received = 0

    def send(self, values: list[float], handle: int = STAGING, keep: Keep | None = None) -> None:
        tensors = [(tensor, [tensor]) for tensor in rows(values)]
        frame.write_request(self.slabs[self._sent % 3], handle, tensors, keep)
        self._sent += 1
        os.eventfd_write(self.requests, 1)

    def answers(self) -> list[list[float] | str]:
        """What has been answered since this was last asked."""
        try:
            count = os.eventfd_read(self.responses)
        except BlockingIOError:
            return []
        return [self._answer() for _ in range(count)]

    def _answer(self) -> list[float] | str:
        outcome = frame.read_outcome(self.slabs[self._received % 3])
        self._received += 1
        if outcome.error is not None:
            return outcome.error
        values: list[float] = outcome.outputs[0].numpy().reshape(-1).tolist()
        return values

    def close(self) -> None:
        for descriptor in (self.requests, self.responses):
            os.close(descriptor)
        for slab in self.slabs:
            slab.close()


@pytest.fixture
def staging() -> Staging:
    return Staging()


@pytest.fixture
def plain() -> Doubling:
    return Doubling()


@pytest.fixture
def host(staging: Staging, plain: Doubling, monkeypatch: pytest.MonkeyPatch) -> ModelHost:
    engines = {"cuda:0": staging, "cpu": plain}
    monkeypatch.setattr("offramp_server.workers.engines.load.load_engine", lambda spec, device, *rest: engines[device])
    monkeypatch.setattr("offramp_server.workers.engines.warmup.warm_up", lambda *arguments: {1: 0.1})
    host = ModelHost()
    host.load(STAGING, SPEC, Placement("cuda:0", 1))
    host.load(PLAIN, SPEC, Placement("cpu", 1))
    return host


@pytest.fixture
def bench(host: ModelHost) -> Iterator[Bench]:
    bench = Bench(host)
    yield bench
    bench.close()


def test_the_next_batch_is_begun_before_the_one_before_is_finished(bench: Bench, staging: Staging) -> None:
    for value in (1.0, 2.0, 3.0):
        bench.send([value])
    for _ in range(4):
        bench.loop.step()
    assert staging.calls == ["begin 1", "begin 2", "finish 1", "begin 3", "finish 2", "finish 3"]
    assert bench.answers() == [[2.0], [4.0], [6.0]]


def test_a_batch_that_nothing_follows_is_finished_without_waiting_for_more(bench: Bench, staging: Staging) -> None:
    bench.send([1.0])
    bench.loop.step()
    assert bench.answers() == []
    bench.loop.step()
    assert bench.answers() == [[2.0]]
    assert staging.calls == ["begin 1", "finish 1"]


def test_what_is_under_way_is_answered_before_an_engine_that_does_not_stage_begins(
    bench: Bench, staging: Staging, plain: Doubling
) -> None:
    bench.send([1.0])
    bench.send([2.0, 3.0], PLAIN)
    bench.send([4.0])
    bench.loop.step()
    assert plain.asked == []
    bench.loop.step()
    assert (staging.calls, plain.asked) == (["begin 1", "finish 1"], [2])
    assert bench.answers() == [[2.0], [4.0, 6.0]]
    bench.loop.step()
    bench.loop.step()
    assert bench.answers() == [[8.0]]


def test_a_batch_that_cannot_be_begun_fails_in_its_turn(bench: Bench) -> None:
    for value in (1.0, -1.0, 3.0):
        bench.send([value])
    for _ in range(4):
        bench.loop.step()
    assert bench.answers() == [[2.0], "ValueError: no negative values", [6.0]]


def test_a_batch_that_fails_on_the_device_does_not_take_the_next_along(bench: Bench) -> None:
    for value in (1000.0, 2.0):
        bench.send([value])
    for _ in range(3):
        bench.loop.step()
    failed, answered = bench.answers()
    assert failed == "RuntimeError: CUDA error: device-side assert triggered"
    assert answered == [4.0]


def test_a_batch_for_which_there_is_no_room_beside_another_has_the_device_for_itself_and_is_cut(
    bench: Bench, staging: Staging
) -> None:
    staging.room = 2
    bench.send([1.0])
    bench.send([2.0, 3.0, 4.0, 5.0])
    bench.loop.step()
    bench.loop.step()
    assert staging.calls[:3] == ["begin 1", "begin 2", "finish 1"]
    assert staging.calls[3:] == ["execute 2 (2 rows)", "execute 4 (2 rows)"]
    assert bench.answers() == [[2.0], [4.0, 6.0, 8.0, 10.0]]
    # From now on it is known, and not begun at all.
    staging.calls.clear()
    bench.send([2.0, 3.0, 4.0, 5.0])
    bench.loop.step()
    assert staging.calls == ["execute 2 (2 rows)", "execute 4 (2 rows)"]


def test_a_request_for_a_model_that_is_not_there_fails_in_its_turn(bench: Bench) -> None:
    bench.send([1.0])
    bench.send([2.0], handle=99)
    bench.loop.step()
    bench.loop.step()
    assert bench.answers() == [[2.0], "KeyError: 99"]


def test_what_a_staged_batch_leaves_is_kept_once_it_is_finished(bench: Bench, host: ModelHost) -> None:
    bench.send([1.0, 2.0], keep=Keep(7, 1))
    kept = [len(host.kept)]
    bench.loop.step()
    kept.append(len(host.kept))
    bench.loop.step()
    kept.append(len(host.kept))
    assert kept == [0, 0, 1]
    outcome = frame.read_outcome(bench.slabs[0])
    assert outcome.error is None
    # It stays: what travels is its shape.
    assert [(len(output.data), output.shape) for output in outcome.outputs] == [(0, (2, 1))]


def test_a_model_is_not_closed_while_the_device_computes_a_batch_of_it(
    bench: Bench, host: ModelHost, staging: Staging
) -> None:
    bench.send([1.0])
    bench.loop.step()
    unloading = threading.Thread(target=host.unload, args=(STAGING,))
    unloading.start()
    # No later batch can be begun; the one under way is finished, as by a loop to which nothing comes.
    while STAGING in host.staged:
        unloading.join(0.001)
    # It asserts that the engine is not closed.
    bench.loop.step()
    unloading.join(PATIENCE)
    assert staging.closed
    assert bench.answers() == [[2.0]]


def test_a_model_that_is_loaded_again_goes_on_answering_while_its_old_engine_finishes(
    bench: Bench, host: ModelHost, staging: Staging, monkeypatch: pytest.MonkeyPatch
) -> None:
    anew = Staging()
    monkeypatch.setattr("offramp_server.workers.engines.load.load_engine", lambda *arguments: anew)
    bench.send([1.0])
    bench.loop.step()
    waits = threading.Event()
    wait = host._one_finished.wait

    def noted() -> bool:
        waits.set()
        return wait()

    monkeypatch.setattr(host._one_finished, "wait", noted)
    loading = threading.Thread(target=host.load, args=(STAGING, SPEC, Placement("cuda:0", 2)), daemon=True)
    loading.start()
    assert waits.wait(PATIENCE)
    bench.send([2.0])
    bench.loop.step()
    loading.join(PATIENCE)
    assert (staging.calls, anew.calls) == (["begin 1", "finish 1"], ["begin 2"])
    bench.loop.step()
    assert bench.answers() == [[2.0], [4.0]]
    assert (staging.closed, anew.closed) == (True, False)


def test_time_is_counted_once_where_batches_overlap(host: ModelHost, monkeypatch: pytest.MonkeyPatch) -> None:
    # Begun at 10 and 20, done at 50 and 80: the device cannot have begun with the second before 50.
    clock = iter([10, 20, 50, 80])
    monkeypatch.setattr("offramp_server.workers.host.time.monotonic_ns", lambda: next(clock))
    first, second = (host.begin(STAGING, rows([value])) for value in (1.0, 2.0))
    assert first is not None
    assert second is not None
    assert [host.finish(begun)[1] for begun in (first, second)] == [40, 30]
