"""`.pt2` programs written as ONNX, once, for ONNX Runtime and OpenVINO: both answer as torch does."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from built_engines import build
from engine_models import AddSub, convolutional, export_pt2, model_spec, onnx_file
from offramp_server.engine_choice import EngineChoice
from offramp_server.errors import InvalidRequest, LoadError
from offramp_server.model_spec import ModelSpec
from offramp_server.workers.engines.base import Engine
from offramp_server.workers.engines.load import load_engine
from offramp_server.workers.engines.parity import compare, tolerance
from offramp_server.workers.engines.warmup import sample_inputs
from onnx import numpy_helper
from open_inference.tensor import Tensor
from test_engine_quantized import Quantized
from torch import nn

BACKENDS = pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])


class Peculiar(nn.Module):
    """Writes to its input, returns it twice and as it was, and has arguments that are no tensors."""

    def forward(self, x: torch.Tensor, flag: None = None, *, scale: float = 2.0, other: torch.Tensor) -> dict[str, Any]:
        before = x.clone()
        x.mul_(scale)
        return {"twice": (x, x), "before": before, "nothing": flag, "positive": other > 0, "number": 3}


class MeanOfTokens(nn.Module):
    """Two inputs of one variable length: [N, L] to [N, 4]."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(100, 4)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        total: torch.Tensor = (self.embedding(ids) * mask[..., None]).sum(1)
        return total / mask.sum(1, keepdim=True).clamp(min=1)


def write_convolutional(path: Path) -> ModelSpec:
    export_pt2(path, convolutional(), (torch.zeros(2, 1, 8, 8),), batch=17)
    return model_spec(path, ["x FP32 1 8 8"], ["scores FP32 3"], 17)


def write_peculiar(path: Path) -> ModelSpec:
    export_pt2(path, Peculiar(), (torch.zeros(2, 4),), {"other": torch.zeros(2, 4)})
    outputs = ["x FP32 4", "again FP32 4", "before FP32 4", "positive BOOL 4"]
    return model_spec(path, ["x FP32 4", "other FP32 4"], outputs)


def write_tokens(path: Path) -> ModelSpec:
    batch, length = torch.export.Dim("batch", min=1, max=16), torch.export.Dim("length", min=2, max=512)
    ids = torch.zeros(2, 5, dtype=torch.int64)
    shapes = ({0: batch, 1: length}, {0: batch, 1: length})
    torch.manual_seed(0)
    torch.export.save(torch.export.export(MeanOfTokens(), (ids, ids), dynamic_shapes=shapes), path)
    return model_spec(path, ["ids INT64 -1", "mask INT64 -1"], ["mean FP32 4"])


def write_quantized(path: Path) -> ModelSpec:
    export_pt2(path, Quantized(), (torch.zeros(2, 2, 8, 8),))
    return model_spec(path, ["x FP32 2 8 8"], ["y FP32 4 8 8"], quantized=True)


def write_unbatched(path: Path) -> ModelSpec:
    export_pt2(path, AddSub(), (torch.zeros(3, 2), torch.zeros(3, 2)), batch=0)
    return model_spec(path, ["a FP32 3 2", "b FP32 3 2"], ["p FP32 3 2", "m FP32 3 2"], 0)


Built = Callable[[Callable[[Path], ModelSpec]], tuple[ModelSpec, EngineChoice]]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """Each program is exported once: what is built is the same for both engines."""
    folder = tmp_path_factory.mktemp("built")
    made: dict[str, tuple[ModelSpec, EngineChoice]] = {}

    def make(write: Callable[[Path], ModelSpec]) -> tuple[ModelSpec, EngineChoice]:
        name = write.__name__
        if name not in made:
            spec = write(folder / f"{name}.pt2")
            made[name] = (spec, build(spec, "onnxruntime", folder))
        return made[name]

    return make


def load(made: tuple[ModelSpec, EngineChoice], backend: str) -> Engine:
    spec, choice = made
    return load_engine(spec, "cpu", 1, dataclasses.replace(choice, backend=backend))


def random_inputs(spec: ModelSpec, items: int) -> list[Tensor]:
    generator = np.random.default_rng(items)
    return [
        Tensor.from_numpy(
            tensor.name,
            generator.integers(1, 100, tensor.shape)
            if tensor.datatype == "INT64"
            else generator.standard_normal(tensor.shape, dtype=np.float32),
        )
        for tensor in sample_inputs(spec, items)
    ]


@BACKENDS
@pytest.mark.parametrize("write", [write_convolutional, write_peculiar, write_tokens, write_quantized, write_unbatched])
def test_it_answers_as_torch_does_for_every_batch_size(
    built: Built, write: Callable[[Path], ModelSpec], backend: str
) -> None:
    spec, _ = made = built(write)
    engine = load(made, backend)
    plain = load_engine(spec, "cpu", 1)
    assert engine.report.backend == backend
    for items in range(1, max(spec.max_batch_size, 1) + 1):
        inputs = random_inputs(spec, items)
        given = [bytes(tensor.data) for tensor in inputs]
        assert compare(engine.execute(inputs), plain.execute(inputs)) <= tolerance(spec)
        assert [bytes(tensor.data) for tensor in inputs] == given


@BACKENDS
@pytest.mark.parametrize("length", [2, 3, 64])
def test_a_variable_dimension_takes_every_length(built: Built, backend: str, length: int) -> None:
    spec, _ = made = built(write_tokens)
    ids = np.random.default_rng(length).integers(0, 100, (3, length))
    inputs = [Tensor.from_numpy("ids", ids), Tensor.from_numpy("mask", (ids > 20).astype(np.int64))]
    assert compare(load(made, backend).execute(inputs), load_engine(spec, "cpu", 1).execute(inputs)) < 1e-6


@BACKENDS
def test_answers_own_their_memory(built: Built, backend: str) -> None:
    spec, _ = made = built(write_peculiar)
    engine = load(made, backend)
    shared = [bytearray(tensor.data) for tensor in random_inputs(spec, 2)]
    inputs = [Tensor(tensor.name, "FP32", (2, 4), data) for tensor, data in zip(spec.inputs, shared, strict=True)]
    first = engine.execute(inputs)
    kept = [bytes(answer.data) for answer in first]
    for data in shared:
        data[:] = bytes(len(data))
    engine.execute(inputs)
    assert [bytes(answer.data) for answer in first] == kept


@BACKENDS
def test_a_closed_engine_lets_go_of_its_model(built: Built, backend: str) -> None:
    spec, _ = made = built(write_unbatched)
    engine = load(made, backend)
    engine.close()
    with pytest.raises(Exception, match="NoneType"):
        engine.execute(random_inputs(spec, 1))


@BACKENDS
def test_without_what_is_built_the_load_says_what_builds_it(built: Built, backend: str) -> None:
    spec, _ = built(write_unbatched)
    with pytest.raises(LoadError, match=rf"{backend} runs what is built of a \.pt2 file beforehand; .*offramp tune"):
        load_engine(spec, "cpu", 1, EngineChoice(backend))


def test_a_program_that_onnx_cannot_express_is_refused_with_the_reason(tmp_path: Path) -> None:
    class Eigenvalues(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            values: torch.Tensor = torch.linalg.eigvalsh(x @ x.transpose(1, 2))
            return values

    path = export_pt2(tmp_path / "eigenvalues.pt2", Eigenvalues(), (torch.zeros(2, 3, 3),))
    with pytest.raises(LoadError, match=r'"eigenvalues": torch cannot write it as ONNX: .*"torch-eager" runs it'):
        build(model_spec(path, ["x FP32 3 3"], ["y FP32 3"]), "onnxruntime", tmp_path)


@BACKENDS
@pytest.mark.parametrize("library", ["torch", "onnxscript"])
def test_what_converts_a_pt2_file_is_asked_for_by_name(
    built: Built, monkeypatch: pytest.MonkeyPatch, backend: str, library: str
) -> None:
    spec, choice = built(write_unbatched)
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(LoadError, match=rf"{library} is not installed; {backend} runs a \.pt2 file by way of ONNX"):
        load_engine(spec, "cpu", 1, dataclasses.replace(choice, backend=backend))


class TestOpenVino:
    @pytest.fixture
    def spec(self, tmp_path: Path) -> ModelSpec:
        onnx_file(tmp_path / "relu.onnx", ["x FP32 -1"], ["y FP32 -1"], [("Relu", ["x"], ["y"])])
        return model_spec(tmp_path / "relu.onnx", ["x FP32 -1"], ["y FP32 -1"], backend="openvino")

    @pytest.mark.parametrize("writable", [True, False])
    def test_an_onnx_file_needs_nothing_built(self, spec: ModelSpec, writable: bool) -> None:
        data = np.array([[-1, 2, -3]], np.float32).tobytes()
        engine = load_engine(spec, "cpu", 1)
        (answer,) = engine.execute([Tensor("x", "FP32", (1, 3), bytearray(data) if writable else data)])
        assert answer.numpy().tolist() == [[0, 2, 0]]

    def test_where_it_is_not_installed_the_load_says_how(
        self, spec: ModelSpec, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "openvino", None)
        with pytest.raises(LoadError, match=r'openvino is not installed; pip install "offramp\[openvino\]"'):
            load_engine(spec, "cpu", 1)

    def test_other_devices_are_refused(self, spec: ModelSpec) -> None:
        with pytest.raises(LoadError, match='openvino runs on the CPU here, not on "cuda:0"'):
            load_engine(spec, "cuda:0", 1)

    def test_names_that_the_file_does_not_have_are_refused(self, spec: ModelSpec) -> None:
        wrong = dataclasses.replace(spec, inputs=(dataclasses.replace(spec.inputs[0], name="z"),))
        with pytest.raises(LoadError, match=r"inputs z are declared, relu\.onnx has x"):
            load_engine(wrong, "cpu", 1)

    def test_a_file_that_is_not_onnx_is_refused(self, spec: ModelSpec) -> None:
        spec.path.write_bytes(b"not a model")
        with pytest.raises(LoadError, match=r"OpenVINO cannot load relu\.onnx"):
            load_engine(spec, "cpu", 1)

    @pytest.mark.parametrize("datatype", ["FP64", "UINT64", "BF16", "BYTES"])
    def test_datatypes_that_it_would_round_are_refused(self, spec: ModelSpec, datatype: str) -> None:
        rounded = dataclasses.replace(spec, inputs=(dataclasses.replace(spec.inputs[0], datatype=datatype),))
        with pytest.raises(LoadError, match=f'"x" is {datatype}, which openvino does not compute exactly; .*onnxrun'):
            load_engine(rounded, "cpu", 1)

    def test_answers_that_may_need_64_bits_are_refused(self, tmp_path: Path) -> None:
        path = onnx_file(tmp_path / "add.onnx", ["x INT64 2"], ["y INT64 2"], [("Add", ["x", "x"], ["y"])])
        spec = model_spec(path, ["x INT64 2"], ["y INT64 2"], backend="openvino")
        with pytest.raises(LoadError, match=r'"y" is INT64, which openvino does not compute exactly; .*onnxruntime'):
            load_engine(spec, "cpu", 1)

    def test_integers_beyond_32_bits_are_refused_and_not_cut_off(self, tmp_path: Path) -> None:
        path = onnx_file(tmp_path / "sign.onnx", ["x INT64 2"], ["y BOOL 2"], [("Less", ["x", "zero"], ["y"])])
        graph = onnx.load(path)
        graph.graph.initializer.append(numpy_helper.from_array(np.array(0, np.int64), "zero"))
        onnx.save(graph, path)
        engine = load_engine(model_spec(path, ["x INT64 2"], ["y BOOL 2"], backend="openvino"), "cpu", 1)
        (answer,) = engine.execute([Tensor.from_numpy("x", np.array([[3, -(2**31)]]))])
        assert answer.numpy().tolist() == [[False, True]]
        for value in (2**31, -(2**31) - 1):
            with pytest.raises(InvalidRequest, match=f"computes INT64 in 32 bits; .* to 2147483647, got {value}"):
                engine.execute([Tensor.from_numpy("x", np.array([[0, value]]))])

    def test_it_imports_no_torch(self, spec: ModelSpec) -> None:
        program = f"""
import sys
from pathlib import Path
from offramp_server.model_spec import EngineSettings, ModelSpec, TensorSpec
from offramp_server.workers.engines.load import load_engine
x, y = (TensorSpec(name, "FP32", (-1,)) for name in "xy")
settings = EngineSettings("openvino")
load_engine(ModelSpec("relu", 1, Path({str(spec.path)!r}), "onnx", 4, (x,), (y,), settings), "cpu", 1)
assert "torch" not in sys.modules and "onnx" not in sys.modules
"""
        subprocess.run([sys.executable, "-c", program], timeout=60, check=True)
