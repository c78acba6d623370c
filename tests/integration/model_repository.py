"""Small ONNX models with a purpose, written into a model repository."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET = 17
# Readable by every ONNX Runtime that the project allows.
IR_VERSION = 9


def write_add_sub(repository: Path, name: str = "add_sub", version: int = 1, offset: float = 0.0) -> None:
    """y = x + offset and z = x - offset over FP32 [-1, 4]: which version answered can be read off the answer."""
    nodes = [helper.make_node("Add", ["x", "offset"], ["y"]), helper.make_node("Sub", ["x", "offset"], ["z"])]
    constant = numpy_helper.from_array(np.array(offset, dtype=np.float32), "offset")
    graph = helper.make_graph(nodes, name, [_floats("x")], [_floats("y"), _floats("z")], [constant])
    _save(repository, name, version, graph)


def write_remainder(repository: Path, name: str = "remainder") -> None:
    """INT32 [-1, 1] modulo another: the smallest number by -1 overflows, a fault of the processor that ends the worker.

    A quotient would not do: ONNX Runtime divides four rows at a time as floats, so that the fault hangs on the batch.
    """
    values = [helper.make_tensor_value_info(n, TensorProto.INT32, ["batch", 1]) for n in ("a", "b", "rest")]
    node = helper.make_node("Mod", ["a", "b"], ["rest"])
    _save(repository, name, 1, helper.make_graph([node], name, values[:2], values[2:]))
    # It would divide zero by zero.
    (repository / name / "model.toml").write_text("[warmup]\niterations = 0\n")


def write_gather(repository: Path, name: str = "gather") -> None:
    """Looks up INT64 [-1, 1] in a table of ten rows: an index outside makes ONNX Runtime refuse the batch."""
    index = helper.make_tensor_value_info("index", TensorProto.INT64, ["batch", 1])
    row = helper.make_tensor_value_info("row", TensorProto.FLOAT, ["batch", 1])
    table = numpy_helper.from_array(np.arange(10, dtype=np.float32), "table")
    node = helper.make_node("Gather", ["table", "index"], ["row"])
    _save(repository, name, 1, helper.make_graph([node], name, [index], [row], [table]))


def write_spread(repository: Path, name: str = "spread") -> None:
    """y = x over FP32 [-1, 4], by way of four million copies of each element: a row takes 64 MiB while it is computed,
    and so it is not warmed up."""
    shape = numpy_helper.from_array(np.array([1, 1, 1 << 22], dtype=np.int64), "shape")
    last = numpy_helper.from_array(np.array([2], dtype=np.int64), "last")
    nodes = [
        helper.make_node("Unsqueeze", ["x", "last"], ["narrow"]),
        helper.make_node("Expand", ["narrow", "shape"], ["wide"]),
        helper.make_node("ReduceMax", ["wide"], ["y"], axes=[2], keepdims=0),
    ]
    _save(repository, name, 1, helper.make_graph(nodes, name, [_floats("x")], [_floats("y")], [shape, last]))
    (repository / name / "model.toml").write_text("[warmup]\niterations = 0\n")


def write_spin(repository: Path, name: str = "spin", rounds: int = 200, config: str = "") -> None:
    """Costs the same whatever the batch: `rounds` products of 128 x 128 matrices, then x as it came, FP32 [-1, 4]."""
    identity = numpy_helper.from_array(np.eye(128, dtype=np.float32), "identity")
    trips = numpy_helper.from_array(np.array(rounds, dtype=np.int64), "trips")
    yes = numpy_helper.from_array(np.array(True), "yes")
    scalar = numpy_helper.from_array(np.array([0, 0], dtype=np.int64), "corner")
    nodes = [
        helper.make_node("Loop", ["trips", "yes", "identity"], ["product"], body=_product()),
        # One element, which is 1, so that the product cannot be optimised away.
        helper.make_node("GatherND", ["product", "corner"], ["one"]),
        helper.make_node("Mul", ["x", "one"], ["y"]),
    ]
    graph = helper.make_graph(nodes, name, [_floats("x")], [_floats("y")], [identity, trips, yes, scalar])
    _save(repository, name, 1, graph)
    (repository / name / "model.toml").write_text(config)


def _product() -> onnx.GraphProto:
    square = [128, 128]
    return helper.make_graph(
        [
            helper.make_node("MatMul", ["state", "identity"], ["next"]),
            helper.make_node("Identity", ["go"], ["go_on"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("state", TensorProto.FLOAT, square),
        ],
        [
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", TensorProto.FLOAT, square),
        ],
    )


def _floats(name: str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 4])


def _save(repository: Path, name: str, version: int, graph: onnx.GraphProto) -> None:
    folder = repository / name / str(version)
    folder.mkdir(parents=True, exist_ok=True)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    onnx.checker.check_model(model)
    onnx.save(model, folder / "model.onnx")
