"""Structured pruning from beginning to end."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import prunable_nets
import pytest
import torch
from data_sets import images
from offramp_compression.data.dataset import tensors
from offramp_compression.errors import ModelError
from offramp_compression.evaluation.flops import of_module
from offramp_compression.modules import get_module, parameter_count
from offramp_compression.network import Network
from offramp_compression.pruning.plan import ChannelPruning, Pruned, prune_channels
from offramp_compression.pruning.sensitivity import Scan
from offramp_compression.recovery import recover
from offramp_compression.resize import widths
from offramp_compression.training.settings import TrainingSettings

TRAIN, HELD_OUT = images(48), images(30, seed=8)
SETTINGS = ChannelPruning(multiple=2)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    # Small layers on several threads are slow where the machine is busy.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def network() -> Network:
    return prunable_nets.network("Grouped")


def pruned(settings: ChannelPruning, scanned: Scan | None = None) -> Pruned:
    return prune_channels(network(), TRAIN, HELD_OUT, settings, scanned=scanned)


@pytest.mark.parametrize("importance", ["magnitude", "taylor"])
def test_at_most_the_share_that_was_asked_for_is_left(importance: str) -> None:
    one = tensors(HELD_OUT.take(torch.arange(1).numpy()))
    flops = pruned(replace(SETTINGS, left=0.4, importance=importance))  # type: ignore[arg-type]
    assert of_module(flops.network.module, one) <= 0.4 * of_module(network().module, one)
    parameters = pruned(replace(SETTINGS, left=0.4, target="parameters"))
    assert parameter_count(parameters.network.module) <= 0.4 * parameter_count(network().module)


def test_with_a_ratio_every_group_loses_the_same_share_and_nothing_is_scanned() -> None:
    found = pruned(replace(SETTINGS, target="ratio", left=0.5))
    assert found.scan is None
    assert {group.name: (group.size, found.stay[group.name]) for group in found.channels.groups} == {
        "first": (4, 2), "depthwise": (6, 4), "hidden": (20, 10),
    }  # fmt: skip


def test_layers_that_are_to_be_kept_are() -> None:
    found = pruned(replace(SETTINGS, left=0.8, keep=("hidden",)))
    assert widths(get_module(found.network.module, "hidden"))["outputs"] == 20


def test_the_same_scan_serves_another_target() -> None:
    first = pruned(SETTINGS)
    again = pruned(replace(SETTINGS, left=0.3), first.scan)
    assert again.scan is first.scan
    assert parameter_count(again.network.module) < parameter_count(first.network.module)


def test_a_scan_of_another_importance_is_refused() -> None:
    with pytest.raises(ModelError, match="another importance"):
        pruned(replace(SETTINGS, importance="taylor"), pruned(SETTINGS).scan)


def test_a_network_of_which_nothing_can_go_is_refused_with_the_reasons() -> None:
    with pytest.raises(ModelError, match=r"no layer can be pruned: .*hidden: it was asked to be kept"):
        pruned(replace(SETTINGS, keep=("first", "depthwise", "hidden")))


def test_layers_that_are_too_narrow_for_the_multiple_are_refused() -> None:
    with pytest.raises(ModelError, match="no group has 64 channels to spare"):
        pruned(replace(SETTINGS, target="ratio", multiple=64))


def test_the_narrow_network_learns_from_the_one_that_it_was() -> None:
    parent, found = network(), pruned(SETTINGS)
    before = found.network.digest()
    settings = TrainingSettings(epochs=1, batch_size=16, learning_rate=0.01)
    child = recover(found.network, TRAIN, settings, teacher=parent).network
    assert child.digest() != before
    assert child.blueprint == found.network.blueprint
    assert child.provenance.parents == (parent.digest(),)
    assert child.provenance.settings["structure"] == "channels"
