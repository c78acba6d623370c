"""The benchmark of a GPU: what it compares with, and the page that it writes."""

from __future__ import annotations

import argparse
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import gpu, gpu_engines
from benchmarks.gpu import Results, combinations, problems
from benchmarks.gpu_engines import Measured, exported, measure, plain_answers, seeded
from benchmarks.gpu_report import markdown
from benchmarks.gpu_roofline import Ceilings, Cost, cost_of, least_seconds
from benchmarks.gpu_serving import Served, agree
from benchmarks.gpu_stages import Staged, measure_stages

CEILINGS = Ceilings(1e12, {"fp32": 1e13, "fp16": 1e14, "bf16": 1e14})


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported("student", tmp_path_factory.mktemp("models"))


def test_the_servers_engine_is_held_against_plain_torch(student: Path) -> None:
    expected = {1: plain_answers(student, "student", 1, "cpu")}
    [found] = measure(student, "student", "torch-eager", "fp32", "cpu", expected)
    assert found.error <= found.tolerance
    assert found.device_s is None
    [wrong] = measure(student, "student", "torch-eager", "fp32", "cpu", {1: expected[1] + 1})
    assert wrong.error > wrong.tolerance


def test_stages_answer_as_the_whole_network(student: Path) -> None:
    [staged] = measure_stages("student", student.parent, "cpu")
    assert staged.agrees
    assert 0 < staged.deferred < staged.batch


def test_the_cost_of_a_network_is_that_of_its_convolutions() -> None:
    cost = cost_of(seeded("student"))
    # Of five blocks with 3x3 kernels on images of 32, 16, 8, 4 and 2 pixels, and a linear layer.
    widths, sides = (3, 64, 128, 256, 256, 512), (32, 16, 8, 4, 2)
    layers = zip(widths[:-1], widths[1:], sides, strict=True)
    by_hand = sum(2 * 9 * before * after * side**2 for before, after, side in layers) + 2 * 512 * 10
    assert cost.flops == by_hand


def test_the_roofline_is_memory_for_small_batches_and_arithmetic_for_large_ones() -> None:
    cost = Cost(flops=1e9, parameters=25_000_000)
    assert least_seconds(cost, CEILINGS, "fp16", 1) == pytest.approx(1e8 / 1e12, rel=1e-3)
    assert least_seconds(cost, CEILINGS, "fp32", 128) == pytest.approx(128 * 1e9 / 1e13)


def test_on_a_gpu_every_engine_is_tried_in_every_precision_and_compiling_comes_last() -> None:
    order = list(combinations("cuda:0"))
    assert len(order) == 9
    assert [backend for backend, _ in order[-3:]] == ["torch-compile"] * 3


def test_the_page_says_what_was_left_out_and_what_is_too_far_off() -> None:
    results = Results({"device": "a GPU"}, CEILINGS, {"student": Cost(1e9, 1_000_000)})
    results.measured.append(Measured("student", "cuda-graphs", "fp16", 128, 0.5, 0.01, 0.00256, 0.004, 0.003))
    results.staged.append(Staged("student", "cuda-graphs", 32, 10, True, True, 0.001, 0.002, 0.003))
    results.served.append(Served("student", "cuda-graphs", 64, 1234.5, 0.01, 0.02, True))
    results.left_out.append("student, torch-compile, bf16: no time was left to compile it")
    page = markdown(asdict(results))
    assert "| student | cuda-graphs | fp16 | 128 | 5.0e-01 **too far** | 2.560 | 50 % | 4.000 | 3.000 |" in page
    assert "| student | cuda-graphs | 32 | 10 | yes | yes | 1.000 | 2.000 | 3.000 |" in page
    assert "| student | cuda-graphs | 64 | 1234 | 10.000 | 20.000 | yes |" in page
    assert "- student, torch-compile, bf16: no time was left" in page


MEASURED = Measured("student", "cuda-graphs", "fp16", 128, 0.001, 0.01)
STAGED = Staged("student", "cuda-graphs", 32, 10, True, True, 0.001, 0.002, 0.003)
SERVED = Served("student", "cuda-graphs", 64, 1234.5, 0.01, 0.02, True)


def found(ceilings: Ceilings | None = CEILINGS, **changed: Any) -> list[str]:
    parts: dict[str, Any] = {"measured": [MEASURED], "staged": [STAGED], "served": [SERVED]} | changed
    return list(problems(Results({"device": "a GPU"}, ceilings, **parts)))


def test_what_was_left_out_is_no_problem() -> None:
    assert found(left_out=["student, torch-compile, bf16: no time was left to compile it"]) == []


@pytest.mark.parametrize("error", [0.02, float("nan"), float("inf")])
def test_answers_that_are_too_far_off_or_no_numbers_are_a_problem(error: float) -> None:
    assert len(found(measured=[MEASURED, replace(MEASURED, error=error)])) == 1


def test_what_fails_and_answers_that_differ_are_problems() -> None:
    assert found(failed=["student, cuda-graphs, fp16: CUDA error"]) == ["student, cuda-graphs, fp16: CUDA error"]
    assert len(found(staged=[replace(STAGED, agrees=False)])) == 1
    assert len(found(served=[replace(SERVED, agrees=False)])) == 1


def test_hidden_state_that_leaves_the_device_is_a_problem_where_there_is_one() -> None:
    left = [replace(STAGED, stayed=False)]
    assert len(found(staged=left)) == 1
    assert found(None, staged=left) == []


def test_an_engine_that_fails_is_not_taken_for_one_that_was_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> list[Any]:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(gpu, "MODELS", ("student",))
    monkeypatch.setattr(gpu, "measure", fail)
    monkeypatch.setattr(gpu, "measure_stages", fail)
    results = Results({"device": "CPU"}, None)
    gpu.run(results, tmp_path, "cpu", argparse.Namespace(compile_budget=240.0, no_server=True))
    assert results.left_out == []
    assert len(results.failed) == len(list(combinations("cpu"))) + 1


def test_served_answers_agree_only_if_they_are_numbers() -> None:
    plain = np.ones((1, 3), np.float32)
    assert agree([plain, plain + 1e-6])
    assert not agree([plain, plain + 1e-3])
    assert not agree([plain, plain * np.nan])
    assert not agree([plain * np.nan, plain * np.nan])


def test_weights_and_images_are_the_same_every_time() -> None:
    first, second = (seeded("student").state_dict() for _ in range(2))
    assert all((first[name] == second[name]).all() for name in first)
    assert (gpu_engines.images(2) == gpu_engines.images(2)).all()
    assert np.isfinite(gpu_engines.images(2)).all()
