"""A program exported once more, for what compiles it: tensors in and out one after the other, in the shapes of its
spec. Arguments that were fixed are filled in, and results that are no tensors left out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from open_inference.tensor import Tensor
from torch import nn
from torch.export import Dim

from offramp_server.errors import LoadError
from offramp_server.model_spec import VARIABLE, ModelSpec
from offramp_server.workers.engines import torch_tensors
from offramp_server.workers.engines.program import ExportedProgram, Program
from offramp_server.workers.engines.warmup import sample_inputs

MakeUp: TypeAlias = Callable[[ModelSpec, int], list[Tensor]]


def export_again(program: Program, spec: ModelSpec, sizes: range, example: int) -> ExportedProgram:
    """For batches of any of `sizes` (ignored without a batch dimension) and every length of a variable dimension.

    torch traces it with inputs of `example` items, and what it asks about that number narrows the sizes later on.
    Raises LoadError where the program does not bear that these dimensions vary.
    """
    inputs = example_inputs(spec, program, example)
    shapes = tuple(_dynamic(spec, index, sizes) for index in range(len(spec.inputs)))
    try:
        with torch.no_grad():
            return torch.export.export(_Flat(program), inputs, dynamic_shapes=(shapes,))
    except Exception as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise LoadError(f'model "{spec.name}": torch cannot export it for the shapes of its spec: {reason}') from error


def example_inputs(
    spec: ModelSpec, program: Program, items: int, made_up: MakeUp = sample_inputs
) -> tuple[torch.Tensor, ...]:
    """Made-up inputs where the program's weights are."""
    device = next((tensor.device for tensor in program.kept()), torch.device("cpu"))
    tensors = (torch_tensors.from_wire(tensor, copy=True).to(device) for tensor in made_up(spec, items))
    return tuple(tensors)


class _Flat(nn.Module):
    def __init__(self, program: Program) -> None:
        super().__init__()
        self._program = program
        # Its weights have to be found.
        self.module = program.module

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(self._program(tensors))


def _dynamic(spec: ModelSpec, index: int, sizes: range) -> dict[int, Any]:
    first = 1 if spec.batches else 0
    batch = {0: Dim("batch", min=sizes[0], max=sizes[-1])} if spec.batches and len(sizes) > 1 else {}
    dims = spec.inputs[index].dims
    return {**batch, **{first + at: Dim.DYNAMIC for at, dim in enumerate(dims) if dim == VARIABLE}}
