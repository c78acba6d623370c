"""Layers as products of smaller ones."""

from __future__ import annotations

from pathlib import Path

import prunable_nets
import pytest
import torch
from offramp_compression.errors import ModelError
from offramp_compression.factorization.depthwise import apply_depthwise_separable, fill_depthwise_separable
from offramp_compression.factorization.factorize import Factorization, factorize
from offramp_compression.factorization.low_rank import apply_low_rank, fill_low_rank, full_rank
from offramp_compression.model_file import load, save
from offramp_compression.modules import get_module, parameter_count
from torch import Tensor, nn

PICTURES = torch.randn(2, 6, 9, 9, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def low_rank(layer: nn.Module, rank: int) -> nn.Module:
    found = apply_low_rank(nn.Sequential(layer), {"ranks": {"0": rank}}).get_submodule("0")
    fill_low_rank(found, layer)
    return found


def separable(layer: nn.Module, filters: int) -> nn.Module:
    found = apply_depthwise_separable(nn.Sequential(layer), {"multipliers": {"0": filters}}).get_submodule("0")
    fill_depthwise_separable(found, layer)
    return found


def assert_same(first: nn.Module, second: nn.Module, inputs: Tensor) -> None:
    with torch.inference_mode():
        torch.testing.assert_close(first(inputs), second(inputs), rtol=1e-4, atol=1e-5)


CONVOLUTIONS = [
    nn.Conv2d(6, 10, 3, padding=1),
    nn.Conv2d(6, 10, (3, 5), stride=2, padding=(0, 2), bias=False),
    nn.Conv2d(6, 4, 3, dilation=2, padding=2, padding_mode="reflect"),
]


class TestLowRank:
    @pytest.mark.parametrize("layer", [*CONVOLUTIONS, nn.Conv2d(6, 10, 1, stride=2)])
    def test_at_full_rank_a_convolution_answers_as_before(self, layer: nn.Conv2d) -> None:
        assert_same(low_rank(layer, full_rank(layer)), layer, PICTURES)

    @pytest.mark.parametrize("bias", [True, False])
    def test_at_full_rank_a_linear_layer_answers_as_before(self, bias: bool) -> None:
        layer = nn.Linear(7, 12, bias=bias)
        assert_same(low_rank(layer, 7), layer, torch.randn(3, 5, 7))

    def test_no_weights_of_that_rank_come_closer(self) -> None:
        layer = nn.Linear(8, 8, bias=False)
        pair = low_rank(layer, 3)
        product = pair.get_parameter("expand.weight") @ pair.get_parameter("reduce.weight")
        left_out = torch.linalg.svdvals(layer.weight.detach())[3:]
        assert (product - layer.weight).norm().item() == pytest.approx(left_out.norm().item(), rel=1e-4)

    @pytest.mark.parametrize("rank", [0, 8, -1, 2.5, True is None])
    def test_a_rank_that_the_layer_cannot_have_is_refused(self, rank: object) -> None:
        with pytest.raises(ModelError, match="expected 1 to 7"):
            apply_low_rank(nn.Sequential(nn.Linear(7, 12)), {"ranks": {"0": rank}})

    @pytest.mark.parametrize(
        ("layer", "reason"),
        [(nn.ReLU(), "it is a ReLU; expected Linear or Conv2d"), (nn.Conv2d(4, 4, 3, groups=2), "with 2 groups")],
    )
    def test_a_layer_that_has_no_rank_says_why(self, layer: nn.Module, reason: str) -> None:
        with pytest.raises(ModelError, match=reason):
            apply_low_rank(nn.Sequential(layer), {"ranks": {"0": 1}})


class TestDepthwiseSeparable:
    @pytest.mark.parametrize("layer", CONVOLUTIONS)
    def test_with_as_many_filters_as_it_takes_it_answers_as_before(self, layer: nn.Conv2d) -> None:
        filters = min(layer.out_channels, layer.kernel_size[0] * layer.kernel_size[1])
        assert_same(separable(layer, filters), layer, PICTURES)

    def test_a_convolution_that_is_separable_is_found_out(self) -> None:
        layer = nn.Conv2d(6, 10, 3, padding=1)
        with torch.no_grad():
            layer.weight.copy_(torch.randn(10, 6, 1, 1) * torch.randn(1, 6, 3, 3))
        assert_same(separable(layer, 1), layer, PICTURES)

    def test_no_single_filter_for_a_channel_comes_closer(self) -> None:
        layer = nn.Conv2d(1, 9, 3, bias=False)
        pair = separable(layer, 1)
        product = pair.get_parameter("pointwise.weight").flatten(1) @ pair.get_parameter("depthwise.weight").flatten(1)
        left_out = torch.linalg.svdvals(layer.weight.detach().flatten(1))[1:]
        assert (product - layer.weight.flatten(1)).norm().item() == pytest.approx(left_out.norm().item(), rel=1e-4)

    @pytest.mark.parametrize("filters", [0, 10, 1.5])
    def test_a_number_of_filters_that_it_cannot_have_is_refused(self, filters: object) -> None:
        with pytest.raises(ModelError, match="expected 1 to 9"):
            apply_depthwise_separable(nn.Sequential(nn.Conv2d(4, 16, 3)), {"multipliers": {"0": filters}})

    @pytest.mark.parametrize(
        ("layer", "reason"),
        [
            (nn.Linear(4, 4), "it is a Linear; expected Conv2d"),
            (nn.Conv2d(4, 4, 3, groups=4), "with 4 groups"),
            (nn.Conv2d(4, 4, 1), "its filters are 1x1"),
        ],
    )
    def test_a_layer_that_cannot_be_separated_says_why(self, layer: nn.Module, reason: str) -> None:
        with pytest.raises(ModelError, match=reason):
            apply_depthwise_separable(nn.Sequential(layer), {"multipliers": {"0": 1}})


class TestNetworks:
    @pytest.mark.parametrize("settings", [Factorization(energy=0.5), Factorization("depthwise-separable")])
    def test_a_factorised_network_is_smaller_and_comes_back_from_its_file(
        self, settings: Factorization, tmp_path: Path
    ) -> None:
        wide = prunable_nets.resnet()
        made = factorize(wide, settings)
        assert parameter_count(made.network.module) < 0.7 * parameter_count(wide.module)
        for each in made.factors:
            assert each.after == parameter_count(get_module(made.network.module, each.layer)) < each.before
            assert 0 < each.error < 1
        save(made.network, tmp_path / "thin.safetensors")
        again = load(tmp_path / "thin.safetensors")
        assert again.digest() == made.network.digest()
        pictures = torch.rand(2, 1, 8, 8)
        with torch.inference_mode():
            assert torch.equal(again.module(pictures), made.network.module(pictures))
        assert again.provenance.method == "factorize"

    def test_more_energy_means_more_rank_and_less_error(self) -> None:
        wide = prunable_nets.resnet()
        rough, fine = (
            factorize(wide, Factorization(energy=energy, only=("stages.3.1.conv2",))) for energy in (0.5, 0.8)
        )
        assert rough.factors[0].size < fine.factors[0].size
        assert rough.factors[0].error > fine.factors[0].error
        # What is left out of the energy is the square of the error.
        assert fine.factors[0].error ** 2 <= 0.2

    def test_layers_that_would_not_get_smaller_stay_and_say_so(self) -> None:
        made = factorize(prunable_nets.resnet(), Factorization(energy=0.8, keep=("stages.3.1.conv2",)))
        assert made.kept["stages.3.1.conv2"] == "it was asked to be kept"
        assert made.kept["head"] == "it would not get smaller"

    def test_only_what_was_asked_for_changes(self) -> None:
        wide = prunable_nets.resnet()
        made = factorize(wide, Factorization(energy=0.5, only=("stages.3.1.conv2",)))
        assert [each.layer for each in made.factors] == ["stages.3.1.conv2"]
        assert torch.equal(
            get_module(made.network.module, "stages.3.1.conv1").get_parameter("weight"),
            get_module(wide.module, "stages.3.1.conv1").get_parameter("weight"),
        )

    def test_a_network_that_would_not_get_smaller_is_refused_with_the_reasons(self) -> None:
        with pytest.raises(ModelError, match=r"no layer would get smaller: stem\.0: it would not get smaller"):
            factorize(prunable_nets.resnet(), Factorization(energy=1.0))

    def test_a_layer_that_cannot_be_factorised_is_refused_if_it_was_asked_for(self) -> None:
        with pytest.raises(ModelError, match=r'"stem\.1" cannot be factorised: it is a BatchNorm2d'):
            factorize(prunable_nets.resnet(), Factorization(only=("stem.1",)))

    def test_a_name_that_does_not_exist_is_refused(self) -> None:
        with pytest.raises(ModelError, match='no module "heads"; did you mean "head"'):
            factorize(prunable_nets.resnet(), Factorization(only=("heads",)))
