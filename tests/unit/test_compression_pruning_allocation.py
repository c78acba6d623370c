"""Where channels are taken from: the scan, the costs, and how a target is met."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import prunable_nets
import pytest
import torch
from data_sets import images
from offramp_compression.data.dataset import Dataset, tensors
from offramp_compression.errors import ModelError
from offramp_compression.evaluation.flops import of_module
from offramp_compression.evaluation.predict import accuracy
from offramp_compression.modules import parameter_count
from offramp_compression.network import Network
from offramp_compression.pruning.allocation import Bounds, allocate, uniform
from offramp_compression.pruning.channels import ChannelGroup, Channels, kept
from offramp_compression.pruning.cost import Cost, Flops, Latency, Parameters, Widths, WidthTable
from offramp_compression.pruning.groups import find_channels
from offramp_compression.pruning.importance import by_magnitude, least
from offramp_compression.pruning.sensitivity import Point, Scan, scan, settle_norms
from offramp_compression.pruning.slicing import shrink
from torch import nn

IMAGES = (torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(1)),)
ANY = Bounds(multiple=1, least=0.01)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    # Small layers on several threads are slow where the machine is busy.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module", params=["Grouped", "Joined"])
def network(request: pytest.FixtureRequest) -> Network:
    return prunable_nets.network(request.param)


@pytest.fixture(scope="module")
def channels(network: Network) -> Channels:
    return find_channels(network.module, IMAGES)


def narrowed(network: Network, channels: Channels, stay: dict[str, int]) -> nn.Module:
    ranking = by_magnitude(network.module, channels.groups)
    return shrink(network.module, kept(channels.groups, least(ranking, stay)))[0]


def group(name: str, size: int) -> ChannelGroup:
    return ChannelGroup(name, size, ())


class Priced(Cost):
    """So much a unit."""

    quantity = "coins"

    def __init__(self, **prices: int) -> None:
        self._prices = prices

    def of(self, widths: Widths) -> float:
        return sum(price * widths.get(name, {}).get("outputs", 16) for name, price in self._prices.items())


class Named(WidthTable):
    """Groups whose only member is a module of their own name."""

    def __init__(self) -> None:
        super().__init__(nn.Module(), (), {})

    def of(self, stay: object) -> Widths:
        assert isinstance(stay, dict)
        return {name: {"outputs": count} for name, count in stay.items()}


def curve(*losses: float) -> list[Point]:
    """Of 16, 8 and 4 units."""
    return [Point(stay, 0.5, loss) for stay, loss in zip((16, 8, 4), losses, strict=True)]


class TestCost:
    def test_the_price_of_narrow_layers_is_that_of_the_narrow_network(
        self, network: Network, channels: Channels
    ) -> None:
        stay = {each.name: max(1, each.size // 2 - 1) for each in channels.groups}
        widths = WidthTable(network.module, channels.groups, by_magnitude(network.module, channels.groups)).of(stay)
        narrow = narrowed(network, channels, stay)
        assert Parameters(network.module).of(widths) == pytest.approx(parameter_count(narrow))
        assert Flops(network.module, IMAGES).of(widths) == pytest.approx(of_module(narrow, IMAGES) / 3)

    def test_without_a_change_it_is_that_of_the_whole_network(self, network: Network) -> None:
        assert Parameters(network.module).of({}) == parameter_count(network.module)
        assert Flops(network.module, IMAGES).of({}) == of_module(network.module, IMAGES) / 3

    def test_estimated_time_falls_with_the_work(self) -> None:
        whole = prunable_nets.network("resnet18", width=32, in_channels=1, num_classes=3)
        found = find_channels(whole.module, IMAGES)
        cost = Latency(whole.module, (torch.rand(8, 1, 16, 16),))
        table = WidthTable(whole.module, found.groups, by_magnitude(whole.module, found.groups))
        assert cost.of(table.of({each.name: each.size // 8 for each in found.groups})) < 0.7 * cost.of({})


class TestScan:
    def test_it_measures_what_the_narrow_network_is_worth(self, network: Network, channels: Channels) -> None:
        held_out = images(60)
        ranking = by_magnitude(network.module, channels.groups)
        heard: list[str] = []
        found = scan(
            network.module, channels, ranking, held_out,
            ratios=(0.5,), network="n", progress=lambda name, point: heard.append(name),
        )  # fmt: skip
        assert list(found.curves) == [each.name for each in channels.groups] == heard
        for each in channels.groups:
            whole, half = found.curves[each.name]
            assert (whole.stay, half.stay) == (each.size, each.size // 2)
            assert whole.accuracy == accuracy(network.module, held_out)
            assert half.accuracy == accuracy(narrowed(network, channels, {each.name: half.stay}), held_out)

    def test_it_comes_back_from_its_file(self, tmp_path: Path) -> None:
        before = Scan("n", "magnitude", {"a": (Point(4, 0.9, 0.1), Point(2, 0.8, 0.4))})
        before.save(tmp_path / "scan.json")
        assert Scan.load(tmp_path / "scan.json") == before

    @pytest.mark.parametrize("content", ["{", "[]", '{"network": "n", "curves": {"a": [{"stay": 1}]}}'])
    def test_a_file_that_is_no_scan_is_refused(self, tmp_path: Path, content: str) -> None:
        (tmp_path / "scan.json").write_text(content)
        with pytest.raises(ModelError, match="is not a sensitivity scan"):
            Scan.load(tmp_path / "scan.json")

    def test_settled_norms_have_the_statistics_of_the_data(self) -> None:
        module = nn.Sequential(nn.BatchNorm2d(1)).train()
        data = Dataset(
            (np.random.default_rng(0).normal(3, 2, (300, 1, 4, 4)).astype(np.float32),), np.zeros(300, int), ("a",)
        )
        settle_norms(module, data)
        (pixels,) = tensors(data)
        torch.testing.assert_close(module[0].running_mean, pixels.mean((0, 2, 3)), rtol=0.02, atol=0.02)
        torch.testing.assert_close(module[0].running_var, pixels.var((0, 2, 3)), rtol=0.05, atol=0.02)
        assert module[0].momentum == 0.1


class TestAllocation:
    def test_the_target_is_met(self, network: Network, channels: Channels) -> None:
        ranking = by_magnitude(network.module, channels.groups)
        curves = scan(network.module, channels, ranking, images(30), ratios=(0.5, 0.9)).curves
        table, cost = WidthTable(network.module, channels.groups, ranking), Flops(network.module, IMAGES)
        stay = allocate(channels.groups, curves, table, cost, 0.5, ANY)
        narrow = narrowed(network, channels, dict(stay))
        assert 0.2 < of_module(narrow, IMAGES) / of_module(network.module, IMAGES) <= 0.5

    def test_units_go_where_least_is_lost_for_what_is_saved(self) -> None:
        groups = [group("dear", 16), group("cheap", 16)]
        curves = {"dear": curve(0, 1.0, 2.0), "cheap": curve(0, 0.1, 0.2)}
        alike = allocate(groups, curves, Named(), Priced(dear=1, cheap=1), 0.8, ANY)
        assert alike["dear"] == 16 > alike["cheap"]
        # Twenty times the saving at ten times the loss.
        uneven = allocate(groups, curves, Named(), Priced(dear=20, cheap=1), 0.8, ANY)
        assert uneven["cheap"] == 16 > uneven["dear"]

    def test_a_rise_that_is_followed_by_a_plateau_is_seen_across(self) -> None:
        curves = {"a": curve(0, 1.0, 1.0), "b": curve(0, 0.7, 1.4)}
        stay = allocate([group("a", 16), group("b", 16)], curves, Named(), Priced(a=1, b=1), 0.7, ANY)
        assert stay == {"a": 6, "b": 16}

    def test_noise_that_says_fewer_channels_are_better_is_not_believed(self) -> None:
        curves = {"a": curve(0.5, 0.9, 0.1), "b": curve(0.5, 0.6, 0.7)}
        stay = allocate([group("a", 16), group("b", 16)], curves, Named(), Priced(a=1, b=1), 0.8, ANY)
        assert stay["a"] == 16

    def test_widths_are_multiples_and_the_least_share_stays(self) -> None:
        curves = {"a": [Point(100, 0.9, 0.0), Point(5, 0.9, 0.0)]}
        with pytest.raises(ModelError, match=r"0\.1 of the coins cannot be reached: .* 0\.32 is left"):
            allocate([group("a", 100)], curves, Named(), PricedHundred(), 0.1, Bounds(multiple=8, least=0.3))
        assert allocate([group("a", 100)], curves, Named(), PricedHundred(), 0.5, Bounds(8, 0.3)) == {"a": 48}

    @pytest.mark.parametrize("target", [0.0, 1.0, -1.0, 3.0])
    def test_a_target_that_is_no_share_is_refused(self, target: float) -> None:
        with pytest.raises(ModelError, match="expected more than 0, less than 1"):
            allocate([group("a", 16)], {"a": curve(0, 1, 2)}, Named(), Priced(a=1), target, ANY)

    def test_a_uniform_ratio_takes_the_same_share_of_each(self) -> None:
        assert uniform([group("a", 64), group("b", 16), group("c", 6)], 0.5, Bounds(8, 0.1)) == {
            "a": 32,
            "b": 8,
            "c": 6,
        }

    @pytest.mark.parametrize("ratio", [0.0, 1.0, 1.5])
    def test_a_ratio_that_is_none_is_refused(self, ratio: float) -> None:
        with pytest.raises(ModelError, match="expected more than 0 and less than 1"):
            uniform([group("a", 64)], ratio, ANY)


class PricedHundred(Cost):
    quantity = "coins"

    def of(self, widths: Widths) -> float:
        return widths.get("a", {}).get("outputs", 100)
