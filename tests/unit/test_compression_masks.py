"""Single weights at zero, which stay there."""

from __future__ import annotations

from collections.abc import Iterator

import prunable_nets
import pytest
import torch
from data_sets import images
from offramp_compression.errors import ModelError
from offramp_compression.network import Network
from offramp_compression.pruning.masks import Scope, magnitude_masks, prune_weights, sparsity
from offramp_compression.recovery import recover
from offramp_compression.training.settings import Optimizer, TrainingSettings


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    # Small layers on several threads are slow where the machine is busy.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def network() -> Network:
    return prunable_nets.network("tiny_cnn", channels=[4, 8], image_size=8, num_classes=3)


class TestMagnitude:
    @pytest.mark.parametrize("scope", ["global", "layerwise"])
    def test_the_smallest_weights_go(self, scope: Scope) -> None:
        module = network().module
        masks = magnitude_masks(module, 0.6, scope)
        weights = {name: module.get_parameter(name).detach().abs() for name in masks}
        parts = [tuple(masks)] if scope == "global" else [(name,) for name in masks]
        for names in parts:
            stay = torch.cat([weights[name][masks[name]] for name in names])
            go = torch.cat([weights[name][~masks[name]] for name in names])
            assert len(go) == round(0.6 * (len(go) + len(stay)))
            assert go.max() <= stay.min()

    def test_biases_norms_and_kept_layers_stay_whole(self) -> None:
        before = network()
        (kept,) = [name for name, layer in before.module.named_modules() if isinstance(layer, torch.nn.Linear)]
        pruned = prune_weights(before, 0.9, keep=[kept]).network.module
        unchanged = {
            name
            for name, parameter in before.module.named_parameters()
            if torch.equal(parameter, pruned.get_parameter(name))
        }
        assert f"{kept}.weight" in unchanged
        assert all(name in unchanged for name, parameter in before.module.named_parameters() if parameter.dim() == 1)

    def test_the_network_it_is_made_of_stays_as_it_was(self) -> None:
        before = network()
        digest = before.digest()
        pruned = prune_weights(before, 0.5).network
        assert before.digest() == digest == pruned.provenance.parents[0]
        assert sparsity(pruned.module) == pytest.approx(0.5, abs=0.01)

    @pytest.mark.parametrize("share", [0.0, 1.0, -0.5, 90.0])
    def test_a_share_that_is_none_is_refused(self, share: float) -> None:
        with pytest.raises(ModelError, match="expected more than 0, less than 1"):
            prune_weights(network(), share)

    def test_a_layer_that_does_not_exist_is_refused(self) -> None:
        with pytest.raises(ModelError, match='no module "heat"; did you mean "head"'):
            prune_weights(network(), 0.5, keep=["heat"])


class TestRecovery:
    @pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
    def test_zeros_stay_zero_and_the_rest_learns(self, optimizer: Optimizer) -> None:
        pruned = prune_weights(network(), 0.7)
        before = {name: pruned.network.module.get_parameter(name).detach().clone() for name in pruned.masks}
        settings = TrainingSettings(epochs=2, batch_size=10, learning_rate=0.01, optimizer=optimizer, weight_decay=0.1)
        after = recover(pruned.network, images(40), settings, masks=pruned.masks).network
        for name, mask in pruned.masks.items():
            weight = after.module.get_parameter(name)
            assert torch.all(weight[~mask] == 0)
            assert not torch.equal(weight, before[name])

    def test_without_masks_they_would_not(self) -> None:
        pruned = prune_weights(network(), 0.7)
        settings = TrainingSettings(epochs=1, batch_size=10, learning_rate=0.01)
        after = recover(pruned.network, images(40), settings).network
        assert sparsity(after.module) < 0.5

    def test_the_provenance_tells_what_was_taken_out_and_how_it_recovered(self) -> None:
        parent = network()
        pruned = prune_weights(parent, 0.7)
        settings = TrainingSettings(epochs=1, batch_size=10, learning_rate=0.01)
        told = recover(pruned.network, images(40), settings, teacher=parent, masks=pruned.masks).network.provenance
        assert told.method == "prune"
        assert told.parents == (parent.digest(),)
        assert told.settings["sparsity"] == 0.7
        assert told.settings["recovery"]["objective"] == "distillation"
        assert told.data_digest == images(40).digest()
