"""`offramp train`, `distill` and `fine-tune`, as they are typed."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import numpy as np
import pytest
from offramp_compression.cli.limit import limited
from offramp_compression.data.dataset import Dataset
from offramp_compression.model_file import load
from offramp_compression.training.objective import Supervised
from offramp_server.cli.main import main
from training_fakes import pictures, weights

QUICK = ("--epochs", "2", "--batch-size", "16", "--threads", "1", "--no-progress")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    store(folder / "train.npz", pictures(90))
    store(folder / "test.npz", pictures(30, seed=1))
    return folder


@pytest.fixture
def teacher(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    path = tmp_path / "teacher.safetensors"
    assert offramp("train", "tiny_cnn", "--set", "channels=[8]", "--data", data, "--out", path, *QUICK) == 0
    capsys.readouterr()
    return path


def store(path: Path, examples: Dataset) -> None:
    np.savez(path, x=examples.inputs[0], labels=examples.labels, class_names=np.array(examples.class_names))


def offramp(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def test_a_network_is_trained_to_fit_its_data_and_measured(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "teacher.safetensors"
    assert offramp("train", "tiny_cnn", "--data", data, "--out", out, "--test-part", "test", *QUICK) == 0
    network, said = load(out), capsys.readouterr().out
    assert network.class_names == pictures().class_names
    assert network.blueprint.arguments["image_size"] == 6
    shown = re.search(r"^teacher.safetensors +(0\.\d+) ", said, re.MULTILINE)
    assert shown is not None
    assert float(shown[1]) == pytest.approx(network.provenance.metrics["test_accuracy"], abs=1e-4)
    assert "epoch 2: loss" in said
    assert not out.with_name("teacher.safetensors.checkpoint").exists()


def test_a_student_is_distilled_from_two_teachers(
    data: Path, teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "student.safetensors"
    asked = (
        "distill", "--teacher", teacher, "--teacher", teacher, "--teacher-weight", "2", "--teacher-weight", "1",
        "--architecture", "tiny_cnn", "--set", "channels=[3]", "--data", data, "--out", out, "--flip", "--views", "1",
        "--temperature", "3", *QUICK,
    )  # fmt: skip
    assert offramp(*asked) == 0
    provenance = load(out).provenance
    assert provenance.parents == (load(teacher).digest(),) * 2
    assert provenance.settings["temperature"] == 3.0
    said = capsys.readouterr().out
    assert "teacher teacher.safetensors" in said
    assert "student student.safetensors" in said


def test_features_are_named_on_the_command_line(
    data: Path, teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = (
        "distill", "--teacher", teacher, "--architecture", "tiny_cnn", "--set", "channels=[3]", "--data", data,
        "--out", tmp_path / "student.safetensors", *QUICK,
    )  # fmt: skip
    assert offramp(*asked, "--feature", "features=feature") == 2
    assert 'no module "feature"; did you mean "features"?' in capsys.readouterr().err
    assert offramp(*asked, "--feature", "features=features") == 0


def test_a_model_file_is_fine_tuned_and_compared_with_what_it_was(
    data: Path, teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "newer.safetensors"
    assert offramp("fine-tune", teacher, "--data", data, "--out", out, "--train", "head", *QUICK) == 0
    before, after = load(teacher), load(out)
    changed = {
        name for name, value in weights(before.module).items() if weights(after.module)[name] != value
    }  # fmt: skip
    assert changed == {"head.weight", "head.bias"}
    assert after.provenance.parents == (before.digest(),)
    said = capsys.readouterr().out
    assert "before: teacher.safetensors" in said
    assert "after: newer.safetensors" in said


def test_classes_are_matched_by_name_and_others_get_a_head_of_their_own(
    teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dark, bright, left = pictures().class_names
    plain = pictures(90, seed=5)
    cases = {
        "reordered": ((left, dark, bright), (dark, bright, left)),
        "numbered": (("0", "1", "2"), (dark, bright, left)),
        "others": ((left, "round", dark), (left, "round", dark)),
    }
    for name, (found, expected) in cases.items():
        store(tmp_path / f"{name}.npz", Dataset(plain.inputs, plain.labels, found))
        out = tmp_path / f"{name}.safetensors"
        assert offramp("fine-tune", teacher, "--data", tmp_path / f"{name}.npz", "--out", out, *QUICK) == 0
        assert load(out).class_names == expected, name


def test_a_student_learns_its_teachers_classes(data: Path, teacher: Path, tmp_path: Path) -> None:
    other = pictures(90)
    store(tmp_path / "other.npz", Dataset(other.inputs, other.labels, ("a", "b", "c")))
    asked = ("distill", "--teacher", teacher, "--student", teacher, "--out", tmp_path / "student.safetensors", *QUICK)
    assert offramp(*asked, "--data", tmp_path / "other.npz") == 2
    assert offramp(*asked, "--data", data) == 0
    digest = load(teacher).digest()
    assert load(tmp_path / "student.safetensors").provenance.parents == (digest, digest)


def test_ctrl_c_leaves_a_checkpoint_and_the_same_command_goes_on(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    straight, stopped = tmp_path / "straight.safetensors", tmp_path / "stopped.safetensors"
    assert offramp("train", "tiny_cnn", "--data", data, "--out", straight, *QUICK) == 0
    plain, steps = Supervised.loss, 0

    def press_ctrl_c(*arguments: object) -> object:
        nonlocal steps
        steps += 1
        if steps == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return plain(*arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        patched.setattr(Supervised, "loss", press_ctrl_c)
        assert offramp("train", "tiny_cnn", "--data", data, "--out", stopped, *QUICK) == 130
    assert f"the same command goes on from {stopped}.checkpoint" in capsys.readouterr().err
    assert not stopped.exists()
    assert offramp("train", "tiny_cnn", "--data", data, "--out", stopped, *QUICK) == 0
    assert weights(load(stopped).module) == weights(load(straight).module)


@pytest.mark.parametrize(
    ("added", "words"),
    [
        (("--learning-rate", "-1"), "option --learning-rate: expected a number above 0, got -1"),
        (("--optimizer", "adam"), 'option --optimizer: expected "sgd" or "adamw", got "adam"'),
        (("--set", "channels"), "--set channels: expected KEY=VALUE"),
        (("--set", "chanels=[3]"), 'architecture "tiny_cnn" has no argument "chanels"; did you mean "channels"?'),
        (("--set", "channels=[8,oops]"), "--set channels: [8,oops] is not JSON (Expecting value at character 3)"),
        (
            ("--set", "channels=8"),
            "cannot be built: object of type 'int' has no len(); it takes channels=[16, 32], in_chan",
        ),
        (("--set", "num_classes=4"), "answers with shape [2, 4], and data of 3 classes need [examples, 3]; leave out"),
        (("--set", "in_channels=3"), "the network does not run on inputs float32 [2, 1, 6, 6]"),
        (("--set", "channels={8"), "expected something such as 16, [8, 16], true, or a word"),
        (("--set", "channels='8'"), "--set channels: '8' is not JSON"),
        (("--limit", "2"), "--limit 2: there are 3 classes; expected at least one of each"),
        (("--pretrained",), 'published weights of "minilm" only, not of "tiny_cnn"'),
        (("--device", "tpu9000"), 'device "tpu9000" is not here'),
        (("--hold-out", "0", "--patience", "2"), "patience needs a validation set"),
        (("--hold-out", "2"), "cannot hold out a fraction of 2"),
    ],
)
def test_what_cannot_be_used_ends_with_a_sentence_and_no_file(
    added: tuple[str, ...], words: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.safetensors"
    assert offramp("train", "tiny_cnn", "--data", data, "--out", out, *QUICK, *added) == 2
    assert words in capsys.readouterr().err
    assert not out.exists()


def test_data_that_a_model_does_not_take_are_refused_before_the_first_step(
    data: Path, teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ids = np.ones((90, 5), np.int64)
    texts = tmp_path / "texts.npz"
    np.savez(texts, x0=ids, x1=ids, labels=pictures(90).labels, class_names=np.array(pictures().class_names))
    out = tmp_path / "out.safetensors"
    for command in (("fine-tune", teacher), ("distill", "--teacher", teacher, "--architecture", "embedding_bag")):
        assert offramp(*command, "--data", texts, "--out", out, *QUICK) == 2
        error = capsys.readouterr().err
        assert "the network does not run on inputs int64 [2, 5], int64 [2, 5]" in error
        assert error.count("\n") == 1
    assert not out.exists()


def test_a_file_that_is_called_like_another_format_is_refused(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        offramp("train", "tiny_cnn", "--data", data, "--out", tmp_path / "net.pth", *QUICK)
    assert "expected a name that ends in .safetensors, such as net.safetensors" in capsys.readouterr().err


def test_a_few_examples_show_whether_a_command_runs(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "few.safetensors"
    asked = ("train", "tiny_cnn", "--data", data, "--out", out, "--hold-out", "0", *QUICK, "--batch-size", "8")
    assert offramp(*asked, "--limit", "9") == 0
    examples = pictures(90)
    few = examples.take(limited(examples.labels, 9, seed=0))
    assert load(out).provenance.data_digest == few.digest()


def test_of_every_class_as_many_are_taken_as_it_has_and_at_least_one() -> None:
    labels = np.array([0] * 60 + [1] * 39 + [2])
    taken = labels[limited(labels, 20, seed=3)]
    assert np.bincount(taken).tolist() == [11, 8, 1]
    assert np.array_equal(limited(labels, 1000, seed=0), np.arange(100))
    assert np.array_equal(limited(labels, None, seed=0), np.arange(100))


def test_a_network_that_has_learnt_nothing_is_written_with_a_warning_and_says_so_itself(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.safetensors"
    asked = ("train", "tiny_cnn", "--data", data, "--out", out, "--test-part", "test", *QUICK)
    assert offramp(*asked, "--learning-rate", "1e-9") == 0
    error = capsys.readouterr().err
    assert "offramp: warning: out.safetensors is right on" in error
    assert "not shown to be better than guessing" in error
    metrics = load(out).provenance.metrics
    assert metrics["better_than_guessing"] == 0.0
    assert metrics["majority_accuracy"] == pytest.approx(1 / 3)
    assert offramp(*asked, "--epochs", "12", "--learning-rate", "0.05") == 0
    assert capsys.readouterr().err == ""
    assert load(out).provenance.metrics["better_than_guessing"] == 1.0


def test_a_diverging_run_says_what_to_change(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.safetensors"
    assert offramp("train", "tiny_cnn", "--data", data, "--out", out, *QUICK, "--learning-rate", "1e30") == 2
    assert "lower learning_rate (it is 1e+30)" in capsys.readouterr().err
    assert not out.exists()


def test_words_are_not_augmented_like_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "train.npz"
    ids = np.ones((40, 5), np.int64)
    np.savez(path, x0=ids, x1=ids, labels=np.arange(40) % 2, class_names=np.array(["a", "b"]))
    asked = (
        "train",
        "embedding_bag",
        "--set",
        "vocabulary_size=9",
        "--data",
        path,
        "--out",
        tmp_path / "o.safetensors",
    )
    assert offramp(*asked, *QUICK) == 0
    assert offramp(*asked, *QUICK, "--flip") == 2
    assert "are for pictures" in capsys.readouterr().err
