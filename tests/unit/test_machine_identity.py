"""A device's identity is the same after a restart and another on other hardware or with another driver."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from machine_fakes import FakeGpu, FakeNvml, write_machine
from offramp_server.machine.identity import UnknownDevice, describe_device

XEON = """\
processor\t: {number}
vendor_id\t: GenuineIntel
cpu family\t: 6
model\t\t: 143
model name\t: Intel(R) Xeon(R) Platinum 8480+
stepping\t: 8
cpu MHz\t\t: {mhz}
flags\t\t: fpu vme {flags}

"""
ARM = """\
processor\t: {number}
BogoMIPS\t: 243.75
Features\t: fp asimd evtstrm aes asimdhp cpuid asimddp i8mm bf16
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x1
CPU part\t: {part}
CPU revision\t: 1

"""


def cpu(folder: Path, text: str) -> str:
    return describe_device("cpu", root=write_machine(folder, {"proc/cpuinfo": text})).name


def xeon(flags: str = "avx2 avx512f amx_int8", mhz: int = 2000) -> str:
    return "".join(XEON.format(number=number, flags=flags, mhz=mhz) for number in range(2))


def test_a_cpu_is_its_model_and_the_instruction_sets_that_matter(tmp_path: Path) -> None:
    assert cpu(tmp_path, xeon()) == "Intel(R) Xeon(R) Platinum 8480+ (6 143 8) [amx_int8 avx2 avx512f]"


def test_a_cpu_is_the_same_at_another_clock(tmp_path: Path) -> None:
    assert cpu(tmp_path / "a", xeon(mhz=2000)) == cpu(tmp_path / "b", xeon(mhz=3100))


@pytest.mark.parametrize("flags", ["avx2 avx512f", "avx2 avx512f amx_int8 avx512_bf16"])
def test_a_cpu_with_other_instruction_sets_is_another(tmp_path: Path, flags: str) -> None:
    assert cpu(tmp_path / "a", xeon()) != cpu(tmp_path / "b", xeon(flags))


def test_an_arm_machine_with_two_kinds_of_cores_names_both(tmp_path: Path) -> None:
    text = ARM.format(number=0, part="0xd0c") + ARM.format(number=1, part="0xd4f") + "Hardware\t: board\n"
    name = cpu(tmp_path, text)
    assert name == "0x41 (8 0x1 0xd0c 1) / 0x41 (8 0x1 0xd4f 1) [asimd asimddp asimdhp bf16 i8mm]"


def test_instruction_sets_that_only_some_cores_have_do_not_count(tmp_path: Path) -> None:
    text = XEON.format(number=0, flags="avx2 avx512f", mhz=1) + XEON.format(number=1, flags="avx2", mhz=1)
    assert cpu(tmp_path, text).endswith("[avx2]")


def test_a_system_without_cpuinfo_still_has_a_name(tmp_path: Path) -> None:
    assert describe_device("cpu", root=tmp_path).name


def test_the_real_cpu_is_described_the_same_twice() -> None:
    assert describe_device("cpu") == describe_device("cpu")


def test_a_gpu_is_its_name_its_capability_and_the_driver() -> None:
    identity = describe_device("cuda", nvml=FakeNvml(), environment={})
    assert (identity.device, identity.driver) == ("cuda:0", "570.86.15")
    assert identity.name == "NVIDIA H100 80GB HBM3, compute capability 9.0"


def test_a_gpu_is_another_with_another_driver_or_in_another_machine() -> None:
    known = describe_device("cuda:0", nvml=FakeNvml(), environment={})
    newer = describe_device("cuda:0", nvml=FakeNvml(driver="580.65.06"), environment={})
    other = describe_device("cuda:0", nvml=FakeNvml([FakeGpu("NVIDIA L4", capability=(8, 9))]), environment={})
    assert len({known, newer, other}) == 3
    assert replace(newer, driver=known.driver) == known


def test_two_gpus_of_one_kind_differ_by_their_number_only() -> None:
    two = FakeNvml([FakeGpu(uuid="GPU-1"), FakeGpu(uuid="GPU-2")])
    first, second = (describe_device(f"cuda:{number}", nvml=two, environment={}) for number in range(2))
    assert replace(second, device="cuda:0") == first != second


@pytest.mark.parametrize(
    ("device", "reason"),
    [("cuda:3", "CUDA sees: cuda:0"), ("tpu", "expected"), ("cuda:x", "expected"), ("cuda:-1", "expected")],
)
def test_a_device_that_is_not_there_is_unknown(device: str, reason: str) -> None:
    with pytest.raises(UnknownDevice, match=reason):
        describe_device(device, nvml=FakeNvml(), environment={})


def test_a_gpu_without_a_driver_is_unknown_with_the_reason() -> None:
    with pytest.raises(UnknownDevice, match="cuda:0: there is no NVIDIA driver"):
        describe_device("cuda:0", nvml=FakeNvml(failure=12), environment={})
