"""`offramp fit-ensemble`: from a labelled file to a route that answers with what was fitted."""

from __future__ import annotations

import asyncio
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from classifiers import write_broken_model, write_classifier, write_labelled, write_route
from offramp_server.cli.main import main
from offramp_server.core import serve_in_process
from offramp_server.inference import InferRequest
from open_inference.tensor import Tensor
from server_process import serving

LABELS = ("cat", "dog", "owl")
TEXT = """\
# What the shop asks.
kind = "ensemble"  # two of them
quorum = 1

# The large one.
[[members]]
model = "good"

[[members]]
model = "bad"
"""
# Seen through noise; "good" looks at what matters, "bad" at the noise.
RANDOM = np.random.default_rng(2)
TRUTH = RANDOM.integers(0, 3, 240)
ROWS = np.hstack([2 * np.eye(3)[TRUTH] + RANDOM.normal(size=(240, 3)), RANDOM.normal(size=(240, 3))]).astype(np.float32)
GOOD = np.vstack([6 * np.eye(3), np.zeros((3, 3))])
BAD = np.vstack([np.zeros((3, 3)), 6 * np.eye(3)])


@pytest.fixture
def models(repository: Path) -> Path:
    write_classifier(repository, "good", GOOD, labels=LABELS)
    write_classifier(repository, "bad", BAD)
    # Nobody asks it, and it would not load.
    write_broken_model(repository)
    write_route(repository, "all", TEXT)
    return repository


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_labelled(tmp_path / "test.npz", ROWS, TRUTH, LABELS)


def fit(models: Path, data: Path, *options: str) -> int:
    return main(["fit-ensemble", str(models / "all"), "--data", str(data), *options])


def written(models: Path) -> dict[str, Any]:
    return tomllib.loads((models / "all" / "route.toml").read_text())


def answers(models: Path) -> np.ndarray:
    async def ask() -> np.ndarray:
        async with serve_in_process(models) as server:
            response = await server.infer(InferRequest("all", [Tensor.from_numpy("x", ROWS[:16])]))
        logits = response.outputs[0].numpy().astype(np.float64)
        shares: np.ndarray = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        return shares

    return asyncio.run(ask())


def said(weights: np.ndarray, temperature: float) -> np.ndarray:
    logits = ROWS[:16].astype(np.float64) @ weights / temperature
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    result: np.ndarray = powers / powers.sum(axis=1, keepdims=True)
    return result


def test_the_fitted_weights_are_written_and_the_route_answers_with_them(
    models: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit(models, data, "--combine", "weighted_mean") == 0
    good, bad = written(models)["fitted"]["members"]
    assert (good["model"], bad["model"]) == ("good", "bad")
    assert good["weight"] > 5 * bad["weight"]
    # It says 6 times what it sees, and 2 times would be right.
    assert good["temperature"] == pytest.approx(3, rel=0.3)
    expected = good["weight"] * said(GOOD, good["temperature"]) + bad["weight"] * said(BAD, bad["temperature"])
    np.testing.assert_allclose(answers(models), expected, rtol=1e-4, atol=1e-6)
    printed = capsys.readouterr().out
    assert "as it is (mean)" in printed
    assert "5-fold cross-validation" in printed
    assert "offramp models load all" in printed


def test_comments_and_everything_else_in_the_file_stay(models: Path, data: Path) -> None:
    assert fit(models, data, "--combine", "weighted_mean") == 0
    text = (models / "all" / "route.toml").read_text()
    head, fitted = text.split("[fitted]\n")
    assert head.rstrip() == TEXT.replace("two of them\n", 'two of them\ncombine = "weighted_mean"\n').rstrip()
    assert fitted.startswith("# By offramp fit-ensemble, 20")
    assert [path.name for path in (models / "all").iterdir()] == ["route.toml"]
    # Again, over what is there: the same numbers.
    assert fit(models, data, "--combine", "weighted_mean", "--force") == 0
    assert (models / "all" / "route.toml").read_text() == text


def test_a_stack_is_fitted_for_a_route_that_could_not_answer_without_one(models: Path, data: Path) -> None:
    write_route(models, "all", f'combine = "stack"\n{TEXT}')
    assert fit(models, data) == 0
    fitted = written(models)["fitted"]
    assert np.shape(fitted["stack"]) == (6, 3)
    assert np.shape(fitted["bias"]) == (3,)
    assert (answers(models).argmax(axis=1) == TRUTH[:16]).mean() >= 0.7


def test_another_way_of_combining_may_take_the_place_of_the_stack(models: Path, data: Path) -> None:
    assert fit(models, data, "--combine", "stack") == 0
    assert fit(models, data, "--combine", "vote", "--force") == 0
    assert written(models)["combine"] == "vote"
    assert "stack" not in written(models)["fitted"]


def test_a_running_server_may_do_the_computing(models: Path, data: Path) -> None:
    with serving(models, ["--in-process"]) as server:
        assert fit(models, data, "--combine", "weighted_mean", "--target", server.grpc) == 0
    over_the_wire = written(models)
    write_route(models, "all", TEXT)
    assert fit(models, data, "--combine", "weighted_mean") == 0
    assert written(models) == over_the_wire


def test_members_that_are_routes_are_asked_as_such(models: Path, data: Path) -> None:
    write_route(models, "stable", 'kind = "single"\nmodel = "good"\n')
    write_route(models, "all", TEXT.replace('"good"', '"stable"'))
    assert fit(models, data, "--combine", "weighted_mean") == 0
    assert written(models)["fitted"]["members"][0]["model"] == "stable"


def test_a_dry_run_shows_what_it_would_write(models: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fit(models, data, "--combine", "weighted_mean", "--dry-run") == 0
    assert "[[fitted.members]]" in capsys.readouterr().out
    assert (models / "all" / "route.toml").read_text() == TEXT


def test_what_is_no_better_is_not_written(models: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fit(models, data, "--combine", "weighted_mean") == 0
    before = (models / "all" / "route.toml").read_text()
    assert fit(models, data, "--combine", "mean") == 1
    assert "no better than the route as it is; nothing was written" in capsys.readouterr().err
    assert (models / "all" / "route.toml").read_text() == before


def test_weights_of_the_members_own_do_not_go_with_what_has_none(
    models: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weighted = TEXT.replace("quorum = 1", 'combine = "weighted_mean"')
    write_route(models, "all", f"{weighted}weight = 0.5\n")
    assert fit(models, data, "--combine", "stack") == 2
    assert 'members.weight: combine = "stack" has no use for it' in capsys.readouterr().err


def test_what_cannot_be_fitted_is_said(models: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refused(status: int, sentence: str, *options: str) -> None:
        assert fit(models, data, *options) == status
        assert sentence in capsys.readouterr().err

    refused(2, "--folds 1: expected 2 to 240", "--folds", "1")
    np.savez(data, x=ROWS[:, :3], labels=TRUTH)
    refused(2, "expected FP32[-1,6], got FP32[16,3]")
    np.savez(data, x=ROWS, labels=TRUTH, class_names=np.array(["cat", "dog", "fox"]))
    refused(2, 'the model has no class "fox"')
    np.savez(data, x0=ROWS, x1=ROWS, labels=TRUTH)
    refused(2, 'has 2 arrays for each example, and "good" takes x FP32[6]')
    np.savez(data, x=ROWS, labels=TRUTH)
    write_classifier(models, "nan", np.full((6, 3), np.nan))
    write_route(models, "all", TEXT.replace('"bad"', '"nan"'))
    refused(1, '"nan" answers 240 of 240 examples with NaN')
    write_route(models, "all", TEXT.replace('"bad"', '"broken"'))
    refused(2, "broken")
    write_route(models, "all", 'kind = "single"\nmodel = "good"\n')
    refused(2, "expected kind = \"ensemble\", got 'single'")
    (models / "all" / "route.toml").unlink()
    refused(2, "route.toml: cannot be read")
