"""Why a model could not be loaded here, as far as that can be said without loading it or importing a library."""

from __future__ import annotations

import re
from collections.abc import Sequence

from offramp_server.errors import LoadError
from offramp_server.machine.nvml import NvmlUnavailable, open_nvml
from offramp_server.model_spec import ModelSpec
from offramp_server.workers.devices import FIRST_GPU, NVIDIA_DRIVER, could_use_cuda
from offramp_server.workers.engines.catalogue import engine_kinds
from offramp_server.workers.engines.kind import EngineKind
from offramp_server.workers.engines.load import plain_choice, usable_kind

_DEVICE = re.compile(r"cpu|cuda(:\d+)?")


def visible_gpus() -> tuple[str, ...] | None:
    """cuda:0, cuda:1, ... None: there is a driver, and it does not say which (parts of a GPU are in no list)."""
    try:
        with open_nvml() as opened:
            found = tuple(reading.gpu.device for reading in opened.readings())
    except NvmlUnavailable:
        found = ()
    return None if not found and NVIDIA_DRIVER.exists() else found


def unfit(spec: ModelSpec, gpus: Sequence[str] | None, kinds: Sequence[EngineKind] | None = None) -> str:
    """A sentence that names the model and what would be right; empty: nothing is known that keeps it from loading.
    `gpus`: as from `visible_gpus`."""
    asked = spec.engine.device
    if asked != "auto" and not _DEVICE.fullmatch(asked):
        return f'model "{spec.name}": there is no device "{asked}"; "cpu", "cuda", "cuda:N" or "auto" is right'
    device = _device(spec, gpus)
    if device != "cpu" and gpus is not None and device not in gpus:
        right = ", ".join(f'"{name}"' for name in ("cpu", *gpus))
        count = len(gpus) or "none"
        return f'model "{spec.name}": device "{asked}" cannot be used here, of GPUs there are {count}; use {right}'
    try:
        usable_kind(spec, device, plain_choice(spec).backend, engine_kinds() if kinds is None else kinds)
    except LoadError as error:
        return str(error)
    return ""


def _device(spec: ModelSpec, gpus: Sequence[str] | None) -> str:
    asked = spec.engine.device
    if asked == "auto":
        return FIRST_GPU if gpus and could_use_cuda(spec) else "cpu"
    return FIRST_GPU if asked == "cuda" else asked
