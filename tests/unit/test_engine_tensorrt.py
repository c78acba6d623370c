"""Torch-TensorRT: every call fits the library's signatures, and what is around it works, with a double in its place."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from engine_models import AddSub, convolutional, export_pt2, model_spec
from offramp_server.engine_choice import EngineChoice
from offramp_server.errors import LoadError
from offramp_server.machine.identity import DeviceIdentity, UnknownDevice
from offramp_server.model_spec import EngineSettings, ModelSpec
from offramp_server.workers.engines import tensorrt
from offramp_server.workers.engines.kind import EngineRequest
from offramp_server.workers.engines.kinds.torch_tensorrt import TorchTensorRtKind
from offramp_server.workers.engines.load import load_engine
from offramp_server.workers.engines.program import load_exported
from open_inference.tensor import Tensor
from strict_accelerator import StrictAccelerator
from torch import nn
from torch_tensorrt_double import RECORDED, Double, named

IMAGES = np.random.default_rng(1).standard_normal((5, 1, 8, 8), dtype=np.float32)


@pytest.fixture(params=sorted(RECORDED))
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Double:
    double = Double(request.param)
    double.install(monkeypatch)
    return double


@pytest.fixture(scope="module")
def images_spec(tmp_path_factory: pytest.TempPathFactory) -> ModelSpec:
    path = tmp_path_factory.mktemp("models") / "images.pt2"
    export_pt2(path, convolutional(), (torch.zeros(2, 1, 8, 8),), batch=8)
    return model_spec(path, ["x FP32 1 8 8"], ["scores FP32 3"], 8)


@pytest.fixture
def artifacts(tmp_path: Path) -> Path:
    """As in a cache of engines: the model's folder, and in it that of the engine."""
    folder = tmp_path / "cache" / "model" / "torch-tensorrt"
    folder.mkdir(parents=True)
    return folder


def built(spec: ModelSpec, artifacts: Path) -> None:
    tensorrt.build_program(spec, load_exported(spec), torch.device("cpu"), artifacts)


def request(spec: ModelSpec, artifacts: Path) -> EngineRequest:
    return EngineRequest(spec, "cpu", 1, EngineChoice("torch-tensorrt", artifacts=artifacts))


def test_what_was_built_is_loaded_without_building_and_answers_as_the_program(
    images_spec: ModelSpec, artifacts: Path, library: Double
) -> None:
    built(images_spec, artifacts)
    library.compiled.clear()
    engine = tensorrt.load_program(request(images_spec, artifacts), StrictAccelerator())
    assert library.compiled == []
    inputs = [Tensor("x", "FP32", IMAGES.shape, bytearray(IMAGES.tobytes()))]
    [expected] = load_engine(images_spec, "cpu", 1).execute(inputs)
    [answer] = engine.execute(inputs)
    np.testing.assert_allclose(answer.numpy(), expected.numpy(), rtol=1e-5, atol=1e-6)


def test_the_profile_reaches_from_one_item_to_the_largest_batch(
    images_spec: ModelSpec, artifacts: Path, library: Double
) -> None:
    built(images_spec, artifacts)
    [profile] = library.compiled[0]["arg_inputs"]
    assert profile == {
        "min_shape": (1, 1, 8, 8),
        "opt_shape": (8, 1, 8, 8),
        "max_shape": (8, 1, 8, 8),
        "dtype": torch.float32,
    }


@pytest.mark.parametrize(
    ("precision", "settings"),
    [
        ("fp32", {"disable_tf32": True}),
        ("fp16", {"enable_autocast": True, "autocast_low_precision_type": torch.float16}),
        ("bf16", {"enable_autocast": True, "autocast_low_precision_type": torch.bfloat16}),
    ],
)
def test_precisions_are_asked_for_in_the_way_that_both_versions_have(
    images_spec: ModelSpec, artifacts: Path, library: Double, precision: str, settings: dict[str, Any]
) -> None:
    built(replace(images_spec, engine=EngineSettings(precision=precision)), artifacts)
    asked = library.compiled[0]
    assert settings.items() <= asked.items()
    assert ("enable_autocast" in asked) == (precision != "fp32")


def test_engines_are_shared_with_later_versions_of_the_model_whose_weights_alone_have_changed(
    images_spec: ModelSpec, artifacts: Path, library: Double
) -> None:
    built(images_spec, artifacts)
    asked = library.compiled[0]
    # An engine with fixed weights is never put into the library's cache.
    assert asked["immutable_weights"] is False
    assert asked["cache_built_engines"] is True
    assert asked["reuse_cached_engines"] is True
    assert Path(asked["engine_cache_dir"]).is_relative_to(artifacts.parent.parent)
    assert not Path(asked["engine_cache_dir"]).is_relative_to(artifacts.parent)


def test_a_shared_folder_that_others_can_write_to_is_not_used(
    images_spec: ModelSpec, artifacts: Path, library: Double
) -> None:
    shared = artifacts.parent.parent / tensorrt.SHARED
    shared.mkdir()
    shared.chmod(0o777)
    built(images_spec, artifacts)
    asked = library.compiled[0]
    assert "engine_cache_dir" not in asked
    assert Path(asked["timing_cache_path"]).is_relative_to(artifacts)


def test_engines_of_another_driver_gpu_or_release_are_not_found(
    images_spec: ModelSpec, artifacts: Path, library: Double, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = DeviceIdentity("cuda:0", "NVIDIA H100, compute capability 9.0", "570.86")
    others = (replace(known, driver="580.11"), replace(known, name="NVIDIA L4, compute capability 8.9"))
    for identity in (known, known, *others):
        monkeypatch.setattr(tensorrt, "describe_device", lambda device, identity=identity: identity)
        built(images_spec, artifacts)
    monkeypatch.setattr(tensorrt, "version", lambda name: "9.9.9")
    built(images_spec, artifacts)
    first, again, *rest = [asked["engine_cache_dir"] for asked in library.compiled]
    assert first == again
    assert len({first, *rest}) == 4


def test_engines_for_a_gpu_that_nobody_can_name_are_not_shared(
    images_spec: ModelSpec, artifacts: Path, library: Double, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(device: str) -> DeviceIdentity:
        raise UnknownDevice(device)

    monkeypatch.setattr(tensorrt, "describe_device", unknown)
    built(images_spec, artifacts)
    assert "engine_cache_dir" not in library.compiled[0]


def test_a_program_of_which_tensorrt_takes_nothing_is_not_called_a_tensorrt_engine(
    images_spec: ModelSpec, artifacts: Path, library: Double
) -> None:
    library.takes_part = False
    with pytest.raises(LoadError, match=r"TensorRT has taken no part of images.pt2, torch would compute all of it"):
        built(images_spec, artifacts)
    assert library.saved == []


def test_what_cannot_be_compiled_is_a_load_error_with_the_reason(
    images_spec: ModelSpec, artifacts: Path, library: Double, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **kwargs: Any) -> nn.Module:
        raise RuntimeError("[Error thrown at network.py] no converter for aten.grid_sampler\nmore")

    library.compile = fail  # type: ignore[method-assign]
    library.install(monkeypatch)
    with pytest.raises(LoadError, match=r'cannot compile images.pt2: .*aten.grid_sampler; backend = "cuda-graphs"'):
        built(images_spec, artifacts)


def test_a_file_of_another_version_is_a_load_error_that_says_what_to_do(
    images_spec: ModelSpec, artifacts: Path, library: Double
) -> None:
    (artifacts / tensorrt.SERIALISED).write_bytes(b"of another version")
    with pytest.raises(LoadError, match=r"engine.ep cannot be loaded: .* `offramp tune` builds it anew"):
        tensorrt.load_program(request(images_spec, artifacts), StrictAccelerator())


class Keyword(nn.Module):
    def forward(self, a: torch.Tensor, *, b: torch.Tensor) -> torch.Tensor:
        return a + b


def test_a_program_with_arguments_by_keyword_is_refused(tmp_path: Path, artifacts: Path, library: Double) -> None:
    path = export_pt2(tmp_path / "keyword.pt2", Keyword(), (torch.zeros(2, 4),), {"b": torch.ones(2, 4)})
    with pytest.raises(LoadError, match="takes programs whose arguments are tensors one by one"):
        built(model_spec(path, ["a FP32 4", "b FP32 4"], ["sum FP32 4"]), artifacts)


def test_several_inputs_and_outputs_keep_their_order(tmp_path: Path, artifacts: Path, library: Double) -> None:
    path = export_pt2(tmp_path / "addsub.pt2", AddSub(), (torch.zeros(2, 4), torch.ones(2, 4)))
    spec = model_spec(path, ["a FP32 4", "b FP32 4"], ["sum FP32 4", "difference FP32 4"])
    built(spec, artifacts)
    engine = tensorrt.load_program(request(spec, artifacts), StrictAccelerator())
    answers = engine.execute([Tensor.from_numpy("", np.full((3, 4), value, np.float32)) for value in (5, 2)])
    assert [answer.numpy()[0, 0] for answer in answers] == [7, 3]


def test_it_is_said_what_is_missing_and_what_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_tensorrt", None)
    missing = TorchTensorRtKind().missing("cuda:0")
    assert missing.startswith('torch_tensorrt is not installed; pip install "offramp[tensorrt]" brings torch-tensorrt')


def test_it_is_refused_on_the_cpu(images_spec: ModelSpec) -> None:
    assert 'engine "torch-tensorrt" needs an NVIDIA GPU, not "cpu"' in TorchTensorRtKind().refusal(images_spec, "cpu")


@pytest.mark.skipif(importlib.util.find_spec("torch_tensorrt") is None, reason="torch_tensorrt is not installed")
def test_the_recorded_signatures_are_the_librarys() -> None:
    library = importlib.import_module("torch_tensorrt")
    recorded = RECORDED.get(importlib.metadata.version("torch_tensorrt"))
    if recorded is None:
        pytest.skip("this version was not recorded")
    functions = {"dynamo.compile": library.dynamo.compile, "save": library.save, "load": library.load}
    assert {name: named(function) for name, function in functions.items()} == {
        name: text for name, text in recorded.items() if name != "Input"
    }


def test_what_is_compared_with_the_library_is_written_as_it_is_recorded() -> None:
    def save(module: Any, file_path: str = "", *, retrace: bool = True, **kwargs: Any) -> None: ...

    assert named(save) == "module! file_path *retrace **kwargs"
