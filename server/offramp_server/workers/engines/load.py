"""Which engine runs a model, and loading it. Libraries are imported by the first model that needs them."""

from __future__ import annotations

from collections.abc import Sequence

from offramp_server.cores import usable_cores
from offramp_server.errors import LoadError
from offramp_server.model_spec import ModelSpec
from offramp_server.workers.engines.base import Engine

AUTO = "auto"
BACKENDS = {"pt2": (AUTO, "torch-eager", "torch-compile"), "onnx": (AUTO, "onnxruntime")}
PRECISIONS = ("fp32", "fp16", "bf16")
_ASKED_FOR = "asked for by model.toml"


def load_engine(spec: ModelSpec, device: str, threads: int) -> Engine:
    """Load `spec` for `device` (cpu, cuda, cuda:N, auto) with that many intra-op threads (0: all cores).

    Raises LoadError if the file cannot be loaded, or if what `[engine]` asks for cannot run here: nothing is replaced
    by something else silently. `auto` chooses, and says in the report what and why.
    """
    _check_asked(spec)
    threads = threads if threads > 0 else usable_cores()
    load = _load_onnx if spec.format == "onnx" else _load_torch
    try:
        return load(spec, device, threads)
    except ModuleNotFoundError as error:
        raise LoadError(f'model "{spec.name}": {error.name} is not installed; pip install "offramp[server]"') from error


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
    from offramp_server.workers.engines.torch_load import load_torch

    return load_torch(spec, device, threads, "" if spec.engine.backend == AUTO else _ASKED_FOR)


def _check_asked(spec: ModelSpec) -> None:
    backend, precision = spec.engine.backend, spec.engine.precision
    choices = BACKENDS[spec.format]
    if backend not in choices:
        raise LoadError(
            f'model "{spec.name}": engine "{backend}" cannot run a .{spec.format} file; one of {_listed(choices)} can'
        )
    if precision not in PRECISIONS:
        raise LoadError(f'model "{spec.name}": there is no precision "{precision}"; one of {_listed(PRECISIONS)}')


def _listed(choices: Sequence[str]) -> str:
    return ", ".join(f'"{choice}"' for choice in choices)
