"""What a user of `fine_tune` relies on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from offramp_common.errors import ConfigurationError
from offramp_compression.architectures import ARCHITECTURES
from offramp_compression.blueprint import Edit
from offramp_compression.data.dataset import Dataset
from offramp_compression.errors import CheckpointError, ModelError
from offramp_compression.evaluation.predict import predict
from offramp_compression.finetune import fine_tune, with_classes
from offramp_compression.freezing import blocks, freeze
from offramp_compression.model_file import load, save
from offramp_compression.network import Network
from offramp_compression.new_network import new_network
from offramp_compression.training.settings import TrainingSettings
from torch import nn
from training_fakes import pictures, weights

TRAINING = TrainingSettings(epochs=2, batch_size=16, learning_rate=0.05, threads=1)
NEWER = pictures(96, seed=4)


def served(seed: int = 0, **arguments: Any) -> Network:
    arguments = {"sizes": [4, 6, 8], "pools": 1, **arguments}
    return new_network("plain_cnn", arguments, pictures(), seed)


def other_classes(*names: str) -> Dataset:
    labels = np.arange(len(NEWER), dtype=np.int64) % len(names)
    return Dataset(NEWER.inputs, labels, names)


def test_a_served_network_goes_on_from_newer_data_and_stays_as_it_was() -> None:
    parent = served()
    before = weights(parent.module)
    learnt = fine_tune(parent, NEWER, replace(TRAINING, epochs=12), validate=pictures(40, seed=1))
    data = pictures(200, seed=6)
    assert _accuracy(learnt.network, data) > _accuracy(parent, data) + 0.2
    assert weights(parent.module) == before


def test_the_provenance_names_the_parent_and_the_data() -> None:
    parent = served()
    provenance = fine_tune(parent, NEWER, TRAINING, train="top:1").network.provenance
    assert provenance.method == "fine-tune"
    assert provenance.parents == (parent.digest(),)
    assert provenance.data_digest == NEWER.digest()
    assert provenance.settings["train"] == "top:1"


@pytest.mark.parametrize(
    ("policy", "trained"),
    [
        ("head", {"head"}),
        ("top:1", {"head", "blocks.2"}),
        ("top:2", {"head", "blocks.1", "blocks.2"}),
        ("all", {"head", "blocks.0", "blocks.1", "blocks.2"}),
    ],
)
def test_only_what_the_policy_names_changes(policy: str, trained: set[str]) -> None:
    parent = served()
    child = fine_tune(parent, NEWER, TRAINING, train=policy).network
    before, after = weights(parent.module), weights(child.module)
    # Running figures of a BatchNorm are among the names.
    changed = {
        ".".join(name.split(".")[: 1 + name.startswith("blocks")]) for name in before if before[name] != after[name]
    }
    assert changed == trained
    assert all(parameter.requires_grad for parameter in child.module.parameters())


@pytest.mark.parametrize("policy", ["top:0", "top:x", "some", ""])
def test_a_policy_that_does_not_exist_is_refused(policy: str) -> None:
    with pytest.raises(ConfigurationError, match='expected "head", "top:N" for the last N blocks, or "all"'):
        fine_tune(served(), NEWER, TRAINING, train=policy)


def test_more_blocks_than_there_are_cannot_be_trained() -> None:
    with pytest.raises(ConfigurationError, match=r"the network has 3 blocks, blocks\.0, blocks\.1, blocks\.2"):
        fine_tune(served(), NEWER, TRAINING, train="top:4")


def test_the_blocks_of_a_resnet_are_its_stem_its_residual_blocks_and_its_head() -> None:
    stages = [f"stages.{stage}.{block}" for stage in range(4) for block in range(2)]
    assert blocks(ARCHITECTURES["resnet18"](width=4)) == ["stem", *stages, "head"]


def test_the_blocks_of_a_transformer_are_its_embeddings_its_layers_and_its_head() -> None:
    module = ARCHITECTURES["minilm"](num_classes=2, vocabulary=10, width=8, layers=3, heads=2, inner=8, positions=8)
    assert blocks(module) == ["encoder.embeddings", *(f"encoder.layers.{number}" for number in range(3)), "head"]


def test_freezing_again_forgets_what_was_frozen_before() -> None:
    module = served().module
    freeze(module, "head", "head")
    freeze(module, "all", "head")
    assert all(parameter.requires_grad for parameter in module.parameters())


def test_other_classes_get_another_head_that_learns() -> None:
    child = fine_tune(served(), other_classes("a", "b", "c", "d"), TRAINING).network
    assert child.class_names == ("a", "b", "c", "d")
    assert predict(child.module, pictures(8)).shape == (8, 4)


def test_a_network_with_another_head_comes_back_from_its_file(tmp_path: Path) -> None:
    child = fine_tune(served(), other_classes("a", "b", "c", "d"), TRAINING).network
    save(child, tmp_path / "child.safetensors")
    again = load(tmp_path / "child.safetensors")
    assert np.array_equal(predict(again.module, NEWER), predict(child.module, NEWER))
    assert again.class_names == child.class_names


def test_classes_that_are_known_keep_what_is_known_of_them_wherever_they_go() -> None:
    parent = served()
    child = with_classes(parent, ("left", "new", "dark"), "head")
    before, after = predict(parent.module, NEWER), predict(child.module, NEWER)
    assert parent.class_names == ("dark", "bright", "left")
    assert np.allclose(after[:, [0, 2]], before[:, [2, 0]], atol=1e-5)


def test_new_classes_are_drawn_by_the_seed() -> None:
    parent = served()
    first, again, other = (with_classes(parent, ("x", "y"), "head", seed) for seed in (1, 1, 2))
    assert weights(first.module) == weights(again.module) != weights(other.module)


def test_a_convolution_can_be_a_classifier() -> None:
    parent = served()
    module = nn.Sequential(nn.Conv2d(1, 3, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    child = with_classes(replace(parent, module=module), ("x", "y", "z", "dark"), "0")
    assert child.module(torch.zeros(2, 1, 6, 6)).shape == (2, 4)


@pytest.mark.parametrize(
    ("head", "words"),
    [("haed", 'no module "haed"; did you mean "head"?'), ("blocks.0.1", '"blocks.0.1" is a BatchNorm2d and cannot be')],
)
def test_a_head_that_is_none_is_refused(head: str, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        fine_tune(served(), other_classes("a", "b"), TRAINING, head=head)


def test_a_network_without_a_layer_for_its_classes_needs_its_classifier_named() -> None:
    parent = replace(served(), class_names=("a", "b"))
    with pytest.raises(ModelError, match="no linear layer or convolution of the network has 2 outputs; name its"):
        fine_tune(parent, NEWER, TRAINING)


def test_a_network_with_exits_cannot_change_its_classes() -> None:
    parent = served()
    parent = replace(parent, blueprint=parent.blueprint.with_edit(Edit("exits", {})))
    with pytest.raises(ModelError, match="fine-tune it first and attach exits then"):
        fine_tune(parent, other_classes("a", "b"), TRAINING)


def test_a_checkpoint_that_began_from_another_parent_is_refused(tmp_path: Path) -> None:
    checkpoint = tmp_path / "run.checkpoint"
    fine_tune(served(), NEWER, TRAINING, checkpoint=checkpoint)
    with pytest.raises(CheckpointError, match="origin is"):
        fine_tune(served(seed=3), NEWER, TRAINING, checkpoint=checkpoint)


def _accuracy(network: Network, data: Dataset) -> float:
    return float((predict(network.module, data).argmax(1) == data.labels).mean())
