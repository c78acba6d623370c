"""`offramp attach-exits`, `export --stages` and `zero-shot`, as they are typed."""

from pathlib import Path

import numpy as np
import pytest
from exit_networks import image_data, resnet
from offramp_compression.model_file import load, save
from offramp_compression.zero_shot import encoder
from offramp_server.cli.main import main
from offramp_server.repository.reader import read_model
from test_compression_zero_shot import tiny_encoder

QUICK = ("--epochs", "2", "--batch-size", "16", "--threads", "1", "--no-progress")
PLAIN = "plain.safetensors"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    examples, path = image_data(60), tmp_path / "images.npz"
    np.savez(path, x=examples.inputs[0], labels=examples.labels, class_names=np.array(examples.class_names))
    save(resnet(), tmp_path / PLAIN)
    return path


@pytest.fixture
def _tiny_minilm(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command's encoder without its 90 MB."""
    monkeypatch.setattr(encoder, "minilm_text_encoder", lambda max_length: tiny_encoder())


def offramp(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def test_a_network_gets_exits_is_measured_at_each_and_written_stage_by_stage(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "exits.safetensors"
    places = ("--at", "stages.0", "--at", "stages.2", "--train", "frozen")
    assert offramp("attach-exits", tmp_path / PLAIN, *places, "--data", data, "--out", out, *QUICK) == 0
    said = capsys.readouterr().out
    assert "stages.0" in said
    assert "(the end)" in said
    assert load(out).provenance.parents == (load(tmp_path / PLAIN).digest(),)
    repository = tmp_path / "models"
    where = ("--repository", repository, "--name", "net", "--to", "pt2", "--threads", "1")
    assert offramp("export", out, "--stages", "--data", data, *where) == 0
    assert "net-stage3/1: model.pt2" in capsys.readouterr().out
    (first,), (second,) = read_model(repository, "net-stage1"), read_model(repository, "net-stage2")
    assert [tensor.name for tensor in second.inputs] == ["hidden_1_1"]
    assert (first.preprocess is not None, second.preprocess) == (True, None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--at", "stage.0"), 'no module "stage.0"; did you mean "stages.0"'),
        (("--at", "stages.0", "--train", "heads"), '"joint" or "frozen"'),
        (("--at", "stages.0", "--train", "frozen", "--patience", "2"), "set it to 0"),
    ],
)
def test_exits_that_cannot_be_had_end_with_one_sentence_and_no_file(
    data: Path, tmp_path: Path, arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "exits.safetensors"
    assert offramp("attach-exits", tmp_path / PLAIN, *arguments, "--data", data, "--out", out, *QUICK) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_only_a_network_with_exits_has_stages_to_write(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    repository = tmp_path / "models"
    assert (
        offramp("export", tmp_path / PLAIN, "--stages", "--data", data, "--repository", repository, "--name", "net")
        == 2
    )
    assert "attach exits first" in capsys.readouterr().err
    assert not (repository / "net").exists()


@pytest.mark.usefixtures("_tiny_minilm")
def test_a_zero_shot_classifier_is_calibrated_measured_and_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "texts.csv"
    rows = [f"the {word} wins {number},{word}" for number in range(20) for word in ("bank", "team")]
    table.write_text("\n".join(["text,label", *rows]) + "\n")
    repository = tmp_path / "models"
    where = ("--repository", repository, "--name", "topics", "--to", "pt2", "--threads", "1")
    labels = ("--label", "bank=money", "--label", "team=sport", "--template", "about {}")
    assert offramp("zero-shot", *labels, "--data", table, "--calibrate", 10, *where) == 0
    said = capsys.readouterr().out
    assert "on 30 texts" in said
    assert "macro-F1" in said
    (spec,) = read_model(repository, "topics")
    assert spec.zero_shot is not None
    assert spec.zero_shot.descriptions == ("money", "sport")
    assert spec.zero_shot.templates == ("about {}",)
    assert spec.zero_shot.temperature != 0.05


@pytest.mark.usefixtures("_tiny_minilm")
def test_a_zero_shot_classifier_needs_labels_only(tmp_path: Path) -> None:
    repository = tmp_path / "models"
    where = ("--repository", repository, "--name", "topics", "--to", "pt2", "--threads", "1")
    assert offramp("zero-shot", "--label", "money", "--label", "sport", *where) == 0
    (spec,) = read_model(repository, "topics")
    assert spec.zero_shot is not None
    assert spec.zero_shot.temperature == 0.05


@pytest.mark.usefixtures("_tiny_minilm")
def test_a_zero_shot_classifier_without_classes_ends_with_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert offramp("zero-shot", "--repository", tmp_path / "models", "--name", "topics") == 2
    assert "give --label for each, --labels FILE, or --data" in capsys.readouterr().err
