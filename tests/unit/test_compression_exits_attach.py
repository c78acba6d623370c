from pathlib import Path

import numpy as np
import pytest
import torch
from exit_networks import CLASSES, encoder, image_data, images, network, resnet, tokens
from offramp_compression.blueprint import Blueprint
from offramp_compression.errors import ModelError
from offramp_compression.evaluation.predict import predict, predict_exits
from offramp_compression.exits.attach import attach
from offramp_compression.model_file import load, save
from offramp_compression.network import Network
from offramp_compression.provenance import Provenance
from torch import Tensor, nn


class Odd(nn.Module):
    """Modules that exits cannot be attached to."""

    def __init__(self) -> None:
        super().__init__()
        self.twice = nn.Linear(4, 4)
        self.idle = nn.Linear(4, 4)
        self.pair = nn.Linear(4, 4)
        self.pair.register_forward_hook(lambda module, inputs, output: (output, output))
        self.wide = nn.Unflatten(1, (1, 2, 1, 2))
        self.head = nn.Linear(4, len(CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        x = self.twice(self.twice(x)) + self.pair(x)[0]
        self.wide(x)
        logits: Tensor = self.head(x)
        return logits


class Turned(nn.Module):
    """Has a module that returns [N, D, L]."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(40, 4)
        self.turned = nn.Conv1d(4, 4, 1)
        self.head = nn.Linear(4, len(CLASSES))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        logits: Tensor = self.head(self.turned(self.embedding(input_ids).transpose(1, 2)).mean(2))
        return logits


def odd_network() -> Network:
    blueprint = Blueprint(f"{__name__}:Odd")
    return Network(Odd().eval(), blueprint, CLASSES, ("x",), ("logits",), Provenance("test"))


def test_a_network_with_exits_answers_once_for_each_exit_and_last_as_it_did_without() -> None:
    plain = resnet()
    exits = attach(plain, ["stages.0", "stages.2"], images())
    answers = exits.module(*images())
    assert [tuple(logits.shape) for logits in answers] == [(5, 3)] * 3
    assert torch.equal(answers[-1], plain.module(*images()))
    assert exits.output_names == ("logits_1", "logits_2", "logits_3")
    assert exits.provenance.parents == (plain.digest(),)


def test_training_returns_all_answers_as_well() -> None:
    exits = attach(resnet(), ["stages.1"], images())
    assert len(exits.module.train()(*images())) == 2


def test_exits_are_in_the_order_in_which_their_modules_run() -> None:
    exits = attach(resnet(), ["stages.2", "stem", "stages.0.1.conv2"], images())
    assert exits.provenance.settings["modules"] == ["stem", "stages.0.1.conv2", "stages.2"]


def test_an_exit_of_a_convolutional_network_sees_the_mean_over_the_image() -> None:
    exits = attach(resnet(), ["stem"], images())
    features = resnet().module.get_submodule("stem")(resnet().module.get_submodule("normalise")(*images()))
    linear = exits.module.get_submodule("heads.0.linear")
    assert torch.allclose(exits.module(*images())[0], linear(features.mean((2, 3))), atol=1e-6)


def test_an_exit_of_an_encoder_does_not_see_padding() -> None:
    exits = attach(encoder(), ["encoder.layers.1"], tokens())
    ids, mask = tokens()
    longer = torch.nn.functional.pad(ids, (0, 4), value=7), torch.nn.functional.pad(mask, (0, 4))
    for short, long in zip(exits.module(ids, mask), exits.module(*longer), strict=True):
        assert torch.allclose(short, long, atol=1e-5)


def test_an_exit_of_an_encoder_may_look_at_the_first_token_only() -> None:
    exits = attach(encoder(), ["encoder.layers.1"], tokens(), head="first-token")
    assert exits.provenance.settings["heads"] == ["first-token"]
    states: list[Tensor] = []
    layer = exits.module.get_submodule("trunk.encoder.layers.1")
    layer.register_forward_hook(lambda module, inputs, output: states.append(output))
    answer = exits.module(*tokens())[0]
    assert torch.allclose(answer, exits.module.get_submodule("heads.0.linear")(states[0][:, 0]), atol=1e-6)


def test_the_network_that_gets_exits_is_left_as_it_was() -> None:
    plain = resnet()
    before = plain.digest()
    exits = attach(plain, ["stages.1"], images())
    with torch.no_grad():
        for parameter in exits.module.parameters():
            parameter.add_(1)
    assert plain.digest() == before


def test_a_network_with_exits_goes_through_a_model_file(tmp_path: Path) -> None:
    exits = attach(encoder(), ["encoder.layers.0", "encoder.layers.2"], tokens())
    save(exits, tmp_path / "exits.safetensors")
    again = load(tmp_path / "exits.safetensors")
    assert again.digest() == exits.digest()
    for one, other in zip(exits.module(*tokens()), again.module(*tokens()), strict=True):
        assert torch.equal(one, other)


def test_evaluation_takes_the_deepest_exit_or_every_one() -> None:
    exits, data = attach(resnet(), ["stages.1"], images()), image_data(12)
    every = predict_exits(exits.module, data)
    assert len(every) == 2
    assert np.array_equal(every[-1], predict(exits.module, data))


@pytest.mark.parametrize(
    ("modules", "message"),
    [
        (["head"], 'module "head" gives the network\'s own answer; attach exits to modules before it'),
        ([], "no module is named"),
        (["stages.7"], r'no module "stages.7"; did you mean "stages'),
        (["stages.0", "stages.0"], r'"stages.0" is named twice'),
        ([""], "a module inside it"),
    ],
)
def test_modules_that_cannot_have_an_exit_are_refused(modules: list[str], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        attach(resnet(), modules, images())


@pytest.mark.parametrize(
    ("module", "message"),
    [
        ("twice", '"twice" runs more than once'),
        ("idle", '"idle" does not run'),
        ("pair", '"pair" returns a tuple'),
        ("wide", r"no exit head for the shape \[2, 1, 2, 1, 2\].*expected \[N, C, H, W\]"),
    ],
)
def test_modules_that_do_not_return_one_tensor_once_are_refused(module: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        attach(odd_network(), [module], (torch.zeros(2, 4),))


def test_a_head_that_does_not_take_the_shape_is_refused_with_one_that_does() -> None:
    with pytest.raises(ModelError, match=r'"mean" head takes 3 dimensions.*\[5, 8, 12, 12\]; use "pooled"'):
        attach(resnet(), ["stages.0"], images(), head="mean")
    with pytest.raises(ModelError, match=r'no exit head for "men".*did you mean "mean"'):
        attach(resnet(), ["stages.0"], images(), head="men")


def test_a_network_that_has_exits_gets_no_more() -> None:
    exits = attach(resnet(), ["stages.0"], images())
    with pytest.raises(ModelError, match="has exits already"):
        attach(exits, ["stages.1"], images())


def test_a_mask_that_forward_does_not_take_is_refused() -> None:
    with pytest.raises(ModelError, match="takes input_ids, attention_mask; the mask has to be one of them"):
        attach(encoder(), ["encoder.layers.0"], tokens(), mask="mask")


def test_a_module_whose_positions_are_not_those_of_the_mask_is_refused() -> None:
    plain = network(Blueprint(f"{__name__}:Turned"), ("input_ids", "attention_mask"))
    with pytest.raises(ModelError, match=r"does not take what its module returns.*\[N, L\] for \[N, L, D\]"):
        attach(plain, ["turned"], tokens())


def test_a_network_that_returns_no_logits_gets_no_exits() -> None:
    odd = odd_network()
    wrong = Network(odd.module, odd.blueprint, ("a", "b"), ("x",), ("logits",), odd.provenance)
    with pytest.raises(ModelError, match=r"returns \[2, 3\]; exits need logits \[N, 2\]"):
        attach(wrong, ["head"], (torch.zeros(2, 4),))
