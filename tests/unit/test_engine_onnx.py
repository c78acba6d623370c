"""ONNX files through ONNX Runtime, in every datatype of the protocol and without torch."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from engine_models import ONNX_TYPES, model_spec, onnx_file
from offramp_server.errors import InvalidRequest, LoadError, ModelFailed
from offramp_server.model_spec import ModelSpec, TensorSpec
from offramp_server.workers.engines.load import NOT_TUNED, load_engine
from onnx import helper
from open_inference.tensor import BF16, BYTES, NUMPY_TYPES, Tensor


def identity(path: Path, datatype: str) -> ModelSpec:
    onnx_file(path, [f"x {datatype} -1"], [f"y {datatype} -1"], [("Identity", ["x"], ["y"])])
    return model_spec(path, [f"x {datatype} -1"], [f"y {datatype} -1"])


def data(datatype: str, shape: tuple[int, ...]) -> bytes:
    count = int(np.prod(shape))
    if datatype == BYTES:
        return bytes(Tensor.from_numpy("x", np.array(["", "ü", "a\0b"] * count)[:count].reshape(shape)).data)
    if datatype == "BOOL":
        return bytes(at % 2 for at in range(count))
    return np.arange(count).astype(NUMPY_TYPES[datatype]).tobytes()


@pytest.mark.parametrize("shape", [(3, 4), (0, 4), (3, 0)], ids=["full", "no items", "no elements"])
@pytest.mark.parametrize("datatype", ONNX_TYPES)
def test_every_datatype_comes_back_unchanged(tmp_path: Path, datatype: str, shape: tuple[int, int]) -> None:
    engine = load_engine(identity(tmp_path / "identity.onnx", datatype), "cpu", 1)
    shared = bytearray(data(datatype, shape))
    (answer,) = engine.execute([Tensor("x", datatype, shape, memoryview(shared))])
    given = bytes(shared)
    shared[:] = bytes(len(shared))
    assert (answer.name, answer.datatype, answer.shape, bytes(answer.data)) == ("y", datatype, shape, given)


@pytest.mark.parametrize("items", [1, 3, 16])
def test_files_names_may_differ_from_public_names(tmp_path: Path, items: int) -> None:
    nodes = [("Add", ["a", "b"], ["p"]), ("Sub", ["a", "b"], ["m"])]
    path = onnx_file(tmp_path / "addsub.onnx", ["a INT32 16", "b INT32 16"], ["p INT32 16", "m INT32 16"], nodes)
    spec = dataclasses.replace(
        model_spec(path, [], []),
        inputs=(TensorSpec("INPUT1", "INT32", (16,), source="b"), TensorSpec("INPUT0", "INT32", (16,), source="a")),
        outputs=(TensorSpec("MINUS", "INT32", (16,), source="m"), TensorSpec("PLUS", "INT32", (16,), source="p")),
    )
    values = [Tensor.from_numpy("", np.full((items, 16), value, np.int32)) for value in (2, 7)]
    minus, plus = load_engine(spec, "cpu", 1).execute(values)
    assert (minus.name, plus.name) == ("MINUS", "PLUS")
    assert (minus.numpy() == 5).all()
    assert (plus.numpy() == 9).all()


def test_floats_and_bf16_may_meet_in_one_model(tmp_path: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("Cast", ["x"], ["y"], to=ONNX_TYPES[BF16])],
        "graph",
        [helper.make_tensor_value_info("x", ONNX_TYPES["FP32"], ["batch", 2])],
        [helper.make_tensor_value_info("y", ONNX_TYPES[BF16], ["batch", 2])],
    )
    path = tmp_path / "cast.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
    engine = load_engine(model_spec(path, ["x FP32 2"], ["y BF16 2"]), "cpu", 1)
    (answer,) = engine.execute([Tensor.from_numpy("x", np.array([[1.5, -2]], np.float32))])
    assert answer.numpy().tolist() == [[1.5, -2]]


def test_text_that_is_not_utf_8_is_the_callers_mistake(tmp_path: Path) -> None:
    engine = load_engine(identity(tmp_path / "identity.onnx", BYTES), "cpu", 1)
    with pytest.raises(InvalidRequest, match='input "x": strings of an ONNX model are UTF-8, got'):
        engine.execute([Tensor.from_numpy("x", np.array([[b"\xff"]], dtype=object))])


def test_an_answer_other_than_declared_is_the_models_failure(tmp_path: Path) -> None:
    spec = identity(tmp_path / "identity.onnx", "FP32")
    spec = dataclasses.replace(spec, outputs=(TensorSpec("y", "FP64", (-1,)),))
    with pytest.raises(ModelFailed, match=r'output "y": expected FP64\[2,-1\], the model answered FP32\[2,3\]'):
        load_engine(spec, "cpu", 1).execute([Tensor("x", "FP32", (2, 3), bytes(24))])


@pytest.mark.parametrize(
    ("inputs", "outputs", "sentence"),
    [
        (["z FP32 -1"], ["y FP32 -1"], "inputs z are declared, identity.onnx has x"),
        (["x FP32 -1"], ["z FP32 -1"], "outputs z are declared, identity.onnx has y"),
    ],
)
def test_names_that_the_file_does_not_have_are_refused(
    tmp_path: Path, inputs: list[str], outputs: list[str], sentence: str
) -> None:
    path = identity(tmp_path / "identity.onnx", "FP32").path
    with pytest.raises(LoadError, match=sentence):
        load_engine(model_spec(path, inputs, outputs), "cpu", 1)


def test_a_file_that_is_not_onnx_is_refused(tmp_path: Path) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"not a model")
    with pytest.raises(LoadError, match=r"ONNX Runtime cannot load broken\.onnx"):
        load_engine(model_spec(tmp_path / "broken.onnx", ["x FP32 1"], ["y FP32 1"]), "cpu", 1)


def test_the_report_says_why_and_with_how_many_threads(tmp_path: Path) -> None:
    spec = identity(tmp_path / "identity.onnx", "FP32")
    report = load_engine(spec, "cpu", 0).report
    assert (report.backend, report.device, report.reason) == ("onnxruntime", "cpu", NOT_TUNED)
    assert report.threads == len(os.sched_getaffinity(0))


def test_a_worker_that_only_serves_onnx_never_imports_torch(tmp_path: Path) -> None:
    identity(tmp_path / "identity.onnx", "FP32")
    program = f"""
import sys
from pathlib import Path
from offramp_server.model_spec import ModelSpec, TensorSpec
from offramp_server.workers.engines.load import load_engine
from offramp_server.workers.engines.warmup import warm_up
x, y = (TensorSpec(name, "FP32", (-1,)) for name in "xy")
spec = ModelSpec("identity", 1, Path({str(tmp_path / "identity.onnx")!r}), "onnx", 4, (x,), (y,))
print(sorted(warm_up(load_engine(spec, "cpu", 1), spec)))
assert "onnxruntime" in sys.modules
assert "torch" not in sys.modules and "onnx" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.returncode) == ("[1, 4]\n", 0), done.stderr
