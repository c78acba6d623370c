"""What is said of the cost of a quantised file."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from offramp_compression.evaluation import flops
from offramp_compression.evaluation.subject import full_batch, open_subject
from offramp_compression.export.formats import Format
from offramp_compression.quantization.quantize import quantize
from quantization_fakes import bands, trained
from torch import from_numpy


@pytest.mark.parametrize("format", ["onnx", "pt2"])
def test_a_quantised_file_has_the_operations_of_the_network_and_makes_no_parameters_up(
    format: Format, tmp_path: Path
) -> None:
    path = tmp_path / f"model.{format}"
    quantize(trained(), bands(), format).model.write(path)
    arrays = full_batch(bands(), 1)
    found = open_subject(path)
    assert found.flops(arrays) == flops.of_module(trained().module, [from_numpy(each) for each in arrays])
    assert found.parameters is None


def test_a_quantised_onnx_file_is_what_its_format_wants(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    quantize(trained(), bands(), "onnx").model.write(path)
    onnx.checker.check_model(path)
