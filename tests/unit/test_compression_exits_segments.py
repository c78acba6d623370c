import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from exit_networks import CLASSES, encoder, images, network, resnet, tokens
from offramp_compression.blueprint import Blueprint
from offramp_compression.errors import ExportError, ModelError
from offramp_compression.exits.attach import attach
from offramp_compression.exits.segments import Segment, export_segments, segments
from offramp_compression.export import answers
from offramp_compression.export.publish import Target
from offramp_compression.model_file import load, save
from offramp_compression.network import Network
from offramp_compression.network_source import open_network
from offramp_server.repository.reader import read_model
from torch import Tensor, nn

LENGTHS = {"input_ids": [1], "attention_mask": [1]}


class InPlace(nn.Module):
    """Overwrites what an exit sees, in place, after the exit's module has returned."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.second = nn.Conv2d(4, 4, 3)
        self.head = nn.Linear(4, len(CLASSES))

    def forward(self, image: Tensor) -> Tensor:
        state = self.norm(self.first(image))
        shortcut = state[:, :, 1:-1, 1:-1]
        nn.functional.relu_(state)
        logits: Tensor = self.head((self.second(state) + shortcut).mean((2, 3)))
        return logits


class Sized(nn.Module):
    """Needs the length of the text long after the text itself, and a side branch that no exit has seen."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(40, 8)
        self.shrink = nn.Sequential(nn.AdaptiveAvgPool1d(1), nn.Flatten())
        self.positions = nn.Embedding(32, 8)
        self.side = nn.Embedding(40, 8)
        self.head = nn.Linear(8, len(CLASSES))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        side = self.side(input_ids).mean(1)
        state = self.shrink(self.embedding(input_ids).transpose(1, 2))
        positions = self.positions.weight[: input_ids.shape[1]].mean(0)
        logits: Tensor = self.head(state + positions + side)
        return logits


class Flattened(nn.Module):
    """Mixes the batch with the positions."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(40, 8)
        self.flat = nn.Linear(8, 8)
        self.head = nn.Linear(8, len(CLASSES))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        rows, length = input_ids.shape
        state = self.flat(self.embedding(input_ids).flatten(0, 1))
        logits: Tensor = self.head(state.view(rows, length, 8).mean(1))
        return logits


def in_turn(stages: Sequence[Segment], inputs: tuple[Tensor, ...]) -> list[Tensor]:
    """The logits of every stage, each given what the one before returned."""
    state, found = inputs, []
    for stage in stages:
        logits, *carried = stage.network.module(*state)
        found.append(logits)
        state = tuple(carried)
    assert not state
    return found


def same_bits(exits: Network, stages: Sequence[Segment], inputs: tuple[Tensor, ...]) -> bool:
    with torch.inference_mode():
        pairs = zip(exits.module(*inputs), in_turn(stages, inputs), strict=True)
        return all(torch.equal(whole, staged) for whole, staged in pairs)


@pytest.mark.parametrize("modules", [["stages.0", "stages.2"], ["stages.0.0.conv1", "stages.1.0.shortcut"]])
def test_the_stages_of_a_residual_network_give_the_bits_of_the_whole(modules: list[str]) -> None:
    exits = attach(resnet(), modules, images())
    stages = segments(exits, images())
    assert len(stages) == 3
    for count in (1, 2, 7):
        assert same_bits(exits, stages, images(count))


@pytest.mark.parametrize("head", ["mean", "first-token"])
def test_the_stages_of_an_encoder_give_the_bits_of_the_whole_at_any_length(head: str) -> None:
    exits = attach(encoder(), ["encoder.layers.1", "encoder.layers.2"], tokens(), head=head)
    stages = segments(exits, tokens(), LENGTHS)
    for count, length in ((1, 2), (5, 9), (3, 32)):
        assert same_bits(exits, stages, tokens(count, length))


def test_a_stage_takes_what_the_one_before_carries_on_and_names_it() -> None:
    stages = segments(attach(encoder(), ["encoder.layers.1", "encoder.layers.2"], tokens()), tokens(), LENGTHS)
    names = [(stage.network.input_names, stage.network.output_names) for stage in stages]
    assert names == [
        (("input_ids", "attention_mask"), ("logits", "hidden_1_1", "hidden_1_2")),
        (("hidden_1_1", "hidden_1_2"), ("logits", "hidden_2_1", "hidden_2_2")),
        (("hidden_2_1", "hidden_2_2"), ("logits",)),
    ]
    mask, state = stages[1].inputs
    assert torch.equal(mask, tokens()[1])
    assert state.shape == (5, 9, 16)
    assert stages[1].variable == {"hidden_1_1": (1,), "hidden_1_2": (1,)}


def test_only_what_a_later_stage_needs_is_carried() -> None:
    stages = segments(attach(resnet(), ["stages.0"], images()), images())
    assert [tuple(tensor.shape) for tensor in stages[1].inputs] == [(5, 8, 12, 12)]


def test_every_weight_of_the_trunk_is_in_one_stage_only() -> None:
    exits = attach(resnet(), ["stages.0", "stages.1"], images())
    stages = segments(exits, images())
    held = [set(dict(stage.network.module.named_parameters())) for stage in stages]
    assert set.union(*held) == set(dict(exits.module.named_parameters()))
    assert sum(map(len, held)) == len(set.union(*held))


@pytest.mark.parametrize("module", ["first", "norm"])
def test_a_value_that_is_overwritten_in_place_is_carried_as_the_whole_network_sees_it(module: str) -> None:
    exits = attach(network(Blueprint(f"{__name__}:InPlace"), ("image",)), [module], images())
    assert same_bits(exits, segments(exits, images()), images(4))


def test_a_size_that_is_needed_later_is_taken_from_what_is_carried() -> None:
    exits = attach(network(Blueprint(f"{__name__}:Sized"), ("input_ids", "attention_mask")), ["shrink"], tokens())
    stages = segments(exits, tokens(), LENGTHS)
    for length in (3, 9):
        assert same_bits(exits, stages, tokens(4, length))


def test_a_cut_where_rows_are_not_the_batch_is_refused() -> None:
    exits = attach(network(Blueprint(f"{__name__}:Flattened"), ("input_ids", "attention_mask")), ["flat"], tokens())
    with pytest.raises(ExportError, match="does not begin with the batch; attach the exit to another module"):
        segments(exits, tokens(), LENGTHS)


def test_a_network_without_exits_has_no_stages() -> None:
    with pytest.raises(ModelError, match="only a network with exits has stages"):
        segments(resnet(), images())


def test_a_stage_goes_through_a_model_file_like_any_network(tmp_path: Path) -> None:
    stage = segments(attach(encoder(), ["encoder.layers.1"], tokens()), tokens(), LENGTHS)[1]
    save(stage.network, tmp_path / "stage.safetensors")
    again = load(tmp_path / "stage.safetensors")
    assert torch.equal(again.module(*stage.inputs)[0], stage.network.module(*stage.inputs)[0])


@pytest.mark.parametrize("format", ["pt2", "onnx"])
def test_the_whole_and_its_stages_are_written_as_models_that_know_where_they_belong(
    tmp_path: Path, format: Literal["pt2", "onnx"]
) -> None:
    exits = attach(encoder(), ["encoder.layers.1"], tokens())
    export_segments(exits, tokens(), Target(tmp_path, "reviews", format), variable=LENGTHS)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["reviews", "reviews-stage1", "reviews-stage2"]
    whole = tomllib.loads((tmp_path / "reviews" / "model.toml").read_text())
    assert [output["name"] for output in whole["outputs"]] == ["logits_1", "logits_2"]
    first, second = (
        answers.of_file(tmp_path / f"reviews-stage{number}" / "1" / f"model.{format}") for number in (1, 2)
    )
    logits, *hidden = first(tokens())
    np.testing.assert_allclose(logits, exits.module(*tokens())[0].detach(), atol=1e-5)
    np.testing.assert_array_equal(hidden[0], tokens()[1])
    (last_logits,) = second([torch.from_numpy(array) for array in hidden])
    np.testing.assert_allclose(last_logits, exits.module(*tokens())[1].detach(), atol=1e-5)
    (spec,) = read_model(tmp_path, "reviews-stage1")
    assert [tensor.name for tensor in spec.inputs] == ["input_ids", "attention_mask"]
    assert [tensor.name for tensor in spec.outputs] == ["logits", "hidden_1_1", "hidden_1_2"]
    last = tomllib.loads((tmp_path / "reviews-stage2" / "model.toml").read_text())
    assert [tensor["name"] for tensor in last["inputs"]] == ["hidden_1_1", "hidden_1_2"]
    assert open_network(tmp_path / "reviews").digest() == exits.digest()
    with pytest.raises(ModelError, match="it is an INT8 model, one stage of a network"):
        open_network(tmp_path / "reviews-stage2")
    assert last["outputs"][0]["labels"] == list(CLASSES)
    assert last["metadata"]["provenance.settings.network"] == "reviews"
    assert last["metadata"]["provenance.settings.stage"] == "2"
    assert last["metadata"]["provenance.settings.stages"] == "2"
    assert last["metadata"]["provenance.settings.weights"] == exits.digest()
