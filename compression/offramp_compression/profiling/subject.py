"""What can be profiled: a module, whose layers are its submodules, and an exported program, whose layers were."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, fx, nn
from torch.profiler import record_function
from torch.utils.flop_counter import FlopCounterMode

from offramp_compression.inputs import understood
from offramp_compression.profiling.flops import flops_by_module
from offramp_compression.programs import load_program

# Marks a layer's time among the profiler's events.
MARK = "layer "
# The name of what a network does outside of every layer.
OUTSIDE = "(network)"


@dataclass(frozen=True, slots=True)
class Facts:
    kind: str
    # Its own, without those of the layers inside it.
    parameters: int
    weight_bytes: int


class Subject(Protocol):
    """A network that marks its layers while it runs. ``layers`` are in the order in which they are defined."""

    layers: Mapping[str, Facts]

    def run(self, inputs: Sequence[Tensor]) -> Mapping[str, int]:
        """One forward pass, each layer within `record_function(MARK + name)`; how many bytes each of them returned."""

    def flops(self, inputs: Sequence[Tensor]) -> Mapping[str, int]:
        """By layer, without those of the layers inside it."""


class ModuleSubject(Subject):
    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._watched = copy.deepcopy(module).eval()
        self._bytes: dict[str, int] = {}
        self.layers = {_title(name): _facts(type(layer), layer) for name, layer in module.named_modules()}
        for name, layer in self._watched.named_modules():
            _mark(layer, _title(name), self._bytes)

    def run(self, inputs: Sequence[Tensor]) -> Mapping[str, int]:
        with understood(inputs):
            self._watched(*inputs)
        return self._bytes

    def flops(self, inputs: Sequence[Tensor]) -> Mapping[str, int]:
        return {_title(name): count for name, count in flops_by_module(self._module.eval(), inputs).items()}


class ProgramSubject(Subject):
    """A `.pt2`. ``program`` says of each of its operations which layer it came from."""

    def __init__(self, program: torch.export.ExportedProgram) -> None:
        module = program.module()
        assert isinstance(module, fx.GraphModule)
        self._module = module
        self.layers = _program_layers(module)

    def run(self, inputs: Sequence[Tensor]) -> Mapping[str, int]:
        interpreter = _Marking(self._module)
        with understood(inputs):
            interpreter.run(*inputs)
        return interpreter.output_bytes

    def flops(self, inputs: Sequence[Tensor]) -> Mapping[str, int]:
        interpreter = _Counting(self._module)
        with torch.inference_mode(), understood(inputs):
            interpreter.run(*inputs)
        return interpreter.counts


def open_program(path: Path) -> ProgramSubject:
    """Raises ModelError for a file that is no exported program, or that could run code when it is loaded."""
    return ProgramSubject(load_program(path))


class _Marking(fx.Interpreter):
    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.output_bytes: dict[str, int] = {}

    def run_node(self, n: fx.Node) -> Any:
        if n.op != "call_function":
            return super().run_node(n)
        with record_function(MARK + _layer_of(n)):
            result = super().run_node(n)
        self.output_bytes[_layer_of(n)] = _bytes(result)
        return result


class _Counting(fx.Interpreter):
    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.counts: dict[str, int] = defaultdict(int)

    def run_node(self, n: fx.Node) -> Any:
        with FlopCounterMode(display=False) as counter:
            result = super().run_node(n)
        self.counts[_layer_of(n)] += counter.get_total_flops()
        return result


def _mark(layer: nn.Module, name: str, sizes: dict[str, int]) -> None:
    running: list[Any] = []

    def begin(*_: object) -> None:
        running.append(record_function(MARK + name))
        running[-1].__enter__()

    def end(_layer: nn.Module, _arguments: object, output: object) -> None:
        running.pop().__exit__(None, None, None)
        sizes[name] = _bytes(output)

    layer.register_forward_pre_hook(begin)
    layer.register_forward_hook(end)


def _title(name: str) -> str:
    return name or OUTSIDE


def _facts(kind: type, layer: nn.Module) -> Facts:
    own = list(layer.parameters(recurse=False))
    return Facts(kind.__name__, sum(each.numel() for each in own), sum(map(_bytes, own)))


def _bytes(value: object) -> int:
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    return sum(map(_bytes, value)) if isinstance(value, (tuple, list)) else 0


def _program_layers(module: fx.GraphModule) -> dict[str, Facts]:
    kinds = {_layer_of(node): _kind(node) for node in module.graph.nodes if node.op == "call_function"}
    owned: dict[str, list[Tensor]] = defaultdict(list)
    for name, parameter in module.named_parameters():
        owned[_title(name.rpartition(".")[0])].append(parameter)
    return {
        name: Facts(
            kinds.get(name, ""), sum(each.numel() for each in owned[name]), sum(_bytes(each) for each in owned[name])
        )
        for name in dict.fromkeys((*kinds, *owned))
    }


def _layer_of(node: fx.Node) -> str:
    stack = node.meta.get("nn_module_stack") or {}
    path = next(reversed(stack.values()), ("", ""))[0]
    # A layer that is called several times has "@1" and so on after its name.
    return _title(path.partition("@")[0])


def _kind(node: fx.Node) -> str:
    stack = node.meta.get("nn_module_stack") or {}
    kind = next(reversed(stack.values()), ("", ""))[1]
    return (kind if isinstance(kind, str) else kind.__name__).rpartition(".")[2]
