"""What the models inside one worker may expect: both kinds of executor hold them in a `ModelHost`."""

from __future__ import annotations

import dataclasses
import gc
import threading
import weakref
from collections.abc import Iterator, Sequence

import pytest
from eventually import PATIENCE
from offramp_server.engine_report import EngineReport
from offramp_server.errors import LoadError
from offramp_server.workers.control import load_request_to_wire
from offramp_server.workers.host import ModelHost, Placement
from offramp_server.workers.process_main import _answer
from open_inference.tensor import Tensor
from scheduling_fakes import spec


class SlowEngine:
    """Computes until it may go on, or is closed."""

    report = EngineReport("slow", "cpu", "fp32", 1, "the test said so")

    def __init__(self) -> None:
        self.executing = threading.Event()
        self.go_on = threading.Event()
        self.closed = threading.Event()
        self.closed_under_way = False
        # As exported programs are.
        self.cycle = self

    def execute(self, inputs: Sequence[Tensor], staying: int = 0) -> list[Tensor]:
        self.executing.set()
        assert self.go_on.wait(PATIENCE)
        self.closed_under_way = self.closed.is_set()
        return []

    def close(self) -> None:
        self.closed.set()
        self.go_on.set()


class Lock:
    """Tells when somebody has to wait for it."""

    def __init__(self, waited_for: threading.Event) -> None:
        self._lock = threading.Lock()
        self._waited_for = waited_for

    def __enter__(self) -> None:
        if not self._lock.acquire(blocking=False):
            self._waited_for.set()
            self._lock.acquire()

    def __exit__(self, *error: object) -> None:
        self._lock.release()


def test_a_model_is_not_closed_while_it_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    # Its request was cancelled, so that nobody but the worker knows.
    engine = SlowEngine()
    monkeypatch.setattr("offramp_server.workers.engines.load.load_engine", lambda *arguments: engine)
    monkeypatch.setattr("offramp_server.workers.engines.warmup.warm_up", lambda *arguments: {1: 0.1})
    host = ModelHost()
    host.load(1, spec(), Placement("cpu", 1))
    monkeypatch.setattr(host, "_computing", Lock(waited_for=engine.go_on))
    computing = threading.Thread(target=host.execute, args=(1, []))
    computing.start()
    assert engine.executing.wait(PATIENCE)
    host.unload(1)
    computing.join(PATIENCE)
    assert engine.closed.is_set()
    assert not engine.closed_under_way
    with pytest.raises(KeyError):
        host.execute(1, [])


def test_a_model_that_is_loaded_again_is_executed_anew_and_its_old_engine_is_let_go_of(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engines = [SlowEngine(), SlowEngine()]
    loading = iter(engines)
    monkeypatch.setattr("offramp_server.workers.engines.load.load_engine", lambda *arguments: next(loading))
    monkeypatch.setattr("offramp_server.workers.engines.warmup.warm_up", lambda *arguments: {1: 0.1})
    host = ModelHost()
    host.load(1, spec(), Placement("cpu", 2))
    monkeypatch.setattr(host, "_computing", Lock(waited_for=engines[0].go_on))
    computing = threading.Thread(target=host.execute, args=(1, []))
    computing.start()
    assert engines[0].executing.wait(PATIENCE)
    host.load(1, spec(), Placement("cpu", 1))
    computing.join(PATIENCE)
    assert engines[0].closed.is_set()
    assert not engines[0].closed_under_way
    assert not engines[1].closed.is_set()
    engines[1].go_on.set()
    host.execute(1, [])
    assert engines[1].executing.is_set()


@pytest.fixture
def without_collector() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("without_collector")
def test_the_memory_of_an_engine_that_was_replaced_is_free_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[weakref.ref[SlowEngine]] = []

    def load(*arguments: object) -> SlowEngine:
        engine = SlowEngine()
        made.append(weakref.ref(engine))
        return engine

    monkeypatch.setattr("offramp_server.workers.engines.load.load_engine", load)
    monkeypatch.setattr("offramp_server.workers.engines.warmup.warm_up", lambda *arguments: {1: 0.1})
    host = ModelHost()
    for threads in (1, 2):
        host.load(1, spec(), Placement("cpu", threads))
    assert [engine() is None for engine in made] == [True, False]


@pytest.mark.usefixtures("without_collector")
def test_the_memory_of_a_load_that_failed_is_free_once_it_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[weakref.ref[SlowEngine]] = []

    def load(*arguments: object) -> SlowEngine:
        engine = SlowEngine()
        made.append(weakref.ref(engine))
        raise LoadError("it cannot be captured")

    monkeypatch.setattr("offramp_server.workers.engines.load.load_engine", load)
    message = load_request_to_wire(1, spec(), Placement("cpu", 1)) | {"id": 7}
    assert _answer(message, ModelHost()) == {"id": 7, "error": "it cannot be captured"}
    assert made[0]() is None


@pytest.mark.parametrize(
    ("share", "device", "bounded"), [(0.5, "cuda:1", True), (1.0, "cuda:1", False), (0.5, "cpu", False)]
)
def test_torch_is_told_what_share_of_a_gpu_it_may_take(
    monkeypatch: pytest.MonkeyPatch, share: float, device: str, bounded: bool
) -> None:
    told: list[tuple[float, str]] = []
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.set_per_process_memory_fraction", lambda share, on: told.append((share, str(on))))
    monkeypatch.setattr("offramp_server.workers.engines.load.load_engine", lambda *arguments: SlowEngine())
    monkeypatch.setattr("offramp_server.workers.engines.warmup.warm_up", lambda *arguments: {1: 0.1})
    ModelHost(share).load(1, dataclasses.replace(spec(), format="pt2"), Placement(device, 1))
    assert told == ([(0.5, "cuda:1")] if bounded else [])
