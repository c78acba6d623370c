"""torch without a compiler: the operators of an exported program, one after the other.

On CUDA the weights and the devices written into the graph are moved there, inputs are sent without blocking, the
device is synchronised before an answer is read, and what only later batches need stays there. That path has not been
run: there was no GPU where it was written.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from open_inference.tensor import Tensor

from offramp_server.engine_report import EngineReport
from offramp_server.model_spec import ModelSpec, TensorSpec
from offramp_server.workers.engines import torch_tensors
from offramp_server.workers.engines.answers import batch_size, check_count, check_output
from offramp_server.workers.engines.on_device import DeviceTensor, as_torch
from offramp_server.workers.engines.program import Program

_LOW_PRECISIONS = {"fp16": torch.float16, "bf16": torch.bfloat16}

Forward = Callable[[Sequence[torch.Tensor]], list[torch.Tensor]]


class TorchEngine:
    """Executes a program as it is, or any other function (a compiled one) that answers the same."""

    def __init__(self, spec: ModelSpec, program: Program, report: EngineReport, forward: Forward | None = None) -> None:
        self.report = report
        self._spec = spec
        self._device = torch.device(report.device)
        self._program = program
        self._forward = forward or program
        self._copies_inputs = program.writes_in_place
        # In the memory of the host there is nothing to gain.
        self._leaves_outputs = self._device.type != "cpu"
        self._weights = torch_tensors.Addresses(program.kept())
        # Entered anew for every batch; to make them anew would cost as much as a small operator.
        self._inference_mode = torch.inference_mode()
        self._precision = computing_in(report.precision, self._device)

    def execute(self, inputs: Sequence[Tensor], staying: int = 0) -> list[Tensor]:
        # torch keeps the number of threads for each thread that calls it, and other engines of the process set it too.
        if torch.get_num_threads() != self.report.threads:
            torch.set_num_threads(self.report.threads)
        # Inputs are made inside inference mode: compiled code is guarded by how its tensors were made.
        with self._inference_mode, self._precision:
            tensors = [as_torch(tensor, self._copies_inputs) for tensor in inputs]
            staying = staying if self._leaves_outputs else 0
            results = self._computed(tensors, staying)
            check_count(self._spec, len(results))
            batch = batch_size(self._spec, inputs)
            pairs = enumerate(zip(self._spec.outputs, results, strict=True))
            return [
                self._left(output, result, batch) if staying >> at & 1 else self._answer(output, result, tensors, batch)
                for at, (output, result) in pairs
            ]

    def close(self) -> None:
        # The modules of an exported program are in cycles; their weights should not wait for the collector.
        for module in self._program.module.modules():
            module._parameters.clear()
            module._buffers.clear()
        self._weights = torch_tensors.Addresses(())
        self._forward = _closed

    def _computed(self, tensors: list[torch.Tensor], staying: int) -> list[torch.Tensor]:
        """The results in the memory of the host, which is where most arguments are, but for those that stay."""
        if self._device.type == "cpu":
            return self._forward(tensors)
        results = self._forward([tensor.to(self._device, non_blocking=True) for tensor in tensors])
        results = [
            result if staying >> at & 1 else result.to("cpu", non_blocking=True) for at, result in enumerate(results)
        ]
        torch.cuda.current_stream(self._device).synchronize()
        return results

    def _left(self, output: TensorSpec, result: torch.Tensor, batch: int | None) -> DeviceTensor:
        result = self._declared_precision(output, result)
        shape = tuple(result.shape)
        check_output(self._spec, output, torch_tensors.datatype_of(result), shape, batch)
        # Neither memory that the next batch writes to, nor a small part of something large.
        if self._weights.hold(result) or result.untyped_storage().nbytes() > result.nbytes:
            result = result.clone()
        return DeviceTensor(output.name, output.datatype, shape, b"", result)

    def _answer(
        self, output: TensorSpec, result: torch.Tensor, inputs: list[torch.Tensor], batch: int | None
    ) -> Tensor:
        result = self._declared_precision(output, result)
        shape = tuple(result.shape)
        check_output(self._spec, output, torch_tensors.datatype_of(result), shape, batch)
        data = torch_tensors.to_wire(result, self._weights, inputs)
        return Tensor(output.name, output.datatype, shape, data)

    def _declared_precision(self, output: TensorSpec, result: torch.Tensor) -> torch.Tensor:
        """Computing in another precision must not change what travels."""
        if self.report.precision not in _LOW_PRECISIONS or not result.is_floating_point():
            return result
        return result.to(torch_tensors.TORCH_TYPES[output.datatype])


def computing_in(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """fp16 and bf16 are torch's autocast: convolutions and matrix products in it, what needs fp32 stays in fp32.

    Converting the weights instead would break programs that have a datatype written into their graph.
    """
    dtype = _LOW_PRECISIONS.get(precision)
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)


def _closed(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    raise RuntimeError("the engine is closed")
