"""`offramp profile`, `prune`, `factorize` and `share-weights`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import prunable_nets
import pytest
import torch
from data_sets import images
from offramp_compression.model_file import load, save
from offramp_compression.modules import parameter_count
from offramp_compression.pruning.masks import sparsity
from offramp_server.cli.main import main


@pytest.fixture(autouse=True)
def unchanged_torch() -> Iterator[None]:
    threads = torch.get_num_threads()
    with torch.random.fork_rng(devices=[]):
        yield
    torch.set_num_threads(threads)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "net.safetensors"
    save(prunable_nets.network("tiny_cnn", channels=[16, 32], image_size=8, num_classes=3), path)
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "images.npz"
    found = images(60)
    np.savez(path, x=found.inputs[0], labels=found.labels, class_names=np.array(found.class_names))
    return path


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out" / "small.safetensors"


def arguments(command: str, model: Path, data: Path, out: Path, *more: str) -> list[str]:
    places = [str(model), "--data", str(data), "--out", str(out), "--threads", "1", "--hold-out", "0.3"]
    training = [] if "--epochs" in more else ["--epochs", "1", "--batch-size", "14"]
    return [command, *places, *training, *more]


def spoken(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().out


class TestPrune:
    @pytest.mark.parametrize("target", ["flops", "parameters", "ratio"])
    def test_the_file_has_fewer_channels_and_the_command_says_what_that_costs(
        self, target: str, model: Path, data: Path, out: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(arguments("prune", model, data, out, "--target", target, "--left", "0.5", "--multiple", "2")) == 0
        said = spoken(capsys)
        assert parameter_count(load(out).module) < 0.7 * parameter_count(load(model).module)
        assert load(out).provenance.settings["target"] == target
        assert load(out).provenance.settings["recovery"]["objective"] == "distillation"
        assert "head stays as it is: its outputs are the network's outputs" in said
        assert "accuracy without recovery (held out): " in said
        assert "before: net.safetensors" in said
        assert "after: small.safetensors" in said
        assert "eager, batch of 16: " in said
        assert ("scan: features.0 with" in said) == (target != "ratio")

    def test_a_target_in_time_is_measured(self, model: Path, data: Path, out: Path) -> None:
        # Wide enough for channels to matter more than calls.
        save(prunable_nets.network("tiny_cnn", channels=[128, 128], image_size=8, num_classes=3), model)
        batch = ("--timed-batch", "64", "--epochs", "0")
        assert main(arguments("prune", model, data, out, "--target", "latency", "--left", "0.8", *batch)) == 0
        assert parameter_count(load(out).module) < parameter_count(load(model).module)

    def test_a_scan_is_kept_for_the_next_target(
        self, model: Path, data: Path, out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        scan = ("--scan", str(tmp_path / "scan.json"), "--multiple", "2", "--epochs", "0")
        assert main(arguments("prune", model, data, out, *scan, "--left", "0.7")) == 0
        first = parameter_count(load(out).module)
        assert "scan: features.0 with" in spoken(capsys)
        assert main(arguments("prune", model, data, out, *scan, "--left", "0.4")) == 0
        assert "scan: features.0 with" not in spoken(capsys)
        assert parameter_count(load(out).module) < first

    def test_a_scan_of_another_network_is_refused(
        self, model: Path, data: Path, out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        scan = ("--scan", str(tmp_path / "scan.json"), "--multiple", "2", "--epochs", "0")
        assert main(arguments("prune", model, data, out, *scan)) == 0
        save(prunable_nets.network("tiny_cnn", 1, channels=[16, 32], image_size=8, num_classes=3), model)
        assert main(arguments("prune", model, data, out, *scan)) == 2
        assert "the sensitivity scan is of another network" in capsys.readouterr().err

    def test_single_weights_go_to_zero_and_stay_there_and_are_counted(
        self, model: Path, data: Path, out: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(arguments("prune", model, data, out, "--structure", "weights", "--sparsity", "0.75")) == 0
        assert sparsity(load(out).module) == pytest.approx(0.75, abs=0.01)
        assert not torch.equal(next(load(out).module.parameters()), next(load(model).module.parameters()))
        zeros = re.findall(r"^(\S+) +([\d,]+) +([\d,]+) +([\d.]+)$", spoken(capsys), re.MULTILINE)
        assert [name for name, *_ in zeros] == ["features.0", "features.4", "head", "all"]
        assert float(zeros[-1][3]) == pytest.approx(100 * sparsity(load(out).module), abs=0.05)

    @pytest.mark.parametrize(
        ("options", "complaint"),
        [
            (["--left", "1.5"], "option --left: expected a number above 0 and below 1, got 1.5"),
            (["--target", "weight"], 'expected "flops", "parameters", "latency" or "ratio"'),
            (["--keep", "feature.0"], 'no layer "feature.0"; did you mean "features.0"'),
            (["--left", "0.01"], "left; ask for more than that to be left, or let more be pruned"),
            (["--hold-out", "0"], "--hold-out 0 leaves nothing to measure on"),
            (["--structure", "weights", "--sparsity", "2"], "expected more than 0, less than 1"),
            (["--structure", "weights", "--keep", "heat"], 'no module "heat"; did you mean "head"'),
            (["--epochs", "-1"], "option --epochs: expected a number of at least 1"),
        ],
    )
    def test_what_cannot_be_ends_with_one_sentence_and_no_file(
        self, options: list[str], complaint: str, model: Path, data: Path, out: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(arguments("prune", model, data, out, *options)) == 2
        error = capsys.readouterr().err
        assert complaint in error
        assert error.count("\n") == 1
        assert not out.exists()


class TestFactorize:
    @pytest.mark.parametrize("method", [("--energy", "0.5"), ("--method", "depthwise-separable")])
    def test_the_file_has_thinner_layers(
        self, method: tuple[str, str], model: Path, data: Path, out: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(arguments("factorize", model, data, out, *method)) == 0
        assert parameter_count(load(out).module) < parameter_count(load(model).module)
        said = spoken(capsys)
        assert "relative error" in said
        assert "times the throughput" in said

    @pytest.mark.parametrize(
        ("options", "complaint"),
        [
            (["--method", "magic"], 'expected "low-rank" or "depthwise-separable"'),
            (["--energy", "0"], "expected a number above 0, at most 1"),
            (["--only", "heat"], 'no module "heat"; did you mean "head"'),
            (["--only", "normalise"], "it is a Normalise; expected Linear or Conv2d"),
        ],
    )
    def test_what_cannot_be_ends_with_one_sentence(
        self, options: list[str], complaint: str, model: Path, data: Path, out: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(arguments("factorize", model, data, out, *options)) == 2
        assert complaint in capsys.readouterr().err
        assert not out.exists()


class TestShareWeights:
    def test_the_file_is_smaller_and_the_command_says_by_how_much(
        self, model: Path, data: Path, out: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(arguments("share-weights", model, data, out, "--bits", "3")) == 0
        assert out.stat().st_size < 0.4 * model.stat().st_size
        said = spoken(capsys)
        assert "times smaller)" in said
        # No fewer parameters, as it computes with all of them; eight values of three bits in a layer.
        counted = re.findall(r"^(?:before|after): \S+ +\S+ +([\d,]+) ", said, re.MULTILINE)
        assert counted == [f"{parameter_count(load(model).module):,}"] * 2
        layers = re.findall(r"^(\S+) +[\d,]+ +(\d+) +([\d.]+) +[\d,]+ +[\d,]+ ", said, re.MULTILINE)
        assert [values for _, values, _ in layers] == ["8"] * len(layers)
        assert layers
        assert all(3 <= float(bits) < 12 for _, _, bits in layers)
        assert load(out).provenance.method == "share-weights"

    def test_bits_that_are_none_end_with_one_sentence(
        self, model: Path, data: Path, out: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(arguments("share-weights", model, data, out, "--bits", "9")) == 2
        assert "option --bits: expected a number from 1 to 8, got 9" in capsys.readouterr().err


class TestProfile:
    def test_it_shows_every_layer_and_writes_what_was_asked_for(
        self, model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        wanted = ["--trace", str(tmp_path / "t.json"), "--tensorboard", str(tmp_path / "events")]
        assert main(["profile", str(model), "--data", str(data), "--threads", "1", "--repeats", "2", *wanted]) == 0
        said = spoken(capsys)
        assert "features.0" in said
        assert "head cannot be pruned: its outputs are the network's outputs" in said
        assert (tmp_path / "t.json").stat().st_size > 1000
        assert list((tmp_path / "events").iterdir())

    def test_an_exported_program_needs_only_a_shape(
        self, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        torch.export.save(torch.export.export(load(model).module, (torch.rand(3, 1, 8, 8),)), tmp_path / "net.pt2")
        shape = ["--shape", "1,8,8", "--batch", "3"]
        assert main(["profile", str(tmp_path / "net.pt2"), *shape, "--threads", "1", "--repeats", "2"]) == 0
        assert "features.0" in spoken(capsys)

    @pytest.mark.parametrize(
        ("options", "complaint"),
        [
            ([], "give either --data"),
            (["--shape", "3,8,8"], "does not run on inputs"),
            (["--shape", "1,8,8", "--repeats", "0"], "expected at least 1"),
        ],
    )
    def test_what_cannot_be_ends_with_one_sentence(
        self, options: list[str], complaint: str, model: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["profile", str(model), *options, "--threads", "1"]) == 2
        assert complaint in capsys.readouterr().err
