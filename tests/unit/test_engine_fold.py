"""A convolution with its batch norm folded in must answer what the two answered one after the other."""

from __future__ import annotations

import pytest
import torch
from engine_models import convolutional, randomise
from offramp_server.workers.engines.fold import fold_batch_norms
from torch import nn

INPUT = torch.linspace(-1, 1, 2 * 4 * 8 * 8).reshape(2, 4, 8, 8)


def randomised(*layers: nn.Module) -> nn.Module:
    return randomise(nn.Sequential(*layers))


def folds(exported: torch.export.ExportedProgram, given: torch.Tensor) -> int:
    """How many batch norms were folded; asserts that the answer is the same and that no weight was written to."""
    before = {name: tensor.clone() for name, tensor in exported.state_dict.items()}
    module = exported.module()
    with torch.inference_mode():
        expected = exported.module()(given)
        count = fold_batch_norms(module)
        torch.testing.assert_close(module(given), expected, rtol=1e-5, atol=1e-5)
    assert all(torch.equal(exported.state_dict[name], tensor) for name, tensor in before.items())
    return count


@pytest.mark.parametrize(
    "layers",
    [
        (nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), nn.ReLU()),
        (nn.Conv2d(4, 6, 3, bias=False, padding="same"), nn.BatchNorm2d(6)),
        (nn.Conv2d(4, 8, 3, groups=4, stride=2), nn.BatchNorm2d(8, affine=False)),
        (nn.Flatten(2), nn.Conv1d(4, 6, 5), nn.BatchNorm1d(6)),
        (nn.Unflatten(1, (2, 2)), nn.Conv3d(2, 3, (1, 3, 3)), nn.BatchNorm3d(3)),
    ],
    ids=["bias", "no bias, padding by name", "groups, not affine", "1-d", "3-d"],
)
# torch's own decomposition copies a class that torch deprecates.
@pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")
@pytest.mark.parametrize("decomposed", [False, True], ids=["as exported", "core operators"])
def test_a_folded_convolution_answers_the_same(layers: tuple[nn.Module, ...], decomposed: bool) -> None:
    exported = torch.export.export(randomised(*layers), (INPUT,))
    assert folds(exported.run_decompositions() if decomposed else exported, INPUT) == 1


class SharedInput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.conv(x)
        z: torch.Tensor = self.norm(y)
        return y + z


@pytest.mark.parametrize(
    "model",
    [
        randomised(nn.ReLU(), nn.BatchNorm2d(4)),
        randomised(nn.ConvTranspose2d(4, 4, 3), nn.BatchNorm2d(4)),
        SharedInput(),
    ],
    ids=["no convolution", "transposed", "another reader"],
)
def test_what_cannot_be_folded_is_left_alone(model: nn.Module) -> None:
    assert folds(torch.export.export(model.eval(), (INPUT,)), INPUT) == 0


def test_the_constants_that_folding_made_useless_are_dropped() -> None:
    module = torch.export.export(convolutional(), (torch.zeros(2, 1, 8, 8),)).module()
    assert fold_batch_norms(module) == 1
    assert sorted(tensor.numel() for tensor in (*module.parameters(), *module.buffers())) == [3, 4, 12, 36]
