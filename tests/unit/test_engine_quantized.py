"""Programs with quantised layers, as PyTorch 2 export quantisation writes them, without torchao at the server."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

# Registers the operators for the export below; the server has to do so for itself.
import torch.ao.quantization.fx._decomposed
from engine_models import export_pt2, model_spec
from offramp_common.formats.pt2_archive import read_pt2
from offramp_server.workers.engines.load import load_engine
from open_inference.tensor import Tensor
from torch import nn

INPUTS, OUTPUTS = ["x FP32 2 8 8"], ["y FP32 4 8 8"]
SCALE, ZERO = 0.02, 3


class Quantized(nn.Module):
    """A convolution in integers: [N, 2, 8, 8] to [N, 4, 8, 8]."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.register_buffer("weight", torch.randint(-64, 64, (4, 2, 3, 3), generator=generator, dtype=torch.int8))
        self.register_buffer("scales", torch.tensor([0.01, 0.02, 0.03, 0.04]))
        self.register_buffer("zeros", torch.zeros(4, dtype=torch.int64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        ops = torch.ops.quantized_decomposed
        integers = ops.quantize_per_tensor(x, SCALE, ZERO, 0, 255, torch.uint8)
        values = ops.dequantize_per_tensor(integers, SCALE, ZERO, 0, 255, torch.uint8)
        weight = ops.dequantize_per_channel(self.weight, self.scales, self.zeros, 0, -128, 127, torch.int8)
        return nn.functional.conv2d(values, weight, padding=1)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return export_pt2(tmp_path / "quantized.pt2", Quantized(), (torch.zeros(2, 2, 8, 8),), batch=16)


def test_the_file_is_one_that_may_be_served(path: Path) -> None:
    (output,) = read_pt2(path).outputs
    assert (output.datatype, len(output.dimensions or ())) == ("FP32", 4)


def test_the_file_says_that_it_computes_in_integers_and_others_do_not(path: Path, tmp_path: Path) -> None:
    assert read_pt2(path).quantized
    plain = export_pt2(tmp_path / "plain.pt2", nn.Conv2d(2, 4, 3), (torch.zeros(2, 2, 8, 8),))
    assert not read_pt2(plain).quantized


@pytest.mark.parametrize("backend", ["auto", "torch-eager"])
def test_it_answers_as_it_did_where_it_was_written(path: Path, backend: str) -> None:
    rows = np.random.default_rng(0).random((3, 2, 8, 8), dtype=np.float32)
    engine = load_engine(model_spec(path, INPUTS, OUTPUTS, backend=backend), "cpu", 1)
    (answer,) = engine.execute([Tensor.from_numpy("x", rows)])
    with torch.no_grad():
        np.testing.assert_allclose(answer.numpy(), Quantized()(torch.from_numpy(rows)).numpy(), rtol=1e-4, atol=1e-5)


FRESH = """
import sys
from pathlib import Path
from engine_models import model_spec
from offramp_server.workers.engines.load import load_engine
load_engine(model_spec(Path(sys.argv[1]), ["x FP32 2 8 8"], ["y FP32 4 8 8"]), "cpu", 1)
assert "torchao" not in sys.modules
"""


def test_a_fresh_worker_knows_its_operators_without_torchao(path: Path) -> None:
    command = [sys.executable, "-c", FRESH, str(path)]
    subprocess.run(command, check=True, cwd=Path(__file__).parent)


@pytest.mark.timeout(540)
@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
def test_torch_compile_computes_it_in_integers_with_the_same_answers(path: Path) -> None:
    spec = model_spec(path, INPUTS, OUTPUTS, 4, backend="torch-compile")
    engine = load_engine(spec, "cpu", 1)
    rows = np.random.default_rng(0).random((3, 2, 8, 8), dtype=np.float32)
    with torch.no_grad():
        expected = Quantized()(torch.from_numpy(rows)).numpy()
    for items in (1, 3):
        (answer,) = engine.execute([Tensor.from_numpy("x", rows[:items])])
        np.testing.assert_allclose(answer.numpy(), expected[:items], rtol=1e-3, atol=1e-3)
