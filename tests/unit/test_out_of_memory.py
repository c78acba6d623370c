"""A batch that needs more memory than there is goes in parts, and its worker lives on."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from engine_models import model_spec
from hypothesis import given
from hypothesis import strategies as st
from memory_engines import Doubling, rows
from offramp_server.errors import LoadError, ModelFailed
from offramp_server.model_spec import ModelSpec
from offramp_server.scheduling.held import Keep
from offramp_server.workers import out_of_memory, within_memory
from offramp_server.workers.batch_rows import halves
from offramp_server.workers.engines.on_device import DeviceTensor
from offramp_server.workers.engines.warmup import warm_up
from offramp_server.workers.host import ModelHost, Placement
from offramp_server.workers.kept import HeldInput, KeptOutputs, Place
from offramp_server.workers.out_of_memory import ran_out_of_memory
from offramp_server.workers.within_memory import FIRST_PATIENCE, WithinMemory
from open_inference.tensor import BYTES, Tensor, encode_bytes

SPEC = model_spec(Path("model.pt2"), ["x FP32 1"], ["y FP32 1"])

# As the libraries write them; what was run and what was read is in workers/out_of_memory.py.
OUT_OF_MEMORY = [
    "[ONNXRuntimeError] : 1 : FAIL : Non-zero status code returned while running MatMul node. Name:'' Status Message: "
    "/onnxruntime_src/onnxruntime/core/framework/bfc_arena.cc:360 void* onnxruntime::BFCArena::AllocateRawInternal("
    "size_t, bool, onnxruntime::Stream*) Failed to allocate memory for requested buffer of size 6400000000",
    "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Non-zero status code returned while running MatMul node. Name:'' "
    "Status Message: std::bad_alloc",
    "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported at some other API call",
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.11 GiB of which 1 GiB is free.",
    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    "../rtSafe/safeRuntime.cpp (25) - Cuda Error in allocate: 2 (out of memory)",
    "[virtualMemoryBuffer.cpp::resizePhysical::160] Error Code 2: OutOfMemory (no further information)",
    "aoti_torch_empty_strided(2, int_array_1, int_array_2, cached_torch_dtype_float32, cached_torch_device_type_cuda, "
    "this->device_idx_, &buf0_handle) API call failed at /tmp/x/model.wrapper.cpp, line 77",
    "aoti_torch__alloc_from_pool(pool1, 0, cached_torch_dtype_float32, a, b, &handle) API call failed at x, line 9",
]
# What is also said of other failures.
DOUBTFUL = [
    "run_func_( container_handle_, input_handles.data(), input_handles.size(), output_handles.data(), "
    "output_handles.size(), reinterpret_cast<AOTInductorStreamHandle>(stream_handle), proxy_executor_handle_) API call "
    "failed at /pytorch/torch/csrc/inductor/aoti_runner/model_container_runner.cpp, line 157",
    "GET was unable to find an engine to execute this computation",
    "FIND was unable to find an engine to execute this computation after trying 9 plans.",
]


def values(answer: Sequence[Tensor]) -> list[float]:
    numbers: list[float] = answer[0].numpy().reshape(-1).tolist()
    return numbers


@pytest.mark.parametrize("message", OUT_OF_MEMORY)
def test_what_libraries_say_when_memory_runs_out_is_understood(message: str) -> None:
    assert ran_out_of_memory(RuntimeError(message))


def test_what_torch_and_numpy_really_raise_is_understood() -> None:
    with pytest.raises(RuntimeError) as torchs:
        torch.empty(1 << 50)
    with pytest.raises(MemoryError) as numpys:
        np.empty(1 << 55, np.uint8)
    assert ran_out_of_memory(torchs.value)
    assert ran_out_of_memory(numpys.value)
    wrapped = LoadError("warm-up failed")
    wrapped.__cause__ = torchs.value
    assert ran_out_of_memory(wrapped)


@pytest.mark.parametrize("message", ["CUDA error: an illegal memory access was encountered", "shapes do not match"])
def test_other_failures_are_not_taken_for_it(message: str) -> None:
    engine = Doubling(room=0, error=RuntimeError(message))
    with pytest.raises(RuntimeError, match=message):
        WithinMemory(engine, SPEC).execute(rows([1, 2]))
    assert engine.asked == [2]


@pytest.mark.parametrize("message", DOUBTFUL)
def test_what_may_be_said_for_want_of_memory_is_tried_in_smaller_parts(message: str) -> None:
    engine = Doubling(room=2, error=RuntimeError(message))
    bounded = WithinMemory(engine, SPEC)
    assert values(bounded.execute(rows(range(8)))) == [2.0 * value for value in range(8)]
    engine.asked.clear()
    bounded.execute(rows(range(8)))
    assert engine.asked == [2, 2, 2, 2]


@pytest.mark.parametrize("message", DOUBTFUL)
def test_what_smaller_parts_do_not_mend_is_told_as_it_is_and_not_remembered(message: str) -> None:
    engine = Doubling(room=0, error=RuntimeError(message))
    bounded = WithinMemory(engine, SPEC)
    for count in (1, 8):
        with pytest.raises(RuntimeError, match=re.escape(message)):
            bounded.execute(rows(range(count)))
    engine.room = 8
    engine.asked.clear()
    bounded.execute(rows(range(8)))
    assert engine.asked == [8]


@given(count=st.integers(1, 16), room=st.integers(1, 16))
def test_answers_are_the_same_whatever_fits(count: int, room: int) -> None:
    engine = Doubling(room)
    bounded = WithinMemory(engine, SPEC)
    with pytest.MonkeyPatch.context() as patch:
        # Each would go through everything that the tests before have left.
        patch.setattr(within_memory, "free_caches", lambda: None)
        for _ in range(3):
            assert values(bounded.execute(rows(range(count)))) == [2.0 * value for value in range(count)]
    assert bounded.splits > 0 or count <= room


def test_the_size_that_fits_is_remembered_for_the_next_batches() -> None:
    engine = Doubling(room=5)
    bounded = WithinMemory(engine, SPEC)
    bounded.execute(rows(range(16)))
    assert engine.asked[:3] == [16, 8, 4]
    engine.asked.clear()
    bounded.execute(rows(range(16)))
    bounded.execute(rows(range(3)))
    assert engine.asked == [4, 4, 4, 4, 3]


def test_after_a_while_larger_batches_are_tried_again() -> None:
    engine = Doubling(room=4)
    bounded = WithinMemory(engine, SPEC)
    bounded.execute(rows(range(16)))
    engine.room = 16
    for _ in range(10 * FIRST_PATIENCE):
        bounded.execute(rows(range(16)))
    splits = bounded.splits
    assert values(bounded.execute(rows(range(16)))) == [2.0 * value for value in range(16)]
    assert (engine.asked[-1], bounded.splits) == (16, splits)


def test_attempts_at_larger_batches_become_rare_where_they_keep_failing() -> None:
    engine = Doubling(room=4)
    bounded = WithinMemory(engine, SPEC)
    for _ in range(20 * FIRST_PATIENCE):
        bounded.execute(rows(range(8)))
    assert engine.asked.count(8) <= 6


def test_one_item_that_does_not_fit_is_refused_with_what_would_be_right() -> None:
    engine = Doubling(room=0)
    with pytest.raises(
        ModelFailed, match=r'"model": out of memory on cuda:0 with one item \("x" FP32\[1, 1\]\); send a s'
    ):
        WithinMemory(engine, SPEC).execute(rows([1]))
    assert engine.asked == [1, 1]


def test_a_model_that_does_not_batch_is_not_cut() -> None:
    engine = Doubling(room=2)
    with pytest.raises(ModelFailed, match="out of memory on cuda:0 with one request"):
        WithinMemory(engine, model_spec(Path("model.pt2"), ["x FP32 -1 1"], ["y FP32 -1 1"], 0)).execute(
            rows([1, 2, 3])
        )
    assert set(engine.asked) == {3}


def test_what_was_left_on_a_device_is_cut_and_joined_there() -> None:
    there = torch.arange(6.0).reshape(6, 1)
    bounded = WithinMemory(Doubling(room=2), SPEC)
    [answer] = bounded.execute([DeviceTensor("x", "FP32", (6, 1), b"", there)], 1)
    assert isinstance(answer, DeviceTensor)
    assert answer.shape == (6, 1)
    assert answer.value.tolist() == (there * 2).tolist()


def test_cutting_and_joining_there_take_no_memory_for_the_parts() -> None:
    there = torch.arange(6.0).reshape(6, 1)
    first, second = halves([DeviceTensor("x", "FP32", (6, 1), b"", there)])
    for [part], at in ((first, 0), (second, 3)):
        assert isinstance(part, DeviceTensor)
        assert part.value.data_ptr() == there[at:].data_ptr()


class Scarce(DeviceTensor):
    """Its rows can be put together once caches have been freed."""

    freed = False

    def gather(self, parts: Sequence[tuple[Tensor, Sequence[int]]]) -> DeviceTensor:
        if not Scarce.freed and len(parts) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        whole = DeviceTensor.gather(self, parts)
        return Scarce(whole.name, whole.datatype, whole.shape, b"", whole.value)


@pytest.fixture
def scarce(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[float], Scarce]]:
    monkeypatch.setattr(out_of_memory, "free_caches", lambda: setattr(Scarce, "freed", True))
    yield lambda first: Scarce("x", "FP32", (2, 1), b"", torch.tensor([[first], [first + 1]]))
    Scarce.freed = False


def test_answers_are_joined_once_caches_are_freed(scarce: Callable[[float], Scarce]) -> None:
    class Same(Doubling):
        def execute(self, inputs: Sequence[Tensor], staying: int = 0) -> list[Tensor]:
            if inputs[0].shape[0] > 1:
                raise MemoryError
            return list(inputs)

    [answer] = WithinMemory(Same(), SPEC).execute([scarce(4)])
    assert isinstance(answer, DeviceTensor)
    assert answer.value.tolist() == [[4], [5]]


def test_rows_that_are_held_are_gathered_once_caches_are_freed(scarce: Callable[[float], Scarce]) -> None:
    kept = KeptOutputs()
    for number in (1, 2):
        kept.keep(Keep(number, 1), [scarce(10 * number)])
    [rows] = kept.resolved([HeldInput("x", "FP32", (2, 1), b"", [Place(1, 0, 1), Place(2, 0, 0)])])
    assert isinstance(rows, DeviceTensor)
    assert rows.value.tolist() == [[11], [20]]


class Lengths(Doubling):
    """Answers with the strings it was given."""

    def execute(self, inputs: Sequence[Tensor], staying: int = 0) -> list[Tensor]:
        if inputs[0].shape[0] > self.room:
            raise MemoryError
        return [Tensor("y", BYTES, inputs[0].shape, bytes(inputs[0].data))]


def test_strings_are_cut_between_rows() -> None:
    texts = [b"a", b"", b"a longer one", b"b", b"cc", b"d"]
    data = encode_bytes(texts)
    [answer] = WithinMemory(Lengths(room=2), SPEC).execute([Tensor("x", BYTES, (3, 2), data)])
    assert (answer.shape, bytes(answer.data)) == ((3, 2), data)


class Ragged(Doubling):
    """Its answer is as wide as its batch is large."""

    def execute(self, inputs: Sequence[Tensor], staying: int = 0) -> list[Tensor]:
        count = inputs[0].shape[0]
        if count > self.room:
            raise MemoryError
        return [Tensor.from_numpy("y", np.zeros((count, count), np.float32))]


def test_parts_whose_answers_do_not_fit_together_fail_with_the_reason() -> None:
    with pytest.raises(
        ModelFailed, match=r"in parts for want of memory, and their answers \(FP32\[2, 2\], FP32\[1, 1\]"
    ):
        WithinMemory(Ragged(room=2), SPEC).execute(rows([1, 2, 3]))


def test_it_is_logged_once_for_a_model(caplog: pytest.LogCaptureFixture) -> None:
    bounded = WithinMemory(Doubling(room=1), SPEC)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            bounded.execute(rows(range(4)))
    assert [record.getMessage() for record in caplog.records] == [
        'model "model": out of memory on cuda:0 with 4 items (OutOfMemoryError); such batches are computed in parts '
        "from now on"
    ]


def test_a_model_of_which_one_item_fits_is_loaded_and_one_that_does_not_is_refused() -> None:
    assert set(warm_up(WithinMemory(Doubling(room=1), SPEC), SPEC)) == {1, 16}
    with pytest.raises(LoadError, match=r"warm-up with batch size 1 .* out of memory on cuda:0 with one item"):
        warm_up(WithinMemory(Doubling(room=0), SPEC), SPEC)


def test_weights_that_do_not_fit_are_a_load_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_room(spec: ModelSpec, *arguments: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    monkeypatch.setattr("offramp_server.workers.engines.load.load_engine", no_room)
    with pytest.raises(LoadError, match=r"its weights .* do not fit into what is left of the memory of cuda:0"):
        ModelHost().load(1, SPEC, Placement("cuda:0", 1))


def test_the_host_says_how_often_each_batch_was_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("offramp_server.workers.engines.load.load_engine", lambda *arguments: Doubling(room=2))
    monkeypatch.setattr("offramp_server.workers.engines.warmup.warm_up", lambda *arguments: {1: 0.1})
    host = ModelHost()
    host.load(1, SPEC, Placement("cuda:0", 1))
    assert [host.execute(1, rows(range(count)))[2] for count in (1, 2, 8)] == [0, 0, 3]
