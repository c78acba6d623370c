"""Weights that share few values, in files that are smaller for it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import prunable_nets
import pytest
import torch
from data_sets import images
from offramp_compression.codebooks import apply_shared_weights, cluster, pack, unpack
from offramp_compression.errors import ModelError
from offramp_compression.export.publish import Target, export_network
from offramp_compression.model_file import load, save
from offramp_compression.modules import get_module, parameter_count
from offramp_compression.network import Network
from offramp_compression.pruning.masks import prune_weights, sparsity
from offramp_compression.recovery import recover
from offramp_compression.training.settings import TrainingSettings
from offramp_compression.weight_sharing import WeightSharing, expanded, share_weights
from sklearn.cluster import KMeans
from torch import Tensor, nn


def network() -> Network:
    return prunable_nets.network("tiny_cnn", channels=[16, 32], image_size=8, num_classes=3)


@torch.inference_mode()
def answers(found: Network) -> Tensor:
    answer: Tensor = found.module(torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0)))
    return answer


def values(found: Network, layer: str) -> Tensor:
    weight = get_module(found.module, layer).weight
    assert isinstance(weight, Tensor)
    distinct: Tensor = torch.unique(weight.detach())
    return distinct


def shared_layers(found: Network) -> list[str]:
    return list(found.blueprint.edits[-1].arguments["layers"])


class TestClustering:
    def test_it_is_k_means(self) -> None:
        weights = np.random.default_rng(0).normal(size=400)
        centres, positions = cluster(weights, 8)
        start = np.linspace(weights.min(), weights.max(), 8)[:, None]
        reference = KMeans(8, init=start, n_init=1, tol=0, max_iter=300).fit(weights[:, None])
        np.testing.assert_allclose(centres, np.sort(reference.cluster_centers_.ravel()), atol=1e-9)
        assert np.array_equal(positions, np.abs(weights[:, None] - centres).argmin(1))

    def test_few_values_are_found_exactly(self) -> None:
        weights = np.repeat([-2.0, 0.5, 3.0], [5, 1, 9])
        centres, positions = cluster(weights, 4)
        np.testing.assert_array_equal(centres[positions], weights)

    @pytest.mark.parametrize("bits", range(1, 9))
    def test_packed_positions_come_back(self, bits: int) -> None:
        positions = np.random.default_rng(0).integers(0, 2**bits, 123)
        packed = pack(positions, bits)
        assert len(packed) == -(-123 * bits // 8)
        assert np.array_equal(unpack(packed, bits, 123), positions)


class TestSharing:
    @pytest.mark.parametrize("bits", [1, 4, 5])
    def test_a_layer_has_two_to_the_bits_values(self, bits: int) -> None:
        shared = share_weights(network(), WeightSharing(bits)).network
        for layer in shared_layers(shared):
            assert len(values(shared, layer)) <= 2**bits

    def test_with_more_bits_the_weights_come_closer(self) -> None:
        rough, fine = (share_weights(network(), WeightSharing(bits)) for bits in (2, 6))
        for few, many in zip(rough.layers, fine.layers, strict=False):
            assert many.error < few.error / 4

    def test_the_file_is_smaller_and_the_network_comes_back_from_it(self, tmp_path: Path) -> None:
        before = network()
        shared = share_weights(before, WeightSharing(4))
        save(before, tmp_path / "before.safetensors")
        save(shared.network, tmp_path / "after.safetensors")
        again = load(tmp_path / "after.safetensors")
        assert torch.equal(answers(again), answers(shared.network))
        assert again.digest() == shared.network.digest()
        sizes = [(tmp_path / f"{name}.safetensors").stat().st_size for name in ("before", "after")]
        said = sum(each.bytes_before - each.bytes_after for each in shared.layers)
        # Headers differ by the names of the new tensors.
        assert sizes[0] - sizes[1] == pytest.approx(said, abs=1500)
        assert sizes[1] < 0.35 * sizes[0]

    def test_training_moves_the_values_and_leaves_the_positions(self) -> None:
        parent = network()
        shared = share_weights(parent, WeightSharing(3)).network
        before = {name: tensor.clone() for name, tensor in shared.module.state_dict().items()}
        settings = TrainingSettings(epochs=1, batch_size=10, learning_rate=1e-3, optimizer="adamw")
        after = recover(shared, images(40), settings, teacher=parent).network
        for name, tensor in after.module.state_dict().items():
            if name.endswith("packed"):
                assert torch.equal(tensor, before[name])
            if name.endswith("codebook"):
                assert not torch.equal(tensor, before[name])
        assert all(len(values(after, layer)) <= 8 for layer in shared_layers(after))

    def test_pruned_weights_stay_at_zero_through_training(self) -> None:
        pruned = prune_weights(network(), 0.6).network
        shared = share_weights(pruned, WeightSharing(3)).network
        assert sparsity_of(shared) == pytest.approx(sparsity(pruned.module))
        settings = TrainingSettings(epochs=1, batch_size=10, learning_rate=1e-3, optimizer="adamw")
        after = recover(shared, images(40), settings).network
        assert sparsity_of(after) == pytest.approx(sparsity(pruned.module))

    def test_written_out_it_answers_the_same_and_is_an_ordinary_network_again(self, tmp_path: Path) -> None:
        shared = share_weights(network(), WeightSharing(4)).network
        plain = expanded(shared)
        torch.testing.assert_close(answers(plain), answers(shared))
        assert plain.blueprint == network().blueprint
        assert type(get_module(plain.module, "head")) is nn.Linear
        save(plain, tmp_path / "plain.safetensors")
        assert torch.equal(answers(load(tmp_path / "plain.safetensors")), answers(plain))
        assert shared_layers(shared)

    def test_it_is_exported_with_its_weights_written_out(self, tmp_path: Path) -> None:
        shared = share_weights(network(), WeightSharing(4)).network
        pictures = (torch.rand(4, 1, 8, 8),)
        written = export_network(shared, pictures, Target(tmp_path, "net", "pt2"))
        assert written.parity.agreement == 1.0
        program = torch.export.load(written.file)
        assert sum(each.numel() for each in program.parameters()) == parameter_count(network().module)

    def test_small_and_kept_layers_stay_and_say_so(self) -> None:
        shared = share_weights(network(), WeightSharing(8, keep=("head",)))
        assert shared.kept["head"] == "it was asked to be kept"
        assert "its codebook would be larger than itself" in shared.kept.values()

    def test_a_network_that_would_not_get_smaller_is_refused(self) -> None:
        small = prunable_nets.network("tiny_cnn", channels=[2, 2], image_size=8, num_classes=3)
        with pytest.raises(ModelError, match=r"no layer would get smaller: .*codebook would be larger"):
            share_weights(small, WeightSharing(8))

    def test_a_layer_that_shares_already_is_left_alone(self) -> None:
        once = share_weights(network(), WeightSharing(4)).network
        with pytest.raises(ModelError, match=r"head: it is a SharedLayer|it does already"):
            share_weights(once, WeightSharing(3))

    def test_a_name_that_does_not_exist_is_refused(self) -> None:
        with pytest.raises(ModelError, match='no module "heap"; did you mean "head"'):
            share_weights(network(), WeightSharing(keep=("heap",)))

    @pytest.mark.parametrize("bits", [0, 9])
    def test_a_file_with_other_bits_is_refused(self, bits: int) -> None:
        with pytest.raises(ModelError, match="expected 1 to 8"):
            apply_shared_weights(nn.Sequential(nn.Linear(9, 9)), {"layers": {"0": {"bits": bits, "zero": False}}})

    def test_a_file_that_shares_what_has_no_weights_is_refused(self) -> None:
        with pytest.raises(ModelError, match="it is a ReLU; expected Linear or a convolution"):
            apply_shared_weights(nn.Sequential(nn.ReLU()), {"layers": {"0": {"bits": 2, "zero": False}}})


def sparsity_of(found: Network) -> float:
    return sparsity(expanded(found).module)
