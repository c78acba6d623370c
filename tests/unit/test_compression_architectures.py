"""The architectures that the field starts from."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from offramp_compression.blueprint import Blueprint, Edit
from offramp_compression.errors import ModelError
from offramp_compression.modules import get_module, parameter_count, replace_module
from safetensors.torch import load_file
from torch import nn

WEIGHTS = Path(__file__).resolve().parents[2] / "examples" / "fashion" / "weights"
FASHION = {"mean": [0.2860], "std": [0.3530], "in_channels": 1}
SMALL_IMAGE_NETS: dict[str, dict[str, Any]] = {
    "resnet18": {"width": 4},
    "vgg": {"widths": [4, 8, 8], "depths": [1, 2, 1]},
    "plain_cnn": {"sizes": [4, 8, 8, 16, 16]},
    "tiny_cnn": {"channels": [4, 8], "in_channels": 3},
}
SMALL_TEXT_NETS: dict[str, dict[str, Any]] = {
    "embedding_bag": {"vocabulary_size": 20, "dimension": 8, "num_classes": 3, "hidden": 4, "dropout": 0.5},
    "text_cnn": {"vocabulary_size": 20, "dimension": 8, "num_classes": 3, "channels": 4},
}


@pytest.fixture(autouse=True)
def fixed_random_state() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def exported(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> nn.Module:
    """What a server would run: exported with a free batch size."""
    batch = torch.export.Dim("batch", min=1, max=64)
    shapes = tuple({0: batch} for _ in inputs)
    return torch.export.export(module, inputs, dynamic_shapes=shapes).module()


class TestImageNets:
    @pytest.mark.parametrize("name", SMALL_IMAGE_NETS)
    def test_each_maps_images_to_logits(self, name: str) -> None:
        logits = Blueprint(name, {**SMALL_IMAGE_NETS[name], "num_classes": 7}).build()(torch.rand(2, 3, 28, 28))
        assert logits.shape == (2, 7)

    @pytest.mark.parametrize("name", SMALL_IMAGE_NETS)
    def test_each_can_be_exported_with_any_batch_size(self, name: str) -> None:
        module = Blueprint(name, SMALL_IMAGE_NETS[name]).build().eval()
        program = exported(module, (torch.rand(2, 3, 28, 28),))
        images = torch.rand(5, 3, 28, 28)
        torch.testing.assert_close(program(images), module(images))

    @pytest.mark.parametrize("name", SMALL_IMAGE_NETS)
    def test_each_normalises_every_channel_by_its_own_numbers(self, name: str) -> None:
        plain = Blueprint(name, {**SMALL_IMAGE_NETS[name], "mean": [0.0], "std": [1.0]}).build().eval()
        scaled = Blueprint(name, {**SMALL_IMAGE_NETS[name], "mean": [0.1, 0.2, 0.3], "std": [1.0, 0.5, 2.0]}).build()
        scaled.load_state_dict(plain.state_dict())
        images = torch.rand(2, 3, 28, 28)
        mean, std = torch.tensor([0.1, 0.2, 0.3])[:, None, None], torch.tensor([1.0, 0.5, 2.0])[:, None, None]
        torch.testing.assert_close(scaled.eval()(images), plain((images - mean) / std))

    @pytest.mark.parametrize(("stem", "saved"), [("imagenet", 0), ("small", 64 * (7 * 7 * 3 - 3 * 3 * 3))])
    def test_resnet18_has_the_parameters_of_the_original(self, stem: str, saved: int) -> None:
        # torchvision's resnet18 has 11,181,642 with ten classes; the small stem's convolution is 3x3 and not 7x7.
        assert parameter_count(Blueprint("resnet18", {"stem": stem}).build()) == 11_181_642 - saved

    def test_the_imagenet_stem_quarters_the_image(self) -> None:
        module = Blueprint("resnet18", {"width": 4, "stem": "imagenet"}).build()
        assert get_module(module, "stem")(torch.rand(1, 3, 64, 64)).shape == (1, 4, 16, 16)

    def test_vgg_has_the_convolutions_of_vgg_11(self) -> None:
        # Simonyan & Zisserman's configuration A has 9,217,728 weights in its convolutions, biases left out.
        module = Blueprint("vgg", {}).build()
        kernels = [each.weight.numel() for each in module.modules() if isinstance(each, nn.Conv2d)]
        assert (len(kernels), sum(kernels)) == (8, 9_217_728)

    def test_the_plain_cnn_has_five_blocks(self) -> None:
        module = Blueprint("plain_cnn", {"in_channels": 1}).build()
        widths = [each.out_channels for each in module.modules() if isinstance(each, nn.Conv2d)]
        assert widths == [64, 128, 256, 512, 512]

    def test_the_tiny_cnn_has_two_convolutions(self) -> None:
        convolutions = [each for each in Blueprint("tiny_cnn", {}).build().modules() if isinstance(each, nn.Conv2d)]
        assert len(convolutions) == 2

    @pytest.mark.parametrize(
        ("blueprint", "weights"),
        [
            (Blueprint("resnet18", {**FASHION, "width": 32}), "teacher"),
            (Blueprint("tiny_cnn", {**FASHION, "channels": [12, 24, 48]}), "student"),
        ],
        ids=["teacher", "student"],
    )
    def test_the_fashion_examples_weights_fit(self, blueprint: Blueprint, weights: str) -> None:
        blueprint.build().load_state_dict(load_file(WEIGHTS / f"{weights}.safetensors"), strict=True)


class TestTextNets:
    @pytest.mark.parametrize("name", SMALL_TEXT_NETS)
    def test_each_maps_tokens_to_logits_and_pays_no_heed_to_padding(self, name: str) -> None:
        module = Blueprint(name, SMALL_TEXT_NETS[name]).build().eval()
        ids, mask = torch.randint(0, 20, (4, 6)), torch.ones(4, 6, dtype=torch.int64)
        padded = torch.cat([ids, torch.full((4, 5), 19)], dim=1)
        logits = module(padded, torch.cat([mask, torch.zeros(4, 5, dtype=torch.int64)], dim=1))
        assert logits.shape == (4, 3)
        torch.testing.assert_close(logits, module(ids, mask))

    @pytest.mark.parametrize("name", SMALL_TEXT_NETS)
    def test_a_text_without_tokens_and_one_of_a_single_token_have_an_answer(self, name: str) -> None:
        module = Blueprint(name, SMALL_TEXT_NETS[name]).build().eval()
        assert module(torch.tensor([[3], [3]]), torch.tensor([[0], [1]])).isfinite().all()

    @pytest.mark.parametrize("name", SMALL_TEXT_NETS)
    def test_each_can_be_exported_with_any_batch_size(self, name: str) -> None:
        module = Blueprint(name, SMALL_TEXT_NETS[name]).build().eval()
        program = exported(module, (torch.randint(0, 20, (2, 9)), torch.ones(2, 9, dtype=torch.int64)))
        inputs = torch.randint(0, 20, (5, 9)), torch.randint(0, 2, (5, 9))
        torch.testing.assert_close(program(*inputs), module(*inputs))

    def test_the_order_of_words_matters_to_the_convolutions_and_not_to_the_bag(self) -> None:
        ids, mask = torch.randint(0, 20, (1, 9)), torch.ones(1, 9, dtype=torch.int64)
        bag, convolutions = (Blueprint(name, SMALL_TEXT_NETS[name]).build().eval() for name in SMALL_TEXT_NETS)
        torch.testing.assert_close(bag(ids.flip(1), mask), bag(ids, mask))
        assert not torch.allclose(convolutions(ids.flip(1), mask), convolutions(ids, mask))


class TestBlueprints:
    @pytest.mark.parametrize(
        ("blueprint", "complaint"),
        [
            (Blueprint("resnet"), 'no architecture "resnet"; did you mean "resnet18"'),
            (Blueprint("resnet18", {"depth": 3}), '"resnet18" has no argument "depth"; did you mean "width"'),
            (Blueprint("resnet18", {"stem": "tall"}), 'stem: expected "small" or "imagenet", got \'tall\''),
            (Blueprint("resnet18", {"mean": [0.1], "std": [0.0]}), "expected deviations above 0"),
            (Blueprint("resnet18", {"mean": [0.1, 0.2], "std": [1.0]}), "expected as many means as deviations"),
            (Blueprint("vgg", {"widths": [4, 8], "depths": [1]}), "one depth for each of the 2 widths, got 1"),
            (Blueprint("tiny_cnn", {"image_size": 3}), "images of 3 pixels a side cannot be halved 2 times"),
            (Blueprint("text_cnn", {"vocabulary_size": 9, "kernel_sizes": [4]}), "expected odd numbers"),
            (Blueprint("no.such.package:net"), '"no.such.package:net" cannot be imported'),
            (Blueprint("torch.nn:NoSuchNet"), "cannot be imported"),
            (Blueprint("torch.nn:functional"), "cannot be called; expected a class or a function"),
            (Blueprint("builtins:dict"), "made a dict; expected a torch.nn.Module"),
            (Blueprint("tiny_cnn", {}, (Edit("resizes", {}),)), 'no edit "resizes"; did you mean "resize"'),
            (Blueprint("tiny_cnn", {}, (Edit("resize", {}),)), '"resize" does not take these arguments'),
        ],
    )
    def test_what_cannot_be_built_is_refused_with_what_would_be_right(
        self, blueprint: Blueprint, complaint: str
    ) -> None:
        with pytest.raises(ModelError, match=complaint):
            blueprint.build()

    def test_code_of_ones_own_can_be_named(self) -> None:
        module = Blueprint("torch.nn:Linear", {"in_features": 2, "out_features": 3}).build()
        assert isinstance(module, nn.Linear)

    def test_an_edit_is_added_at_the_end(self) -> None:
        first, second = Edit("resize", {"modules": {}}), Edit("head", {})
        assert Blueprint("tiny_cnn").with_edit(first).with_edit(second).edits == (first, second)


class TestModules:
    def test_a_name_that_does_not_exist_is_answered_with_the_nearest(self) -> None:
        with pytest.raises(ModelError, match=r'no module "stage.0.1"; did you mean "stages.0.1"'):
            get_module(Blueprint("resnet18", {"width": 4}).build(), "stage.0.1")

    def test_a_module_is_replaced_where_it_is(self) -> None:
        module = Blueprint("resnet18", {"width": 4}).build()
        replacement = nn.Identity()
        replace_module(module, "stages.1.0.norm1", replacement)
        assert get_module(module, "stages.1.0.norm1") is replacement

    def test_a_network_cannot_be_replaced_within_itself(self) -> None:
        with pytest.raises(ModelError, match="name one of its modules"):
            replace_module(nn.ReLU(), "", nn.ReLU())

    def test_a_shared_parameter_counts_once(self) -> None:
        layer = nn.Linear(2, 3)
        assert parameter_count(nn.Sequential(layer, layer)) == 9
