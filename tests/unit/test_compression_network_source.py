"""Networks that go on from what is served."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from export_fakes import images, tiny_network
from offramp_compression import model_file
from offramp_compression.errors import ModelError
from offramp_compression.evaluation.subject import open_subject
from offramp_compression.export.publish import Target, export_network
from offramp_compression.network_source import NETWORK_FILE, network_file, open_network, version_name
from offramp_server.cli.main import main
from offramp_server.repository.reader import read_model
from training_fakes import pictures

QUICK = ("--epochs", "1", "--batch-size", "16", "--threads", "1", "--no-progress")


def offramp(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def test_a_version_has_the_very_network_that_it_was_exported_from(repository: Path) -> None:
    first, second = tiny_network(seed=1), tiny_network(seed=2)
    for network in (first, second):
        export_network(network, [images()], Target(repository, "net", "onnx"))
    assert open_network(repository / "net" / "1").digest() == first.digest()
    assert open_network(repository / "net").digest() == second.digest()
    assert open_network(repository / "net").provenance == second.provenance


def test_the_highest_version_is_the_one_with_the_highest_number(repository: Path) -> None:
    for version in (9, 10):
        export_network(tiny_network(seed=version), [images()], Target(repository, "net", "onnx", version))
    assert open_network(repository / "net").digest() == tiny_network(seed=10).digest()
    assert version_name(repository / "net") == "net/10"


def test_a_version_is_called_after_its_model_wherever_one_stands(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export_network(tiny_network(), [images()], Target(repository, "net", "pt2"))
    monkeypatch.chdir(repository / "net" / "1")
    assert version_name(Path(".")) == "net/1"
    assert network_file(Path(".")).samefile(repository / "net" / "1" / NETWORK_FILE)
    assert open_subject(Path(".")).name == "net/1"


def test_a_model_file_stands_for_itself(tmp_path: Path) -> None:
    model_file.save(tiny_network(), tmp_path / "net.safetensors")
    assert version_name(tmp_path / "net.safetensors") == ""
    assert open_network(tmp_path / "net.safetensors").digest() == tiny_network().digest()


def test_a_version_that_is_written_without_its_network_takes_half_the_room(repository: Path) -> None:
    export_network(tiny_network(), [images()], Target(repository, "net", "onnx", keep_network=False))
    assert [path.name for path in (repository / "net" / "1").iterdir()] == ["model.onnx"]
    with pytest.raises(ModelError, match=r"net/1 has no network\.safetensors.* or was exported without it"):
        open_network(repository / "net")


def test_what_is_no_model_is_refused_with_what_would_be_one(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="it has no version; expected one like models/NAME"):
        open_network(tmp_path)
    with pytest.raises(ModelError, match="there is no such file"):
        open_network(tmp_path / "absent")
    with pytest.raises(ModelError, match=r"model\.onnx can only be run; name the version's folder"):
        open_network(tmp_path / "1" / "model.onnx")


def test_a_served_model_is_trained_on_newer_data_and_becomes_its_next_version(
    repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, seed in (("data.npz", 0), ("newer.npz", 5)):
        examples = pictures(60, seed=seed)
        np.savez(tmp_path / name, x=examples.inputs[0], labels=examples.labels, class_names=examples.class_names)
    first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    served = ("--repository", repository, "--name", "net", "--to", "onnx", "--manifest", "--threads", "1")
    assert offramp("train", "tiny_cnn", "--set", "channels=[4]", "--data", tmp_path / "data.npz", "--out", first,
                   *QUICK) == 0  # fmt: skip
    assert offramp("export", first, "--data", tmp_path / "data.npz", *served) == 0
    os.remove(first)

    assert offramp("fine-tune", repository / "net", "--data", tmp_path / "newer.npz", "--out", second, *QUICK) == 0
    assert "before: net/1" in capsys.readouterr().out
    assert offramp("export", second, "--data", tmp_path / "newer.npz", *served) == 0
    after = open_network(repository / "net" / "2")
    assert after.provenance.parents == (open_network(repository / "net" / "1").digest(),)
    assert after.provenance.settings["started_from"] == "net/1"

    settings = repository / "net" / "model.toml"
    settings.write_text('versions = "all"\n' + settings.read_text())
    old, new = read_model(repository, "net")
    assert (old.version, new.version) == (1, 2)
    assert new.metadata["provenance.settings.started_from"] == "net/1"
    assert offramp("check", repository) == 0
    assert "network.safetensors" not in capsys.readouterr().out


def test_a_version_can_be_the_teacher_and_the_student(repository: Path, tmp_path: Path) -> None:
    examples = pictures(60)
    np.savez(tmp_path / "data.npz", x=examples.inputs[0], labels=examples.labels, class_names=examples.class_names)
    model, out = tmp_path / "model.safetensors", tmp_path / "student.safetensors"
    assert offramp("train", "tiny_cnn", "--set", "channels=[4]", "--data", tmp_path / "data.npz", "--out", model,
                   *QUICK) == 0  # fmt: skip
    assert offramp("export", model, "--data", tmp_path / "data.npz", "--repository", repository, "--name", "net") == 0
    assert offramp("distill", "--teacher", repository / "net", "--student", repository / "net" / "1", "--data",
                   tmp_path / "data.npz", "--out", out, *QUICK) == 0  # fmt: skip
    assert model_file.load(out).provenance.parents == (model_file.load(model).digest(),) * 2
