"""The Fashion-MNIST example: its data reader, its resumable training and its export."""

from __future__ import annotations

import json
import shutil
import sys
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from data_sets import write_idx
from offramp_compression.errors import DataError
from offramp_compression.evaluation.predict import accuracy
from offramp_compression.modules import parameter_count

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "fashion"
# The example is scripts beside each other, not a package; this is how Python finds them when one is run.
sys.path.insert(0, str(EXAMPLE))

import data  # noqa: E402
import export  # noqa: E402
import models  # noqa: E402
import train  # noqa: E402


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    """Sums are only the same bits on every run while one thread makes them."""
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    torch.set_rng_state(state)


def synthetic(count: int) -> data.Split:
    random = np.random.default_rng(7)
    images = random.integers(0, 256, (count, 28, 28), dtype=np.uint8)
    return data.Split(images, random.integers(0, 10, count, dtype=np.uint8))


def write_data_set(folder: Path, train_count: int, test_count: int) -> None:
    folder.mkdir()
    for part, count in (("train", train_count), ("t10k", test_count)):
        split = synthetic(count)
        write_idx(folder / f"{part}-images-idx3-ubyte.gz", split.images)
        write_idx(folder / f"{part}-labels-idx1-ubyte.gz", split.labels)


class TestModels:
    def test_the_student_keeps_to_its_budget_of_parameters(self) -> None:
        assert parameter_count(models.build("student")) <= 25_000

    @pytest.mark.parametrize("name", ["teacher", "student"])
    def test_each_maps_a_batch_of_images_to_ten_logits(self, name: str) -> None:
        with torch.inference_mode():
            logits = models.build(name).eval()(torch.rand(3, 1, 28, 28))
        assert (logits.shape, logits.dtype) == ((3, 10), torch.float32)

    def test_an_unknown_name_is_refused_with_the_known_ones(self) -> None:
        with pytest.raises(ValueError, match="'teacher' and 'student'"):
            models.build("professor")

    def test_weights_come_back_from_half_precision_within_its_rounding(self, tmp_path: Path) -> None:
        model = models.build("student")
        models.save_weights(model, tmp_path / "student.safetensors")
        back = models.load_weights("student", tmp_path / "student.safetensors").state_dict()
        for key, tensor in model.state_dict().items():
            assert back[key].dtype == tensor.dtype
            torch.testing.assert_close(back[key], tensor, rtol=2**-11, atol=2**-24)

    def test_the_committed_weights_are_as_accurate_as_they_are_said_to_be(self) -> None:
        said = json.loads((export.WEIGHTS / "metrics.json").read_text())
        model = models.load_weights("student", export.WEIGHTS / "student.safetensors")
        sample = data.test_sample().dataset()
        # 500 images; four standard errors.
        assert accuracy(model, sample) == pytest.approx(said["student"]["test_accuracy"], abs=0.05)


class TestData:
    def test_idx_files_are_read_as_they_were_written(self, tmp_path: Path) -> None:
        write_data_set(tmp_path / "set", train_count=5, test_count=3)
        split = data.load(tmp_path / "set", "t10k")
        np.testing.assert_array_equal(split.images, synthetic(3).images)
        np.testing.assert_array_equal(split.labels, synthetic(3).labels)

    def test_pixels_are_scaled_to_one_and_get_a_channel(self) -> None:
        pixels = data.Split(np.full((2, 28, 28), 255, np.uint8), np.zeros(2, np.uint8)).pixels()
        assert pixels.shape == (2, 1, 28, 28)
        assert pixels.dtype == np.float32
        assert pixels.min() == 1.0

    def test_images_without_as_many_labels_are_refused(self, tmp_path: Path) -> None:
        write_data_set(tmp_path / "set", train_count=5, test_count=3)
        write_idx(tmp_path / "set" / "t10k-labels-idx1-ubyte.gz", np.zeros(4, np.uint8))
        with pytest.raises(DataError, match="one 28x28 image for every label"):
            data.load(tmp_path / "set", "t10k")

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
        write_data_set(data.cache_folder() / data.FOLDER_IN_PACKAGE, train_count=5, test_count=3)
        with pytest.raises(DataError, match="delete it and fetch it again"):
            data.locate()

    def test_the_committed_sample_has_fifty_images_of_every_class(self) -> None:
        sample = data.test_sample()
        assert sample.images.shape == (500, 28, 28)
        assert sample.images.dtype == np.uint8
        assert np.bincount(sample.labels).tolist() == [50] * 10

    def test_the_sample_is_drawn_the_same_way_every_time(self) -> None:
        split = synthetic(400)
        first, second = data.draw_sample(split, per_class=3), data.draw_sample(split, per_class=3)
        np.testing.assert_array_equal(first.images, second.images)
        assert np.bincount(first.labels).tolist() == [3] * 10


class TestTraining:
    RECIPE = replace(train.RECIPES["student"], epochs=2, batch_size=16, erase_probability=0.5)

    def trainer(self, checkpoint: Path, **changes: Any) -> train.Trainer:
        return train.Trainer("student", replace(self.RECIPE, **changes), synthetic(64), checkpoint)

    def test_a_run_that_was_stopped_ends_with_the_weights_of_one_that_was_not(self, tmp_path: Path) -> None:
        whole = self.trainer(tmp_path / "whole.checkpoint")
        for _ in whole.steps():
            pass
        stopped = self.trainer(tmp_path / "stopped.checkpoint")
        steps = stopped.steps()
        for _ in range(6):  # the checkpoint of the first epoch is at 4; what follows it is lost and made again
            next(steps)
        resumed = self.trainer(tmp_path / "stopped.checkpoint")
        assert resumed.step == 4
        assert len(list(resumed.steps())) == 4
        for key, tensor in whole.model.state_dict().items():
            assert torch.equal(resumed.model.state_dict()[key], tensor), key

    def test_another_seed_gives_other_weights(self, tmp_path: Path) -> None:
        first = self.trainer(tmp_path / "first.checkpoint").model.state_dict()
        second = self.trainer(tmp_path / "second.checkpoint", seed=1).model.state_dict()
        assert not torch.equal(first["head.weight"], second["head.weight"])

    def test_a_checkpoint_of_another_recipe_is_not_continued(self, tmp_path: Path) -> None:
        self.trainer(tmp_path / "run.checkpoint").save()
        with pytest.raises(train.CheckpointError, match=r"'epochs': 2.*'epochs': 3.*delete it to start again"):
            self.trainer(tmp_path / "run.checkpoint", epochs=3)

    def test_a_file_that_is_no_checkpoint_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "run.checkpoint").write_bytes(b"half a file")
        with pytest.raises(train.CheckpointError, match=r"run\.checkpoint is damaged"):
            self.trainer(tmp_path / "run.checkpoint")

    def test_the_script_trains_measures_and_writes_half_precision_weights(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        write_data_set(tmp_path / "set", train_count=256, test_count=40)
        out = tmp_path / "out"
        arguments = ["student", "--epochs", "1", "--threads", "1", "--data", str(tmp_path / "set"), "--out", str(out)]
        monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
        assert train.main() == 0
        entry = json.loads((out / "metrics.json").read_text())["student"]
        model = models.load_weights("student", out / "student.safetensors")
        test = data.load(tmp_path / "set", "t10k")
        measured = accuracy(model, test.dataset())
        assert entry["test_accuracy"] == pytest.approx(measured, abs=5e-5)
        assert (entry["recipe"]["epochs"], entry["test_images"]) == (1, 40)
        assert f"{measured:.2%} of 40 test images" in capsys.readouterr().out

    def test_the_script_explains_a_folder_without_data_and_exits_with_2(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr(sys, "argv", ["train.py", "student", "--data", str(tmp_path)])
        assert train.main() == 2
        assert f"train.py: {tmp_path} does not hold Fashion-MNIST" in capsys.readouterr().err


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    for name, seed in (("teacher", 1), ("student", 2)):
        torch.manual_seed(seed)
        models.save_weights(models.build(name), folder / f"{name}.safetensors")
    return folder


@pytest.fixture(scope="module")
def repository(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("repository")
    export.build_repository(folder, weights)
    return folder


class TestExport:
    @pytest.mark.parametrize("target", export.TARGETS, ids=lambda target: target.name)
    def test_every_model_answers_as_its_weights_do_at_any_batch_size(
        self, target: export.Target, repository: Path, weights: Path
    ) -> None:
        model = models.load_weights(target.network, weights / f"{target.network}.safetensors")
        for count in (1, 5):
            image = torch.rand(count, 1, 28, 28)
            with torch.inference_mode():
                expected = model(image)
            answered = self.run(repository / target.name / "1" / target.file, image)
            torch.testing.assert_close(answered, expected, rtol=1e-4, atol=1e-4)

    def test_the_settings_say_what_the_models_take_and_give(self, repository: Path) -> None:
        for target in export.TARGETS:
            settings = tomllib.loads((repository / target.name / "model.toml").read_text())
            assert settings == {
                "max_batch_size": 16,
                "inputs": [{"name": "image", "datatype": "FP32", "dims": [1, 28, 28]}],
                "outputs": [{"name": "logits", "datatype": "FP32", "dims": [10], "labels": list(data.CLASS_NAMES)}],
            }

    def test_what_is_up_to_date_is_left_alone_and_new_weights_are_exported_again(
        self, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(export, "TARGETS", (export.Target("fashion-student", "student", "model.pt2"),))
        mine = shutil.copytree(weights, tmp_path / "weights")
        assert export.build_repository(tmp_path / "repository", mine) == ["fashion-student"]
        assert export.build_repository(tmp_path / "repository", mine) == []
        models.save_weights(models.build("student"), mine / "student.safetensors")
        assert export.build_repository(tmp_path / "repository", mine) == ["fashion-student"]

    def test_an_export_that_fails_leaves_the_model_that_was_there_and_nothing_else(
        self, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(export, "TARGETS", (export.Target("fashion-student", "student", "model.pt2"),))
        before = tmp_path / "fashion-student" / "1" / "model.pt2"
        before.parent.mkdir(parents=True)
        before.write_bytes(b"an older model")

        def break_off(program: object, path: Path) -> None:
            path.write_bytes(b"half")
            raise OSError("no space left on device")

        monkeypatch.setattr(torch.export, "save", break_off)
        with pytest.raises(OSError, match="no space left"):
            export.build_repository(tmp_path, weights)
        assert before.read_bytes() == b"an older model"
        assert [path.name for path in tmp_path.iterdir()] == ["fashion-student"]

    def test_missing_weights_are_named_with_the_command_that_makes_them(self, tmp_path: Path) -> None:
        with pytest.raises(export.ExportError, match=r"teacher\.safetensors does not exist.*train\.py teacher"):
            export.build_repository(tmp_path / "repository", tmp_path / "empty")

    @staticmethod
    def run(path: Path, image: torch.Tensor) -> torch.Tensor:
        if path.suffix == ".pt2":
            answer: torch.Tensor = torch.export.load(path).module()(image)
            return answer.detach()
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        (logits,) = session.run(["logits"], {"image": image.numpy()})
        return torch.from_numpy(logits)
