"""`offramp calibrate`: from a labelled file to a route that leaves early as often as it may."""

from __future__ import annotations

import asyncio
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from classifiers import write_classifier, write_route
from exit_networks import encoder, tokens
from offramp_adapters.confidence.temperature import log_probabilities
from offramp_compression.exits.attach import attach
from offramp_compression.exits.segments import export_segments
from offramp_compression.export.preparing import preparing
from offramp_compression.export.program import text_lengths
from offramp_compression.export.publish import Target
from offramp_server.cli.main import main
from offramp_server.core import serve_in_process
from offramp_server.inference import InferRequest, InferResponse
from open_inference.tensor import BYTES, Tensor, encode_bytes
from text_models import IDS, write_bag, write_tokenizer

TEXT = """\
# What the shop asks.
kind = "early_exit"

[[stages]]
name = "quick"      # a tenth of the other
model = "small"
threshold = 0.5

[[stages]]
model = "large"

[audit]
rate = 0.01         # watched
"""
LABELS = ("cat", "dog", "owl")
# The classes seen through noise. "small" sees half of what "large" sees, and says it too surely.
RANDOM = np.random.default_rng(3)
TRUTH = RANDOM.integers(0, 3, 1600)
SEEN = 2.5 * np.eye(3)[TRUTH] + RANDOM.normal(size=(1600, 3))
ROWS = np.hstack([SEEN, RANDOM.normal(size=(1600, 3))]).astype(np.float32)
LARGE = np.vstack([2.5 * np.eye(3), np.zeros((3, 3))])
SMALL = np.vstack([6 * np.eye(3), 3 * np.eye(3)])


@pytest.fixture
def models(repository: Path) -> Path:
    write_classifier(repository, "small", SMALL)
    write_classifier(repository, "large", LARGE, labels=LABELS)
    # Nobody asks it, and it would not load.
    (repository / "broken" / "1").mkdir(parents=True)
    (repository / "broken" / "1" / "model.onnx").write_bytes(b"nonsense")
    write_route(repository, "pets", TEXT)
    return repository


@pytest.fixture
def data(tmp_path: Path) -> Path:
    # In another order than the model's.
    names = ("owl", "cat", "dog")
    labels = np.array([names.index(LABELS[label]) for label in TRUTH])
    np.savez(tmp_path / "test.npz", x=ROWS, labels=labels, class_names=np.array(names))
    return tmp_path / "test.npz"


def calibrate(models: Path, data: Path, *options: str) -> int:
    return main(["calibrate", str(models / "pets"), "--data", str(data), "--agreement", "0.97", *options])


def text_of(models: Path) -> str:
    return (models / "pets" / "route.toml").read_text()


def stages(models: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = tomllib.loads(text_of(models))["stages"]
    return found


def answer(models: Path, route: str, *inputs: Tensor) -> InferResponse:
    async def ask() -> InferResponse:
        async with serve_in_process(models) as server:
            return await server.infer(InferRequest(route, list(inputs)))

    return asyncio.run(ask())


def refused(
    capsys: pytest.CaptureFixture[str], status: int, sentence: str, models: Path, data: Path, *options: str
) -> None:
    before = text_of(models)
    assert calibrate(models, data, "--write", *options) == status
    assert sentence in capsys.readouterr().err
    assert text_of(models) == before


# What it does


def test_the_thresholds_that_are_written_leave_early_where_the_last_stage_would_agree(models: Path, data: Path) -> None:
    assert calibrate(models, data, "--write") == 0
    quick, large = stages(models)
    highest = np.exp(log_probabilities(ROWS[:16] @ SMALL / quick["temperature"], "logits")).max(axis=1)
    response = answer(models, "pets", Tensor.from_numpy("x", ROWS[:16]))
    left = ["quick" if score >= quick["threshold"] else "large" for score in highest]
    assert response.parameters["offramp_exit"] == ",".join(left)
    assert len(set(left)) == 2
    assert "threshold" not in large
    # It says more than twice what it should.
    assert quick["temperature"] > 2
    early = np.exp(log_probabilities(ROWS @ SMALL / quick["temperature"], "logits")).max(axis=1) >= quick["threshold"]
    agrees = (ROWS @ SMALL).argmax(axis=1) == (ROWS @ LARGE).argmax(axis=1)
    assert 1 - (early & ~agrees).mean() >= 0.965
    assert early.mean() > 0.4


def write_network(repository: Path, tokenizer: bytes) -> None:
    """A small text encoder with an exit in the middle, as a route over its two segments."""
    network = attach(encoder(), ["encoder.layers.1"], tokens())
    export_segments(
        network, tokens(), Target(repository, "net", "pt2", backend="torch-eager"),
        variable=text_lengths(network.input_names, tokens()), additions=preparing(tokens(), tokenizer, 32),
    )  # fmt: skip
    exits = '[[stages]]\nmodel = "net-stage1"\nthreshold = 0.5\n[[stages]]\nmodel = "net-stage2"\n'
    write_route(repository, "pets", f'kind = "early_exit"\n{exits}')


def test_texts_of_any_length_go_through_the_segments_of_a_network(repository: Path, tmp_path: Path) -> None:
    write_network(repository, write_tokenizer(tmp_path).read_bytes())
    texts = ["good film", "bad film bad", "book"] * 8 + ["good book " * 10, "bad film " * 12] * 8
    rows = [f"{text.strip()},{'abc'[number % 3]}" for number, text in enumerate(texts)]
    (tmp_path / "test.csv").write_text("\n".join(["text,label", *rows]))
    # Nothing has taught the exit, which seldom agrees.
    assert calibrate(repository, tmp_path / "test.csv", "--write", "--agreement", "0.05") == 0
    exit, end = stages(repository)
    assert {"threshold", "temperature"} <= exit.keys()
    assert "temperature" in end
    asked = Tensor("text", BYTES, (2, 1), encode_bytes(texts[:2]))
    assert "net-stage1" in answer(repository, "pets", asked).parameters["offramp_exit"].split(",")


def test_stages_that_name_their_inputs_in_another_order_get_them_by_name(repository: Path, tmp_path: Path) -> None:
    swapped = '[[inputs]]\nname = "attention_mask"\ndatatype = "INT64"\ndims = [-1]\n'
    swapped += '[[inputs]]\nname = "input_ids"\ndatatype = "INT64"\ndims = [-1]\n'
    for name, order in (("small", ""), ("large", swapped)):
        write_bag(repository / name / "1" / "model.onnx", {"good": (0.0, 1.0), "bad": (1.0, 0.0)})
        (repository / name / "model.toml").write_text(order)
    write_route(repository, "pets", TEXT)
    draw = np.random.default_rng(0)
    ids = draw.choice([IDS["good"], IDS["bad"]], (200, 3))
    right = (ids == IDS["good"]).sum(axis=1) > 1
    np.savez(tmp_path / "test.npz", x0=ids, x1=np.ones_like(ids), labels=right.astype(np.int64))
    assert calibrate(repository, tmp_path / "test.npz", "--write") == 0
    # Both count the same words, and so always agree.
    assert stages(repository)[0]["threshold"] < 1
