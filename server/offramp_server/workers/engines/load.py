"""Which engine runs a model, and loading it. Libraries are imported by the first model that needs them."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from open_inference.tensor import BYTES

from offramp_server.errors import LoadError
from offramp_server.model_spec import ModelSpec
from offramp_server.workers.engines.base import Engine, EngineReport

if TYPE_CHECKING:
    import torch

    from offramp_server.workers.engines.program import ExportedProgram

AUTO = "auto"
BACKENDS = {"pt2": (AUTO, "torch-eager", "torch-compile"), "onnx": (AUTO, "onnxruntime")}
PRECISIONS = ("fp32", "fp16", "bf16")
_ASKED_FOR = "asked for by model.toml"


def load_engine(spec: ModelSpec, device: str, threads: int) -> Engine:
    """Load `spec` for `device` (cpu, cuda, cuda:N, auto) with that many intra-op threads (0: all cores).

    Raises LoadError if the file cannot be loaded, or if what `[engine]` asks for cannot run here: nothing is replaced
    by something else silently. `auto` chooses, and says in the report what and why.
    """
    _check_backend(spec)
    threads = threads if threads > 0 else _cores()
    try:
        return _load_onnx(spec, device, threads) if spec.format == "onnx" else _load_torch(spec, device, threads)
    except ModuleNotFoundError as error:
        raise LoadError(f'model "{spec.name}": {error.name} is not installed; pip install "offramp[server]"') from error


def _check_backend(spec: ModelSpec) -> None:
    backend, precision = spec.engine.backend, spec.engine.precision
    choices = BACKENDS[spec.format]
    if backend not in choices:
        raise LoadError(
            f'model "{spec.name}": backend "{backend}" cannot run a .{spec.format} file; one of {_listed(choices)} can'
        )
    if precision not in PRECISIONS:
        raise LoadError(f'model "{spec.name}": no precision "{precision}"; one of {_listed(PRECISIONS)}')


def _load_onnx(spec: ModelSpec, device: str, threads: int) -> Engine:
    if device not in ("cpu", AUTO):
        raise LoadError(f'model "{spec.name}": .onnx files run on the CPU, not on "{device}"; device = "cpu" is right')
    if spec.engine.precision != "fp32":
        raise LoadError(
            f'model "{spec.name}": an .onnx file computes in the precision it was written with, '
            f'"{spec.engine.precision}" cannot be asked for; leave precision out and convert the file instead'
        )
    from offramp_server.workers.engines.onnx_runtime import OnnxRuntimeEngine

    reason = "auto: the engine for .onnx files" if spec.engine.backend == AUTO else _ASKED_FOR
    return OnnxRuntimeEngine(spec, threads, reason)


def _load_torch(spec: ModelSpec, device: str, threads: int) -> Engine:
    import torch

    from offramp_server.workers.engines.program import load_exported, move

    target = _torch_device(spec, device)
    _check_strings(spec)
    _check_precision(spec, target)
    _check_compiler(spec, target)
    exported = load_exported(spec)
    if target.type != "cpu":
        exported = move(exported, target)
    # Compiled code counts on the number of threads it was compiled for, and timings are only worth something with it.
    torch.set_num_threads(threads)
    report = EngineReport("torch-eager", str(target), spec.engine.precision, threads, _ASKED_FOR)
    if spec.engine.backend == "torch-compile":
        return _compiled(spec, exported, target, report)
    return _eager(spec, exported, target, report)


def _eager(spec: ModelSpec, exported: ExportedProgram, device: torch.device, report: EngineReport) -> Engine:
    import dataclasses

    import torch

    from offramp_server.workers.engines.program import program_of
    from offramp_server.workers.engines.torch_eager import TorchEngine
    from offramp_server.workers.engines.torch_select import choose_program

    if spec.engine.backend != AUTO:
        return TorchEngine(spec, program_of(exported, spec), report)
    if device.type != "cpu" or spec.engine.precision != "fp32":
        reason = "auto: as exported; only fp32 on the CPU is measured"
        return TorchEngine(spec, program_of(exported, spec), dataclasses.replace(report, reason=reason))
    with torch.inference_mode():
        choice = choose_program(exported, spec)
    report = dataclasses.replace(report, reason=choice.reason, measured=choice.measured)
    return TorchEngine(spec, choice.program, report)


