"""`auto` may change how a program computes only if it answers the same, and only if that is worth it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from engine_models import AddSub, export_pt2, model_spec, randomise
from offramp_server.errors import LoadError
from offramp_server.model_spec import ModelSpec
from offramp_server.workers.engines import torch_select
from offramp_server.workers.engines.fold import fold_batch_norms
from offramp_server.workers.engines.program import Program
from offramp_server.workers.engines.torch_select import choose_program
from torch import nn

FOLDED = "batch norms folded"
RELAID = "batch norms folded, channels last"


@pytest.fixture(scope="module")
def exported() -> torch.export.ExportedProgram:
    # Two channels: with one, both memory layouts are the same.
    model = randomise(nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 6 * 6, 3)))
    shapes = ({0: torch.export.Dim("batch", min=1, max=16)},)
    return torch.export.export(model, (torch.zeros(2, 2, 8, 8),), dynamic_shapes=shapes)


@pytest.fixture(scope="module")
def spec() -> ModelSpec:
    return model_spec(Path("m.pt2"), ["x FP32 2 8 8"], ["scores FP32 3"])


class Stopwatch:
    """Says how long each program took, by what it is made of."""

    def __init__(self, **seconds: float) -> None:
        self.seconds = seconds

    def __call__(self, program: Program, batch: list[torch.Tensor]) -> float:
        weights = [tensor for tensor in program.module.buffers() if tensor.dim() == 4]
        relaid = any(not tensor.is_contiguous() for tensor in weights)
        folded = any("folded" in name for name, _ in program.module.named_buffers())
        return self.seconds["relaid" if relaid else "folded" if folded else "exported"]


@pytest.mark.parametrize(
    ("seconds", "name", "reason"),
    [
        ({"exported": 4, "folded": 3, "relaid": 2}, RELAID, "takes 0.50 of the time of the program as exported"),
        ({"exported": 4, "folded": 2, "relaid": 3}, FOLDED, "takes 0.50 of the time of the program as exported"),
        ({"exported": 4, "folded": 3.9, "relaid": 4.1}, "as exported", "no rewriting is much faster"),
    ],
)
def test_the_fastest_is_chosen_if_the_difference_is_more_than_noise(
    exported: torch.export.ExportedProgram,
    spec: ModelSpec,
    monkeypatch: pytest.MonkeyPatch,
    seconds: dict[str, float],
    name: str,
    reason: str,
) -> None:
    monkeypatch.setattr(torch_select, "_timed", Stopwatch(**seconds))
    choice = choose_program(exported, spec)
    assert name in choice.reason
    assert reason in choice.reason
    assert choice.measured == {"as exported": seconds["exported"], FOLDED: seconds["folded"], RELAID: seconds["relaid"]}


def test_a_rewriting_that_answers_otherwise_is_never_chosen(
    exported: torch.export.ExportedProgram, spec: ModelSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fold_wrongly(module: torch.fx.GraphModule) -> int:
        folded = fold_batch_norms(module)
        for name, tensor in list(module.named_buffers()):
            if name.endswith("_bias"):
                setattr(module, name, tensor + 0.01)
        return folded

    monkeypatch.setattr(torch_select, "fold_batch_norms", fold_wrongly)
    choice = choose_program(exported, spec)
    assert set(choice.measured) == {"as exported"}
    assert choice.reason.startswith("auto: as exported")


def test_a_program_without_convolutions_is_not_timed(tmp_path: Path) -> None:
    path = export_pt2(tmp_path / "addsub.pt2", AddSub(), (torch.zeros(2, 4), torch.ones(2, 4)))
    spec = model_spec(path, ["a FP32 4", "b FP32 4"], ["p FP32 4", "m FP32 4"])
    choice = choose_program(torch.export.load(path), spec)
    assert (choice.measured, choice.reason) == ({}, "auto: as exported, nothing to rewrite")


def test_a_program_that_cannot_run_what_the_spec_says_is_refused(exported: torch.export.ExportedProgram) -> None:
    spec = model_spec(Path("m.pt2"), ["x FP32 2 9 9"], ["scores FP32 3"])
    with pytest.raises(LoadError, match='model "m": a trial run failed: '):
        choose_program(exported, spec)
