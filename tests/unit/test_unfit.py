"""What a server would refuse to load is told without loading it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from engine_doubles import Double
from model_files import write_linear_onnx
from offramp_server.model_spec import EngineSettings
from offramp_server.repository.check import check
from offramp_server.workers import unfit as module
from offramp_server.workers.unfit import unfit, visible_gpus
from tuning_fakes import pt2_spec

KINDS = (Double("torch-eager"), Double("onnxruntime", refused="not in bf16"), Double("aot-inductor", lacking="no g++"))
GPU = ("cuda:0",)


def why(format_: str = "pt2", gpus: tuple[str, ...] | None = (), **engine: str) -> str:
    return unfit(pt2_spec(format=format_, engine=EngineSettings(**engine)), gpus, KINDS)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        (why(device="cuda:1"), 'device "cuda:1" cannot be used here, of GPUs there are none; use "cpu"'),
        (why(gpus=GPU, device="cuda:1"), 'of GPUs there are 1; use "cpu", "cuda:0"'),
        (why("onnx", device="cuda"), 'device "cuda" cannot be used here'),
        (why(device="tpu"), 'there is no device "tpu"; "cpu", "cuda", "cuda:N" or "auto" is right'),
        (why(precision="int4"), 'there is no precision "int4"; one of "fp32", "fp16", "bf16"'),
        (why("onnx", backend="torch-eager"), 'engine "torch-eager" cannot run a .onnx file'),
        (why(backend="aot-inductor"), "no g++"),
        # `auto` has to have at least its plain engine.
        (why("onnx"), "not in bf16"),
    ],
)
def test_a_device_precision_or_engine_that_is_not_here_is_a_sentence_about_the_model(said: str, sentence: str) -> None:
    assert said.startswith('model "digits": ')
    assert sentence in said


def test_what_can_be_loaded_as_far_as_is_known_is_not_told_of() -> None:
    assert [why(), why(gpus=GPU, device="cuda"), why(gpus=GPU)] == ["", "", ""]
    # A driver that names no GPUs may be one of a part of a GPU.
    assert why(gpus=None, device="cuda:3") == ""


def test_a_driver_without_a_list_leaves_open_what_there_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(module, "NVIDIA_DRIVER", tmp_path)
    assert visible_gpus() is None
    monkeypatch.setattr(module, "NVIDIA_DRIVER", tmp_path / "none")
    assert visible_gpus() == ()


@pytest.mark.parametrize("engine", ['backend = "torch-compile"', 'precision = "bf16"', 'device = "cuda:77"'])
def test_offramp_check_tells_of_what_serve_would_refuse(tmp_path: Path, engine: str) -> None:
    write_linear_onnx(tmp_path / "m" / "1" / "model.onnx")
    assert check(tmp_path).problems == ()
    (tmp_path / "m" / "model.toml").write_text(f"[engine]\n{engine}\n")
    [problem] = check(tmp_path).problems
    assert problem.startswith('model "m": ')


def test_no_library_of_an_engine_is_imported_for_it(tmp_path: Path) -> None:
    write_linear_onnx(tmp_path / "m" / "1" / "model.onnx")
    program = f"""
import sys
from pathlib import Path
from offramp_server.repository.check import check
check(Path({str(tmp_path)!r}))
print(*({{"torch", "onnxruntime", "openvino", "tensorrt"}} & sys.modules.keys()))
"""
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == ""
