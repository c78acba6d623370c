"""The Fashion-MNIST example: its data, its recipes and the weights that are committed."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_sets import images, write_mnist
from offramp_compression.data.dataset import Dataset
from offramp_compression.data.sources import open_dataset
from offramp_compression.errors import DataError
from offramp_compression.evaluation.predict import accuracy
from offramp_compression.modules import parameter_count
from offramp_compression.new_network import new_network
from offramp_compression.recipes.read import read_recipe
from offramp_compression.recipes.steps.begin import LoadStep, TrainStep
from offramp_compression.recipes.steps.early import ExitsStep
from offramp_compression.recipes.steps.integers import QuantizeStep
from safetensors.torch import load_file

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "fashion"
# The example is scripts beside each other, not a package; this is how Python finds them when one is run.
sys.path.insert(0, str(EXAMPLE))

import data  # noqa: E402


def synthetic(count: int, seed: int = 7) -> Dataset:
    return images(count, classes=10, shape=(1, 28, 28), seed=seed)


def write_data_set(folder: Path, train_count: int, test_count: int) -> Path:
    return write_mnist(folder, {"train": synthetic(train_count), "t10k": synthetic(test_count, seed=8)})


class TestFinding:
    def test_a_given_folder_without_the_files_is_refused_by_their_names(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"does not hold Fashion-MNIST: train-images-idx3-ubyte\.gz, "):
            data.locate(tmp_path)

    def test_without_the_tools_to_fetch_it_says_what_else_can_be_done(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(data, "INSTALLED", tmp_path / "nowhere")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        monkeypatch.setenv("PATH", "")
        with pytest.raises(DataError, match=r"no apt-get to fetch it.*--data"):
            data.locate()

    def test_a_package_with_another_digest_is_not_unpacked(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        tools = tmp_path / "tools"
        tools.mkdir()
        for name, script in (("apt-get", "echo forged > forged.deb"), ("dpkg-deb", "exit 1")):
            (tools / name).write_text(f"#!/bin/sh\n{script}\n")
            (tools / name).chmod(0o755)
        monkeypatch.setenv("PATH", str(tools))
        with pytest.raises(DataError, match=f"instead of {data.PACKAGE_SHA256}"):
            data.fetch(tmp_path / "cache" / "fashion-mnist")
        assert list((tmp_path / "cache").iterdir()) == []

    def test_files_of_another_data_set_in_the_cache_are_refused(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(data, "INSTALLED", tmp_path / "nowhere")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        (data.cache_folder() / data.FOLDER_IN_PACKAGE).parent.mkdir(parents=True)
        write_data_set(data.cache_folder() / data.FOLDER_IN_PACKAGE, train_count=10, test_count=10)
        with pytest.raises(DataError, match="delete it and fetch it again"):
            data.locate()

    def test_the_script_explains_a_folder_without_data_and_exits_with_2(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr(sys, "argv", ["data.py", "--data", str(tmp_path)])
        assert data.main() == 2
        assert f"data.py: {tmp_path} does not hold Fashion-MNIST" in capsys.readouterr().err


class TestSample:
    @pytest.mark.parametrize(("part", "per_class"), [("train", 52), ("test", 50)])
    def test_the_committed_images_are_as_many_of_every_class(self, part: str, per_class: int) -> None:
        sample = open_dataset(data.SAMPLE, part)
        assert sample.inputs[0].shape == (10 * per_class, 1, 28, 28)
        assert sample.inputs[0].dtype == np.uint8
        assert np.bincount(sample.labels).tolist() == [per_class] * 10
        assert sample.class_names == data.CLASS_NAMES

    def test_it_is_drawn_the_same_way_every_time(self, tmp_path: Path) -> None:
        source = write_data_set(tmp_path / "set", train_count=600, test_count=550)
        for folder in (tmp_path / "first", tmp_path / "second"):
            data.write_sample(source, folder)
        for part in ("train", "test"):
            first, second = (open_dataset(tmp_path / name, part) for name in ("first", "second"))
            assert first.digest() == second.digest()

    def test_its_labels_stay_with_their_images(self, tmp_path: Path) -> None:
        whole = synthetic(600)
        data.write_sample(write_data_set(tmp_path / "set", train_count=600, test_count=550), tmp_path / "sample")
        sample = open_dataset(tmp_path / "sample", "train")
        label_of = {image.tobytes(): label for image, label in zip(whole.inputs[0], whole.labels, strict=True)}
        assert [label_of[image.tobytes()] for image in sample.inputs[0]] == sample.labels.tolist()


class TestHalves:
    def test_thresholds_are_chosen_on_images_that_nothing_else_is_measured_on(self, tmp_path: Path) -> None:
        source = write_data_set(tmp_path / "set", train_count=600, test_count=1200)
        data.write_sample(source, tmp_path / "sample")
        data.write_halves(source, tmp_path)
        sample = pixels(open_dataset(tmp_path / "sample", "test"))
        calibration, unseen = (pixels(open_dataset(tmp_path / f"{name}.npz")) for name in ("calibration", "unseen"))
        assert (len(calibration), len(unseen)) == (600, 600)
        assert not calibration & unseen
        assert sample <= unseen


def pixels(images: Dataset) -> set[bytes]:
    return {image.tobytes() for image in images.inputs[0]}


class TestRecipes:
    @pytest.mark.parametrize("path", sorted(EXAMPLE.glob("*.toml")), ids=lambda path: path.name)
    def test_each_can_be_read(self, path: Path) -> None:
        assert read_recipe(path).steps

    def test_the_demo_needs_no_training_and_no_download(self) -> None:
        recipe = read_recipe(EXAMPLE / "demo.toml")
        assert (EXAMPLE / recipe.table.data.path).is_dir()
        trained = [step for step in recipe.steps if not isinstance(step, LoadStep | QuantizeStep)]
        assert all(isinstance(step, ExitsStep) and step.heads for step in trained)
        assert all(path.is_file() for step in recipe.steps for path in step.inputs(EXAMPLE))

    @pytest.mark.parametrize("name", ["teacher", "student"])
    def test_training_again_has_the_settings_of_the_committed_weights(self, name: str) -> None:
        said = metrics()[name]["recipe"]
        step = step_of("train.toml", name)
        assert isinstance(step, TrainStep)
        assert said == {
            "epochs": step.training.epochs,
            "batch_size": step.training.batch_size,
            "peak_learning_rate": step.training.learning_rate,
            "weight_decay": step.training.weight_decay,
            "label_smoothing": step.label_smoothing,
            "erase_probability": step.augmentation.erase_probability,
            "seed": read_recipe(EXAMPLE / "train.toml").table.seed,
        }
        assert step.training.seed is None
        loaded = step_of("demo.toml", name)
        assert isinstance(loaded, LoadStep)
        assert (step.architecture, step.arguments) == (loaded.architecture, loaded.arguments)


def test_the_students_committed_weights_are_as_small_and_as_accurate_as_they_are_said_to_be() -> None:
    step = step_of("demo.toml", "student")
    assert isinstance(step, LoadStep)
    sample = open_dataset(data.SAMPLE, "test")
    student = new_network(step.architecture, step.arguments, sample).module
    student.load_state_dict(load_file(EXAMPLE / step.weights))
    said = metrics()["student"]
    assert parameter_count(student) == said["parameters"] <= 25_000
    # 500 images; four standard errors.
    assert accuracy(student, sample) == pytest.approx(said["test_accuracy"], abs=0.05)


def metrics() -> Any:
    return json.loads((EXAMPLE / "weights" / "metrics.json").read_text())


def step_of(recipe: str, name: str) -> object:
    return next(step for step in read_recipe(EXAMPLE / recipe).steps if step.name == name)
