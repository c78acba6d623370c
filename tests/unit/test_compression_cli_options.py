"""What the commands that make students have in common."""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from data_sets import images, write_mnist
from offramp_common.errors import ConfigurationError
from offramp_compression.blueprint import Blueprint
from offramp_compression.cli import options as cli
from offramp_compression.errors import DataError, ModelError
from offramp_compression.model_file import save
from offramp_compression.network import Network
from offramp_compression.provenance import Provenance
from offramp_server.cli.main import main


@pytest.fixture(autouse=True)
def unchanged_torch() -> Iterator[None]:
    threads = torch.get_num_threads()
    with torch.random.fork_rng(devices=[]):
        yield
    torch.set_num_threads(threads)


def parsed(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    cli.add_model_option(parser)
    cli.add_data_options(parser)
    cli.add_run_options(parser)
    return parser.parse_args(arguments)


class TestRunning:
    def test_torch_is_seeded_and_gets_its_threads(self) -> None:
        assert cli.prepare(parsed("m", "--data", "d", "--seed", "5", "--threads", "1")) == torch.device("cpu")
        drawn = torch.rand(3)
        torch.manual_seed(5)
        assert torch.equal(drawn, torch.rand(3))
        assert torch.get_num_threads() == 1

    @pytest.mark.parametrize(
        ("option", "value", "complaint"),
        [
            ("--threads", "0", "0 threads: expected at least 1"),
            ("--seed", "-1", "seed -1: expected 0 or more"),
            ("--device", "abacus", 'device "abacus" is not here; expected "cpu"'),
            ("--device", "cuda:99", 'device "cuda:99" is not here; expected "cpu"'),
        ],
    )
    def test_what_cannot_be_is_refused(self, option: str, value: str, complaint: str) -> None:
        with pytest.raises(ConfigurationError, match=complaint):
            cli.prepare(parsed("m", "--data", "d", f"{option}={value}"))


class TestOpening:
    def test_data_are_read_from_the_part_that_is_asked_for(self, tmp_path: Path) -> None:
        write_mnist(tmp_path, {"train": images(6), "t10k": images(4)})
        options = parsed("m", "--data", str(tmp_path), "--part", "test")
        assert (len(cli.open_data(options)), len(cli.open_data(options, "train"))) == (4, 6)

    def test_labels_are_counted_in_the_order_of_the_models_classes(self, tmp_path: Path) -> None:
        write_mnist(tmp_path, {"train": images(6)})
        (tmp_path / "labels.txt").write_text("bag\ncoat\nboot\n")
        options = parsed("m", "--data", str(tmp_path))
        assert cli.open_data(options, classes=("boot", "coat", "bag")).labels.tolist() == [2, 1, 0, 2, 1, 0]
        with pytest.raises(DataError, match='the model has no class "boot"'):
            cli.open_data(options, classes=("coat", "bag"))

    def test_a_model_of_foreign_code_is_read_once_its_package_is_trusted(self, tmp_path: Path) -> None:
        blueprint = Blueprint("torch.nn:Linear", {"in_features": 2, "out_features": 2})
        network = Network(blueprint.build(), blueprint, ("a", "b"), ("x",), ("logits",), Provenance("import"))
        save(network, tmp_path / "m.safetensors")
        with pytest.raises(ModelError, match="--trust torch"):
            cli.open_model(parsed(str(tmp_path / "m.safetensors"), "--data", "d"))
        trusting = parsed(str(tmp_path / "m.safetensors"), "--data", "d", "--trust", "torch")
        assert cli.open_model(trusting).class_names == ("a", "b")


class TestCommandLine:
    def test_torch_is_imported_by_no_command_before_it_runs(self) -> None:
        program = "import sys, offramp_server.cli.main as cli; cli.build_parser(); print('torch' in sys.modules)"
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == "False"

    def test_bad_input_ends_with_2_and_one_sentence(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["evaluate", "--data", "nowhere", "nowhere.safetensors"]) == 2
        errors = capsys.readouterr().err
        assert errors.startswith("offramp: error: nowhere")
        assert errors.count("\n") == 1
