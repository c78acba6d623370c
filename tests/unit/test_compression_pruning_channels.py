"""Channels that can be taken out of a network, what taking them out does, and those that cannot."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import prunable_nets
import pytest
import torch
from data_sets import images
from offramp_compression.data.batches import Batches
from offramp_compression.errors import ModelError
from offramp_compression.model_file import load, save
from offramp_compression.modules import get_module, parameter_count
from offramp_compression.network import Network
from offramp_compression.pruning.channels import Channels, Removed, kept
from offramp_compression.pruning.groups import find_channels
from offramp_compression.pruning.importance import by_magnitude, by_taylor, least
from offramp_compression.pruning.slicing import silence
from offramp_compression.pruning.structured import take_out
from offramp_compression.resize import widths
from torch import Tensor

IMAGES = (torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(1)),)


def channels_of(network: Network) -> Channels:
    return find_channels(network.module, IMAGES)


def half_of_all(channels: Channels) -> Removed:
    random = np.random.default_rng(0)
    return {group.name: random.permutation(group.size)[: group.size // 2] for group in channels.groups}


@torch.inference_mode()
def answers(network: Network) -> Tensor:
    found: Tensor = network.module(*IMAGES)
    return found


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    # Small layers on several threads are slow where the machine is busy.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def fixed() -> dict[str, str]:
    return dict(channels_of(prunable_nets.network("Stubborn")).fixed)


@pytest.fixture(scope="module")
def of_resnet() -> Channels:
    return channels_of(prunable_nets.resnet())


class TestTakingOut:
    @pytest.mark.parametrize("architecture", ["resnet", "Grouped", "Joined"])
    def test_the_narrow_network_answers_as_the_wide_one_with_those_channels_at_zero(self, architecture: str) -> None:
        wide = prunable_nets.resnet() if architecture == "resnet" else prunable_nets.network(architecture)
        channels = channels_of(wide)
        removed = half_of_all(channels)
        narrow = take_out(wide, channels, removed, {})
        with torch.inference_mode():
            silent = silence(wide.module, kept(channels.groups, removed))(*IMAGES)
        torch.testing.assert_close(answers(narrow), silent, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(answers(narrow), answers(wide), atol=1e-3)
        assert parameter_count(narrow.module) < 0.6 * parameter_count(wide.module)

    def test_a_residual_stream_gets_narrower_in_every_layer_that_it_runs_through(self, of_resnet: Channels) -> None:
        wide = prunable_nets.resnet()
        channels = of_resnet
        narrow = take_out(wide, channels, {"stem.0": np.arange(3)}, {}).module
        for name in ("stem.0", "stages.0.0.conv2", "stages.0.1.conv2"):
            assert widths(get_module(narrow, name))["outputs"] == 5
        for name in ("stages.0.0.conv1", "stages.0.1.conv1", "stages.1.0.conv1", "stages.1.0.shortcut.0"):
            assert widths(get_module(narrow, name))["inputs"] == 5
        assert widths(get_module(narrow, "stages.0.0.conv1"))["outputs"] == 8

    def test_a_grouped_convolution_loses_as_many_channels_in_each_group(self) -> None:
        wide = prunable_nets.network("Grouped")
        channels = channels_of(wide)
        sizes = {group.name: group.size for group in channels.groups}
        assert (sizes["first"], sizes["hidden"]) == (4, 20)
        narrow = take_out(wide, channels, {"first": np.array([1])}, {}).module
        assert widths(get_module(narrow, "grouped")) == {"inputs": 12, "outputs": 24, "groups": 4}

    def test_a_depthwise_convolution_keeps_one_filter_for_each_channel(self) -> None:
        wide = prunable_nets.network("Grouped")
        channels = channels_of(wide)
        (name,) = [group.name for group in channels.groups if group.size == 6]
        narrow = take_out(wide, channels, {name: np.array([0, 5])}, {}).module
        assert widths(get_module(narrow, "depthwise")) == {"inputs": 16, "outputs": 16, "groups": 16}
        assert widths(get_module(narrow, "hidden"))["inputs"] == 16 * 16

    def test_the_wide_network_stays_as_it_was(self, of_resnet: Channels) -> None:
        wide = prunable_nets.resnet()
        before = wide.digest()
        channels = of_resnet
        take_out(wide, channels, half_of_all(channels), {})
        assert wide.digest() == before
        assert all(parameter.grad is None for parameter in wide.module.parameters())

    def test_the_narrow_network_comes_back_from_its_file_bit_by_bit(self, of_resnet: Channels, tmp_path: Path) -> None:
        wide = prunable_nets.resnet()
        channels = of_resnet
        narrow = take_out(wide, channels, half_of_all(channels), {"ratio": 0.5})
        save(narrow, tmp_path / "narrow.safetensors")
        again = load(tmp_path / "narrow.safetensors")
        assert again.digest() == narrow.digest()
        assert torch.equal(answers(again), answers(narrow))
        assert again.provenance.parents == (wide.digest(),)
        assert again.provenance.settings == {"ratio": 0.5}

    def test_a_narrow_network_can_be_pruned_again(self) -> None:
        once = prunable_nets.resnet()
        for _ in range(2):
            channels = channels_of(once)
            once = take_out(once, channels, {"stem.0": np.array([0])}, {})
        assert widths(get_module(once.module, "stem.0"))["outputs"] == 6
        again = once.blueprint.build()
        again.load_state_dict(once.module.state_dict())


class TestWhatCannotBePruned:
    @pytest.mark.parametrize(
        ("layer", "reason"),
        [
            ("normed", 'tied to "group_norm", a GroupNorm, whose width cannot be changed'),
            ("sized", "does not run with fewer channels there"),
            ("scaled", "a parameter that belongs to no layer"),
            ("coupled", "all its channels depend on one another"),
            ("unused", "the network does not use it"),
            ("head", "the network's outputs"),
        ],
    )
    def test_it_says_why(self, fixed: dict[str, str], layer: str, reason: str) -> None:
        assert reason in fixed[layer]

    def test_the_rest_can(self, fixed: dict[str, str]) -> None:
        assert "free" not in fixed

    def test_a_layer_that_cannot_be_pruned_is_refused_with_the_reason(self, of_resnet: Channels) -> None:
        network = prunable_nets.resnet()
        with pytest.raises(ModelError, match='layer "head" cannot be pruned: its outputs are the network\'s outputs'):
            take_out(network, of_resnet, {"head": np.array([0])}, {})

    def test_a_layer_that_does_not_exist_is_refused_with_the_nearest_name(self, of_resnet: Channels) -> None:
        network = prunable_nets.resnet()
        with pytest.raises(ModelError, match=r'"stem\.1x"; did you mean "stem\.0"'):
            take_out(network, of_resnet, {"stem.1x": np.array([0])}, {})

    def test_something_of_each_group_must_be_left(self, of_resnet: Channels) -> None:
        network = prunable_nets.resnet()
        with pytest.raises(ModelError, match=r"all 8 units .* keep at least one"):
            take_out(network, of_resnet, {"stem.0": np.arange(8)}, {})

    def test_units_beyond_the_group_are_refused(self, of_resnet: Channels) -> None:
        network = prunable_nets.resnet()
        with pytest.raises(ModelError, match="units 0 to 7, not 8 to 8"):
            take_out(network, of_resnet, {"stem.0": np.array([8])}, {})

    def test_inputs_that_the_network_does_not_take_are_refused(self) -> None:
        with pytest.raises(ModelError, match="does not run on inputs float32"):
            find_channels(prunable_nets.resnet().module, (torch.rand(2, 3, 8, 8),))


class TestKeeping:
    def test_groups_that_run_through_a_kept_layer_are_spared(self, of_resnet: Channels) -> None:
        channels = of_resnet
        rest = channels.without(["stages.0.1.conv2"])
        assert {group.name for group in channels.groups} - {group.name for group in rest.groups} == {"stem.0"}
        assert rest.fixed["stages.0.0.conv2"] == "it was asked to be kept"

    def test_a_name_that_does_not_exist_is_refused(self, of_resnet: Channels) -> None:
        with pytest.raises(ModelError, match=r'no layer "stem\.9"; did you mean'):
            of_resnet.without(["stem.9"])


class TestImportance:
    def test_magnitude_ranks_channels_with_small_weights_lowest(self, of_resnet: Channels) -> None:
        network = prunable_nets.resnet()
        channels = of_resnet
        with torch.no_grad():
            for parameter in ("stages.0.0.conv1.weight", "stages.0.0.norm1.weight"):
                network.module.get_parameter(parameter)[[2, 6]] *= 1e-3
        ranking = by_magnitude(network.module, channels.groups)
        assert set(ranking["stages.0.0.conv1"][:2]) == {2, 6}
        assert all(sorted(ranking[group.name]) == list(range(group.size)) for group in channels.groups)

    def test_taylor_ranks_channels_lowest_that_the_loss_does_not_feel(self, of_resnet: Channels) -> None:
        network = prunable_nets.resnet()
        channels = of_resnet
        with torch.no_grad():
            # Large weights, which nothing listens to.
            network.module.get_parameter("stages.0.0.conv2.weight")[:, [1, 4]] = 0
            network.module.get_parameter("stages.0.0.conv1.weight")[[1, 4]] *= 10
            # No channel is cut off by its ReLU.
            network.module.get_parameter("stages.0.0.norm1.bias").fill_(2.0)
        ranking = by_taylor(network.module, channels.groups, Batches(images(24), 8, 0), steps=3)
        assert set(ranking["stages.0.0.conv1"][:2]) == {1, 4}
        assert all(parameter.grad is None for parameter in network.module.parameters())

    def test_the_least_important_go(self) -> None:
        assert {name: list(units) for name, units in least({"a": np.array([2, 0, 1])}, {"a": 1}).items()} == {
            "a": [2, 0]
        }
