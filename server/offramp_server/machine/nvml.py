"""NVIDIA GPUs as the driver's management library sees them, through nvidia-ml-py. Needs neither CUDA nor torch.

Everything that NVML cannot say of a device is None: it differs by generation, and in virtual and partitioned GPUs.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

# Of nvml.h: the sensor on the GPU's die, and what the library returns where no driver is installed or loaded.
TEMPERATURE_GPU = 0
LIBRARY_NOT_FOUND, DRIVER_NOT_LOADED, VERSION_MISMATCH = 12, 9, 18

REASONS: Mapping[int, str] = {
    LIBRARY_NOT_FOUND: "there is no NVIDIA driver: libnvidia-ml.so.1 is not installed",
    DRIVER_NOT_LOADED: "the NVIDIA driver is installed but its kernel module is not loaded",
    VERSION_MISMATCH: "the NVIDIA driver was updated while its old kernel module is loaded; restart the machine",
}
NO_BINDINGS = "nvidia-ml-py is not installed; pip install 'offramp[gpu]'"

T = TypeVar("T")
# A device, to the library.
Handle = Any


class NvmlUnavailable(Exception):
    """The GPUs cannot be asked. The message says why."""


class NvmlMissing(NvmlUnavailable):
    """Nor later on, in this process: what asks them is not installed."""


class NoSuchGpu(Exception):
    """There is no such device, or CUDA_VISIBLE_DEVICES hides it. The message says which there are."""


class Library(Protocol):
    """What is used of the module pynvml, and how tests stand in for it."""

    @property
    def NVMLError(self) -> type[Exception]: ...  # noqa: N802
    def nvmlInit(self) -> None: ...  # noqa: N802
    def nvmlShutdown(self) -> None: ...  # noqa: N802
    def nvmlSystemGetDriverVersion(self) -> str: ...  # noqa: N802
    def nvmlDeviceGetCount(self) -> int: ...  # noqa: N802
    def nvmlDeviceGetHandleByIndex(self, index: int, /) -> Handle: ...  # noqa: N802
    def nvmlDeviceGetHandleByUUID(self, uuid: str, /) -> Handle: ...  # noqa: N802
    def nvmlDeviceGetUUID(self, handle: Handle, /) -> str: ...  # noqa: N802
    def nvmlDeviceGetName(self, handle: Handle, /) -> str: ...  # noqa: N802
    def nvmlDeviceGetCudaComputeCapability(self, handle: Handle, /) -> tuple[int, int]: ...  # noqa: N802
    def nvmlDeviceGetMemoryInfo(self, handle: Handle, /) -> Any: ...  # noqa: N802
    def nvmlDeviceGetUtilizationRates(self, handle: Handle, /) -> Any: ...  # noqa: N802
    def nvmlDeviceGetPowerUsage(self, handle: Handle, /) -> int: ...  # noqa: N802
    def nvmlDeviceGetTemperature(self, handle: Handle, sensor: int, /) -> int: ...  # noqa: N802


@dataclass(frozen=True, slots=True)
class Gpu:
    """What a device is. `device` is its name to torch, "cuda:N"."""

    device: str
    name: str
    uuid: str
    # Such as "9.0".
    compute_capability: str
    driver: str


@dataclass(frozen=True, slots=True)
class GpuReading:
    """What a device is doing."""

    gpu: Gpu
    # Share of the last sample period, at most a second, in which some kernel ran: 0 to 1.
    utilization: float | None
    # Bytes, those that the driver itself takes included.
    memory_used: int | None
    memory_total: int | None
    power_watts: float | None
    temperature_celsius: float | None


class Nvml:
    """An open library. Its calls enter the driver and may take milliseconds: they do not belong on an event loop."""

    def __init__(self, library: Library, environment: Mapping[str, str]) -> None:
        self._library = library
        self._driver = library.nvmlSystemGetDriverVersion()
        # In the order in which CUDA numbers them.
        self._handles = list(_visible(library, environment.get("CUDA_VISIBLE_DEVICES")))

    def gpus(self) -> list[Gpu]:
        """The devices that CUDA sees."""
        return [self._gpu(number, handle) for number, handle in enumerate(self._handles)]

    def gpu(self, number: int) -> Gpu:
        """cuda:`number`. Raises NoSuchGpu."""
        if number >= len(self._handles):
            there = ", ".join(f"cuda:{index}" for index in range(len(self._handles))) or "none"
            raise NoSuchGpu(f"there is no cuda:{number}; CUDA sees: {there}")
        return self._gpu(number, self._handles[number])

    def readings(self) -> list[GpuReading]:
        return [self._reading(number, handle) for number, handle in enumerate(self._handles)]

    def _gpu(self, number: int, handle: Handle) -> Gpu:
        library = self._library
        capability = self._ask(library.nvmlDeviceGetCudaComputeCapability, handle)
        return Gpu(
            device=f"cuda:{number}",
            name=self._ask(library.nvmlDeviceGetName, handle) or "",
            uuid=self._ask(library.nvmlDeviceGetUUID, handle) or "",
            compute_capability="" if capability is None else ".".join(map(str, capability)),
            driver=self._driver,
        )

    def _reading(self, number: int, handle: Handle) -> GpuReading:
        library = self._library
        memory = self._ask(library.nvmlDeviceGetMemoryInfo, handle)
        rates = self._ask(library.nvmlDeviceGetUtilizationRates, handle)
        milliwatts = self._ask(library.nvmlDeviceGetPowerUsage, handle)
        celsius = self._ask(library.nvmlDeviceGetTemperature, handle, TEMPERATURE_GPU)
        return GpuReading(
            gpu=self._gpu(number, handle),
            utilization=None if rates is None else rates.gpu / 100,
            memory_used=None if memory is None else int(memory.used),
            memory_total=None if memory is None else int(memory.total),
            power_watts=None if milliwatts is None else milliwatts / 1000,
            temperature_celsius=None if celsius is None else float(celsius),
        )

    def _ask(self, question: Callable[..., T], *arguments: object) -> T | None:
        try:
            return question(*arguments)
        except self._library.NVMLError:
            return None


@contextmanager
def open_nvml(library: Library | None = None, environment: Mapping[str, str] | None = None) -> Iterator[Nvml]:
    """Raises NvmlUnavailable. `library` is pynvml unless a test has another; `environment` is this process's."""
    library = _import_library() if library is None else library
    try:
        library.nvmlInit()
    except library.NVMLError as error:
        raise _unavailable(error) from error
    try:
        yield _opened(library, os.environ if environment is None else environment)
    finally:
        library.nvmlShutdown()


def _opened(library: Library, environment: Mapping[str, str]) -> Nvml:
    try:
        return Nvml(library, environment)
    except library.NVMLError as error:
        raise _unavailable(error) from error


def _import_library() -> Library:
    try:
        import pynvml
    except ImportError as error:
        raise NvmlMissing(NO_BINDINGS) from error
    library: Library = pynvml
    return library


def _unavailable(error: Exception) -> NvmlUnavailable:
    code = getattr(error, "value", -1)
    reason = REASONS.get(code, f"the NVIDIA driver does not answer: {error}")
    return NvmlMissing(reason) if code == LIBRARY_NOT_FOUND else NvmlUnavailable(reason)


def _visible(library: Library, chosen: str | None) -> Iterator[Handle]:
    """The devices in CUDA's order, for CUDA_DEVICE_ORDER=PCI_BUS_ID, which workers are started with.

    As CUDA does (CUDA C++ Programming Guide, "Environment variables"), whatever stands after an entry that fits no
    device is left out.
    """
    everything = [library.nvmlDeviceGetHandleByIndex(index) for index in range(library.nvmlDeviceGetCount())]
    if chosen is None:
        yield from everything
        return
    for entry in map(str.strip, chosen.split(",")):
        handle = _find(library, everything, entry)
        if handle is None:
            return
        yield handle


def _find(library: Library, everything: list[Handle], entry: str) -> Handle | None:
    if entry.isdigit():
        return everything[int(entry)] if int(entry) < len(everything) else None
    if entry.startswith("MIG-"):
        # A part of a device, which is in no list.
        try:
            return library.nvmlDeviceGetHandleByUUID(entry)
        except library.NVMLError:
            return None
    # Of a UUID a beginning is enough.
    matches = [handle for handle in everything if entry and library.nvmlDeviceGetUUID(handle).startswith(entry)]
    return matches[0] if len(matches) == 1 else None
