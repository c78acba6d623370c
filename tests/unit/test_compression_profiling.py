"""What each layer of a network costs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import prunable_nets
import pytest
import torch
from offramp_compression.errors import ModelError
from offramp_compression.evaluation.flops import of_module
from offramp_compression.modules import parameter_count
from offramp_compression.profiling import report
from offramp_compression.profiling.flops import flops_by_module
from offramp_compression.profiling.profile import Layer, Profile, profile
from offramp_compression.profiling.subject import ModuleSubject, Subject, open_program
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn

IMAGES = (torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0)),)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    # Small layers on several threads are slow where the machine is busy.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def module() -> nn.Module:
    return prunable_nets.resnet().module


@pytest.fixture(scope="module")
def program(module: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("program") / "net.pt2"
    torch.export.save(torch.export.export(module, IMAGES, dynamic_shapes=({0: torch.export.Dim("batch")},)), path)
    return path


@pytest.fixture(scope="module", params=["module", "program"])
def found(request: pytest.FixtureRequest, module: nn.Module, program: Path) -> Profile:
    subject: Subject = ModuleSubject(module) if request.param == "module" else open_program(program)
    return profile(subject, IMAGES, repeats=3)


@pytest.fixture(scope="module")
def of_module_alone(module: nn.Module) -> Profile:
    return profile(ModuleSubject(module), IMAGES, repeats=2)


def layer(found: Profile, name: str) -> Layer:
    (one,) = [each for each in found.layers if each.name == name]
    return one


class TestFlops:
    def test_modules_add_up_to_the_whole(self, module: nn.Module) -> None:
        assert sum(flops_by_module(module, IMAGES).values()) == of_module(module, IMAGES)

    def test_what_a_module_does_itself_is_its_own(self) -> None:
        class Attention(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.query = nn.Linear(4, 4)

            def forward(self, x: Tensor) -> Tensor:
                scores: Tensor = self.query(x) @ x.transpose(1, 2)
                return scores

        counted = flops_by_module(nn.Sequential(Attention()), (torch.rand(1, 5, 4),))
        assert counted == {"0": 2 * 5 * 5 * 4, "0.query": 2 * 5 * 4 * 4}


class TestProfile:
    def test_parameters_and_operations_add_up_to_the_network(self, found: Profile, module: nn.Module) -> None:
        assert found.total("parameters") == parameter_count(module)
        assert found.total("weight_bytes") == 4 * parameter_count(module)
        assert found.total("flops") == of_module(module, IMAGES)

    def test_each_layer_has_its_own_share(self, found: Profile) -> None:
        convolution = layer(found, "stages.1.0.conv2")
        assert convolution.kind == "Conv2d"
        assert convolution.parameters == 16 * 16 * 9
        assert convolution.flops == 2 * 4 * 16 * 16 * 9 * 4 * 4
        assert convolution.output_bytes == 4 * 16 * 4 * 4 * 4
        assert layer(found, "stages.1.0").parameters == 0

    def test_every_layer_that_computes_takes_time(self, found: Profile) -> None:
        assert all(each.seconds > 0 for each in found.layers if each.flops)

    def test_the_peak_is_at_least_what_a_layer_reads_and_returns(self, found: Profile) -> None:
        largest = max(each.output_bytes for each in found.layers)
        assert largest < found.peak_bytes < 100 * largest

    def test_a_layer_that_contains_others_does_not_count_their_time(self) -> None:
        inner = nn.Sequential(*[nn.Conv2d(16, 16, 3, padding=1) for _ in range(4)])
        found = profile(ModuleSubject(nn.Sequential(inner)), (torch.rand(4, 16, 32, 32),), repeats=5)
        assert layer(found, "0").seconds < 0.5 * found.total("seconds")

    def test_the_module_is_left_as_it_was(self, module: nn.Module) -> None:
        profile(ModuleSubject(module), IMAGES, repeats=1)
        assert all(not each._forward_hooks and not each._forward_pre_hooks for each in module.modules())

    def test_inputs_that_the_network_does_not_take_are_refused(self, module: nn.Module, program: Path) -> None:
        for subject in (ModuleSubject(module), open_program(program)):
            with pytest.raises(ModelError, match=r"does not run on inputs float32 \[2, 3, 8, 8\]"):
                profile(subject, (torch.rand(2, 3, 8, 8),))

    def test_a_file_that_is_no_program_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "net.pt2").write_bytes(b"nothing")
        with pytest.raises(ModelError, match=r"not a complete zip archive"):
            open_program(tmp_path / "net.pt2")


def fake(**seconds: float) -> Profile:
    layers = tuple(Layer(name, "Conv2d", 10, 40, 100, 8, value) for name, value in seconds.items())
    return Profile(layers, 2, 5_000_000, "cpu", {"traceEvents": []})


class TestReport:
    def test_the_fewest_layers_that_hold_most_of_the_time_dominate(self) -> None:
        assert [each.name for each in fake(a=0.1, b=0.6, c=0.25, d=0.05).dominant()] == ["b", "c"]

    def test_the_table_says_what_dominates_and_what_can_be_pruned(self) -> None:
        said = report.text(fake(a=0.0, b=0.003, c=0.001), {"c": "its outputs are the network's outputs"})
        (row,) = [line.split() for line in said.splitlines() if line.startswith("b ")]
        assert row == ["b", "Conv2d", "10", "0.0", "0.00", "0.0", "3.000", "75.0", "yes"]
        assert "80 % of the time: b 75 %, c 25 %" in said
        assert "layers whose outputs can be pruned hold 75 % of the time" in said
        assert "c cannot be pruned: its outputs are the network's outputs" in said
        assert "holds 5.00 MB beside weights and input" in said

    def test_of_a_program_it_does_not_say_what_can_be_pruned(self) -> None:
        assert "prun" not in report.text(fake(a=0.1))

    def test_the_trace_has_an_event_for_each_layer(self, of_module_alone: Profile, tmp_path: Path) -> None:
        report.write_trace(of_module_alone, tmp_path / "new" / "trace.json")
        events = json.loads((tmp_path / "new" / "trace.json").read_text())["traceEvents"]
        assert {"layer stem.0", "layer head"} <= {event.get("name") for event in events}
        assert [path.name for path in (tmp_path / "new").iterdir()] == ["trace.json"]

    def test_tensorboard_gets_numbers_pictures_and_the_table(self, of_module_alone: Profile, tmp_path: Path) -> None:
        report.write_events(of_module_alone, tmp_path, "net")
        events = EventAccumulator(str(tmp_path)).Reload()
        tags = events.Tags()
        assert tags["images"] == [f"net/{words}" for words in ("time", "FLOPs", "parameters", "output")]
        assert "net/text_summary" in tags["tensors"]
        numbers = [event.value for event in events.Scalars("profile/FLOPs by layer")]
        assert numbers == [float(each.flops) for each in of_module_alone.layers]
