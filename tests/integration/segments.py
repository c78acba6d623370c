"""A network of two stages as ONNX segments, written into a model repository."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from model_repository import IR_VERSION, OPSET
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

FEATURES, CLASSES = 4, 3
_GENERATOR = np.random.default_rng(5)
HEADS = [_GENERATOR.standard_normal((FEATURES, CLASSES)).astype(np.float32) for _ in range(2)]


def write_segments(repository: Path, threshold: float, rest: str = "") -> None:
    """`net-1` takes x and hands on x + 1, `net-2` takes that, and `net` is a route over both. Each has a head."""
    one = numpy_helper.from_array(np.array(1, dtype=np.float32), "one")
    _write(repository, "net-1", "x", 0, [helper.make_node("Add", ["x", "one"], ["hidden_1_1"])], [one])
    _write(repository, "net-2", "hidden_1_1", 1, [], [])
    (repository / "net").mkdir()
    (repository / "net" / "route.toml").write_text(
        f'kind = "early_exit"\n{rest}\n'
        f'[[stages]]\nmodel = "net-1"\nthreshold = {threshold}\n[[stages]]\nmodel = "net-2"\n'
    )


def logits(stage: int, rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """What the stage (from 1) says of the network's inputs."""
    return (rows + (stage - 1)) @ HEADS[stage - 1]


def _write(
    repository: Path, name: str, takes: str, number: int, nodes: list[onnx.NodeProto], constants: list[onnx.TensorProto]
) -> None:
    head = numpy_helper.from_array(HEADS[number], "head")
    outputs = [("logits", CLASSES), *((node.output[0], FEATURES) for node in nodes)]
    graph = helper.make_graph(
        [helper.make_node("MatMul", [takes, "head"], ["logits"]), *nodes],
        name,
        [helper.make_tensor_value_info(takes, TensorProto.FLOAT, ["batch", FEATURES])],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, ["batch", size]) for output, size in outputs],
        [head, *constants],
    )
    folder = repository / name / "1"
    folder.mkdir(parents=True)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    onnx.checker.check_model(model)
    onnx.save(model, folder / "model.onnx")
