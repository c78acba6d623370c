"""torch.compile with Inductor: the program compiled to C++ on the CPU (Triton on CUDA, which has not been run).

Every batch size from 1 to the largest is compiled while the model loads. Three graphs are usual: batch size 1 (torch
treats 0 and 1 as constants), the sizes from 2, and those from 16 (below it, torch may choose another convolution).
With frozen weights Inductor folds batch norms and packs convolution weights, which is most of what it gains.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch

from offramp_server.errors import LoadError
from offramp_server.model_spec import VARIABLE, ModelSpec
from offramp_server.workers.engines import torch_tensors
from offramp_server.workers.engines.program import Program
from offramp_server.workers.engines.warmup import sample_inputs
from offramp_server.workers.out_of_memory import ran_out_of_memory

# Inductor's worker pool would stay in memory after the load, as large as the worker itself.
_OPTIONS = {"freezing": True, "compile_threads": 1}


class CompiledProgram:
    """A program behind torch.compile. Shapes with a variable dimension below 2 run uncompiled: torch would compile
    each combination of them anew, and a request must not wait for that.
    """

    def __init__(self, spec: ModelSpec, program: Program) -> None:
        self._program = program
        self._compiled = torch.compile(program.module.forward)
        self._variable = [_variable_positions(spec, index) for index in range(len(spec.inputs))]

    def __call__(self, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        if not self._covers(tensors):
            return self._program(tensors)
        return self._program.call(self._compiled, tensors)

    def compile(self, spec: ModelSpec, device: torch.device) -> None:
        """Compile for all batch sizes. The caller has entered the inference mode and autocast of execution."""
        for items in _batch_sizes(spec):
            self(self._dynamic(spec, items, device))

    def _covers(self, tensors: Sequence[torch.Tensor]) -> bool:
        pairs = zip(tensors, self._variable, strict=True)
        return all(tensor.numel() > 0 and all(tensor.shape[at] > 1 for at in variable) for tensor, variable in pairs)

    def _dynamic(self, spec: ModelSpec, items: int, device: torch.device) -> list[torch.Tensor]:
        tensors = [torch_tensors.from_wire(tensor, copy=True).to(device) for tensor in sample_inputs(spec, items)]
        for tensor, variable in zip(tensors, self._variable, strict=True):
            for position in ([0] if spec.batches and items > 1 else []) + variable:
                torch._dynamo.maybe_mark_dynamic(tensor, position)
        return tensors


def compile_program(spec: ModelSpec, program: Program, device: torch.device) -> CompiledProgram:
    """Takes seconds to minutes. Raises LoadError where the program cannot be compiled."""
    import torch._inductor.config

    compiled = CompiledProgram(spec, program)
    try:
        with torch._inductor.config.patch(_OPTIONS), warnings.catch_warnings():
            # Inductor's own lowering of quantised layers copies a tensor in a way that torch warns about.
            warnings.filterwarnings("ignore", "To copy construct from a tensor", UserWarning)
            compiled.compile(spec, device)
    except Exception as error:
        reason = str(error).strip().splitlines()
        refusal = LoadError(
            f'model "{spec.name}": torch.compile failed: {reason[0] if reason else type(error).__name__}; '
            'backend = "torch-eager" runs it uncompiled'
        )
        # Whoever loads takes a lack of memory for one of room for the weights.
        raise refusal from (None if ran_out_of_memory(error) else error)
    return compiled


def _variable_positions(spec: ModelSpec, index: int) -> list[int]:
    first = 1 if spec.batches else 0
    return [first + at for at, dim in enumerate(spec.inputs[index].dims) if dim == VARIABLE]


def _batch_sizes(spec: ModelSpec) -> list[int]:
    """1, 2, the largest, and both sides of each power of two, where torch's kernels change over."""
    if not spec.batches:
        return [1]
    largest = spec.max_batch_size
    edges = {edge for power in range(largest.bit_length() + 1) for edge in (2**power - 1, 2**power, 2**power + 1)}
    return sorted(edge for edge in edges | {largest} if 1 <= edge <= largest)
