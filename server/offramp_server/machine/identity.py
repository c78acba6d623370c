"""What a device is, in words that change when the hardware or its driver does: a part of the key of whatever was
measured or compiled for it."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from offramp_server.machine.cgroups import ROOT
from offramp_server.machine.nvml import Library, NoSuchGpu, NvmlUnavailable, open_nvml

# Of the instruction sets that a processor has, those that kernels of torch, oneDNN and ONNX Runtime are chosen by.
_X86_SETS = (
    *("avx", "avx2", "fma", "f16c", "avx_vnni", "avx_vnni_int8"),
    *("avx512f", "avx512bw", "avx512vl", "avx512_vnni", "avx512_bf16", "avx512_fp16"),
    *("amx_tile", "amx_int8", "amx_bf16", "amx_fp16"),
)
_ARM_SETS = ("asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2", "svei8mm", "svebf16", "sme", "sme2")
INSTRUCTION_SETS = frozenset(_X86_SETS + _ARM_SETS)
# What /proc/cpuinfo calls the model: a virtual machine's "model name" is often no more than the maker's.
X86_MODEL = ("model name", "cpu family", "model", "stepping")
ARM_MODEL = ("CPU implementer", "CPU architecture", "CPU variant", "CPU part", "CPU revision")


class UnknownDevice(Exception):
    """The device cannot be described: it is not there, or its driver cannot be asked. The message says why.

    Nothing that is found out about it may be remembered: it might be another one next time.
    """


@dataclass(frozen=True, slots=True)
class DeviceIdentity:
    """The same after a restart, another if the hardware or the driver is another one. How many cores or threads are
    used is not part of it."""

    # "cpu" or "cuda:N".
    device: str
    # The CPU's model with the instruction sets that matter, or the GPU's name and compute capability.
    name: str
    # The version of NVIDIA's driver; empty for a CPU.
    driver: str


def describe_device(
    device: str, *, root: Path = ROOT, nvml: Library | None = None, environment: Mapping[str, str] | None = None
) -> DeviceIdentity:
    """`device` is "cpu", "cuda" (which is cuda:0) or "cuda:N". Takes milliseconds. Raises UnknownDevice."""
    if device == "cpu":
        return DeviceIdentity(device, _cpu_name(root), "")
    kind, _, number = device.partition(":")
    if kind != "cuda" or not (number or "0").isdigit():
        raise UnknownDevice(f'"{device}" is no device; expected "cpu", "cuda" or "cuda:N"')
    try:
        with open_nvml(nvml, environment) as opened:
            gpu = opened.gpu(int(number or 0))
    except (NvmlUnavailable, NoSuchGpu) as error:
        raise UnknownDevice(f"{device}: {error}") from error
    return DeviceIdentity(gpu.device, f"{gpu.name}, compute capability {gpu.compute_capability or '?'}", gpu.driver)


def _cpu_name(root: Path) -> str:
    processors = list(_processors(root))
    if not processors:
        return f"{platform.machine()} {platform.processor()}".strip()
    # A machine may have processors of two kinds, and what runs on either has to be run by both.
    models = sorted({_model(processor) for processor in processors})
    common = frozenset.intersection(*map(_instruction_sets, processors))
    return " / ".join(models) + " [" + " ".join(sorted(common)) + "]"


def _model(processor: Mapping[str, str]) -> str:
    keys = X86_MODEL if "model name" in processor and "cpu family" in processor else ARM_MODEL
    name, *numbers = [processor[key] for key in keys if key in processor] or [platform.machine()]
    return f"{name} ({' '.join(numbers)})" if numbers else name


def _instruction_sets(processor: Mapping[str, str]) -> frozenset[str]:
    known = processor.get("flags", processor.get("Features", ""))
    return INSTRUCTION_SETS & frozenset(known.split())


def _processors(root: Path) -> Iterator[dict[str, str]]:
    try:
        text = (root / "proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return
    for block in text.split("\n\n"):
        pairs = (line.partition(":") for line in block.splitlines())
        processor = {key.strip(): value.strip() for key, _, value in pairs}
        # On Arm the file may end with a block about the board.
        if "processor" in processor:
            yield processor
