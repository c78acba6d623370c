"""`offramp quantize` and `offramp quantize-train`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from offramp_compression import model_file
from offramp_compression.data.dataset import Dataset
from offramp_compression.data.sample import two_samples
from offramp_compression.errors import DataError
from offramp_server.cli.main import main
from offramp_server.preprocess.settings import ImagePreprocess
from offramp_server.repository.reader import read_model
from quantization_fakes import CLASS_NAMES, SIDE, bands, trained

# Seconds of CPU, minutes on a machine that others keep busy.
pytestmark = pytest.mark.timeout(540)


def save(path: Path, data: Dataset) -> None:
    np.savez(path, x=data.inputs[0], labels=data.labels, class_names=np.array(CLASS_NAMES))


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model file and a data set of two parts."""
    folder = tmp_path_factory.mktemp("quantize")
    model_file.save(trained(), folder / "net.safetensors")
    (folder / "data").mkdir()
    save(folder / "data" / "train.npz", bands(150))
    save(folder / "data" / "test.npz", bands(60, seed=5))
    return folder


def quantize(places: Path, *more: str) -> int:
    return main(["quantize", str(places / "net.safetensors"), "--data", str(places / "data"), "--threads", "1", *more])


def test_a_model_file_becomes_an_int8_version_and_the_command_says_what_was_lost(
    places: Path, repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert quantize(
        places, "--repository", str(repository), "--name", "net", "--max-drop", "2", "--keep-float", "head",
        "--test-part", "test", "--reduce-range", "yes",
    ) == 0  # fmt: skip
    said = capsys.readouterr().out
    assert "quantised alone" in said
    assert "left in float to lose at most 2 points: nothing" in said
    assert "2 of 3" in said
    assert "in float: head" in said
    (spec,) = read_model(repository, "net")
    assert spec.format == "onnx"
    assert spec.metadata["provenance.settings.reduce_range"] == "True"
    assert spec.metadata["provenance.settings.in_float"] == "head"
    assert float(spec.metadata["provenance.metrics.accuracy"]) > 0.9


@pytest.mark.parametrize(("channels", "to"), [(1, "onnx"), (3, "onnx"), (3, "pt2")])
def test_an_int8_model_of_pictures_takes_their_files_at_the_server(
    channels: int, to: str, tmp_path: Path, repository: Path
) -> None:
    model_file.save(trained(channels), tmp_path / "net.safetensors")
    data = bands(150, channels)
    np.savez(tmp_path / "train.npz", x=data.inputs[0], labels=data.labels, class_names=np.array(CLASS_NAMES))
    assert main([
        "quantize", str(tmp_path / "net.safetensors"), "--data", str(tmp_path / "train.npz"), "--threads", "1",
        "--repository", str(repository), "--name", "net", "--to", to,
    ]) == 0  # fmt: skip
    (spec,) = read_model(repository, "net")
    assert [each.datatype for each in spec.public_inputs] == ["BYTES"]
    assert isinstance(spec.preprocess, ImagePreprocess)
    assert (spec.preprocess.channels, spec.preprocess.height, spec.preprocess.width) == (channels, SIDE, SIDE)


def test_the_sensitivity_can_be_seen_without_writing_anything(places: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert quantize(places, "--to", "pt2", "--sensitivity", "without") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["left", "in", "float", "accuracy", "points", "lost", "SQNR", "dB"]
    assert {line.split()[0] for line in lines[1:] if line} == {"features.0", "features.4", "head"}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "give --repository and --name to write a model, or --sensitivity"),
        (["--sensitivity", "alone", "--only", "features.1"], "features.1"),
        (["--sensitivity", "alone", "--calibration", "histogram"], "expected minmax or entropy or percentile"),
        (["--sensitivity", "alone", "--percentile", "20"], "option --percentile"),
        (["--sensitivity", "alone", "--tuning-examples", "0"], "cannot be divided into 256 and 0"),
    ],
)
def test_what_cannot_be_done_ends_with_one_sentence(
    places: Path, options: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert quantize(places, *options) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


def test_a_target_that_cannot_be_written_is_refused_before_the_work(
    places: Path, repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert quantize(places, "--repository", str(repository), "--name", "net", "--engine", "torch-compile") == 2
    assert 'engine "torch-compile" cannot run a .onnx file' in capsys.readouterr().err
    assert list(repository.iterdir()) == []


def test_a_network_can_be_fine_tuned_to_bear_it(
    places: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "tuned.safetensors"
    assert main([
        "quantize-train", str(places / "net.safetensors"), "--data", str(places / "data"), "--out", str(out),
        "--epochs", "1", "--batch-size", "30", "--threads", "1", "--reduce-range", "no", "--no-progress",
    ]) == 0  # fmt: skip
    said = capsys.readouterr().out
    assert "epoch 1:" in said
    assert "after: tuned.safetensors" in said
    tuned = model_file.load(out)
    assert tuned.provenance.method == "quantization-aware fine-tuning"
    assert tuned.provenance.settings["reduce_range"] is False
    assert not (tmp_path / "tuned.safetensors.checkpoint").exists()


def test_two_samples_have_nothing_in_common_and_share_what_is_too_little() -> None:
    data = Dataset((np.arange(30.0)[:, None],), np.arange(30) % 3, CLASS_NAMES)
    first, second = two_samples(data, 10, 5, seed=1)
    assert (len(first), len(second)) == (10, 5)
    assert not set(first.inputs[0].ravel()) & set(second.inputs[0].ravel())
    first, second = two_samples(data, 200, 100)
    assert (len(first), len(second)) == (20, 10)
    with pytest.raises(DataError, match="30 examples cannot be divided into 0 and 5"):
        two_samples(data, 0, 5)
