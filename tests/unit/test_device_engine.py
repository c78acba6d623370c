"""Engines on a GPU, driven by a double that keeps CUDA's rules: right answers, overlap, padding, what stays."""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pytest
import torch
from engine_models import AddSub, convolutional, export_pt2, model_spec
from offramp_server.engine_report import EngineReport
from offramp_server.errors import LoadError, ModelFailed
from offramp_server.model_spec import EngineSettings, ModelSpec
from offramp_server.scheduling.held import Keep
from offramp_server.workers.engines.accelerator import Captured
from offramp_server.workers.engines.aot_load import Packages
from offramp_server.workers.engines.aot_packages import Manifest
from offramp_server.workers.engines.device_engine import DeviceEngine, DeviceProgram
from offramp_server.workers.engines.graph_buckets import bucket_sizes
from offramp_server.workers.engines.kinds.cuda_graphs import CudaGraphsKind
from offramp_server.workers.engines.load import load_engine
from offramp_server.workers.engines.on_device import DeviceTensor
from offramp_server.workers.engines.program import load_exported, program_of
from offramp_server.workers.engines.torch_load import graph_engine
from offramp_server.workers.host import ModelHost, Placement
from offramp_server.workers.kept import HeldInput, KeptOutputs, Place
from offramp_server.workers.within_memory import WithinMemory
from open_inference.tensor import Tensor
from strict_accelerator import StrictAccelerator
from torch import nn

LARGEST = 11
IMAGES = np.random.default_rng(1).standard_normal((LARGEST, 1, 8, 8), dtype=np.float32)

Array: TypeAlias = "np.ndarray[tuple[int, ...], np.dtype[np.float32]]"
MakeEngine = Callable[[ModelSpec, StrictAccelerator], DeviceEngine]


def report(spec: ModelSpec) -> EngineReport:
    return EngineReport("double", "cpu", spec.engine.precision, 1, "the test said so")


def uncaptured(spec: ModelSpec, accelerator: StrictAccelerator) -> DeviceEngine:
    program = program_of(load_exported(spec), spec)
    on_device = DeviceProgram(program, list(program.kept()), writes_to_inputs=program.writes_in_place)
    return DeviceEngine(spec, on_device, report(spec), accelerator)


def captured(spec: ModelSpec, accelerator: StrictAccelerator) -> DeviceEngine:
    return graph_engine(spec, program_of(load_exported(spec), spec), report(spec), accelerator)


both = pytest.mark.parametrize("make", [uncaptured, captured])


@pytest.fixture(scope="module")
def images_spec(tmp_path_factory: pytest.TempPathFactory) -> ModelSpec:
    path = tmp_path_factory.mktemp("models") / "images.pt2"
    export_pt2(path, convolutional(), (torch.zeros(2, 1, 8, 8),), batch=LARGEST)
    return model_spec(path, ["x FP32 1 8 8"], ["scores FP32 3"], LARGEST)


@pytest.fixture(scope="module")
def pairs_spec(tmp_path_factory: pytest.TempPathFactory) -> ModelSpec:
    path = tmp_path_factory.mktemp("models") / "pairs.pt2"
    export_pt2(path, AddSub(), (torch.zeros(2, 4), torch.ones(2, 4)))
    return model_spec(path, ["a FP32 4", "b FP32 4"], ["sum FP32 4", "difference FP32 4"], 16)


def image(array: Array) -> list[Tensor]:
    # Writable, as the memory that workers share is.
    return [Tensor("x", "FP32", array.shape, bytearray(array.tobytes()))]


def pair(first: float, second: float, rows: int = 2) -> list[Tensor]:
    return [Tensor.from_numpy("", np.full((rows, 4), value, np.float32)) for value in (first, second)]


def test_buckets_are_the_powers_of_two_and_the_largest_batch(images_spec: ModelSpec) -> None:
    sizes = {largest: bucket_sizes(replace(images_spec, max_batch_size=largest)) for largest in (0, 1, 2, 8, 11)}
    assert sizes == {0: [1], 1: [1], 2: [1, 2], 8: [1, 2, 4, 8], 11: [1, 2, 4, 8, 11]}


@both
def test_every_batch_size_is_answered_as_by_the_plain_engine(images_spec: ModelSpec, make: MakeEngine) -> None:
    plain, engine = load_engine(images_spec, "cpu", 1), make(images_spec, StrictAccelerator())
    # Small after large: rows of an earlier batch must not be left in what is padded.
    for rows in (LARGEST, *range(1, LARGEST + 1)):
        [expected] = plain.execute(image(IMAGES[:rows]))
        [answer] = engine.execute(image(IMAGES[:rows]))
        assert answer.shape == (rows, 3)
        np.testing.assert_allclose(answer.numpy(), expected.numpy(), rtol=1e-5, atol=1e-6)


def test_each_bucket_is_captured_once_the_largest_first_and_replayed_from_then_on(images_spec: ModelSpec) -> None:
    accelerator = StrictAccelerator()
    engine = captured(images_spec, accelerator)
    assert accelerator.calls == ["capture"] * 5
    for rows in (3, 11, 1):
        engine.execute(image(IMAGES[:rows]))
    assert accelerator.calls[5:] == ["send", "replay", "fetch", "wait"] * 3


class Rows(nn.Module):
    """How many rows of the batch are equal to each row, itself included."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x.unsqueeze(0) == x.unsqueeze(1)).all(-1).sum(1, keepdim=True).float()


def test_padding_repeats_a_row_that_a_caller_sent(tmp_path: Path) -> None:
    path = export_pt2(tmp_path / "rows.pt2", Rows(), (torch.zeros(3, 2),), batch=8)
    engine = captured(model_spec(path, ["x FP32 2"], ["equal FP32 1"], 8), StrictAccelerator())
    [answer] = engine.execute([Tensor.from_numpy("x", np.arange(10, dtype=np.float32).reshape(5, 2))])
    # Three rows were added, all like the last.
    assert answer.numpy().reshape(-1).tolist() == [1, 1, 1, 1, 4]


@both
def test_the_next_batch_may_be_begun_before_an_answer_is_read(pairs_spec: ModelSpec, make: MakeEngine) -> None:
    engine = make(pairs_spec, StrictAccelerator())
    first, second = engine.begin(pair(3, 1)), engine.begin(pair(30, 10))
    for ticket, expected in ((first, (4, 2)), (second, (40, 20))):
        answers = engine.finish(ticket)
        assert [set(answer.numpy().reshape(-1).tolist()) for answer in answers] == [{value} for value in expected]


@both
def test_nothing_waits_for_the_device_before_a_batch_is_finished(pairs_spec: ModelSpec, make: MakeEngine) -> None:
    accelerator = StrictAccelerator()
    engine = make(pairs_spec, accelerator)
    accelerator.calls.clear()
    tickets = [engine.begin(pair(1, 2)), engine.begin(pair(3, 4))]
    assert "wait" not in accelerator.calls
    for ticket in tickets:
        engine.finish(ticket)
    assert accelerator.calls.count("wait") == 2


@both
def test_answers_stay_as_they_are_when_later_batches_are_computed(images_spec: ModelSpec, make: MakeEngine) -> None:
    engine = make(images_spec, StrictAccelerator())
    [first] = engine.execute(image(IMAGES))
    before = first.numpy().copy()
    engine.execute(image(-IMAGES))
    np.testing.assert_array_equal(first.numpy(), before)


@both
def test_what_stays_on_the_device_is_not_overwritten_and_can_be_computed_with(
    pairs_spec: ModelSpec, make: MakeEngine
) -> None:
    # Full batches: an answer that is cut to its rows would be copied for that reason alone.
    engine = make(pairs_spec, StrictAccelerator())
    kept = KeptOutputs()
    total, difference = engine.execute(pair(3, 1, rows=16), 0b01)
    kept.keep(Keep(1, 0b01), [total, difference])
    engine.execute(pair(100, 100, rows=16), 0b01)
    assert isinstance(total, DeviceTensor)
    assert len(total.data) == 0
    assert set(total.value.reshape(-1).tolist()) == {4.0}
    [rows] = kept.resolved([HeldInput("a", "FP32", (3, 4), b"", [Place(1, 0, row) for row in (5, 0, 9)])])
    again, _ = engine.execute([rows, *pair(0, 1, rows=3)[1:]])
    assert again.numpy().tolist() == [[5.0] * 4] * 3
    assert set(difference.numpy().reshape(-1).tolist()) == {2.0}


class Turned(nn.Module):
    """Its answers lie in memory otherwise than their shapes say."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return (x + 1).transpose(1, 2), (x.unsqueeze(-1) * 2).to(memory_format=torch.channels_last)


@both
def test_what_stays_lies_in_memory_as_engines_that_look_at_no_strides_take_it(tmp_path: Path, make: MakeEngine) -> None:
    path = export_pt2(tmp_path / "turned.pt2", Turned(), (torch.zeros(2, 3, 5),), batch=4)
    spec = model_spec(path, ["x FP32 3 5"], ["turned FP32 5 3", "last FP32 3 5 1"], 4)
    values = np.arange(60, dtype=np.float32).reshape(4, 3, 5)
    answers = make(spec, StrictAccelerator()).execute([Tensor.from_numpy("x", values)], 0b11)
    for answer, expected in zip(answers, ((values + 1).swapaxes(1, 2), values[..., None] * 2), strict=True):
        assert isinstance(answer, DeviceTensor)
        assert answer.value.is_contiguous()
        np.testing.assert_array_equal(answer.value.numpy(), expected)


def test_rows_that_are_gathered_lie_one_after_the_other_too() -> None:
    turned = torch.arange(24.0).reshape(4, 2, 3).transpose(1, 2)
    whole = DeviceTensor("x", "FP32", (4, 3, 2), b"", turned)
    for parts in ([(whole, [2, 0])], [(whole, [3]), (whole, [1, 2])]):
        gathered = whole.gather(parts)
        assert gathered.value.is_contiguous()
        rows = [row for _, taken in parts for row in taken]
        assert gathered.value.tolist() == turned[rows].tolist()


def test_memory_of_another_stream_is_kept_until_rows_of_it_are_gathered(monkeypatch: pytest.MonkeyPatch) -> None:
    recorded: list[tuple[int, str]] = []
    first, second = (torch.full((2, 1), value) for value in (1.0, 2.0))
    monkeypatch.setattr(torch.Tensor, "is_cuda", True)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: "this one")
    monkeypatch.setattr(
        torch.Tensor, "record_stream", lambda tensor, stream: recorded.append((tensor.data_ptr(), stream))
    )
    parts = [(DeviceTensor("x", "FP32", (2, 1), b"", value), range(2)) for value in (first, second)]
    gathered = parts[0][0].gather(parts)
    monkeypatch.undo()
    assert gathered.value.tolist() == [[1], [1], [2], [2]]
    assert recorded == [(first.data_ptr(), "this one"), (second.data_ptr(), "this one")]


def test_packages_that_were_compiled_ahead_are_captured_in_the_same_way(images_spec: ModelSpec) -> None:
    program = program_of(load_exported(images_spec), images_spec)
    called: list[int] = []

    def run(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        called.append(tensors[0].shape[0])
        return program(tensors)

    manifest = Manifest(packages=(), writes_in_place=False, lent=())
    packages = Packages(manifest, dict.fromkeys(range(1, LARGEST + 1), run), batches=True)
    engine = graph_engine(images_spec, packages, report(images_spec), StrictAccelerator())
    captured_for = set(called)
    called.clear()
    [answer] = engine.execute(image(IMAGES[:5]))
    [expected] = load_engine(images_spec, "cpu", 1).execute(image(IMAGES[:5]))
    np.testing.assert_allclose(answer.numpy(), expected.numpy(), rtol=1e-5, atol=1e-6)
    assert (captured_for, called) == ({1, 2, 4, 8, 11}, [])


class Roomless(StrictAccelerator):
    """The end of a capture in which memory ran out says only that it failed, as CUDA's does."""

    def capture(self, work: Callable[[], list[torch.Tensor]]) -> Captured:
        try:
            return super().capture(work)
        finally:
            if sys.exception() is not None:
                raise RuntimeError("CUDA error: operation failed due to a previous error during capture")


def with_room_for(rows: int, spec: ModelSpec, runs_before: int = 0) -> Packages:
    """Runs out of memory beyond, not in the first runs of a size."""
    program, calls = program_of(load_exported(spec), spec), Counter[int]()

    def run(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        asked = tensors[0].shape[0]
        calls[asked] += 1
        if asked > rows and calls[asked] > runs_before:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return program(tensors)

    manifest = Manifest(packages=(), writes_in_place=False, lent=())
    return Packages(manifest, dict.fromkeys(range(1, LARGEST + 1), run), batches=True)


@pytest.mark.parametrize("runs_before", [0, 3])
def test_batches_that_there_is_no_memory_to_capture_go_in_parts(images_spec: ModelSpec, runs_before: int) -> None:
    packages = with_room_for(4, images_spec, runs_before)
    bounded = WithinMemory(graph_engine(images_spec, packages, report(images_spec), Roomless()), images_spec)
    [answer] = bounded.execute(image(IMAGES))
    [expected] = load_engine(images_spec, "cpu", 1).execute(image(IMAGES))
    np.testing.assert_allclose(answer.numpy(), expected.numpy(), rtol=1e-5, atol=1e-6)
    assert bounded.splits > 0


def test_where_no_bucket_can_be_captured_for_want_of_memory_weights_are_not_said_to_be_the_reason(
    images_spec: ModelSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    packages = with_room_for(0, images_spec)
    monkeypatch.setattr(
        "offramp_server.workers.engines.load.load_engine",
        lambda *arguments: graph_engine(images_spec, packages, report(images_spec), Roomless()),
    )
    with pytest.raises(LoadError, match=r"out of memory on cpu with the smallest batch; serve fewer"):
        ModelHost().load(1, images_spec, Placement("cuda:0", 1))


class AddInPlace(nn.Module):
    """Writes to what it is given, and answers with a buffer of its own."""

    total: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("total", torch.zeros(1, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x.add_(1)
        self.total.add_(x.sum(0, keepdim=True))
        return self.total


def test_what_stays_is_not_written_to_by_later_batches(tmp_path: Path) -> None:
    path = export_pt2(tmp_path / "inplace.pt2", AddInPlace(), (torch.zeros(1, 4),), batch=0)
    engine = uncaptured(model_spec(path, ["x FP32 1 4"], ["total FP32 1 4"], 0), StrictAccelerator())
    [first] = engine.execute([Tensor.from_numpy("x", np.zeros((1, 4), np.float32))], 1)
    [second] = engine.execute([first], 1)
    assert isinstance(first, DeviceTensor)
    assert isinstance(second, DeviceTensor)
    assert (first.value.tolist(), second.value.tolist()) == ([[1.0] * 4], [[3.0] * 4])


@both
@pytest.mark.parametrize(("precision", "tolerance"), [("bf16", 5e-2), ("fp16", 1e-2)])
def test_lower_precisions_answer_in_the_declared_datatypes(
    images_spec: ModelSpec, make: MakeEngine, precision: str, tolerance: float
) -> None:
    spec = replace(images_spec, engine=EngineSettings(precision=precision))
    [expected] = load_engine(images_spec, "cpu", 1).execute(image(IMAGES))
    [answer] = make(spec, StrictAccelerator()).execute(image(IMAGES))
    assert answer.datatype == "FP32"
    difference = np.abs(answer.numpy() - expected.numpy()).max() / np.abs(expected.numpy()).max()
    assert 0 < difference < tolerance


@both
def test_an_answer_other_than_declared_is_the_models_failure(images_spec: ModelSpec, make: MakeEngine) -> None:
    wrong = model_spec(images_spec.path, ["x FP32 1 8 8"], ["scores FP32 5"], LARGEST)
    with pytest.raises(ModelFailed, match=r'output "scores": expected FP32\[11,5\], the model answered FP32\[11,3\]'):
        make(wrong, StrictAccelerator()).execute(image(IMAGES))


class ReadsBack(nn.Module):
    """Asks the device how many elements are positive."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        count = (x > 0).sum().item()
        return x * count


def test_a_program_that_reads_values_back_cannot_be_captured_and_it_is_said_what_can_run_it(tmp_path: Path) -> None:
    path = export_pt2(tmp_path / "reads.pt2", ReadsBack(), (torch.ones(2, 4),), batch=4)
    with pytest.raises(
        LoadError, match=r"batch size 4 cannot be captured .* not permitted .* backend = \"torch-eager\""
    ):
        captured(model_spec(path, ["x FP32 4"], ["y FP32 4"], 4), StrictAccelerator())


def test_rows_that_begin_between_the_addresses_a_program_was_compiled_for_are_copied() -> None:
    addresses: list[int] = []

    def forward(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        addresses.append(tensors[0].data_ptr())
        return [tensors[0] + 1]

    spec = model_spec(Path("model.pt2"), ["x FP32 1"], ["y FP32 1"], 4)
    engine = DeviceEngine(spec, DeviceProgram(forward, (), alignment=16), report(spec), StrictAccelerator())
    there = torch.arange(5.0).reshape(5, 1)
    for first in (0, 1):
        rows = DeviceTensor("x", "FP32", (4, 1), b"", there[first : first + 4])
        [answer] = engine.execute([rows])
        assert answer.numpy().reshape(-1).tolist() == [first + value for value in (1, 2, 3, 4)]
    assert addresses[0] == there.data_ptr()
    assert addresses[1] % 16 == 0


def test_threads_are_those_that_the_program_was_compiled_with(pairs_spec: ModelSpec) -> None:
    found: list[int] = []

    def forward(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        found.append(torch.get_num_threads())
        return [tensors[0] + tensors[1], tensors[0] - tensors[1]]

    of_three = replace(report(pairs_spec), threads=3)
    engine = DeviceEngine(pairs_spec, DeviceProgram(forward, ()), of_three, StrictAccelerator())
    before = torch.get_num_threads()
    try:
        engine.execute(pair(1, 2))
    finally:
        torch.set_num_threads(before)
    assert found == [3]


def test_a_batch_that_fails_leaves_the_engine_as_it_was(pairs_spec: ModelSpec) -> None:
    engine = uncaptured(pairs_spec, StrictAccelerator())
    with pytest.raises(RuntimeError):
        engine.begin([*pair(1, 2)[:1], Tensor.from_numpy("b", np.zeros((2, 3), np.float32))])
    total, _ = engine.execute(pair(1, 2))
    assert set(total.numpy().reshape(-1).tolist()) == {3.0}


@both
def test_closing_lets_go_of_the_program(pairs_spec: ModelSpec, make: MakeEngine) -> None:
    engine = make(pairs_spec, StrictAccelerator())
    engine.close()
    with pytest.raises(RuntimeError, match="closed"):
        engine.execute(pair(1, 2))


@pytest.mark.parametrize(
    ("device", "inputs", "sentence"),
    [
        ("cpu", ["x FP32 1 8 8"], 'engine "cuda-graphs" needs an NVIDIA GPU, not "cpu"'),
        (
            "cuda:0",
            ["x FP32 1 -1 8"],
            'input "x" has variable dimensions .* cuda-graphs is made for fixed ones but for the batch',
        ),
        ("cuda:0", ["x FP32 1 8 8"], ""),
    ],
)
def test_what_cannot_be_captured_is_refused_before_anything_is_loaded(
    images_spec: ModelSpec, device: str, inputs: list[str], sentence: str
) -> None:
    refusal = CudaGraphsKind().refusal(model_spec(images_spec.path, inputs, ["scores FP32 3"]), device)
    assert re.match(sentence, refusal) if sentence else refusal == ""
