"""What a `.pt2` model answers must not depend on which engine of torch runs it, nor on whose memory it is given."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from engine_models import AddSub, Identity, convolutional, export_pt2, model_spec
from offramp_server.engine_choice import EngineChoice
from offramp_server.engine_report import EngineReport
from offramp_server.errors import LoadError, ModelFailed
from offramp_server.model_spec import ModelSpec
from offramp_server.workers.engines.base import Engine
from offramp_server.workers.engines.kinds.torch_models import FOLDED
from offramp_server.workers.engines.load import load_engine
from offramp_server.workers.engines.torch_load import checked_device
from offramp_server.workers.engines.torch_tensors import SMALL_BYTES, TORCH_TYPES
from open_inference.tensor import BF16, ITEM_SIZES, NUMPY_TYPES, Array, Tensor
from torch import nn

IMAGES = np.random.default_rng(1).standard_normal((16, 1, 8, 8), dtype=np.float32)


@pytest.fixture(scope="module")
def images_spec(tmp_path_factory: pytest.TempPathFactory) -> ModelSpec:
    path = tmp_path_factory.mktemp("models") / "convolutional.pt2"
    export_pt2(path, convolutional(), (torch.zeros(2, 1, 8, 8),))
    return model_spec(path, ["x FP32 1 8 8"], ["scores FP32 3"])


def asking(spec: ModelSpec, **settings: Any) -> ModelSpec:
    return dataclasses.replace(spec, engine=dataclasses.replace(spec.engine, **settings))


def scores(engine: Engine, items: int) -> Array:
    (answer,) = engine.execute([Tensor.from_numpy("x", IMAGES[:items])])
    assert (answer.name, answer.datatype, answer.shape) == ("scores", "FP32", (items, 3))
    return answer.numpy()


def expected_scores(items: int) -> Array:
    with torch.inference_mode():
        answer: torch.Tensor = convolutional()(torch.from_numpy(IMAGES[:items].copy()))
    return answer.numpy()


@pytest.mark.parametrize("items", [1, 2, 15, 16])
@pytest.mark.parametrize("backend", ["auto", "torch-eager"])
def test_every_batch_size_is_answered_as_the_module_in_python_would(
    images_spec: ModelSpec, backend: str, items: int
) -> None:
    engine = load_engine(asking(images_spec, backend=backend), "cpu", 1)
    np.testing.assert_allclose(scores(engine, items), expected_scores(items), rtol=1e-4, atol=1e-5)


def test_what_was_decided_elsewhere_is_loaded_and_reported(images_spec: ModelSpec) -> None:
    choice = EngineChoice("torch-eager", FOLDED, 2, None, "measured", {"torch-eager": 2.0}, {"openvino": "missing"})
    engine = load_engine(images_spec, "cpu", 1, choice)
    assert engine.report == EngineReport(
        "torch-eager", "cpu", "fp32", 2, "measured", {"torch-eager": 2.0}, FOLDED, {"openvino": "missing"}
    )
    np.testing.assert_allclose(scores(engine, 3), expected_scores(3), rtol=1e-4, atol=1e-5)


def test_a_named_engine_runs_the_program_as_exported(images_spec: ModelSpec) -> None:
    report = load_engine(asking(images_spec, backend="torch-eager"), "cpu", 2).report
    assert (report.reason, report.threads, report.measured) == ("asked for by model.toml", 2, {})


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_a_lower_precision_computes_coarser_and_keeps_the_datatypes(images_spec: ModelSpec, precision: str) -> None:
    engine = load_engine(asking(images_spec, precision=precision), "cpu", 1)
    difference = np.abs(scores(engine, 4) - expected_scores(4)).max()
    assert 0 < difference < 0.05
    assert engine.report.precision == precision


@pytest.mark.parametrize("shape", [(3, 4), (0, 4), (3, 0)], ids=["full", "no items", "no elements"])
@pytest.mark.parametrize("datatype", TORCH_TYPES)
def test_every_datatype_of_torch_comes_back_unchanged(tmp_path: Path, datatype: str, shape: tuple[int, int]) -> None:
    example = torch.zeros(3, 4, dtype=TORCH_TYPES[datatype])
    batch = torch.export.Dim("batch", min=0, max=16)
    exported = torch.export.export(Identity(), (example,), dynamic_shapes=({0: batch, 1: torch.export.Dim("width")},))
    torch.export.save(exported, tmp_path / "identity.pt2")
    spec = model_spec(tmp_path / "identity.pt2", [f"x {datatype} -1"], [f"y {datatype} -1"])
    engine = load_engine(asking(spec, backend="torch-eager"), "cpu", 1)
    data = bits(datatype, shape)
    (answer,) = engine.execute([Tensor("x", datatype, shape, data)])
    assert (answer.name, answer.datatype, answer.shape, bytes(answer.data)) == ("y", datatype, shape, data)


def bits(datatype: str, shape: tuple[int, ...]) -> bytes:
    count = int(np.prod(shape))
    if datatype == "BOOL":
        return bytes(at % 2 for at in range(count))
    if datatype == BF16:
        return np.arange(0x3F80, 0x3F80 + count, dtype=np.uint16).tobytes()
    return np.arange(count).astype(NUMPY_TYPES[datatype]).tobytes()


@pytest.fixture(scope="module")
def identity_spec(tmp_path_factory: pytest.TempPathFactory) -> ModelSpec:
    path = export_pt2(tmp_path_factory.mktemp("models") / "identity.pt2", Identity(), (torch.zeros(2, 4),))
    return model_spec(path, ["x FP32 4"], ["y FP32 4"])


def test_an_answer_owns_its_memory_although_the_model_returned_its_input(identity_spec: ModelSpec) -> None:
    shared = bytearray(np.arange(8, dtype=np.float32).tobytes())
    engine = load_engine(identity_spec, "cpu", 1)
    (answer,) = engine.execute([Tensor("x", "FP32", (2, 4), memoryview(shared))])
    shared[:] = bytes(len(shared))
    assert answer.numpy().tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]


class Lends(nn.Module):
    """Returns its input, and a row of it."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x, x[1]


# Small answers are copied, of large ones the engine asks whose memory they are.
WIDTHS = pytest.mark.parametrize("width", [4, SMALL_BYTES], ids=["small", "large"])


@WIDTHS
@pytest.mark.parametrize("datatype", ["FP32", BF16])
def test_answers_of_any_size_share_no_memory_with_the_caller(tmp_path: Path, width: int, datatype: str) -> None:
    example = torch.zeros(2, width, dtype=TORCH_TYPES[datatype])
    path = export_pt2(tmp_path / "lends.pt2", Lends(), (example,), batch=0)
    spec = model_spec(
        path, [f"x {datatype} 2 {width}"], [f"same {datatype} 2 {width}", f"row {datatype} {width}"], max_batch_size=0
    )
    sent = bytes(Tensor.from_numpy("x", np.full((2, width), 3, np.float32), datatype).data)
    shared = bytearray(sent)
    same, row = load_engine(spec, "cpu", 1).execute([Tensor("x", datatype, (2, width), memoryview(shared))])
    shared[:] = bytes(len(shared))
    assert bytes(same.data) == sent
    assert bytes(row.data) == sent[: len(sent) // 2]


class Counter(nn.Module):
    """Returns a buffer that it adds to."""

    total: torch.Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("total", torch.zeros(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.total.add_(x)
        return self.total


@WIDTHS
def test_answers_of_any_size_share_no_memory_with_the_model(tmp_path: Path, width: int) -> None:
    path = export_pt2(tmp_path / "counter.pt2", Counter(width), (torch.zeros(width),), batch=0)
    spec = model_spec(path, [f"x FP32 {width}"], [f"total FP32 {width}"], max_batch_size=0, backend="torch-eager")
    engine = load_engine(spec, "cpu", 1)
    ones = [Tensor.from_numpy("x", np.ones(width, np.float32))]
    answers = [*engine.execute(ones), *engine.execute(ones)]
    assert [set(answer.numpy().tolist()) for answer in answers] == [{1.0}, {2.0}]


class Conjugate(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.view_as_complex(x).conj().imag


@pytest.mark.parametrize("items", [1, 3])
def test_an_answer_that_torch_has_negated_only_in_name_is_negated(tmp_path: Path, items: int) -> None:
    path = export_pt2(tmp_path / "conjugate.pt2", Conjugate(), (torch.zeros(2, 1, 2),))
    spec = model_spec(path, ["x FP32 1 2"], ["imaginary FP32 1"])
    (answer,) = load_engine(spec, "cpu", 1).execute([Tensor.from_numpy("x", np.full((items, 1, 2), 5, np.float32))])
    assert answer.numpy().tolist() == [[-5]] * items


class Counts(nn.Module):
    """Returns a weight and a view of its input; adds to the input first."""

    seen: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(4))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x.add_(1)
        self.seen.add_(x.sum())
        return self.seen, x.t()


def test_memory_of_the_caller_and_of_the_model_is_neither_written_nor_handed_out(tmp_path: Path) -> None:
    path = export_pt2(tmp_path / "counts.pt2", Counts(), (torch.zeros(2, 4),), batch=0)
    spec = model_spec(path, ["x FP32 2 4"], ["seen FP32 4", "t FP32 4 2"], max_batch_size=0, backend="torch-eager")
    engine = load_engine(spec, "cpu", 1)
    shared = bytearray(2 * 4 * 4)
    first = engine.execute([Tensor("x", "FP32", (2, 4), memoryview(shared))])
    second = engine.execute([Tensor("x", "FP32", (2, 4), memoryview(shared))])
    assert not any(shared)
    assert [answer[0].numpy().tolist() for answer in (first, second)] == [[8.0] * 4, [16.0] * 4]
    assert second[1].numpy().tolist() == [[1.0, 1.0]] * 4


class Nested(nn.Module):
    """A flag, a keyword-only container and a None on the way in; a dict, a tuple and a None on the way out."""

    def forward(self, a: torch.Tensor, double: bool, *, more: dict[str, torch.Tensor], extra: Any = None) -> Any:
        assert extra is None
        total = a * 2 if double else a
        return {"z": total + more["b"], "rest": (None, total - more["b"])}


def test_arguments_and_results_are_positional_however_they_are_nested(tmp_path: Path) -> None:
    kwargs = {"more": {"b": torch.zeros(2, 3)}, "extra": None}
    path = export_pt2(tmp_path / "nested.pt2", Nested(), (torch.zeros(2, 3), True), kwargs)
    spec = model_spec(path, ["a FP32 3", "b FP32 3"], ["plus FP32 3", "minus FP32 3"])
    a, b = (np.full((5, 3), value, np.float32) for value in (4, 1))
    plus, minus = load_engine(spec, "cpu", 1).execute([Tensor.from_numpy("a", a), Tensor.from_numpy("b", b)])
    assert (plus.name, minus.name) == ("plus", "minus")
    assert (plus.numpy() == 9).all()
    assert (minus.numpy() == 7).all()


def test_two_inputs_and_two_outputs_keep_their_order(tmp_path: Path) -> None:
    # Two tensors: given one twice, torch.export takes the two arguments for the same.
    examples = torch.zeros(2, 16, dtype=torch.int32), torch.zeros(2, 16, dtype=torch.int32)
    path = export_pt2(tmp_path / "addsub.pt2", AddSub(), examples)
    spec = model_spec(path, ["INPUT0 INT32 16", "INPUT1 INT32 16"], ["SUM INT32 16", "DIFFERENCE INT32 16"])
    a, b = np.full((3, 16), 7, np.int32), np.full((3, 16), 2, np.int32)
    total, difference = load_engine(spec, "cpu", 1).execute([Tensor.from_numpy("a", a), Tensor.from_numpy("b", b)])
    assert (total.numpy() == 9).all()
    assert (difference.numpy() == 5).all()


@pytest.mark.parametrize(
    ("outputs", "sentence"),
    [
        (["y FP64 4"], r'output "y": expected FP64\[2,4\], the model answered FP32\[2,4\]'),
        (["y FP32 5"], r'output "y": expected FP32\[2,5\], the model answered FP32\[2,4\]'),
        (["y FP32"], r'output "y": expected FP32\[2\], the model answered FP32\[2,4\]'),
    ],
)
def test_an_answer_other_than_declared_is_the_models_failure(
    identity_spec: ModelSpec, outputs: list[str], sentence: str
) -> None:
    spec = model_spec(identity_spec.path, ["x FP32 4"], outputs)
    with pytest.raises(ModelFailed, match=sentence):
        load_engine(spec, "cpu", 1).execute([Tensor("x", "FP32", (2, 4), bytes(32))])


class Mean(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean()


def test_a_scalar_is_an_answer_only_of_a_model_that_does_not_batch(tmp_path: Path) -> None:
    path = export_pt2(tmp_path / "mean.pt2", Mean(), (torch.zeros(2, 4),))
    inputs = [Tensor.from_numpy("x", np.full((2, 4), 3, np.float32))]
    (answer,) = load_engine(model_spec(path, ["x FP32 -1 4"], ["mean FP32"], 0), "cpu", 1).execute(inputs)
    assert (answer.shape, answer.numpy().item()) == ((), 3.0)
    with pytest.raises(ModelFailed, match=r"expected FP32\[2\], the model answered FP32\[\]"):
        load_engine(model_spec(path, ["x FP32 4"], ["mean FP32"]), "cpu", 1).execute(inputs)


@pytest.mark.parametrize(
    ("inputs", "outputs", "sentence"),
    [
        (["x FP32 4", "z FP32 4"], ["y FP32 4"], "2 inputs are declared, identity.pt2 has 1"),
        (["x FP32 4"], ["y FP32 4", "z FP32 4"], "2 outputs are declared, identity.pt2 has 1"),
        (["x BYTES 4"], ["y FP32 4"], '"x" is BYTES, torch has no strings; use an .onnx file'),
    ],
)
def test_a_spec_that_does_not_fit_the_program_is_refused(
    identity_spec: ModelSpec, inputs: list[str], outputs: list[str], sentence: str
) -> None:
    with pytest.raises(LoadError, match=sentence):
        load_engine(model_spec(identity_spec.path, inputs, outputs), "cpu", 1)


def test_threads_are_those_of_the_engine_in_whatever_thread_it_is_called(identity_spec: ModelSpec) -> None:
    two, one = (load_engine(identity_spec, "cpu", threads) for threads in (2, 1))
    seen = []
    for engine in (one, two, one):
        engine.execute([Tensor("x", "FP32", (2, 4), bytes(32))])
        seen.append(torch.get_num_threads())
    assert seen == [1, 2, 1]


def test_whoever_builds_for_a_gpu_or_loads_there_computes_fp32_in_fp32(
    identity_spec: ModelSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    flags: tuple[Any, ...] = (torch.backends.cudnn, torch.backends.cuda.matmul)
    before = [each.allow_tf32 for each in flags]
    try:
        for each in flags:
            each.allow_tf32 = True
        assert checked_device(identity_spec, "cuda:0") == torch.device("cuda:0")
        assert [each.allow_tf32 for each in flags] == [False, False]
    finally:
        for each, allowed in zip(flags, before, strict=True):
            each.allow_tf32 = allowed


def test_closing_lets_go_of_the_weights(images_spec: ModelSpec) -> None:
    engine = load_engine(images_spec, "cpu", 1)
    engine.close()
    with pytest.raises(RuntimeError, match="closed"):
        scores(engine, 1)


def test_item_sizes_of_the_wire_are_those_of_torch() -> None:
    assert {name: dtype.itemsize for name, dtype in TORCH_TYPES.items()} == dict(ITEM_SIZES)
