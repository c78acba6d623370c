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
    _write_route(repository, threshold, rest)


def write_deadly_segments(repository: Path) -> None:
    """`net` goes on with every x, INT32 [-1, 1]. At its second stage, x modulo -1 overflows for the smallest number, a
    fault of the processor that ends the worker."""
    minus_one = numpy_helper.from_array(np.array(-1, dtype=np.int32), "minus_one")
    head = numpy_helper.from_array(np.ones((1, 2), dtype=np.float32), "head")
    cast, product = (
        helper.make_node("Cast", ["rest"], ["values"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["values", "head"], ["logits"]),
    )
    first = [helper.make_node("Sub", ["x", "x"], ["rest"]), helper.make_node("Identity", ["x"], ["hidden_1_1"])]
    second = [helper.make_node("Mod", ["hidden_1_1", "minus_one"], ["rest"])]
    state = helper.make_tensor_value_info("hidden_1_1", TensorProto.INT32, ["batch", 1])
    answer = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 2])
    x = helper.make_tensor_value_info("x", TensorProto.INT32, ["batch", 1])
    _save(repository, "net-1", helper.make_graph([*first, cast, product], "net-1", [x], [answer, state], [head]))
    constants = [head, minus_one]
    _save(repository, "net-2", helper.make_graph([*second, cast, product], "net-2", [state], [answer], constants))
    _write_route(repository, 1.1)


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
    _save(repository, name, graph)


def _write_route(repository: Path, threshold: float, rest: str = "") -> None:
    (repository / "net").mkdir()
    (repository / "net" / "route.toml").write_text(
        f'kind = "early_exit"\n{rest}\n'
        f'[[stages]]\nmodel = "net-1"\nthreshold = {threshold}\n[[stages]]\nmodel = "net-2"\n'
    )


def _save(repository: Path, name: str, graph: onnx.GraphProto) -> None:
    folder = repository / name / "1"
    folder.mkdir(parents=True)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    onnx.checker.check_model(model)
    onnx.save(model, folder / "model.onnx")
