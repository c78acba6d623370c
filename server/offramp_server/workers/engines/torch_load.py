"""Loading a `.pt2` file into one of the engines of torch."""

from __future__ import annotations

import threading
from dataclasses import replace

import torch

# Registers the operators of quantised programs (torch.ops.quantized_decomposed), which torch does only on demand.
import torch.ao.quantization.fx._decomposed
from open_inference.tensor import BYTES

from offramp_server.engine_report import EngineReport
from offramp_server.errors import LoadError
from offramp_server.model_spec import ModelSpec
from offramp_server.workers.engines.program import ExportedProgram, load_exported, move, program_of
from offramp_server.workers.engines.torch_compile import compile_program, cpp_compiler
from offramp_server.workers.engines.torch_eager import TorchEngine, computing_in
from offramp_server.workers.engines.torch_select import choose_program

# torch traces programs with state of the whole process: of two threads that load or compile at once, one fails
# ("s77 is not tracked with proxy"). A worker has one thread that loads, but a process may hold several servers.
_TRACING = threading.Lock()


def load_torch(spec: ModelSpec, device: str, threads: int, reason: str) -> TorchEngine:
    """`reason` is empty where the choice is ours. Loads of one process take turns. Raises LoadError."""
    target = _device(spec, device)
    _check_strings(spec)
    _check_bf16(spec, target)
    _check_compiler(spec)
    with _TRACING:
        return _load(spec, target, threads, reason)


def _load(spec: ModelSpec, target: torch.device, threads: int, reason: str) -> TorchEngine:
    exported = load_exported(spec)
    if target.type != "cpu":
        exported = move(exported, target)
    # Compiled code is guarded by the number of threads, and timings mean nothing with another number.
    torch.set_num_threads(threads)
    report = EngineReport("torch-eager", str(target), spec.engine.precision, threads, reason)
    if spec.engine.backend == "torch-compile":
        return _compiled(spec, exported, target, report)
    if not reason:
        return _chosen(spec, exported, target, report)
    return TorchEngine(spec, program_of(exported, spec), report)


def _compiled(spec: ModelSpec, exported: ExportedProgram, device: torch.device, report: EngineReport) -> TorchEngine:
    program = program_of(exported, spec)
    with torch.inference_mode(), computing_in(report.precision, device):
        forward = compile_program(spec, program, device)
    return TorchEngine(spec, program, replace(report, backend="torch-compile"), forward)


def _chosen(spec: ModelSpec, exported: ExportedProgram, device: torch.device, report: EngineReport) -> TorchEngine:
    if device.type != "cpu" or report.precision != "fp32":
        reason = "auto: as exported; other programs are only tried in fp32 on the CPU"
        return TorchEngine(spec, program_of(exported, spec), replace(report, reason=reason))
    with torch.inference_mode():
        choice = choose_program(exported, spec)
    return TorchEngine(spec, choice.program, replace(report, reason=choice.reason, measured=choice.measured))


def _device(spec: ModelSpec, device: str) -> torch.device:
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
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


def _check_strings(spec: ModelSpec) -> None:
    for tensor in (*spec.inputs, *spec.outputs):
        if tensor.datatype == BYTES:
            raise LoadError(
                f'model "{spec.name}": "{tensor.name}" is BYTES, torch has no strings; use an .onnx file, or numbers'
            )


def _check_bf16(spec: ModelSpec, device: torch.device) -> None:
    if spec.engine.precision == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported():
        raise LoadError(f'model "{spec.name}": this GPU has no bf16; precision = "fp16" or "fp32" is right')


def _check_compiler(spec: ModelSpec) -> None:
    if spec.engine.backend == "torch-compile" and cpp_compiler() is None:
        raise LoadError(
            f'model "{spec.name}": torch-compile needs a C++ compiler (g++, or what CXX names) and none is installed; '
            'install one or use backend = "torch-eager"'
        )
