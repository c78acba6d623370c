"""Stages of early-exit routes as tiny ONNX models: the deeper, the surer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from classifiers import write_classifier
from model_repository import IR_VERSION, OPSET
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

CLASSES = 4
# What each stage multiplies its input with: logits.
SCALES = (1.0, 2.0, 4.0)


def write_stage(repository: Path, number: int, version: int = 1) -> None:
    """s1, s2 or s3: x FP32 [-1, 4] to logits [-1, 4]. Each version moves the classes by one more."""
    weights = np.roll(SCALES[number - 1] * np.eye(CLASSES), version - 1, axis=1)
    write_classifier(repository, f"s{number}", weights, version=version)


def write_segment(repository: Path, number: int, of: int = 3, version: int = 1) -> None:
    """net-stage1, ...: x, or what the one before has handed on, to the same logits, and itself plus one handed on."""
    name = f"net-stage{number}"
    given, handed = ("x" if number == 1 else f"hidden_{number - 1}_1"), f"hidden_{number}_1"
    constants = [
        numpy_helper.from_array(np.array(SCALES[number - 1], np.float32), "scale"),
        numpy_helper.from_array(np.array(number - 1, np.float32), "behind"),
        numpy_helper.from_array(np.array(1, np.float32), "one"),
    ]
    nodes = [helper.make_node("Sub", [given, "behind"], ["own"]), helper.make_node("Mul", ["own", "scale"], ["logits"])]
    outputs = ["logits"]
    if number < of:
        nodes.append(helper.make_node("Add", [given, "one"], [handed]))
        outputs.append(handed)
    graph = helper.make_graph(nodes, name, [_floats(given)], [_floats(output) for output in outputs], constants)
    folder = repository / name / str(version)
    folder.mkdir(parents=True)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    onnx.checker.check_model(model)
    onnx.save(model, folder / "model.onnx")


def _floats(name: str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", CLASSES])


def rows(*strengths: float) -> NDArray[np.float32]:
    """Item i is of class i % 4; how sure a stage is of it grows with its strength."""
    x = np.zeros((len(strengths), CLASSES), np.float32)
    for item, strength in enumerate(strengths):
        x[item, item % CLASSES] = strength
    return x


def score(number: int, strength: float) -> float:
    return float(1 / (1 + (CLASSES - 1) * np.exp(-SCALES[number - 1] * strength)))


def exit_route(models: list[str], thresholds: list[float], more: str = "") -> str:
    asked = [f"threshold = {threshold}" for threshold in thresholds] + [""]
    stages = [f'[[stages]]\nmodel = "{model}"\n{ask}\n' for model, ask in zip(models, asked, strict=True)]
    return f'kind = "early_exit"\n{more}\n{"".join(stages)}'
