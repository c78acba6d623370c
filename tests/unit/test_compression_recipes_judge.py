"""What a recipe's models have to reach, and on which examples they are judged."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from offramp_compression.errors import DataError
from offramp_compression.evaluation.bootstrap import Bootstrap, Estimate
from offramp_compression.evaluation.evaluation import Evaluation
from offramp_compression.evaluation.latency import Timing
from offramp_compression.evaluation.metrics import quality
from offramp_compression.evaluation.tabulate import text
from offramp_compression.recipes.data import RecipeData
from offramp_compression.recipes.judge import verdicts_on
from offramp_compression.recipes.schema import DataTable, Requirement


def evaluation(name: str, parameters: int | None, *seconds: float) -> Evaluation:
    """Always right; ``seconds`` are those of batches of 16, 1, ..."""
    labels = np.arange(4) % 2
    figures = quality(np.eye(2)[labels], labels, ("a", "b"), bootstrap=Bootstrap(0))
    timings = tuple(Timing(size, Estimate(each)) for size, each in zip((16, 1), seconds, strict=False))
    return Evaluation(name, "engine", parameters, 1, None, figures, timings)


TEACHER = evaluation("teacher", 1_000_000, 1.6, 1.0)


def test_a_file_that_does_not_tell_its_parameters_has_those_of_its_network() -> None:
    network, file = evaluation("network", 30_000, 1.0), evaluation("file", None, 0.1)
    asked = Requirement(speedup=8.0, parameters=25_000)
    missed = verdicts_on("student", asked, TEACHER, [network, file])
    assert [(each.measured, each.reached) for each in missed] == [("16.00x", True), ("30000", False)]
    reached = verdicts_on("student", asked, TEACHER, [replace(network, parameters=20_000), file])
    assert [(each.measured, each.reached) for each in reached] == [("16.00x", True), ("20000", True)]


def test_parameters_that_nobody_knows_are_not_few() -> None:
    missed = verdicts_on("int8", Requirement(parameters=25_000), TEACHER, [evaluation("file", None, 0.1)])
    assert [(each.measured, each.reached) for each in missed] == [("cannot be counted", False)]


def test_speed_is_that_of_the_largest_batch_in_whatever_order_they_are_timed() -> None:
    (verdict,) = verdicts_on("student", Requirement(speedup=3.0), TEACHER, [evaluation("file", 1, 0.4, 1.0)])
    assert (verdict.measured, verdict.reached) == ("4.00x", True)


def write(folder: Path, part: str, names: tuple[str, ...], labels: list[int]) -> None:
    images = np.zeros((len(labels), 1, 4, 4), np.uint8)
    np.savez(folder / f"{part}.npz", x=images, labels=np.asarray(labels), class_names=np.asarray(names))


def test_test_labels_are_counted_in_the_order_of_the_training_part(tmp_path: Path) -> None:
    write(tmp_path, "train", ("boot", "shirt"), [0, 1] * 10)
    write(tmp_path, "test", ("shirt", "boot"), [0, 0, 1])
    data = RecipeData(DataTable(path=str(tmp_path)), tmp_path, seed=0)
    assert data.test.class_names == ("boot", "shirt")
    assert data.test.labels.tolist() == [1, 1, 0]


def test_a_test_part_with_a_class_that_nothing_was_learnt_of_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "train", ("boot", "shirt"), [0, 1] * 10)
    write(tmp_path, "test", ("boot", "hat"), [0, 1])
    with pytest.raises(DataError, match='the model has no class "hat"'):
        _ = RecipeData(DataTable(path=str(tmp_path)), tmp_path, seed=0).test


def test_models_become_columns_where_a_terminal_is_too_narrow_for_their_figures_in_rows() -> None:
    models = [TEACHER, evaluation("student", 20_000, 0.1, 0.1)]
    rows, columns = text(models).splitlines(), text(models, width=80).splitlines()
    assert text(models, width=500).splitlines() == rows
    assert [line.split()[0] for line in rows] == ["model", "teacher", "student"]
    assert columns[0].split() == ["model", "teacher", "student"]
    assert max(map(len, columns)) <= 80
    assert [line.split()[-2:] for line in columns if line.startswith("parameters")] == [["1,000,000", "20,000"]]
