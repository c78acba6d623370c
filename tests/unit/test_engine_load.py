"""What `[engine]` may ask for here, what it may not, and what is said then."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_models import Identity, export_pt2, model_spec, onnx_file
from offramp_server.errors import LoadError
from offramp_server.model_spec import ModelSpec
from offramp_server.workers.engines.load import load_engine


@pytest.fixture(scope="module")
def specs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ModelSpec]:
    folder = tmp_path_factory.mktemp("models")
    export_pt2(folder / "identity.pt2", Identity(), (torch.zeros(2, 4),))
    onnx_file(folder / "identity.onnx", ["x FP32 4"], ["y FP32 4"], [("Identity", ["x"], ["y"])])
    paths = {suffix: folder / f"identity.{suffix}" for suffix in ("pt2", "onnx")}
    return {suffix: model_spec(path, ["x FP32 4"], ["y FP32 4"]) for suffix, path in paths.items()}


def load(spec: ModelSpec, device: str = "cpu", **settings: Any) -> None:
    load_engine(dataclasses.replace(spec, engine=dataclasses.replace(spec.engine, **settings)), device, 1)


@pytest.mark.parametrize(
    ("suffix", "settings", "sentence"),
    [
        (
            "pt2",
            {"backend": "onnxruntime"},
            "onnxruntime runs what is built of a .pt2 file beforehand; let the server load it, or `offramp tune`",
        ),
        ("onnx", {"backend": "torch-eager"}, 'engine "torch-eager" cannot run a .onnx file; one of "auto", "onnxr'),
        ("pt2", {"precision": "int8"}, 'there is no precision "int8"; one of "fp32", "fp16", "bf16"'),
        ("onnx", {"precision": "bf16"}, '"bf16" cannot be asked for; leave precision out and convert the file'),
        ("onnx", {"device": "cuda"}, "onnxruntime-gpu is not installed; pip uninstall onnxruntime, then pip install"),
        ("pt2", {"device": "tpu"}, 'there is no device "tpu"; "cpu", "cuda", "cuda:N" or "auto" is right'),
        ("pt2", {"device": "mps"}, 'there is no device "mps"; "cpu", "cuda", "cuda:N" or "auto" is right'),
    ],
)
def test_an_engine_that_cannot_run_here_is_refused(
    specs: dict[str, ModelSpec], suffix: str, settings: dict[str, str], sentence: str
) -> None:
    with pytest.raises(LoadError) as caught:
        load(specs[suffix], **{"device": "cpu"} | settings)
    assert sentence in str(caught.value)
    assert str(caught.value).startswith('model "identity": ')


@pytest.mark.parametrize(("gpus", "usable"), [(0, 'use "cpu"'), (2, 'use "cpu", "cuda:0", "cuda:1"')])
def test_a_gpu_that_is_not_there_is_refused(
    specs: dict[str, ModelSpec], monkeypatch: pytest.MonkeyPatch, gpus: int, usable: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    with pytest.raises(LoadError, match=f'device "cuda:2" cannot be used here, torch sees {gpus} GPUs; {usable}'):
        load(specs["pt2"], device="cuda:2")


def test_compiling_without_a_compiler_is_refused(
    specs: dict[str, ModelSpec], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LoadError, match=r'needs a C\+\+ compiler .* or use backend = "torch-eager"'):
        load(specs["pt2"], backend="torch-compile")


@pytest.mark.parametrize("content", [b"", b"PK\x05\x06" + bytes(18), b"not a model"])
def test_a_file_that_is_not_an_exported_program_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "broken.pt2").write_bytes(content)
    with pytest.raises(LoadError, match=r"broken\.pt2"):
        load(model_spec(tmp_path / "broken.pt2", ["x FP32 4"], ["y FP32 4"]))


def test_a_missing_library_is_named_with_what_installs_it(
    specs: dict[str, ModelSpec], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(LoadError, match=r'onnxruntime is not installed; pip install "offramp\[server\]"'):
        load(specs["onnx"])
