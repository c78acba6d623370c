"""ONNX Runtime on a GPU: what is asked of it, and its IO binding, run here with the provider of the CPU."""

from __future__ import annotations

from dataclasses import replace
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from engine_models import model_spec, onnx_file
from offramp_server.engine_choice import EngineChoice
from offramp_server.errors import LoadError
from offramp_server.model_spec import ModelSpec
from offramp_server.workers.engines.kind import EngineRequest
from offramp_server.workers.engines.kinds import onnx_gpu as kind
from offramp_server.workers.engines.kinds.onnx_runtime import OnnxRuntimeKind
from offramp_server.workers.engines.onnx_gpu import BoundEngine, load_on_gpu, providers
from open_inference.tensor import BYTES, NUMPY_TYPES, Tensor

CPU = [("CPUExecutionProvider", dict[str, str]())]


def addsub(folder: Path) -> ModelSpec:
    nodes = [("Add", ["a", "b"], ["p"]), ("Sub", ["a", "b"], ["m"])]
    path = onnx_file(folder / "addsub.onnx", ["a FP32 4", "b FP32 4"], ["p FP32 4", "m FP32 4"], nodes)
    return model_spec(path, ["a FP32 4", "b FP32 4"], ["p FP32 4", "m FP32 4"], 8)


def request(spec: ModelSpec, variant: str = "", artifacts: Path | None = None) -> EngineRequest:
    return EngineRequest(spec, "cuda:1", 1, EngineChoice("onnxruntime", variant, artifacts=artifacts))


def full(value: float, rows: int = 3) -> Tensor:
    return Tensor("", "FP32", (rows, 4), bytearray(np.full((rows, 4), value, np.float32).tobytes()))


def test_bound_inputs_and_outputs_keep_their_order_and_sizes(tmp_path: Path) -> None:
    engine = BoundEngine(request(addsub(tmp_path)), CPU)
    for rows in (3, 8, 1):
        plus, minus = engine.execute([full(7, rows), full(2, rows)])
        assert (plus.shape, plus.numpy()[0, 0], minus.numpy()[0, 0]) == ((rows, 4), 9, 5)


@pytest.mark.parametrize("datatype", sorted(NUMPY_TYPES.keys() - {BYTES}))
def test_answers_own_their_memory_in_every_datatype(tmp_path: Path, datatype: str) -> None:
    path = onnx_file(tmp_path / "same.onnx", [f"x {datatype} 4"], [f"y {datatype} 4"], [("Identity", ["x"], ["y"])])
    engine = BoundEngine(request(model_spec(path, [f"x {datatype} 4"], [f"y {datatype} 4"])), CPU)
    given = np.arange(8).astype(NUMPY_TYPES[datatype]).tobytes()
    shared = bytearray(given)
    [answer] = engine.execute([Tensor("x", datatype, (2, 4), memoryview(shared))])
    shared[:] = bytes(len(shared))
    engine.execute([Tensor("x", datatype, (2, 4), memoryview(shared))])
    assert (answer.datatype, answer.shape, bytes(answer.data)) == (datatype, (2, 4), given)


def test_nothing_of_a_batch_stays_bound(tmp_path: Path) -> None:
    engine = BoundEngine(request(addsub(tmp_path)), CPU)
    engine.execute([full(1), full(2)])
    assert engine._binding.get_outputs() == []
    # What is bound as an input cannot be asked for, but nothing is computed without.
    engine._binding.bind_output("p", "cpu")
    with pytest.raises(Exception, match=r"Missing Input: (a|b)"):
        engine._session.run_with_iobinding(engine._binding)


@pytest.mark.filterwarnings("ignore:Specified provider")
def test_a_session_that_fell_back_to_another_provider_is_refused(tmp_path: Path) -> None:
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("it would not fall back here")
    with pytest.raises(LoadError, match="runs it with CPUExecutionProvider, not with CUDAExecutionProvider; its libra"):
        load_on_gpu(request(addsub(tmp_path)))


@pytest.mark.filterwarnings("ignore:Specified provider")
def test_libraries_of_cuda_that_pip_has_installed_are_looked_for_before_a_session_on_a_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[str] = []
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: looked.append("before"), raising=False)
    made = onnxruntime.InferenceSession

    def session(*arguments: Any, **named: Any) -> Any:
        looked.append("session")
        return made(*arguments, **named)

    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    BoundEngine(request(addsub(tmp_path)), CPU)
    assert looked == ["session"]
    with pytest.raises(LoadError, match="runs it with CPUExecutionProvider"):
        load_on_gpu(request(addsub(tmp_path)))
    assert looked[1:] == ["before", "session"]


def test_providers_are_asked_for_on_the_models_own_gpu(tmp_path: Path) -> None:
    [(name, options)] = providers(request(addsub(tmp_path)))
    assert (name, options["device_id"], options["use_tf32"]) == ("CUDAExecutionProvider", "1", "0")


def test_tensorrt_keeps_its_engines_in_the_artifacts_and_knows_all_batches(tmp_path: Path) -> None:
    first, second = providers(request(addsub(tmp_path), kind.TENSORRT, tmp_path / "artifacts"))
    name, options = first
    assert (name, second[0]) == ("TensorrtExecutionProvider", "CUDAExecutionProvider")
    assert options["trt_engine_cache_path"] == options["trt_timing_cache_path"] == str(tmp_path / "artifacts")
    assert options["trt_engine_cache_enable"] == "1"
    assert options["trt_profile_min_shapes"] == "a:1x4,b:1x4"
    assert options["trt_profile_opt_shapes"] == options["trt_profile_max_shapes"] == "a:8x4,b:8x4"


def test_the_package_for_gpus_is_told_from_the_one_for_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    def only_for_cpus(name: str) -> Any:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(kind, "distribution", only_for_cpus)
    assert "pip uninstall onnxruntime, then pip install onnxruntime-gpu" in OnnxRuntimeKind().missing("cuda:0")
    assert OnnxRuntimeKind().missing("cpu") == ""
    monkeypatch.setattr(kind, "distribution", lambda name: name)
    assert OnnxRuntimeKind().missing("cuda:0") == ""


def test_tensorrt_is_tried_where_its_engines_can_be_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    as_it_is = addsub(tmp_path)
    converted = replace(as_it_is, format="pt2")
    monkeypatch.setattr(kind, "lacking", lambda module, install: "")
    tried = [OnnxRuntimeKind().variants(spec, device) for spec in (as_it_is, converted) for device in ("cpu", "cuda:0")]
    assert tried == [("",), ("",), ("",), ("", "TensorRT")]


@pytest.mark.parametrize(
    ("device", "datatype", "sentence"),
    [
        ("cuda:0", "BYTES", '"x" is BYTES, which ONNX Runtime computes with on the CPU alone'),
        ("tpu", "FP32", 'onnxruntime runs on "cpu" and "cuda:N", not on "tpu"'),
        ("cuda:0", "FP32", ""),
        ("cpu", "BYTES", ""),
    ],
)
def test_what_it_cannot_run_there_is_refused(tmp_path: Path, device: str, datatype: str, sentence: str) -> None:
    spec = model_spec(tmp_path / "same.onnx", [f"x {datatype} 4"], [f"y {datatype} 4"])
    assert OnnxRuntimeKind().refusal(spec, device).startswith(sentence)
    assert bool(OnnxRuntimeKind().refusal(spec, device)) == bool(sentence)
