"""Torch-TensorRT: the exported program compiled by TensorRT, ahead of the load.

Written against the wheels of torch_tensorrt 2.11.0 and 2.13.0, which were unpacked and read; TensorRT itself could not
be had where this was written, so that nothing here has been executed with it (docs/gpu.md).
"""

from __future__ import annotations

import hashlib
import os
import stat
import warnings
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from offramp_server.errors import LoadError
from offramp_server.machine.identity import UnknownDevice, describe_device
from offramp_server.model_spec import ModelSpec, TensorSpec
from offramp_server.workers.engines.accelerator import Accelerator, CudaAccelerator
from offramp_server.workers.engines.device_engine import DeviceEngine, DeviceProgram
from offramp_server.workers.engines.kind import EngineRequest
from offramp_server.workers.engines.program import ExportedProgram, load_exported, move
from offramp_server.workers.engines.torch_eager import LOW_PRECISIONS
from offramp_server.workers.engines.torch_load import TRACING, checked_device
from offramp_server.workers.engines.torch_tensors import TORCH_TYPES

SERIALISED = "engine.ep"
# Beside the folders of all models: what one version has compiled is refitted with the weights of the next.
SHARED = "torch-tensorrt"
# What TensorRT's documentation of IExecutionContext::setTensorAddress asks for. Bytes.
_ALIGNMENT = 256
# Engines of one release are of no use to another. TensorRT's own package is called after CUDA's release as well.
_DISTRIBUTIONS = ("torch", "torch-tensorrt", "tensorrt", "tensorrt-cu12", "tensorrt-cu13")
_OTHERS_MAY_WRITE = stat.S_IWGRP | stat.S_IWOTH


def build(request: EngineRequest) -> None:
    """Compile, and write the program with its engines to `request.artifacts`. Takes minutes. Raises LoadError."""
    device = checked_device(request.spec, request.device)
    with TRACING:
        exported = move(load_exported(request.spec), device)
        build_program(request.spec, exported, device, request.artifacts)


def load(request: EngineRequest) -> DeviceEngine:
    """Load what `build` has written. Compiles nothing. Raises LoadError."""
    accelerator = CudaAccelerator(checked_device(request.spec, request.device))
    with TRACING:
        return load_program(request, accelerator)


def build_program(spec: ModelSpec, exported: ExportedProgram, device: torch.device, folder: Path) -> None:
    """Raises LoadError where the program cannot be compiled, or TensorRT would have no part in it."""
    import torch_tensorrt

    _check_signature(spec, exported)
    inputs = [torch_tensorrt.Input(**_profile(spec, tensor)) for tensor in spec.inputs]
    try:
        with warnings.catch_warnings():
            # 2.11 warns of a default of its own.
            warnings.simplefilter("ignore", DeprecationWarning)
            compiled = torch_tensorrt.dynamo.compile(
                exported, arg_inputs=inputs, device=device, **_settings(spec.engine.precision, folder, device)
            )
            _check_parts(spec, compiled)
            # As it is: exporting it anew would need example inputs, and its shapes are known.
            torch_tensorrt.save(compiled, str(folder / SERIALISED), output_format="exported_program", retrace=False)
    except LoadError:
        raise
    except Exception as error:
        raise LoadError(
            f'model "{spec.name}": TensorRT cannot compile {spec.path.name}: {_first_line(error)}; '
            'backend = "cuda-graphs" or "torch-compile" may run it'
        ) from error


def load_program(request: EngineRequest, accelerator: Accelerator) -> DeviceEngine:
    import torch_tensorrt

    spec, file = request.spec, request.artifacts / SERIALISED
    try:
        module = torch_tensorrt.load(str(file)).module()
    except Exception as error:
        raise LoadError(
            f'model "{spec.name}": {file} cannot be loaded: {_first_line(error)}; it belongs to the versions of torch, '
            "TensorRT and driver and to the kind of GPU that it was built with, `offramp tune` builds it anew"
        ) from error

    def forward(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        leaves = torch.utils._pytree.tree_leaves(module(*tensors))
        return [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]

    # TensorRT has cast what it wanted to; parts that torch computes have to hand on what the engines were built for.
    kept = [*module.parameters(), *module.buffers()]
    program = DeviceProgram(forward, kept, alignment=_ALIGNMENT, autocast=False)
    return DeviceEngine(spec, program, request.report(), accelerator)


def _profile(spec: ModelSpec, tensor: TensorSpec) -> dict[str, Any]:
    """What TensorRT chooses kernels for: the largest batch, and it has to run all others."""
    dtype = TORCH_TYPES[tensor.datatype]
    if not spec.batches:
        return {"shape": tensor.dims, "dtype": dtype}
    shapes = {"min_shape": 1, "opt_shape": spec.max_batch_size, "max_shape": spec.max_batch_size}
    if spec.max_batch_size == 1:
        return {"shape": (1, *tensor.dims), "dtype": dtype}
    return {name: (items, *tensor.dims) for name, items in shapes.items()} | {"dtype": dtype}


def _settings(precision: str, folder: Path, device: torch.device) -> dict[str, Any]:
    settings: dict[str, Any] = {
        # Engines whose weights can be changed, for the next version of the model.
        "immutable_weights": False,
        # fp32 means fp32: TF32 rounds to ten bits.
        "disable_tf32": True,
    }
    if precision in LOW_PRECISIONS:
        # `enabled_precisions` allows fp32 alone in 2.11, and is gone in 2.13: types are strong, and autocast chooses.
        settings |= {"enable_autocast": True, "autocast_low_precision_type": LOW_PRECISIONS[precision]}
    shared = _shared_folder(folder, device)
    if shared is not None:
        # The cache is keyed by the graph without its weights; on a hit torch_tensorrt refits the engine itself.
        settings |= {
            "cache_built_engines": True,
            "reuse_cached_engines": True,
            "engine_cache_dir": str(shared / "engines"),
        }
    # The default is a name in /tmp that anybody could have taken.
    settings["timing_cache_path"] = str((shared or folder) / "timing.cache")
    return settings


def _shared_folder(folder: Path, device: torch.device) -> Path | None:
    """None where others could write to it, since the cache is unpickled, or where nobody knows what it is for."""
    shared = folder.parent.parent / SHARED
    try:
        shared.mkdir(mode=0o700, exist_ok=True)
        found = shared.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & _OTHERS_MAY_WRITE:
            return None
        same = shared / _what_engines_belong_to(device)
        same.mkdir(mode=0o700, exist_ok=True)
    except (OSError, UnknownDevice):
        return None
    return same


def _what_engines_belong_to(device: torch.device) -> str:
    """The library's key is the graph and its settings, and it takes whatever it finds under that."""
    identity = describe_device(str(device))
    versions = {name: _version(name) for name in _DISTRIBUTIONS}
    return hashlib.sha256(repr((identity.name, identity.driver, versions)).encode()).hexdigest()[:40]


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def _check_signature(spec: ModelSpec, exported: ExportedProgram) -> None:
    call = exported.module_call_graph[0].signature
    flat = call is not None and call.in_spec == torch.utils._pytree.tree_structure(((None,) * len(spec.inputs), {}))
    if not flat:
        raise LoadError(
            f'model "{spec.name}": torch-tensorrt takes programs whose arguments are tensors one by one; '
            f'export it like that, or use backend = "cuda-graphs"'
        )


def _check_parts(spec: ModelSpec, compiled: torch.nn.Module) -> None:
    from torch_tensorrt.dynamo.runtime import TorchTensorRTModule

    if not any(isinstance(part, TorchTensorRTModule) for part in compiled.modules()):
        raise LoadError(
            f'model "{spec.name}": TensorRT has taken no part of {spec.path.name}, torch would compute all of it; '
            'backend = "cuda-graphs" or "torch-compile" is right'
        )


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
