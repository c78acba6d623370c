"""`make demo`'s program, with the weights that are committed."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# Measured on 500 images, so up to three standard errors (about 1 % each) below the accuracy on all 10,000.
LEAST_ACCURACY = {"fashion-teacher": 90.0, "fashion-student": 84.0, "fashion-student-onnx": 84.0}


@pytest.mark.timeout(400)
def test_the_demo_serves_good_models_and_leaves_with_the_server_drained(tmp_path: Path) -> None:
    command = [sys.executable, "examples/fashion/demo.py", "--seconds", "0.5", "--repository", str(tmp_path / "models")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=360)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "the server drained and left with exit code 0" in done.stdout
    rows = {cells[0]: cells for line in done.stdout.splitlines() if len(cells := line.split()) == 7}
    for model, least in LEAST_ACCURACY.items():
        _, engine, accuracy, p50, p99, rate, size = rows[model]
        assert engine in {"torch-eager", "torch-compile", "onnxruntime"}
        assert float(accuracy.removesuffix("%")) >= least
        assert 0 < float(p50) <= float(p99)
        assert float(rate) > 0
        assert int(size.replace(",", "")) > 10_000
    assert size_of(rows["fashion-teacher"]) > 10 * size_of(rows["fashion-student"])


def test_the_demo_says_what_is_missing(tmp_path: Path) -> None:
    command = [sys.executable, "examples/fashion/demo.py", "--weights", str(tmp_path), "--repository", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 1
    assert re.search(r"demo\.py: .*teacher\.safetensors does not exist; make it with: python ", done.stderr)


def size_of(cells: list[str]) -> int:
    return int(cells[-1].replace(",", ""))
