"""Stages as one network that computes them as a program would that knows nothing of batches formed anew: what is not
sure of its answer in a batch goes on in that batch, and the whole of it is answered when the last item is.

Only the deferred items are computed by the deeper stages, in the same worker and without a hop in between, so this is
the naive way at its best.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import TensorProto, compose, helper, numpy_helper

LOGITS = "logits"


def naive(stages: Sequence[onnx.ModelProto], thresholds: Sequence[float]) -> onnx.ModelProto:
    """`stages` each give `logits` [N, classes], and take either what the first one takes, or other outputs of the one
    before. An item goes on if its largest probability is below the threshold of its stage; the last one has none."""
    first = stages[0].graph
    builder = _Builder(stages, thresholds)
    own = {value.name: value.name for value in first.input}
    nodes, constants = builder.level(0, own, own)
    graph = helper.make_graph(
        [*nodes, helper.make_node("Identity", [_merged(0)], [LOGITS])],
        "naive",
        list(first.input),
        [value for value in first.output if value.name == LOGITS],
        constants,
    )
    domains = {each.domain: each.version for stage in stages for each in stage.opset_import}
    imports = [helper.make_opsetid(domain, version) for domain, version in domains.items()]
    model = helper.make_model(graph, opset_imports=imports, ir_version=max(stage.ir_version for stage in stages))
    onnx.checker.check_model(model, full_check=True)
    return model


class _Builder:
    def __init__(self, stages: Sequence[onnx.ModelProto], thresholds: Sequence[float]) -> None:
        self._stages = [compose.add_prefix(stage, _prefix(number)) for number, stage in enumerate(stages)]
        self._thresholds = thresholds

    def level(
        self, number: int, given: Mapping[str, str], own: Mapping[str, str]
    ) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
        """A stage and all behind it. `given`: where its inputs are, by their names; `own`: where what the first stage
        takes is, for the same items."""
        graph, prefix = self._stages[number].graph, _prefix(number)
        takes = [value.name for value in graph.input]
        nodes = [helper.make_node("Identity", [given[name.removeprefix(prefix)]], [name]) for name in takes]
        nodes += graph.node
        constants = list(graph.initializer)
        if number + 1 == len(self._stages):
            return [*nodes, helper.make_node("Identity", [prefix + LOGITS], [_merged(number)])], constants
        choosing, chosen = self._choose(number)
        branches = {"then_branch": self._deeper(number, given, own), "else_branch": self._answered(number)}
        return [*nodes, *choosing, helper.make_node("If", [_added(number) + "any"], [_merged(number)], **branches)], [
            *constants,
            *chosen,
        ]

    def _choose(self, number: int) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
        """`places` of the items that go on, and whether there are `any`."""
        prefix = _added(number)
        constants = {
            "threshold": np.array(self._thresholds[number], np.float32),
            "one": np.array([1]),
            "rows": np.array([0]),
            "none": np.array(0),
        }
        steps = [
            # As operators of every opset have it.
            ("TopK", ["probabilities", "one"], "largest", {"axis": -1}),
            ("Squeeze", ["largest", "one"], "score", {}),
            ("Less", ["score", "threshold"], "defers", {}),
            ("NonZero", ["defers"], "nonzero", {}),
            ("Squeeze", ["nonzero", "rows"], "places", {}),
            ("Size", ["places"], "count", {}),
            ("Greater", ["count", "none"], "any", {}),
        ]
        softmax = helper.make_node("Softmax", [_prefix(number) + LOGITS], [prefix + "probabilities"], axis=-1)
        nodes = [
            helper.make_node(kind, [prefix + name for name in takes], _outputs(kind, prefix + gives), **more)
            for kind, takes, gives, more in steps
        ]
        return [softmax, *nodes], [numpy_helper.from_array(array, prefix + name) for name, array in constants.items()]

    def _deeper(self, number: int, given: Mapping[str, str], own: Mapping[str, str]) -> onnx.GraphProto:
        """Take the rows that go on, compute the rest of the stages, put their answers in the place of these."""
        stage, prefix, behind = _prefix(number), _added(number), number + 1
        outputs = {value.name.removeprefix(stage): value.name for value in self._stages[number].graph.output}
        next_takes = [value.name.removeprefix(_prefix(behind)) for value in self._stages[behind].graph.input]
        sources = {name: outputs.get(name, own.get(name, "")) for name in {*next_takes, *own}}
        taken = {name: f"{_added(behind)}taken_{name}" for name in sources}
        gathers = [
            helper.make_node("Gather", [source, prefix + "places"], [taken[name]], axis=0)
            for name, source in sources.items()
        ]
        nodes, constants = self.level(behind, taken, {name: taken[name] for name in own})
        spread = [
            helper.make_node("Unsqueeze", [prefix + "places", prefix + "one"], [prefix + "at"]),
            helper.make_node("ScatterND", [stage + LOGITS, prefix + "at", _merged(behind)], [prefix + "with_deeper"]),
        ]
        result = [helper.make_tensor_value_info(prefix + "with_deeper", TensorProto.FLOAT, None)]
        return helper.make_graph([*gathers, *nodes, *spread], prefix + "deeper", [], result, constants)

    def _answered(self, number: int) -> onnx.GraphProto:
        prefix = _added(number)
        node = helper.make_node("Identity", [_prefix(number) + LOGITS], [prefix + "alone"])
        result = [helper.make_tensor_value_info(prefix + "alone", TensorProto.FLOAT, None)]
        return helper.make_graph([node], prefix + "answered", [], result)


def _outputs(kind: str, name: str) -> list[str]:
    return [name, f"{name}_places"] if kind == "TopK" else [name]


def _prefix(number: int) -> str:
    return f"s{number}_"


def _added(number: int) -> str:
    """Before the names of what is not the stage's own."""
    return f"after_s{number}_"


def _merged(number: int) -> str:
    return f"merged_{number}"
