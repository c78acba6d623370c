"""Where a model runs that leaves it to the server, or names a device."""

from __future__ import annotations

from dataclasses import replace
from importlib.metadata import PackageNotFoundError

import pytest
from offramp_server.model_spec import EngineSettings, TensorSpec
from offramp_server.workers import devices
from offramp_server.workers.devices import Devices
from offramp_server.workers.engines.kinds import onnx_gpu
from scheduling_fakes import spec

AUTO = EngineSettings(device="auto")
NUMBERS, STRINGS = (TensorSpec("x", datatype, (4,)) for datatype in ("FP32", "BYTES"))


@pytest.mark.parametrize(
    ("format", "has_gpu", "has_package", "tensor", "device"),
    [
        ("pt2", True, False, NUMBERS, "cuda:0"),
        ("pt2", False, False, NUMBERS, "cpu"),
        ("onnx", True, True, NUMBERS, "cuda:0"),
        ("onnx", True, False, NUMBERS, "cpu"),
        ("onnx", True, True, STRINGS, "cpu"),
        ("onnx", False, True, NUMBERS, "cpu"),
    ],
)
async def test_a_model_goes_to_the_gpu_where_there_is_one_and_an_engine_for_it(
    monkeypatch: pytest.MonkeyPatch, format: str, has_gpu: bool, has_package: bool, tensor: TensorSpec, device: str
) -> None:
    def distribution(name: str) -> str:
        if not has_package:
            raise PackageNotFoundError(name)
        return name

    monkeypatch.setattr(onnx_gpu, "distribution", distribution)
    monkeypatch.setattr(devices, "_probe_cuda", lambda: has_gpu)
    model = replace(spec(), format=format, engine=AUTO, inputs=(tensor,), outputs=(NUMBERS,))
    assert await Devices().of(model) == device


@pytest.mark.parametrize(("named", "device"), [("cpu", "cpu"), ("cuda", "cuda:0"), ("cuda:3", "cuda:3")])
async def test_a_device_that_is_named_is_taken(monkeypatch: pytest.MonkeyPatch, named: str, device: str) -> None:
    monkeypatch.setattr(devices, "_probe_cuda", lambda: pytest.fail("nobody asked"))
    assert await Devices().of(replace(spec(), engine=EngineSettings(device=named))) == device
