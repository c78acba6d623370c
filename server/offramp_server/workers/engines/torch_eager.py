"""torch on the CPU, without a compiler: the operators of an exported program, one after the other.

On a GPU programs run in a `device_engine.DeviceEngine`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
from open_inference.tensor import Tensor

from offramp_server.engine_report import EngineReport
from offramp_server.model_spec import ModelSpec, TensorSpec
from offramp_server.workers.engines import torch_tensors
from offramp_server.workers.engines.answers import batch_size, check_count, check_output

LOW_PRECISIONS = {"fp16": torch.float16, "bf16": torch.bfloat16}

Forward = Callable[[Sequence[torch.Tensor]], list[torch.Tensor]]


class Computation(Protocol):
    """A `Program`, or what was built of one."""

    @property
    def writes_in_place(self) -> bool: ...

    @property
    def autocast(self) -> bool: ...

    def __call__(self, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]: ...

    def kept(self) -> Iterable[torch.Tensor]: ...

    def release(self) -> None: ...


class TorchEngine:
    """Executes a program as it is, or any other function (a compiled one) that answers the same."""

    def __init__(
        self, spec: ModelSpec, program: Computation, report: EngineReport, forward: Forward | None = None
    ) -> None:
        self.report = report
        self._spec = spec
        self._program = program
        self._forward = forward or program
        self._copies_inputs = program.writes_in_place
        self._weights = torch_tensors.Addresses(program.kept())
        # Entered anew for every batch; to make them anew would cost as much as a small operator.
        self._inference_mode = torch.inference_mode()
        self._precision = computing_in(report.precision if program.autocast else "fp32", torch.device("cpu"))

    def execute(self, inputs: Sequence[Tensor], staying: int = 0) -> list[Tensor]:
        # torch keeps the number of threads for each thread that calls it, and other engines of the process set it too.
        if torch.get_num_threads() != self.report.threads:
            torch.set_num_threads(self.report.threads)
        # Inputs are made inside inference mode: compiled code is guarded by how its tensors were made.
        with self._inference_mode, self._precision:
            tensors = [torch_tensors.from_wire(tensor, self._copies_inputs) for tensor in inputs]
            results = self._forward(tensors)
            check_count(self._spec, len(results))
            batch = batch_size(self._spec, inputs)
            pairs = zip(self._spec.outputs, results, strict=True)
            return [self._answer(output, result, tensors, batch) for output, result in pairs]

    def close(self) -> None:
        self._program.release()
        self._weights = torch_tensors.Addresses(())
        self._forward = _closed

    def _answer(
        self, output: TensorSpec, result: torch.Tensor, inputs: list[torch.Tensor], batch: int | None
    ) -> Tensor:
        result = declared_precision(self.report.precision, output, result)
        shape = tuple(result.shape)
        check_output(self._spec, output, torch_tensors.datatype_of(result), shape, batch)
        data = torch_tensors.to_wire(result, self._weights, inputs)
        return Tensor(output.name, output.datatype, shape, data)


def declared_precision(precision: str, output: TensorSpec, result: torch.Tensor) -> torch.Tensor:
    """Computing in another precision must not change what travels."""
    if precision not in LOW_PRECISIONS or not result.is_floating_point():
        return result
    return result.to(torch_tensors.TORCH_TYPES[output.datatype])


def computing_in(precision: str, device: torch.device, remember: bool = True) -> AbstractContextManager[Any]:
    """fp16 and bf16 are torch's autocast: convolutions and matrix products in it, what needs fp32 stays in fp32.

    Converting the weights instead would break programs that have a datatype written into their graph. `remember`: a
    weight that is cast twice before this ends may be cast once.
    """
    dtype = LOW_PRECISIONS.get(precision)
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype, cache_enabled=remember)


def _closed(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    raise RuntimeError("the engine is closed")
