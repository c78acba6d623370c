"""`make demo`: its recipe, and the program that serves what the recipe has made."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# Measured on 500 images, so up to three standard errors (about 1 % each) below the accuracy on all 10,000.
LEAST_ACCURACY = {
    "fashion-teacher": 90.0,
    "fashion-teacher-int8": 89.0,
    "fashion-teacher-pruned": 89.0,
    "fashion-student": 87.0,
    "fashion-student-onnx": 87.0,
    "fashion-student-int8": 86.0,
}


# As above; agreement is with the teacher.
LEAST_OF_PATHS = {
    "teacher alone": (90.0, 100.0),
    "student alone": (87.0, 90.0),
    "ensemble": (89.0, 95.0),
    "cascade": (89.0, 97.5),
    "cascade of three": (89.0, 97.5),
    "multi-exit": (89.0, 97.5),
}


@pytest.mark.timeout(900)
def test_the_demo_serves_a_good_family_and_leaves_with_the_server_drained(tmp_path: Path) -> None:
    repository = tmp_path / "models"
    made = python(
        "-m", "offramp_server", "make", "examples/fashion/demo.toml", "--no-evaluation",
        "--work", str(tmp_path / "work"), "--repository", str(repository),
    )  # fmt: skip
    assert (made.returncode, made.stderr) == (0, "")
    picture = tmp_path / "paths.png"
    done = python(
        "examples/fashion/demo.py", "--seconds", "0.5", "--repository", str(repository), "--picture", str(picture)
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"ankle-boot\.png, sent to fashion-student-int8 as it is: Ankle boot", done.stdout)
    assert "the server drained and left with exit code 0" in done.stdout
    rows = {cells[0]: cells for line in done.stdout.splitlines() if len(cells := line.split()) == 8}
    for model, least in LEAST_ACCURACY.items():
        _, engine, accuracy, agreement, p50, p99, rate, size = rows[model]
        assert engine in {"torch-eager", "torch-compile", "onnxruntime"}
        assert percent(accuracy) >= least
        assert percent(agreement) >= 90.0
        assert 0 < float(p50) <= float(p99)
        assert float(rate) > 0
        assert int(size.replace(",", "")) > 10_000
    assert rows["fashion-teacher"][3] == "100.0%"
    assert size_of(rows["fashion-teacher"]) > 3 * size_of(rows["fashion-teacher-int8"])
    assert size_of(rows["fashion-teacher"]) > 3 * size_of(rows["fashion-teacher-pruned"])
    assert size_of(rows["fashion-teacher-int8"]) > 10 * size_of(rows["fashion-student"])
    assert picture.read_bytes().startswith(b"\x89PNG")
    for path, (least_accuracy, least_agreement) in LEAST_OF_PATHS.items():
        said = re.search(rf"^{path} +([\d.]+)% +([\d.]+)% +[\d.]+ +[\d.]+ +\d+ +(\S.*)$", done.stdout, re.MULTILINE)
        assert said is not None, path
        assert float(said[1]) >= least_accuracy
        assert float(said[2]) >= least_agreement
    cascade = re.search(r"^cascade .* student (\d+)%, teacher (\d+)%$", done.stdout, re.MULTILINE)
    assert cascade is not None
    assert int(cascade[1]) > 60


def test_the_demo_says_how_to_make_what_is_missing(tmp_path: Path) -> None:
    done = python("examples/fashion/demo.py", "--repository", str(tmp_path))
    assert done.returncode == 1
    assert re.search(
        r"demo\.py: .*does not hold fashion-teacher; make it with: offramp make \S+demo\.toml", done.stderr
    )


def test_the_demo_names_a_model_that_cannot_be_served(tmp_path: Path) -> None:
    file = tmp_path / "fashion-teacher" / "1" / "model.onnx"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"half a model")
    done = python("examples/fashion/demo.py", "--repository", str(tmp_path))
    assert done.returncode == 1
    assert re.search(r"demo\.py: fashion-teacher cannot be served: .*not an ONNX model", done.stderr)


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    pipe = subprocess.PIPE
    command = [sys.executable, *arguments]
    with subprocess.Popen(command, cwd=ROOT, stdout=pipe, stderr=pipe, text=True, start_new_session=True) as process:
        try:
            out, err = process.communicate(timeout=600)
        except BaseException:
            # With the server that it may have started.
            os.killpg(process.pid, signal.SIGKILL)
            raise
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def percent(cell: str) -> float:
    return float(cell.removesuffix("%"))


def size_of(cells: list[str]) -> int:
    return int(cells[-1].replace(",", ""))
