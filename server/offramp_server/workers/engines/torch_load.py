"""Loading a `.pt2` file into one of the engines of torch."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch

# Registers the operators of quantised programs (torch.ops.quantized_decomposed), which torch does only on demand.
import torch.ao.quantization.fx._decomposed

from offramp_server.engine_report import EngineReport
from offramp_server.errors import LoadError
from offramp_server.model_spec import ModelSpec
from offramp_server.workers.engines.accelerator import Accelerator, CudaAccelerator, without_tf32
from offramp_server.workers.engines.base import Engine
from offramp_server.workers.engines.device_engine import DeviceEngine, DeviceProgram, Forward
from offramp_server.workers.engines.graph_buckets import GraphBuckets
from offramp_server.workers.engines.kind import EngineRequest
from offramp_server.workers.engines.program import ExportedProgram, Program, load_exported, move, program_of
from offramp_server.workers.engines.torch_compile import compile_program
from offramp_server.workers.engines.torch_eager import Computation, TorchEngine, computing_in
from offramp_server.workers.engines.torch_rewrite import rewritten_program

# torch traces programs with state of the whole process: of two threads that load or compile at once, one fails
# ("s77 is not tracked with proxy"). A worker has one thread that loads, but a process may hold several servers.
TRACING = threading.Lock()


def load_eager(request: EngineRequest) -> Engine:
    """The variants of torch-eager. Raises LoadError."""
    with _loading(request) as (exported, report):
        return _engine(request.spec, rewritten_program(exported, request.spec, request.choice.variant), report)


def load_compiled(request: EngineRequest) -> Engine:
    """torch.compile, which takes seconds to minutes. Raises LoadError."""
    with _loading(request) as (exported, report):
        program = program_of(exported, request.spec)
        device = torch.device(report.device)
        with torch.inference_mode(), computing_in(report.precision, device):
            forward = compile_program(request.spec, program, device)
        return _engine(request.spec, program, report, forward)


def load_captured(request: EngineRequest) -> Engine:
    """The variants of cuda-graphs, which take some runs of each batch size. Raises LoadError."""
    with _loading(request) as (exported, report):
        accelerator = CudaAccelerator(torch.device(report.device))
        program = rewritten_program(exported, request.spec, request.choice.variant)
        return graph_engine(request.spec, program, report, accelerator)


def graph_engine(spec: ModelSpec, program: Computation, report: EngineReport, accelerator: Accelerator) -> DeviceEngine:
    """The program captured for every batch size. Raises LoadError."""
    precision = report.precision if program.autocast else "fp32"
    # What is cast while it is captured lives in the graph; a cast that was remembered before would be freed too early.
    with torch.inference_mode():
        graphs = GraphBuckets(
            spec, program, accelerator, lambda: computing_in(precision, accelerator.device, remember=False)
        )

    def close() -> None:
        graphs.close()
        program.release()

    captured = DeviceProgram(
        graphs, list(program.kept()), answers_are_overwritten=True, autocast=program.autocast, close=close
    )
    return DeviceEngine(spec, captured, report, accelerator)


def _engine(spec: ModelSpec, program: Program, report: EngineReport, forward: Forward | None = None) -> Engine:
    if report.device == "cpu":
        return TorchEngine(spec, program, report, forward)
    on_device = DeviceProgram(
        forward or program,
        list(program.kept()),
        writes_to_inputs=program.writes_in_place,
        close=program.release,
    )
    return DeviceEngine(spec, on_device, report, CudaAccelerator(torch.device(report.device)))


@contextmanager
def _loading(request: EngineRequest) -> Iterator[tuple[ExportedProgram, EngineReport]]:
    """The program on its device. Loads of one process take turns."""
    device = checked_device(request.spec, request.device)
    with TRACING:
        exported = load_exported(request.spec)
        if device.type != "cpu":
            exported = move(exported, device)
        # Compiled code is guarded by the number of threads, and timings mean nothing with another number.
        torch.set_num_threads(request.threads)
        yield exported, replace(request.report(), device=str(device))


def checked_device(spec: ModelSpec, device: str) -> torch.device:
    """The device, made ready to compute or compile for. Raises LoadError where torch does not have it, or it cannot
    compute in the precision that is asked for."""
    target = _device(spec, device)
    _check_bf16(spec, target)
    if target.type == "cuda":
        without_tf32()
    return target


def _device(spec: ModelSpec, device: str) -> torch.device:
    try:
        target = torch.device(device)
    except RuntimeError:
        target = torch.device("meta")
    if target.type not in ("cpu", "cuda"):
        raise LoadError(
            f'model "{spec.name}": there is no device "{device}"; "cpu", "cuda", "cuda:N" or "auto" is right'
        )
    if target.type == "cpu":
        return torch.device("cpu")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    index = target.index or 0
    if index >= count:
        usable = ", ".join(['"cpu"', *(f'"cuda:{number}"' for number in range(count))])
        raise LoadError(
            f'model "{spec.name}": device "{device}" cannot be used here, torch sees {count} GPUs; use {usable}'
        )
    return torch.device("cuda", index)


def _check_bf16(spec: ModelSpec, device: torch.device) -> None:
    if spec.engine.precision == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported():
        raise LoadError(f'model "{spec.name}": this GPU has no bf16; precision = "fp16" or "fp32" is right')
