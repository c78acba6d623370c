"""Model files: networks that come back as they were, and files that are refused."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from offramp_compression.blueprint import Blueprint, Edit
from offramp_compression.errors import ModelError
from offramp_compression.model_file import load, save
from offramp_compression.modules import get_module
from offramp_compression.network import Network
from offramp_compression.provenance import Provenance, installed_versions
from offramp_compression.resize import resize, widths
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

TINY = Blueprint("tiny_cnn", {"channels": [4, 6], "image_size": 8, "num_classes": 3, "mean": [0.2], "std": [0.3]})


@pytest.fixture(autouse=True)
def fixed_random_state() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def network(blueprint: Blueprint = TINY, module: nn.Module | None = None) -> Network:
    provenance = Provenance(
        "distill", {"temperature": 4.0, "optimizer": {"name": "sgd"}}, seed=3, data_digest="d1", parents=("p1", "p2"),
        versions={"torch": "2"}, metrics={"accuracy": 0.875},
    )  # fmt: skip
    return Network(module or blueprint.build(), blueprint, ("a", "b", "c"), ("image",), ("logits",), provenance)


def header(path: Path) -> dict[str, Any]:
    with safe_open(path, framework="pt") as file:
        metadata: dict[str, str] = file.metadata()
    said: dict[str, Any] = json.loads(metadata["network"])
    return said


def write(path: Path, said: Any, weights: dict[str, torch.Tensor] | None = None) -> Path:
    """A file that claims to be a network and says this of itself."""
    chosen = network().module.state_dict() if weights is None else weights
    save_file(chosen, path, metadata={"format": "offramp-network-1", "network": json.dumps(said)})
    return path


class TestSaving:
    def test_everything_comes_back(self, tmp_path: Path) -> None:
        before = network()
        save(before, tmp_path / "new" / "a.safetensors")
        after = load(tmp_path / "new" / "a.safetensors")
        assert after.blueprint == before.blueprint
        assert (after.class_names, after.input_names, after.output_names) == (("a", "b", "c"), ("image",), ("logits",))
        assert after.provenance == before.provenance
        assert after.digest() == before.digest()

    def test_it_comes_back_ready_to_answer_and_the_random_state_is_untouched(self, tmp_path: Path) -> None:
        save(network(), tmp_path / "a.safetensors")
        state = torch.get_rng_state()
        assert not load(tmp_path / "a.safetensors").module.training
        assert torch.equal(torch.get_rng_state(), state)

    def test_half_precision_halves_the_file_and_comes_back_in_full(self, tmp_path: Path) -> None:
        before = network(replace(TINY, arguments={**TINY.arguments, "channels": [32, 64]}))
        save(before, tmp_path / "full.safetensors")
        save(before, tmp_path / "half.safetensors", half=True)
        sizes = [(tmp_path / f"{name}.safetensors").stat().st_size for name in ("full", "half")]
        assert sizes[1] < 0.6 * sizes[0]
        after = load(tmp_path / "half.safetensors").module.state_dict()
        for name, tensor in before.module.state_dict().items():
            assert after[name].dtype == tensor.dtype
            torch.testing.assert_close(after[name], tensor, rtol=2**-11, atol=2**-24)

    def test_a_weight_beyond_half_precision_is_named(self, tmp_path: Path) -> None:
        large = network()
        large.module.state_dict()["head.bias"][1] = 1e6
        with pytest.raises(ModelError, match=r'"head\.bias" holds values that half precision cannot'):
            save(large, tmp_path / "a.safetensors", half=True)

    def test_shared_and_strided_weights_come_back(self, tmp_path: Path) -> None:
        before = network()
        before.module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        norm = get_module(before.module, "features.1")
        norm.weight = norm.bias
        save(before, tmp_path / "a.safetensors")
        assert load(tmp_path / "a.safetensors").digest() == before.digest()

    def test_a_failure_leaves_the_file_that_was_there_and_nothing_else(self, tmp_path: Path) -> None:
        save(network(), tmp_path / "a.safetensors")
        content = (tmp_path / "a.safetensors").read_bytes()
        unwritable = replace(network(), blueprint=Blueprint("tiny_cnn", {"channels": {1, 2}}))
        with pytest.raises(ModelError, match=r"cannot be written as JSON: .*set"):
            save(unwritable, tmp_path / "a.safetensors")
        assert (tmp_path / "a.safetensors").read_bytes() == content
        assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


class TestLoading:
    def test_others_may_read_it_as_any_file_that_this_user_makes(self, tmp_path: Path) -> None:
        (tmp_path / "plain").touch()
        save(network(), tmp_path / "net.safetensors")
        assert (tmp_path / "net.safetensors").stat().st_mode == (tmp_path / "plain").stat().st_mode

    def test_a_file_that_is_not_there_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(ModelError, match=r"a\.safetensors: there is no such file"):
            load(tmp_path / "a.safetensors")

    @pytest.mark.parametrize("size", [0, 7, 100, 5000])
    def test_half_a_file_is_refused(self, tmp_path: Path, size: int) -> None:
        save(network(), tmp_path / "a.safetensors")
        with (tmp_path / "a.safetensors").open("r+b") as file:
            file.truncate(min(size, (tmp_path / "a.safetensors").stat().st_size - 1))
        with pytest.raises(ModelError, match=r"not a whole \.safetensors file"):
            load(tmp_path / "a.safetensors")

    def test_weights_alone_are_no_network(self, tmp_path: Path) -> None:
        save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors")
        with pytest.raises(ModelError, match="weights without the description of a network"):
            load(tmp_path / "a.safetensors")

    @pytest.mark.parametrize(
        "damage",
        [
            {"blueprint": None},
            {"blueprint": {"architecture": "tiny_cnn"}},
            {"blueprint": {"architecture": "tiny_cnn", "arguments": 3, "edits": []}},
            {"blueprint": {"architecture": "tiny_cnn", "arguments": {}, "edits": [1]}},
            {"class_names": "abc"},
            {"class_names": [1]},
            {"provenance": {"method": "a", "parents": [], "unheard_of": 1}},
            {"provenance": {"method": "a"}},
        ],
    )
    def test_a_damaged_description_is_refused(self, tmp_path: Path, damage: dict[str, Any]) -> None:
        save(network(), tmp_path / "good.safetensors")
        path = write(tmp_path / "a.safetensors", header(tmp_path / "good.safetensors") | damage)
        with pytest.raises(ModelError, match=r"a\.safetensors: its description of the network is damaged"):
            load(path)

    def test_weights_of_another_network_are_refused_by_name(self, tmp_path: Path) -> None:
        save(network(), tmp_path / "good.safetensors")
        weights = network().module.state_dict()
        weights["extra"] = weights.pop("head.bias")
        path = write(tmp_path / "a.safetensors", header(tmp_path / "good.safetensors"), weights)
        with pytest.raises(ModelError, match=r"not those of its network; they differ in extra, head\.bias"):
            load(path)

    def test_weights_of_another_shape_are_refused_with_both_shapes(self, tmp_path: Path) -> None:
        save(network(), tmp_path / "good.safetensors")
        weights = network().module.state_dict() | {"head.bias": torch.zeros(4)}
        path = write(tmp_path / "a.safetensors", header(tmp_path / "good.safetensors"), weights)
        with pytest.raises(ModelError, match=r"do not have the shapes of its network: head.bias \[4\] for \[3\]"):
            load(path)

    def test_foreign_code_is_not_called_unless_it_is_trusted(self, tmp_path: Path) -> None:
        foreign = Blueprint("torch.nn:Linear", {"in_features": 2, "out_features": 3})
        save(network(foreign), tmp_path / "a.safetensors")
        with pytest.raises(ModelError, match=r'built by "torch\.nn:Linear", code that is not .* --trust torch '):
            load(tmp_path / "a.safetensors")
        assert isinstance(load(tmp_path / "a.safetensors", trusted=["torch"]).module, nn.Linear)

    def test_a_command_in_the_place_of_an_architecture_is_not_run(self, tmp_path: Path) -> None:
        save(network(), tmp_path / "good.safetensors")
        said = header(tmp_path / "good.safetensors")
        said["blueprint"] |= {"architecture": "os:mkdir", "arguments": {"path": str(tmp_path / "owned")}}
        with pytest.raises(ModelError, match="code that is not Offramp's"):
            load(write(tmp_path / "a.safetensors", said))
        assert not (tmp_path / "owned").exists()


class TestDigest:
    def test_it_tells_weights_and_structures_apart(self) -> None:
        one = network()
        moved = network(module=load_copy(one))
        assert moved.digest() == one.digest()
        moved.module.state_dict()["head.bias"][0] += 1
        assert moved.digest() != one.digest()
        assert replace(one, blueprint=one.blueprint.with_edit(Edit("resize", {"modules": {}}))).digest() != one.digest()

    def test_it_can_be_taken_of_half_precision(self) -> None:
        one = network()
        full = one.digest()
        one.module.to(torch.bfloat16)
        assert one.digest() != full

    def test_a_list_and_a_tuple_of_arguments_are_the_same(self) -> None:
        one = network()
        assert (
            replace(one, blueprint=replace(TINY, arguments={**TINY.arguments, "channels": (4, 6)})).digest()
            == one.digest()
        )


def load_copy(one: Network) -> nn.Module:
    module = one.blueprint.build()
    module.load_state_dict(one.module.state_dict())
    return module


class TestProvenance:
    def test_it_becomes_flat_pairs_of_text_for_a_models_metadata(self) -> None:
        assert network().provenance.as_metadata() == {
            "provenance.method": "distill",
            "provenance.seed": "3",
            "provenance.data_digest": "d1",
            "provenance.parents": "p1 p2",
            "provenance.settings.temperature": "4",
            "provenance.settings.optimizer.name": "sgd",
            "provenance.versions.torch": "2",
            "provenance.metrics.accuracy": "0.875",
        }

    def test_what_is_not_known_is_left_out(self) -> None:
        assert Provenance("import").as_metadata() == {"provenance.method": "import", "provenance.seed": "0"}

    def test_the_versions_are_those_that_are_installed(self) -> None:
        versions = installed_versions()
        assert versions["torch"].split("+")[0] == torch.__version__.split("+")[0]
        assert {"python", "offramp"} <= versions.keys()


class TestResize:
    def test_pruned_weights_load_into_a_blueprint_with_the_edit(self, tmp_path: Path) -> None:
        # The first convolution loses one of four channels.
        changed = {"features.0": {"outputs": 3}, "features.1": {"outputs": 3}, "features.4": {"inputs": 3}}
        edit = Edit("resize", {"modules": changed})
        module = resize(TINY.build().eval(), edit.arguments)
        save(network(TINY.with_edit(edit), module), tmp_path / "a.safetensors")
        images = torch.rand(2, 1, 8, 8)
        torch.testing.assert_close(load(tmp_path / "a.safetensors").module(images), module.eval()(images))

    @pytest.mark.parametrize(
        ("layer", "wanted"),
        [
            (
                nn.Conv2d(4, 4, 3, 2, padding=1, dilation=2, groups=4, bias=False),
                {"inputs": 2, "outputs": 2, "groups": 2},
            ),
            (nn.Conv1d(4, 6, 5, padding="same", padding_mode="circular"), {"outputs": 5}),
            (nn.Linear(4, 3, bias=False), {"inputs": 2}),
            (nn.BatchNorm2d(4, eps=1e-3, momentum=0.2), {"outputs": 2}),
            (nn.BatchNorm1d(4, affine=False), {"outputs": 2}),
        ],
    )
    def test_everything_but_the_widths_stays(self, layer: nn.Module, wanted: dict[str, int]) -> None:
        resized = resize(nn.Sequential(layer), {"modules": {"0": wanted}})
        expected = widths(layer) | wanted
        assert widths(get_module(resized, "0")) == expected
        # What a layer says of itself names all of its settings, the widths first.
        assert said_without_widths(get_module(resized, "0")) == said_without_widths(layer)

    @pytest.mark.parametrize(
        ("name", "wanted", "complaint"),
        [
            ("features.9", {"outputs": 2}, 'no module "features.9"; did you mean "features'),
            ("features.2", {"outputs": 2}, '"features.2" is a ReLU, which has no channels to set'),
            ("features.0", {"outputs": 0}, "expected positive numbers for inputs, outputs, groups"),
            ("features.0", {"outputs": 2.0}, "expected positive numbers"),
            (
                "features.0",
                {"channels": 2},
                "expected positive numbers for inputs, outputs, groups, got {'channels': 2}",
            ),
            ("features.4", {"groups": 3}, '"features.4" cannot have .*divisible by groups'),
        ],
    )
    def test_what_cannot_be_resized_is_refused(self, name: str, wanted: dict[str, Any], complaint: str) -> None:
        with pytest.raises(ModelError, match=complaint):
            resize(TINY.build(), {"modules": {name: wanted}})


def said_without_widths(layer: nn.Module) -> list[str]:
    words = layer.extra_repr().split(", ")
    numbers = {"Conv1d": 2, "Conv2d": 2, "Linear": 2, "BatchNorm1d": 1, "BatchNorm2d": 1}[type(layer).__name__]
    return [word for word in words[numbers:] if not word.startswith("groups=")]


def test_infinite_weights_can_be_written_in_full_precision(tmp_path: Path) -> None:
    odd = network()
    odd.module.state_dict()["head.bias"][1] = math.inf
    save(odd, tmp_path / "a.safetensors")
    assert load(tmp_path / "a.safetensors").module.state_dict()["head.bias"][1] == math.inf
