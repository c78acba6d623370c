"""What the variants of torch-eager change, and that they answer like the program as exported."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from engine_models import AddSub, export_pt2, model_spec, randomise
from offramp_server.model_spec import ModelSpec
from offramp_server.workers.engines.kind import NotWorthTrying
from offramp_server.workers.engines.kinds.torch_models import CHANNELS_LAST, FOLDED
from offramp_server.workers.engines.torch_rewrite import rewritten_program
from torch import nn


@pytest.fixture(scope="module")
def exported() -> torch.export.ExportedProgram:
    # Two channels: with one, both memory layouts are the same.
    model = randomise(nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 6 * 6, 3)))
    shapes = ({0: torch.export.Dim("batch", min=1, max=16)},)
    return torch.export.export(model, (torch.zeros(2, 2, 8, 8),), dynamic_shapes=shapes)


@pytest.fixture(scope="module")
def spec() -> ModelSpec:
    return model_spec(Path("m.pt2"), ["x FP32 2 8 8"], ["scores FP32 3"])


@pytest.mark.parametrize(("variant", "relaid"), [(FOLDED, False), (CHANNELS_LAST, True)])
def test_a_variant_answers_like_the_program_as_exported(
    exported: torch.export.ExportedProgram, spec: ModelSpec, variant: str, relaid: bool
) -> None:
    batch = torch.randn(5, 2, 8, 8)
    [expected] = rewritten_program(exported, spec, "")([batch])
    program = rewritten_program(exported, spec, variant)
    torch.testing.assert_close(program([batch])[0], expected, rtol=1e-4, atol=1e-5)
    [weight] = [tensor for tensor in program.module.buffers() if tensor.dim() == 4]
    assert weight.is_contiguous(memory_format=torch.channels_last) is relaid


def test_a_program_with_nothing_to_rewrite_is_not_worth_trying(tmp_path: Path) -> None:
    path = export_pt2(tmp_path / "addsub.pt2", AddSub(), (torch.zeros(2, 4), torch.ones(2, 4)))
    spec = model_spec(path, ["a FP32 4", "b FP32 4"], ["p FP32 4", "m FP32 4"])
    for variant in (FOLDED, CHANNELS_LAST):
        with pytest.raises(NotWorthTrying, match=f"{variant} would change nothing"):
            rewritten_program(torch.export.load(path), spec, variant)
