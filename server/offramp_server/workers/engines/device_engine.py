"""Torch programs on a GPU: staged through pinned memory, and begun while the batch before is still computed.

Inputs are copied into pinned memory and sent by a stream of their own, so that they travel while the other stream
computes; answers come back to pinned memory, and nobody waits before `finish`. Nothing here has been run on a GPU
(`accelerator.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from open_inference.tensor import Tensor

from offramp_server.engine_report import EngineReport
from offramp_server.model_spec import ModelSpec, TensorSpec
from offramp_server.workers.engines import torch_tensors
from offramp_server.workers.engines.accelerator import Accelerator
from offramp_server.workers.engines.answers import batch_size, check_count, check_output
from offramp_server.workers.engines.on_device import DeviceTensor
from offramp_server.workers.engines.torch_eager import computing_in, declared_precision

Forward = Callable[[Sequence[torch.Tensor]], list[torch.Tensor]]
_NOTHING = torch_tensors.Addresses(())


@dataclass(frozen=True, slots=True)
class DeviceProgram:
    """A function of tensors on the device, and what there is to know about it."""

    forward: Forward
    # Weights, buffers and constants: an answer must not be one of them.
    kept: Sequence[torch.Tensor]
    # Its answers are in memory that the next call writes to.
    answers_are_overwritten: bool = False
    writes_to_inputs: bool = False
    # Bytes that the addresses of its inputs have to be multiples of. What torch allocates is aligned to more than
    # anybody asks for, but rows of a batch that was cut begin anywhere.
    alignment: int = 1
    # Lower precisions are torch's autocast around it; otherwise it casts by itself.
    autocast: bool = True
    # Lets go of everything.
    close: Callable[[], None] = lambda: None


@dataclass(frozen=True, slots=True, eq=False)
class _Ticket:
    """A batch under way."""

    # In the order of the spec: what stays on the device, or pinned memory that is being written to.
    answers: list[DeviceTensor | torch.Tensor]
    done: Any
    # What the device reads until then.
    reading: list[torch.Tensor]


class DeviceEngine:
    """A `StagedEngine`."""

    def __init__(self, spec: ModelSpec, program: DeviceProgram, report: EngineReport, accelerator: Accelerator) -> None:
        self.report = report
        self._spec = spec
        self._program = program
        self._accelerator = accelerator
        self._weights = torch_tensors.Addresses(program.kept)
        self._inference_mode = torch.inference_mode()
        self._precision = computing_in(report.precision if program.autocast else "fp32", accelerator.device)

    def execute(self, inputs: Sequence[Tensor], staying: int = 0) -> list[Tensor]:
        return self.finish(self.begin(inputs, staying))

    def begin(self, inputs: Sequence[Tensor], staying: int = 0) -> _Ticket:
        accelerator = self._accelerator
        # As on the CPU, where the reason stands: compiled code is guarded by the number of threads on every device.
        if torch.get_num_threads() != self.report.threads:
            torch.set_num_threads(self.report.threads)
        try:
            with self._inference_mode:
                reading = self._sent(inputs)
                with accelerator.on(accelerator.compute), self._precision:
                    results = self._program.forward([self._given(tensor) for tensor in reading])
                    check_count(self._spec, len(results))
                    answers = self._taken(results, batch_size(self._spec, inputs), staying)
                    return _Ticket(answers, accelerator.mark(accelerator.compute), reading)
        except Exception:
            # The device may still read what is let go of here.
            accelerator.settle()
            raise

    def finish(self, begun: _Ticket) -> list[Tensor]:
        self._accelerator.wait_for(begun.done)
        return [
            answer if isinstance(answer, DeviceTensor) else _from_host(output, answer)
            for output, answer in zip(self._spec.outputs, begun.answers, strict=True)
        ]

    def close(self) -> None:
        self._accelerator.settle()
        self._program.close()
        self._program = DeviceProgram(_closed, ())
        self._weights = _NOTHING

    def _sent(self, inputs: Sequence[Tensor]) -> list[torch.Tensor]:
        """The inputs on the device, before anything that is sent to the computing stream from now on."""
        accelerator = self._accelerator
        with accelerator.on(accelerator.copies):
            sent = [
                tensor.value if isinstance(tensor, DeviceTensor) else accelerator.send(self._staged(tensor))
                for tensor in inputs
            ]
            accelerator.follow(accelerator.compute, accelerator.mark(accelerator.copies))
        if any(isinstance(tensor, DeviceTensor) for tensor in inputs):
            # Rows of earlier batches are put together on the stream of the thread.
            accelerator.follow(accelerator.compute, accelerator.mark_current())
        return sent

    def _staged(self, tensor: Tensor) -> torch.Tensor:
        there = torch_tensors.from_wire(tensor, copy=False)
        pinned = self._accelerator.pinned(there.shape, there.dtype)
        pinned.copy_(there)
        return pinned

    def _given(self, tensor: torch.Tensor) -> torch.Tensor:
        misplaced = tensor.data_ptr() % self._program.alignment
        return tensor.clone() if self._program.writes_to_inputs or misplaced else tensor

    def _taken(
        self, results: Sequence[torch.Tensor], batch: int | None, staying: int
    ) -> list[DeviceTensor | torch.Tensor]:
        answers: list[DeviceTensor | torch.Tensor] = []
        for at, (output, computed) in enumerate(zip(self._spec.outputs, results, strict=True)):
            result = declared_precision(self.report.precision, output, computed)
            check_output(self._spec, output, torch_tensors.datatype_of(result), tuple(result.shape), batch)
            answers.append(self._left(output, result) if staying >> at & 1 else self._fetched(result))
        return answers

    def _left(self, output: TensorSpec, result: torch.Tensor) -> DeviceTensor:
        # What was compiled for rows one after the other does not look at strides, and takes it for that.
        left = result.contiguous()
        # What had to be put in order is a copy already.
        if left.data_ptr() == result.data_ptr() and self._belongs_to_others(left):
            left = left.clone()
        return DeviceTensor(output.name, output.datatype, tuple(left.shape), b"", left)

    def _belongs_to_others(self, result: torch.Tensor) -> bool:
        if self._program.answers_are_overwritten or self._weights.hold(result):
            return True
        # Nor should a small part keep something large alive.
        return result.untyped_storage().nbytes() > result.nbytes

    def _fetched(self, result: torch.Tensor) -> torch.Tensor:
        pinned = self._accelerator.pinned(result.shape, result.dtype)
        self._accelerator.fetch(result, pinned)
        return pinned


def _from_host(output: TensorSpec, pinned: torch.Tensor) -> Tensor:
    return Tensor(output.name, output.datatype, tuple(pinned.shape), torch_tensors.to_wire(pinned, _NOTHING, ()))


def _closed(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    raise RuntimeError("the engine is closed")
