"""Small ONNX classifiers, written into a model repository."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from model_repository import IR_VERSION, OPSET
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper


def write_classifier(
    repository: Path,
    name: str,
    weights: NDArray[np.floating],
    *,
    version: int = 1,
    output: str = "logits",
    labels: Sequence[str] = (),
    config: str = "",
) -> None:
    """x FP32 [-1, D] to FP32 [-1, K], x times `weights` [D, K]. `config` goes into its model.toml."""
    features, classes = weights.shape
    tensors = [
        helper.make_tensor_value_info(tensor, TensorProto.FLOAT, ["batch", size])
        for tensor, size in (("x", features), (output, classes))
    ]
    constant = numpy_helper.from_array(weights.astype(np.float32), "weights")
    node = helper.make_node("MatMul", ["x", "weights"], [output])
    graph = helper.make_graph([node], name, tensors[:1], tensors[1:], [constant])
    folder = repository / name / str(version)
    folder.mkdir(parents=True)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    onnx.checker.check_model(model)
    onnx.save(model, folder / "model.onnx")
    named = f'[[outputs]]\nname = "{output}"\nlabels = {json.dumps(list(labels))}\n' if labels else ""
    (repository / name / "model.toml").write_text(f"{config}\n{named}")


def write_route(repository: Path, name: str, text: str) -> None:
    (repository / name).mkdir(exist_ok=True)
    (repository / name / "route.toml").write_text(text)


def write_broken_model(repository: Path, name: str = "broken") -> None:
    """One that does not load."""
    (repository / name / "1").mkdir(parents=True)
    (repository / name / "1" / "model.onnx").write_bytes(b"nonsense")


def write_labelled(path: Path, rows: NDArray[np.float32], truth: NDArray[np.int64], labels: Sequence[str]) -> Path:
    """Examples whose classes stand in another order than the models' `labels`, of which `truth` has the numbers."""
    names = (*labels[-1:], *labels[:-1])
    np.savez(path, x=rows, labels=[names.index(labels[number]) for number in truth], class_names=np.array(names))
    return path
