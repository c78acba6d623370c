"""GPUs are told apart and read through NVML, and where that is not possible the reason is given."""

from __future__ import annotations

import inspect

import pynvml
import pytest
from machine_fakes import FakeGpu, FakeNvml, FakeNvmlError
from offramp_server.machine import nvml
from offramp_server.machine.nvml import Library, NoSuchGpu, NvmlUnavailable, open_nvml

TWO = [FakeGpu(), FakeGpu("NVIDIA L4", "GPU-22222222-bbbb", (8, 9))]


def devices(library: FakeNvml, chosen: str | None = None) -> list[tuple[str, str]]:
    environment = {} if chosen is None else {"CUDA_VISIBLE_DEVICES": chosen}
    with open_nvml(library, environment) as opened:
        return [(gpu.device, gpu.name) for gpu in opened.gpus()]


def test_a_reading_has_base_units() -> None:
    with open_nvml(FakeNvml(), {}) as opened:
        [reading] = opened.readings()
    assert (reading.gpu.name, reading.gpu.compute_capability) == ("NVIDIA H100 80GB HBM3", "9.0")
    assert (reading.utilization, reading.power_watts, reading.temperature_celsius) == (0.42, 350.25, 61.0)
    assert (reading.memory_used, reading.memory_total) == (3 * 2**30, 80 * 2**30)


def test_what_a_device_does_not_support_is_unknown_and_the_rest_is_there() -> None:
    gpu = FakeGpu(lacks=frozenset({"power", "utilization", "memory", "temperature", "capability"}))
    with open_nvml(FakeNvml([gpu]), {}) as opened:
        [reading] = opened.readings()
    assert (reading.power_watts, reading.utilization, reading.memory_used, reading.memory_total) == (None,) * 4
    assert (reading.temperature_celsius, reading.gpu.compute_capability) == (None, "")
    assert reading.gpu.name == "NVIDIA H100 80GB HBM3"


@pytest.mark.parametrize(
    ("chosen", "names"),
    [
        (None, ["NVIDIA H100 80GB HBM3", "NVIDIA L4"]),
        ("1,0", ["NVIDIA L4", "NVIDIA H100 80GB HBM3"]),
        ("GPU-2222", ["NVIDIA L4"]),
        (" 1 ", ["NVIDIA L4"]),
        ("1,7,0", ["NVIDIA L4"]),  # CUDA sees nothing behind an entry that is wrong.
        ("GPU-", []),  # Two begin like this.
        ("-1", []),
        ("", []),
    ],
)
def test_devices_are_numbered_as_cuda_numbers_them(chosen: str | None, names: list[str]) -> None:
    assert devices(FakeNvml(TWO), chosen) == [(f"cuda:{index}", name) for index, name in enumerate(names)]


def test_a_part_of_a_device_is_found_by_its_uuid() -> None:
    part = FakeGpu("NVIDIA H100 MIG 1g.10gb", "MIG-33333333-cccc")
    assert devices(FakeNvml([part]), "MIG-33333333-cccc") == [("cuda:0", "NVIDIA H100 MIG 1g.10gb")]
    assert devices(FakeNvml([part]), "MIG-4") == []


def test_a_device_that_is_not_there_is_refused_with_those_that_are() -> None:
    with open_nvml(FakeNvml(TWO), {}) as opened, pytest.raises(NoSuchGpu, match="CUDA sees: cuda:0, cuda:1"):
        opened.gpu(2)


@pytest.mark.parametrize(
    ("code", "reason"),
    [(12, "no NVIDIA driver"), (9, "kernel module is not loaded"), (18, "restart"), (99, "code 99")],
)
def test_why_there_are_no_gpus_is_said(code: int, reason: str) -> None:
    with pytest.raises(NvmlUnavailable, match=reason), open_nvml(FakeNvml(failure=code), {}):
        pass


def test_the_library_is_closed_again_whatever_happens() -> None:
    library = FakeNvml()
    with pytest.raises(NoSuchGpu), open_nvml(library, {}) as opened:
        opened.gpu(5)
    assert library.opened == 0


def test_a_driver_that_stops_answering_while_it_is_opened_is_unavailable() -> None:
    class Lost(FakeNvml):
        def nvmlDeviceGetCount(self) -> int:
            raise FakeNvmlError(15)

    library = Lost()
    with pytest.raises(NvmlUnavailable, match="does not answer"), open_nvml(library, {}):
        pass
    assert library.opened == 0


def test_the_real_library_says_why_there_is_no_driver_or_lists_devices() -> None:
    said, readings = "", []
    try:
        with open_nvml() as opened:
            readings = opened.readings()
    except NvmlUnavailable as error:
        said = str(error)
    assert ("driver" in said) != bool(readings)
    assert all(reading.gpu.driver and reading.gpu.device.startswith("cuda:") for reading in readings)


def test_the_functions_that_are_called_are_those_of_the_real_library() -> None:
    names = [name for name in vars(Library) if name.startswith("nvml")]
    assert len(names) > 10
    for name in names:
        ours, theirs = (inspect.signature(getattr(source, name)) for source in (FakeNvml, pynvml))
        required = [each for each in theirs.parameters.values() if each.default is inspect.Parameter.empty]
        # Ours has self.
        assert len(ours.parameters) - 1 == len(required), name
    assert issubclass(pynvml.NVMLError, Exception)


def test_the_numbers_are_those_of_the_real_library() -> None:
    assert nvml.TEMPERATURE_GPU == pynvml.NVML_TEMPERATURE_GPU
    assert nvml.LIBRARY_NOT_FOUND == pynvml.NVML_ERROR_LIBRARY_NOT_FOUND
    assert nvml.DRIVER_NOT_LOADED == pynvml.NVML_ERROR_DRIVER_NOT_LOADED
    assert nvml.VERSION_MISMATCH == pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH
    assert {"used", "total"} <= {name for name, _ in pynvml.c_nvmlMemory_t._fields_}
    assert "gpu" in {name for name, _ in pynvml.c_nvmlUtilization_t._fields_}
