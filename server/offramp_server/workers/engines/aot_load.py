"""Packages of AOTInductor as an engine. Nothing is compiled here, and the program itself is not read."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

import torch
import torch._inductor

from offramp_server.errors import LoadError
from offramp_server.workers.engines.accelerator import CudaAccelerator
from offramp_server.workers.engines.aot_packages import Manifest, Package, read_manifest
from offramp_server.workers.engines.base import Engine
from offramp_server.workers.engines.device_engine import DeviceEngine, DeviceProgram
from offramp_server.workers.engines.kind import EngineRequest
from offramp_server.workers.engines.torch_eager import TorchEngine
from offramp_server.workers.engines.torch_load import TRACING, checked_device, graph_engine

# What Inductor compiles kernels of CUDA for. A package copies other inputs itself, with a warning each time. Bytes.
_ALIGNMENT = 16

Run = Callable[[list[torch.Tensor]], Sequence[torch.Tensor]]


class Packages:
    """A function from tensors to tensors, as `Program` is, that chooses by the number of items."""

    # They cast by themselves.
    autocast = False

    def __init__(self, manifest: Manifest, runs: dict[int, Run], batches: bool) -> None:
        """`runs` has, for each batch size, what computes it."""
        self.writes_in_place = manifest.writes_in_place
        self._lent = manifest.lent
        self._runs = runs
        self._batches = batches

    def __call__(self, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        # Of a size that no package was built for, nothing may be computed.
        run = self._runs[tensors[0].shape[0] if self._batches else 1]
        results = list(run(list(tensors)))
        for at in self._lent:
            results[at] = results[at].clone()
        return results

    def kept(self) -> Iterator[torch.Tensor]:
        """Weights are inside of the packages; what lies in their memory is copied before it is returned."""
        return iter(())

    def release(self) -> None:
        self._runs = {}


def load_packages(request: EngineRequest) -> Engine:
    """Raises LoadError."""
    spec = request.spec
    device = checked_device(spec, request.device)
    packages = _opened(request, device)
    report = replace(request.report(), device=str(device))
    if device.type == "cpu":
        return TorchEngine(spec, packages, report)
    function = DeviceProgram(
        packages,
        (),
        writes_to_inputs=packages.writes_in_place,
        alignment=_ALIGNMENT,
        autocast=False,
        close=packages.release,
    )
    return DeviceEngine(spec, function, report, CudaAccelerator(device))


def load_captured_packages(request: EngineRequest) -> Engine:
    """Packages in CUDA graphs. Raises LoadError."""
    device = checked_device(request.spec, request.device)
    report = replace(request.report(), device=str(device))
    return graph_engine(request.spec, _opened(request, device), report, CudaAccelerator(device))


def _opened(request: EngineRequest, device: torch.device) -> Packages:
    spec = request.spec
    manifest = read_manifest(request.artifacts)
    with TRACING:
        opened = [(package, open_package(request.artifacts / package.file, device)) for package in manifest.packages]
    runs = {size: run for package, run in opened for size in _within(package, max(spec.max_batch_size, 1))}
    return Packages(manifest, runs, spec.batches)


def open_package(path: Path, device: torch.device) -> Run:
    """Raises LoadError."""
    try:
        with _unpacked_for_now() if device.type == "cpu" else nullcontext():
            # One caller at a time, so that the package need not look after several.
            package = torch._inductor.aoti_load_package(
                str(path), run_single_threaded=True, device_index=device.index if device.type == "cuda" else -1
            )
    except Exception as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise LoadError(f"torch cannot load the package {path}: {reason}") from error
    # By way of its containers a call would take 100 us more.
    run: Run = package.loader.run
    return run


@contextmanager
def _unpacked_for_now() -> Iterator[None]:
    """torch unpacks a package into a temporary folder, which it deletes when its process ends in order. Workers are
    killed, and each would leave a copy behind. Once the code is mapped nothing there is read again, but for kernels of
    CUDA, which are read when they are first called. torch 2.11 takes /tmp whatever TMPDIR says, and does leave one.
    """
    before = os.environ.get("TMPDIR")
    with tempfile.TemporaryDirectory(prefix="offramp-package-") as folder:
        os.environ["TMPDIR"] = folder
        try:
            yield
        finally:
            if before is None:
                del os.environ["TMPDIR"]
            else:
                os.environ["TMPDIR"] = before


def _within(package: Package, largest: int) -> Iterator[int]:
    return (size for size in package.sizes if size <= largest)
