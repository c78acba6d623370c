"""The engine table: every engine of a model is timed and compared, and `auto` is measured against the best of them."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from engine_models import model_spec, onnx_file

from benchmarks.harness.engine_report import Auto, EngineRun, best, draw, to_markdown
from benchmarks.harness.engine_timing import Cell, ModelTimes, Timing, time_model
from benchmarks.harness.machine import Machine

MACHINE = Machine("a processor", 2, 4.0, "Linux", "3.11.0", 0.1, "2026-01-01T00:00:00+00:00")


def cells(label: str, ms: float, difference: float = 0.0) -> list[Cell]:
    return [Cell(label, 1, items, (items * ms / 1e3,) * 3, difference) for items in (1, 16)]


def run_of(times: ModelTimes, auto: Auto) -> EngineRun:
    return EngineRun("python -m benchmarks.engines", MACHINE, {"torch": "2.13"}, 3, 0.1, 0.0, [times], {"m": auto})


def test_each_engine_of_a_model_is_timed_at_one_item_and_the_full_batch_and_compared(tmp_path: Path) -> None:
    path = onnx_file(tmp_path / "relu.onnx", ["x FP32 4"], ["y FP32 4"], [("Relu", ["x"], ["y"])])
    times = time_model(model_spec(path, ["x FP32 4"], ["y FP32 4"]), Timing((1,), 2, 0.001))
    assert {(cell.label, cell.items) for cell in times.cells} == {
        (label, items) for label in ("onnxruntime", "openvino") for items in (1, 16)
    }
    assert all(len(cell.seconds) == 2 and min(cell.seconds) > 0 and cell.difference == 0 for cell in times.cells)


def test_an_engine_that_cannot_be_loaded_is_named_with_the_reason(tmp_path: Path) -> None:
    path = onnx_file(tmp_path / "relu.onnx", ["x FP64 4"], ["y FP64 4"], [("Relu", ["x"], ["y"])])
    times = time_model(model_spec(path, ["x FP64 4"], ["y FP64 4"]), Timing((1,), 1, 0.001))
    assert {cell.label for cell in times.cells} == {"onnxruntime"}
    assert "does not compute exactly" in times.left_out["openvino"]


@pytest.mark.parametrize("difference", [1e-3, math.inf, math.nan])
def test_the_fastest_counts_as_the_best_only_if_its_answers_are_right(difference: float) -> None:
    assert best([*cells("slow", 2), *cells("wrong", 1, difference)], 1e-4).label == "slow"


def test_the_report_says_how_far_auto_is_from_the_best(tmp_path: Path) -> None:
    times = ModelTimes("m", 1e-4, {"a": 0.0, "b": 1.0}, (*cells("a", 2), *cells("b", 1)), {"c": "not | installed"})
    run = run_of(times, Auto("a", 0, "for a reason"))
    text = to_markdown(run, "picture.png")
    assert "| m     | 1, 16          | a         | 2  | b           | 1  | 100.0%         |" in text
    assert "**1**" in text
    assert "* not run, c: not \\| installed" in text
    draw(run, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 1000


def test_threads_that_auto_did_not_take_are_not_held_against_it() -> None:
    times = ModelTimes("m", 1e-4, {"a": 0.0}, (*cells("a", 2), Cell("a", 2, 1, (1.0,), 0.0)))
    text = to_markdown(run_of(times, Auto("a", 2, "")), "picture.png")
    assert "| 2, 1 " in text
    assert "| 1, 1 " not in text
