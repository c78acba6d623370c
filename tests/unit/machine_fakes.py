"""A machine made of files, and GPUs that answer as nvidia-ml-py does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import TypeVar

T = TypeVar("T")

V2_MOUNT = "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
V1_MOUNTS = (
    "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n"
    "32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
    "33 31 0:30 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
)


def write_machine(root: Path, files: Mapping[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return root


def v2_machine(root: Path, group: str, files: Mapping[str, str]) -> Path:
    """The process is in `group` of the unified hierarchy; `files` are below its mount point."""
    (root / "sys/fs/cgroup" / group.strip("/")).mkdir(parents=True, exist_ok=True)
    there = {f"sys/fs/cgroup/{name}": text for name, text in files.items()}
    return write_machine(root, {"proc/self/cgroup": f"0::{group}\n", "proc/self/mountinfo": V2_MOUNT, **there})


def v1_machine(root: Path, group: str, files: Mapping[str, str], mounts: str = V1_MOUNTS) -> Path:
    """The process is in `group` of both hierarchies of version 1; `files` are below /sys/fs/cgroup."""
    own = f"4:memory:{group}\n3:cpu,cpuacct:{group}\n1:name=systemd:/\n0::/\n"
    there = {f"sys/fs/cgroup/{name}": text for name, text in files.items()}
    return write_machine(root, {"proc/self/cgroup": own, "proc/self/mountinfo": mounts, **there})


class FakeNvmlError(Exception):
    """Like pynvml.NVMLError, which carries NVML's return code."""

    def __init__(self, value: int) -> None:
        super().__init__(f"code {value}")
        self.value = value


NOT_SUPPORTED = 3


@dataclass
class FakeGpu:
    name: str = "NVIDIA H100 80GB HBM3"
    uuid: str = "GPU-11111111-aaaa"
    capability: tuple[int, int] = (9, 0)
    used: int = 3 * 2**30
    total: int = 80 * 2**30
    percent: int = 42
    milliwatts: int = 350_250
    celsius: int = 61
    # Names of what this device does not support.
    lacks: frozenset[str] = frozenset()

    def answer(self, question: str, value: T) -> T:
        if question in self.lacks:
            raise FakeNvmlError(NOT_SUPPORTED)
        return value


@dataclass
class FakeNvml:
    """Function names, arguments and return types are pynvml's; test_machine_nvml.py compares them."""

    devices: list[FakeGpu] = field(default_factory=lambda: [FakeGpu()])
    driver: str = "570.86.15"
    # What nvmlInit fails with.
    failure: int | None = None
    opened: int = 0
    NVMLError = FakeNvmlError

    def nvmlInit(self) -> None:
        if self.failure is not None:
            raise FakeNvmlError(self.failure)
        self.opened += 1

    def nvmlShutdown(self) -> None:
        self.opened -= 1

    def nvmlSystemGetDriverVersion(self) -> str:
        return self.driver

    def nvmlDeviceGetCount(self) -> int:
        return len(self.devices)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> FakeGpu:
        return self.devices[index]

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> FakeGpu:
        for gpu in self.devices:
            if gpu.uuid == uuid:
                return gpu
        raise FakeNvmlError(6)

    def nvmlDeviceGetUUID(self, handle: FakeGpu) -> str:
        return handle.answer("uuid", handle.uuid)

    def nvmlDeviceGetName(self, handle: FakeGpu) -> str:
        return handle.answer("name", handle.name)

    def nvmlDeviceGetCudaComputeCapability(self, handle: FakeGpu) -> tuple[int, int]:
        return handle.answer("capability", handle.capability)

    def nvmlDeviceGetMemoryInfo(self, handle: FakeGpu) -> SimpleNamespace:
        return handle.answer("memory", SimpleNamespace(total=handle.total, free=0, used=handle.used))

    def nvmlDeviceGetUtilizationRates(self, handle: FakeGpu) -> SimpleNamespace:
        return handle.answer("utilization", SimpleNamespace(gpu=handle.percent, memory=7))

    def nvmlDeviceGetPowerUsage(self, handle: FakeGpu) -> int:
        return handle.answer("power", handle.milliwatts)

    def nvmlDeviceGetTemperature(self, handle: FakeGpu, sensor: int) -> int:
        return handle.answer("temperature", handle.celsius)
