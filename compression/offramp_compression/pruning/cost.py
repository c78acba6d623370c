"""What a network would cost with fewer channels, without building it."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from offramp_compression.evaluation.latency import time_side_by_side
from offramp_compression.modules import get_module, parameter_count
from offramp_compression.profiling.flops import flops_by_module
from offramp_compression.pruning.channels import ELSEWHERE, ChannelGroup, Member, Side
from offramp_compression.pruning.importance import Ranking
from offramp_compression.pruning.slicing import axes, is_depthwise
from offramp_compression.resize import resize, widths

# Group name -> how many of its units stay.
Stay: TypeAlias = Mapping[str, int]
# Module name -> side -> how many of its channels stay; modules that lose none may be left out.
Widths: TypeAlias = Mapping[str, Mapping[Side, int]]

_LAYERS = (nn.modules.conv._ConvNd, nn.Linear)
_REPEATS = 7


class WidthTable:
    """The widths that modules have when so many units of each group stay, the most important ones."""

    def __init__(self, module: nn.Module, groups: Sequence[ChannelGroup], ranking: Ranking) -> None:
        self._full = {
            member.module: widths(get_module(module, member.module)) for group in groups for member in group.members
        }
        self._lost = {group.name: [_lost(member, ranking[group.name]) for member in group.members] for group in groups}
        self._members = {group.name: group.members for group in groups}

    def of(self, stay: Stay) -> Widths:
        found: dict[str, dict[Side, int]] = {}
        for name, count in stay.items():
            for member, lost in zip(self._members[name], self._lost[name], strict=True):
                sides = found.setdefault(member.module, {})
                left = sides.get(member.side, self._full[member.module][member.side])
                sides[member.side] = left - int(lost[count])
        return found


class Cost(Protocol):
    """``quantity`` says what is counted."""

    quantity: str

    def of(self, widths: Widths) -> float:
        """The whole network's cost with these widths."""


class Parameters(Cost):
    quantity = "parameters"

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._total = parameter_count(module)

    def of(self, widths: Widths) -> float:
        return self._total - sum(self._saved(get_module(self._module, name), sides) for name, sides in widths.items())

    def _saved(self, layer: nn.Module, sides: Mapping[Side, int]) -> float:
        return sum(
            parameter.numel() * (1 - _share(layer, axes(layer)[key], sides))
            for key, parameter in layer.named_parameters(recurse=False)
        )


class Flops(Cost):
    """Of one example; counted as `profiling.flops` does. ``inputs`` are forward's arguments for any number of them."""

    quantity = "FLOPs"

    def __init__(self, module: nn.Module, inputs: Sequence[Tensor]) -> None:
        self._module = module
        counts = flops_by_module(module, inputs)
        self._flops = {name: count / len(inputs[0]) for name, count in counts.items()}

    def of(self, widths: Widths) -> float:
        return sum(count * self._left(name, widths.get(name, {})) for name, count in self._flops.items())

    def _left(self, name: str, sides: Mapping[Side, int]) -> float:
        layer = get_module(self._module, name)
        return _share(layer, axes(layer).get("weight", ()), sides)


class Latency(Cost):
    """Estimated seconds of a forward pass on ``inputs`` in eager mode, from measured times of its layers.

    Convolutions and linear layers are timed at each width that is asked for, as NetAdapt does (Yang et al., 2018): time
    does not fall in proportion to FLOPs. All else is taken to shrink with the layers' outputs.
    """

    quantity = "seconds"

    def __init__(self, module: nn.Module, inputs: Sequence[Tensor]) -> None:
        self._module = module
        self._calls = _recorded_calls(module, inputs)
        self._times: dict[tuple[str, tuple[tuple[str, int], ...]], float] = {}
        whole = _quickest(module, inputs)
        self._rest = max(0.0, whole - sum(self._layer(name, {}) for name in self._calls))

    def of(self, widths: Widths) -> float:
        layers = sum(self._layer(name, widths.get(name, {})) for name in self._calls)
        return layers + self._rest * self._output_share(widths)

    def _layer(self, name: str, sides: Mapping[Side, int]) -> float:
        key = (name, tuple(sorted(sides.items())))
        if key not in self._times:
            self._times[key] = _timed_layer(get_module(self._module, name), sides, self._calls[name][0])
        return self._times[key]

    def _output_share(self, widths: Widths) -> float:
        full = sum(elements for _, elements in self._calls.values())
        left = sum(
            elements * _share(get_module(self._module, name), ("outputs",), widths.get(name, {}))
            for name, (_, elements) in self._calls.items()
        )
        return left / full if full else 1.0


def seconds(modules: Mapping[str, nn.Module], inputs: Sequence[Tensor], rounds: int = 11) -> dict[str, float]:
    """Measured seconds of a forward pass of each module in evaluation mode, median of rounds that time them in turn.

    On one thread of a CPU it is the processor's time, which does not count what else the machine does.
    """
    with torch.inference_mode():
        calls = {name: _call(module.eval(), inputs) for name, module in modules.items()}
        found = time_side_by_side(calls, rounds=rounds, clock=_clock(inputs))
    return {name: estimate.value for name, estimate in found.items()}


def _call(module: nn.Module, inputs: Sequence[Tensor]) -> Callable[[], None]:
    def call() -> None:
        module(*inputs)
        if inputs[0].is_cuda:
            torch.cuda.synchronize(inputs[0].device)

    return call


def _clock(inputs: Sequence[Tensor]) -> Callable[[], float]:
    alone = inputs[0].device.type == "cpu" and torch.get_num_threads() == 1
    return time.thread_time if alone else time.perf_counter


def _lost(member: Member, ranking: np.ndarray[Any, np.dtype[np.int64]]) -> np.ndarray[Any, np.dtype[np.int64]]:
    """How many channels go when 0, 1, ... units stay."""
    each = np.bincount(member.units[member.units != ELSEWHERE], minlength=len(ranking))[ranking]
    return np.concatenate([np.cumsum(each)[::-1], [0]])


def _share(layer: nn.Module, sides: Sequence[Side], left: Mapping[Side, int]) -> float:
    full = widths(layer)
    return math.prod(left[side] / full[side] for side in sides if side in left)


def _recorded_calls(module: nn.Module, inputs: Sequence[Tensor]) -> dict[str, tuple[Tensor, int]]:
    """What each convolution and linear layer was given, and how many elements it answered with."""
    calls: dict[str, tuple[Tensor, int]] = {}
    with torch.inference_mode(), _watching(module, calls):
        module.eval()(*inputs)
    return calls


@contextmanager
def _watching(module: nn.Module, calls: dict[str, tuple[Tensor, int]]) -> Iterator[None]:
    def watch(name: str) -> Any:
        return lambda layer, arguments, output: calls.__setitem__(name, (arguments[0], output.numel()))

    hooks = [
        layer.register_forward_hook(watch(name)) for name, layer in module.named_modules() if isinstance(layer, _LAYERS)
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _timed_layer(layer: nn.Module, sides: Mapping[Side, int], given: Tensor) -> float:
    small = _with_widths(layer, sides).eval().to(given.device)
    axis = -1 if isinstance(layer, nn.Linear) else 1
    inputs = sides.get("outputs" if is_depthwise(layer) else "inputs", given.shape[axis])
    return _quickest(small, [given.narrow(axis, 0, inputs).contiguous()])


@torch.inference_mode()
def _quickest(module: nn.Module, inputs: Sequence[Tensor]) -> float:
    """Seconds of the fastest of several calls: what else the machine does can only add to it."""
    call, clock = _call(module.eval(), inputs), _clock(inputs)
    call()
    times = []
    for _ in range(_REPEATS):
        started = clock()
        call()
        times.append(clock() - started)
    return min(times)


def _with_widths(layer: nn.Module, sides: Mapping[Side, int]) -> nn.Module:
    if not sides:
        return layer
    left = sides.get("outputs", 0)
    wanted = {"inputs": left, "outputs": left, "groups": left} if is_depthwise(layer) else dict(sides)
    return get_module(resize(nn.Sequential(copy.deepcopy(layer)), {"modules": {"0": wanted}}), "0")
