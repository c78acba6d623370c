"""Cut the graph of a multi-exit network into stages, one for each exit.

A stage computes what its exit's logits depend on and no earlier stage has computed; what was computed earlier, or was
an input, and is needed later is carried across the cut. Nothing here depends on the network being a chain: residual
connections, masks and side branches are carried like everything else that is live at the cut.
"""

from __future__ import annotations

import operator
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from offramp_common.text import quoted
from torch import SymInt
from torch.fx import Graph, GraphModule, Node

from offramp_compression.errors import ExportError

_aten = torch.ops.aten
_SIZE = _aten.sym_size.int
# Cheaper to compute again than to send: a stage that gets a mask can make the attention's view of it.
_CHEAP = frozenset(
    {
        _aten.to.dtype, _aten._to_copy.default, _aten.unsqueeze.default, _aten.squeeze.dim, _aten.view.default,
        _aten.reshape.default, _aten.expand.default, _aten.transpose.int, _aten.slice.Tensor, _aten.select.int,
    }
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Cut:
    """One stage: `module` takes the values of the nodes `carried_in` and returns logits and those of `carried_out`.

    The nodes are those of the graph that was cut; for the first stage `carried_in` are its placeholders, all of them.
    """

    module: GraphModule
    carried_in: tuple[Node, ...]
    carried_out: tuple[Node, ...]


def cut(whole: GraphModule) -> list[Cut]:
    """The stages of `whole`, an exported program's graph without mutations that returns one tensor for each exit.

    Raises ExportError where a value would have to be carried that has no batch dimension.
    """
    nodes = list(whole.graph.nodes)
    logits = _results(nodes)
    stage_of = _stages(nodes, logits)
    inputs = tuple(node for node in nodes if node.op == "placeholder")
    boundaries = [inputs, *(_carried(nodes, stage_of, stage) for stage in range(1, len(logits))), ()]
    return [
        Cut(_stage_module(whole, result, before, after), before, after)
        for result, before, after in zip(logits, boundaries[:-1], boundaries[1:], strict=True)
    ]


def _results(nodes: Sequence[Node]) -> list[Node]:
    (output,) = (node for node in nodes if node.op == "output")
    return [node for node in output.args[0] if isinstance(node, Node)]  # type: ignore[union-attr]


def _stages(nodes: Sequence[Node], logits: Sequence[Node]) -> dict[Node, int]:
    """The first exit whose logits depend on a node, for the nodes on which any depends."""
    stage_of: dict[Node, int] = {}
    for stage, result in enumerate(logits):
        waiting = [result]
        while waiting:
            node = waiting.pop()
            if node not in stage_of:
                stage_of[node] = stage
                waiting.extend(node.all_input_nodes)
    for node in nodes:
        # Only tensors can be carried, so a tuple is taken apart where it was made.
        if node.target is operator.getitem and node in stage_of:
            stage_of[node] = stage_of[node.all_input_nodes[0]]
    return stage_of


def _carried(nodes: Sequence[Node], stage_of: dict[Node, int], stage: int) -> tuple[Node, ...]:
    """The fewest tensors from before `stage` from which it and all later ones can be computed, in the graph's order."""
    later = [node for node in nodes if stage_of.get(node, -1) >= stage and not _is_source(node)]
    used = {argument for node in later for argument in node.all_input_nodes}
    early = [node for node in nodes if node in used and (_is_source(node) or stage_of[node] < stage)]
    carried = {node for node in early if not _is_constant(node)}
    for node in early:
        if _is_constant(node) and not _derivable(node, carried):
            carried |= _measured_tensors(node)
    for node in reversed(nodes):
        if node in carried and _derivable(node, carried - {node}):
            carried.remove(node)
    _check_batches(carried, nodes)
    return tuple(node for node in nodes if node in carried)


def _derivable(node: Node, known: Collection[Node]) -> bool:
    """Whether a value follows from `known` ones at hardly any cost: constants, sizes, and views."""
    if node in known or node.op == "get_attr":
        return True
    if isinstance(_value(node), SymInt) and _dimension(node, known) is not None:
        return True
    cheap = node.target in _CHEAP or isinstance(_value(node), SymInt) or _is_constant(node)
    return node.op == "call_function" and cheap and all(_derivable(each, known) for each in node.all_input_nodes)


def _is_constant(node: Node) -> bool:
    """Whether it depends on the weights and on sizes, but on no input's values."""
    if node.op == "get_attr" or isinstance(_value(node), SymInt):
        return True
    return node.op == "call_function" and all(map(_is_constant, node.all_input_nodes))


def _measured_tensors(constant: Node) -> set[Node]:
    """The tensors whose sizes a constant depends on."""
    behind = [constant]
    found: set[Node] = set()
    while behind:
        node = behind.pop()
        if _is_constant(node):
            behind.extend(node.all_input_nodes)
        else:
            found.add(node)
    return found


def _dimension(size: Node, known: Iterable[Node]) -> tuple[Node, int] | None:
    """Where among the `known` tensors' dimensions a size is found."""
    wanted = _value(size)
    for node in known:
        for position, dimension in enumerate(_value(node).shape):
            if isinstance(dimension, SymInt) and dimension.node.expr == wanted.node.expr:
                return node, position
    return None


def _check_batches(carried: Collection[Node], nodes: Sequence[Node]) -> None:
    batch = _value(next(node for node in nodes if node.op == "placeholder")).shape[0]
    for node in carried:
        shape = _value(node).shape
        if not shape or str(shape[0]) != str(batch):
            raise ExportError(
                f"the value {quoted(node.name)} is needed after the exit, but its shape [{', '.join(map(str, shape))}] "
                f"does not begin with the batch; attach the exit to another module"
            )


def _stage_module(
    whole: GraphModule, logits: Node, carried_in: tuple[Node, ...], carried_out: tuple[Node, ...]
) -> GraphModule:
    graph = Graph()
    made = {node: graph.placeholder(node.name) for node in carried_in}
    for new, old in ((new, old) for old, new in made.items()):
        new.meta = dict(old.meta)

    def emit(node: Node) -> Node:
        if node not in made:
            made[node] = _copy(node)
        return made[node]

    def _copy(node: Node) -> Node:
        found = _dimension(node, carried_in) if isinstance(_value(node), SymInt) else None
        if found is None:
            return graph.node_copy(node, emit)
        tensor, position = found
        size = graph.call_function(_SIZE, (made[tensor], position))
        size.meta = dict(node.meta)
        return size

    # In the order of the whole graph, as recursion alone would be as deep as the network.
    needed = _needed([logits, *carried_out], set(carried_in))
    for node in whole.graph.nodes:
        if node in needed:
            emit(node)
    carried = [
        graph.call_function(_aten.clone.default, (made[node],)) if node in carried_in else emit(node)
        for node in carried_out
    ]
    graph.output((emit(logits), *carried))
    graph.lint()
    return GraphModule(whole, graph)


def _needed(results: Sequence[Node], given: Collection[Node]) -> set[Node]:
    found: set[Node] = set()
    waiting = list(results)
    while waiting:
        node = waiting.pop()
        if node in found or node in given:
            continue
        found.add(node)
        if not (isinstance(_value(node), SymInt) and _dimension(node, given) is not None):
            waiting.extend(node.all_input_nodes)
    return found


def _is_source(node: Node) -> bool:
    return node.op == "placeholder"


def _value(node: Node) -> Any:
    """What export found a node to be: a tensor without contents, or a size."""
    return node.meta.get("val")
