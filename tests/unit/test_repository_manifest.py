"""With a manifest a model is served only if every file is there, listed and unchanged."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from model_files import write_linear_onnx
from offramp_server.errors import LoadError
from offramp_server.repository.reader import read_model


@pytest.fixture
def model(tmp_path: Path) -> Path:
    write_linear_onnx(tmp_path / "m" / "1" / "model.onnx", external="model.onnx.data")
    return tmp_path / "m"


def write_manifest(folder: Path, *files: str, mark: str = " ") -> Path:
    lines = [f"{hashlib.sha256((folder / file).read_bytes()).hexdigest()} {mark}{file}\n" for file in files]
    (folder / "manifest.sha256").write_text("".join(lines))
    return folder / "manifest.sha256"


def refusal(model: Path) -> str:
    with pytest.raises(LoadError) as caught:
        read_model(model.parent, model.name)
    return str(caught.value)


@pytest.mark.parametrize("mark", [" ", "*"])
def test_files_that_match_the_manifest_of_their_version_are_served(model: Path, mark: str) -> None:
    write_manifest(model / "1", "model.onnx", "model.onnx.data", mark=mark)
    assert read_model(model.parent, "m")


def test_a_manifest_may_also_lie_in_the_models_folder(model: Path) -> None:
    (model / "model.toml").write_text("max_batch_size = 4")
    write_manifest(model, "model.toml", "./1/model.onnx", "1/model.onnx.data")
    assert read_model(model.parent, "m")

    (model / "model.toml").write_text("max_batch_size = 5")
    assert f"{model}/model.toml: sha256 " in refusal(model)


def test_a_changed_file_is_named_with_both_sums(model: Path) -> None:
    manifest = write_manifest(model / "1", "model.onnx", "model.onnx.data")
    data = model / "1" / "model.onnx.data"
    expected = hashlib.sha256(data.read_bytes()).hexdigest()
    data.write_bytes(bytes(48))

    actual = hashlib.sha256(bytes(48)).hexdigest()
    assert refusal(model) == f"{data}: sha256 {actual} differs from {expected} in {manifest}"


def test_a_missing_file_is_named(model: Path) -> None:
    write_manifest(model / "1", "model.onnx", "model.onnx.data")
    (model / "1" / "model.onnx.data").unlink()
    assert 'lists "model.onnx.data", which is missing' in refusal(model)


def test_a_file_that_is_not_listed_is_named(model: Path) -> None:
    write_manifest(model / "1", "model.onnx")
    assert 'does not list "model.onnx.data"; add it, or remove the file' in refusal(model)


def test_a_manifest_that_lists_itself_is_told_so(model: Path) -> None:
    write_manifest(model / "1", "model.onnx", "model.onnx.data")
    write_manifest(model / "1", "model.onnx", "model.onnx.data", "manifest.sha256")
    assert "lists itself" in refusal(model)


def test_a_manifest_may_vouch_for_that_of_a_version(model: Path) -> None:
    write_manifest(model / "1", "model.onnx", "model.onnx.data")
    write_manifest(model, "1/model.onnx", "1/model.onnx.data", "1/manifest.sha256")
    assert read_model(model.parent, "m")

    write_manifest(model / "1", "model.onnx.data", "model.onnx")
    assert f"{model}/1/manifest.sha256: sha256 " in refusal(model)


def test_the_manifest_is_checked_before_a_parser_sees_the_file(model: Path) -> None:
    write_manifest(model / "1", "model.onnx", "model.onnx.data")
    (model / "1" / "model.onnx").write_bytes(b"not a model")
    assert "differs from" in refusal(model)


def test_versions_that_are_not_loaded_are_left_alone(model: Path) -> None:
    write_linear_onnx(model / "2" / "model.onnx")
    manifest = write_manifest(model, "1/model.onnx", "2/model.onnx")
    (model / "1" / "model.onnx").write_bytes(b"an old version, changed")
    assert read_model(model.parent, "m")[0].version == 2

    manifest.write_text(manifest.read_text() + f"{'0' * 64}  7/model.onnx\n")
    assert read_model(model.parent, "m")[0].version == 2


def test_hidden_files_need_no_line(model: Path) -> None:
    write_manifest(model / "1", "model.onnx", "model.onnx.data")
    (model / "1" / ".DS_Store").write_text("")
    assert read_model(model.parent, "m")


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("model.onnx", 'line 1: expected "<sha256>  <file>" as sha256sum writes it'),
        (f"{'0' * 63}  model.onnx", "line 1: expected"),
        (f"{'0' * 64}  ../../secret", 'line 1: "../../secret" is outside the folder'),
        (f"{'0' * 64}  /etc/passwd", 'line 1: "/etc/passwd" is outside the folder'),
    ],
)
def test_a_line_that_is_not_sha256sums_is_refused(line: str, sentence: str, model: Path) -> None:
    (model / "1" / "manifest.sha256").write_text(line + "\n")
    assert sentence in refusal(model)


def test_a_manifest_that_is_not_text_is_refused(model: Path) -> None:
    (model / "1" / "manifest.sha256").write_bytes(b"\xff\xfe")
    assert "manifest.sha256: cannot be read as text" in refusal(model)
