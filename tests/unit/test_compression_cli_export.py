"""`offramp export`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from export_fakes import CLASS_NAMES, SIDE, tiny_network
from offramp_compression import model_file
from offramp_server.cli.main import main
from offramp_server.repository.reader import read_model


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "net.safetensors"
    model_file.save(tiny_network(), path)
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "images.npz"
    pixels = np.random.default_rng(0).integers(0, 256, (30, 1, SIDE, SIDE), dtype=np.uint8)
    np.savez(path, x=pixels, labels=np.arange(30) % 3, class_names=np.array(CLASS_NAMES))
    return path


def arguments(model: Path, data: Path, repository: Path, *more: str) -> list[str]:
    places = ["--data", str(data), "--repository", str(repository), "--name", "net", "--threads", "1"]
    return ["export", str(model), *places, *more]


def test_a_model_file_becomes_a_version_and_the_command_says_how_well(
    model: Path, data: Path, repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(model, data, repository, "--to", "pt2", "--parity-rows", "10", "--manifest")) == 0
    said = capsys.readouterr().out
    assert "net/1: model.pt2" in said
    assert "same arg-max for 100.00% (10 rows, against torch eager)" in said
    (spec,) = read_model(repository, "net")
    assert spec.metadata["provenance.method"] == "train"
    assert (repository / "net" / "1" / "manifest.sha256").exists()


def test_a_target_that_cannot_be_written_ends_with_one_sentence(
    model: Path, data: Path, repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(model, data, repository, "--version", "0")) == 2
    assert "version 0: expected 1, 2, 3" in capsys.readouterr().err
    assert list(repository.iterdir()) == []


def test_data_that_the_network_does_not_take_end_with_one_sentence(
    model: Path, tmp_path: Path, repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = tmp_path / "wrong.npz"
    np.savez(wrong, x=np.zeros((6, 3, SIDE, SIDE), np.uint8), labels=np.arange(6) % 3, class_names=CLASS_NAMES)
    assert main(arguments(model, wrong, repository)) == 2
    assert "error: the network" in capsys.readouterr().err
    assert list(repository.iterdir()) == []
