"""Labelled data as a command asks models about it: arrays, pixels, texts and pictures."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pytest
from classifiers import write_classifier, write_route
from model_files import write_identity_onnx
from offramp_adapters.routes.plan import Target
from offramp_compression.cli.options import add_data_options
from offramp_server.cli.answers_of import answers_of
from offramp_server.cli.asking import open_asker
from offramp_server.cli.failures import UsageError
from offramp_server.cli.labelled import open_labelled
from text_models import write_sentiment

ROWS = np.random.default_rng(1).normal(size=(40, 4)).astype(np.float32)
LABELS = np.arange(40) % 3


def options_of(data: Path, *arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_data_options(parser, part="test")
    parser.set_defaults(target=None, seed=0)
    return parser.parse_args(["--data", str(data), *arguments])


async def asked(
    repository: Path, name: str, data: Path, output: str, classes: tuple[str, ...] | int, *arguments: str
) -> tuple[np.ndarray, np.ndarray]:
    """What the model says of the data, and their labels."""
    options = options_of(data, *arguments)
    async with open_asker(options, repository, [Target(name)]) as asker:
        found = await asker.describe(Target(name))
        labelled = open_labelled(options, found, classes)
        answers = await answers_of(asker, found, labelled.inputs, [output])
    assert len(labelled) == len(answers[output])
    return answers[output], labelled.labels


async def test_a_model_is_asked_about_more_examples_than_a_batch_holds(repository: Path, tmp_path: Path) -> None:
    weights = np.eye(4)[:, :3]
    write_classifier(repository, "a", weights)
    write_route(repository, "stable", 'kind = "single"\nmodel = "a"\n')
    np.savez(tmp_path / "test.npz", x=ROWS, labels=LABELS)
    for name in ("a", "stable"):
        answers, labels = await asked(repository, name, tmp_path / "test.npz", "logits", 3)
        np.testing.assert_allclose(answers, ROWS[:, :3], rtol=1e-6)
        np.testing.assert_array_equal(labels, LABELS)


async def test_a_model_without_a_batch_dimension_is_asked_one_by_one(repository: Path, tmp_path: Path) -> None:
    write_identity_onnx(repository / "one" / "1" / "model.onnx", dims=(4,))
    np.savez(tmp_path / "test.npz", x=ROWS, labels=LABELS)
    answers, _ = await asked(repository, "one", tmp_path / "test.npz", "y", 3)
    np.testing.assert_array_equal(answers, ROWS)


async def test_pixels_are_numbers_from_0_to_1(repository: Path, tmp_path: Path) -> None:
    write_identity_onnx(repository / "pixels" / "1" / "model.onnx", dims=("batch", 1, 2, 2))
    pixels = np.arange(40 * 4, dtype=np.uint8).reshape(40, 1, 2, 2)
    np.savez(tmp_path / "test.npz", x=pixels, labels=LABELS)
    answers, _ = await asked(repository, "pixels", tmp_path / "test.npz", "y", 3)
    np.testing.assert_allclose(answers, pixels / 255, rtol=1e-6)


async def test_a_model_that_takes_pictures_gets_files(repository: Path, tmp_path: Path) -> None:
    write_identity_onnx(repository / "picture" / "1" / "model.onnx", dims=("batch", 1, 4, 4))
    (repository / "picture" / "model.toml").write_text('[preprocess]\nkind = "image"\n')
    pixels = np.random.default_rng(0).integers(0, 256, (40, 1, 4, 4), np.uint8)
    np.savez(tmp_path / "test.npz", x=pixels, labels=LABELS)
    answers, _ = await asked(repository, "picture", tmp_path / "test.npz", "y", 3)
    np.testing.assert_allclose(answers, pixels / 255, atol=1e-6)
    np.savez(tmp_path / "test.npz", x=ROWS, labels=LABELS)
    with pytest.raises(UsageError, match="the model takes pictures; expected data of pixels"):
        await asked(repository, "picture", tmp_path / "test.npz", "y", 3)


async def test_a_model_that_takes_texts_gets_texts(repository: Path, tmp_path: Path) -> None:
    write_sentiment(repository)
    data = tmp_path / "test.csv"
    data.write_text("text,label\ngood film,good\nbad,bad\nbad book bad,bad\n")
    answers, labels = await asked(repository, "sentiment", data, "logits", ("bad", "good"))
    assert labels.tolist() == [1, 0, 0]
    assert answers.shape == (3, 2)
    assert len({tuple(row) for row in answers.tolist()}) == 3
    with pytest.raises(UsageError, match="has a tokenizer of its own; leave --tokenizer out"):
        await asked(repository, "sentiment", data, "logits", 2, "--tokenizer", str(tmp_path / "tokenizer.json"))


async def test_a_part_of_the_examples_is_every_classes_share(repository: Path, tmp_path: Path) -> None:
    write_classifier(repository, "a", np.eye(4)[:, :3])
    np.savez(tmp_path / "test.npz", x=ROWS, labels=LABELS)
    _, labels = await asked(repository, "a", tmp_path / "test.npz", "logits", 3, "--limit", "12")
    assert np.bincount(labels).tolist() == [4, 4, 4]


async def test_labels_beyond_the_models_classes_are_refused(repository: Path, tmp_path: Path) -> None:
    write_classifier(repository, "a", np.eye(4)[:, :2])
    np.savez(tmp_path / "test.npz", x=ROWS, labels=LABELS)
    with pytest.raises(UsageError, match='there is a label 2, and "a" has 2 classes: expected labels from 0 to 1'):
        await asked(repository, "a", tmp_path / "test.npz", "logits", 2)
