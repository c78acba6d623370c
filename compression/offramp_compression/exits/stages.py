"""The stages of a multi-exit network as modules; also the edit "stage", with which a stage is built again."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node

from offramp_compression.errors import ModelError
from offramp_compression.exits.cut import Cut, cut
from offramp_compression.exits.network import MultiExit
from offramp_compression.export.program import Names, capture


@dataclass(frozen=True, slots=True)
class StageModule:
    """`module` takes what the stage before returned after its logits, and returns its logits and what the next takes.

    `variable` has, for each argument, the dimensions beside the first that vary; `carried` is the number of results
    after the logits.
    """

    module: GraphModule
    variable: tuple[tuple[int, ...], ...]
    carried: int


def stage_modules(module: nn.Module, inputs: Sequence[Tensor], variable: Sequence[Sequence[int]]) -> list[StageModule]:
    """The stages of a `MultiExit`, for inputs of these shapes and datatypes. Weights are shared with `module`.

    The first dimension of the inputs varies, and so do those that `variable` has for each of them.

    Raises ModelError for another network, ExportError if it cannot be exported or cut.
    """
    if not isinstance(module, MultiExit):
        raise ModelError("only a network with exits has stages; attach exits first (offramp attach-exits)")
    names = [f"input_{number}" for number in range(len(inputs))]
    logits = [f"logits_{number}" for number in range(len(module.points) + 1)]
    program = capture(
        module.eval(), inputs, Names(tuple(names), tuple(logits), dict(zip(names, variable, strict=True)))
    )
    return [_stage(each) for each in cut(_without_mutations(program))]


def apply_stage(module: nn.Module, arguments: Mapping[str, Any]) -> nn.Module:
    """The edit "stage": one of a multi-exit network's stages, by `number` from 1, for `inputs` (a table with `dims`
    without the batch, `dtype` and `variable` for each)."""
    given = arguments["inputs"]
    example = [torch.zeros((2, *each["dims"]), dtype=getattr(torch, each["dtype"])) for each in given]
    stages = stage_modules(module, example, [each["variable"] for each in given])
    chosen: nn.Module = stages[arguments["number"] - 1].module
    return chosen


def stage_arguments(number: int, inputs: Sequence[Tensor], variable: Sequence[Sequence[int]]) -> dict[str, Any]:
    """The arguments of the edit "stage"."""
    tables = [
        {"dims": list(tensor.shape[1:]), "dtype": str(tensor.dtype).removeprefix("torch."), "variable": list(dims)}
        for tensor, dims in zip(inputs, variable, strict=True)
    ]
    return {"number": number, "inputs": tables}


def _stage(made: Cut) -> StageModule:
    return StageModule(made.module, tuple(_variable(node) for node in made.carried_in), len(made.carried_out))


def _variable(node: Node) -> tuple[int, ...]:
    shape = node.meta["val"].shape
    return tuple(position for position, size in enumerate(shape) if position and isinstance(size, torch.SymInt))


def _without_mutations(program: ExportedProgram) -> GraphModule:
    """The graph with operators that return what others write in place: a cut must not fall between value and write."""
    if any(_mutates(node) for node in program.graph.nodes):
        with _deprecation_hidden():
            program = program.run_decompositions({})
    module = program.module()
    assert isinstance(module, GraphModule)
    return module


def _mutates(node: Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is not None and bool(schema.is_mutable)


@contextmanager
def _deprecation_hidden() -> Iterator[None]:
    """torch 2.13 calls a function of its own that it has deprecated."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r".*LeafSpec.* is deprecated", FutureWarning)
        yield
