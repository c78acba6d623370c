"""Profile a network by layer: what it weighs, what it computes, what it holds in memory, and how long it takes."""

from __future__ import annotations

import json
import os
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, record_function

from offramp_compression.evaluation.load import ProcessorShare
from offramp_compression.profiling.subject import MARK, Subject

_TURN = "turn "


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer's own share, without the layers inside it. Per batch: ``flops``, ``output_bytes`` and ``seconds``.

    ``flops`` counts multiplications and additions of convolutions, matrix products and attention. ``output_bytes`` is
    what the layer returns.
    """

    name: str
    kind: str
    parameters: int
    weight_bytes: int
    flops: int
    output_bytes: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Profile:
    """``peak_bytes`` is the most that one batch holds beyond the weights, at once. ``trace`` is in Chrome's format.

    ``processor_share`` is that of `evaluation.load.ProcessorShare`.
    """

    layers: tuple[Layer, ...]
    batch_size: int
    peak_bytes: int
    device: str
    trace: Mapping[str, Any]
    processor_share: float = 1.0

    def total(self, quantity: str) -> float:
        return float(sum(getattr(layer, quantity) for layer in self.layers))

    def dominant(self, quantity: str = "seconds", share: float = 0.8) -> list[Layer]:
        """The fewest layers that hold ``share`` of the whole, the largest first."""
        held, found = 0.0, []
        for layer in sorted(self.layers, key=lambda layer: -getattr(layer, quantity)):
            if held >= share * self.total(quantity) or getattr(layer, quantity) == 0:
                break
            held += getattr(layer, quantity)
            found.append(layer)
        return found


def profile(subject: Subject, inputs: Sequence[Tensor], repeats: int = 10) -> Profile:
    """Profile ``repeats`` forward passes on ``inputs``, forward's arguments, after one that is not counted.

    Times are medians of torch.profiler's, which adds some to each operation: trust shares more than sums. Raises
    ModelError for inputs that the network does not take.
    """
    with torch.inference_mode():
        # The first pass may allocate and choose algorithms.
        sizes = subject.run(inputs)
    flops = subject.flops(inputs)
    with ProcessorShare() as share:
        recorded = _recorded(subject, inputs, repeats)
    events, trace = _read(recorded)
    seconds = _own_seconds(events, repeats, inputs[0].is_cuda)
    layers = tuple(
        Layer(
            name, facts.kind, facts.parameters, facts.weight_bytes, flops.get(name, 0), sizes.get(name, 0),
            seconds.get(name, 0.0),
        )
        for name, facts in subject.layers.items()
    )  # fmt: skip
    return Profile(layers, len(inputs[0]), _peak_bytes(trace), str(inputs[0].device), trace, share.value)


def _recorded(subject: Subject, inputs: Sequence[Tensor], repeats: int) -> torch.profiler.profile:
    # The profiler's library announces every start and stop on stderr otherwise.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if inputs[0].is_cuda else [])
    profiler = torch.profiler.profile(activities=activities, profile_memory=True)
    with torch.inference_mode(), profiler:
        for number in range(repeats):
            with record_function(f"{_TURN}{number}"):
                subject.run(inputs)
    return profiler


def _read(profiler: torch.profiler.profile) -> tuple[Iterable[Any], dict[str, Any]]:
    """What happened, as events and as a trace."""
    with tempfile.TemporaryDirectory() as folder:
        # The profiler can only write its trace to a file.
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        trace: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return profiler.events() or [], trace  # type: ignore[no-untyped-call]


def _own_seconds(events: Iterable[Any], repeats: int, on_device: bool) -> dict[str, float]:
    """Each layer's time less that of the layers inside it; the median over passes, as a machine has its moments."""
    own: dict[str, list[float]] = defaultdict(lambda: [0.0] * repeats)
    for event in events:
        if not event.name.startswith(MARK):
            continue
        elapsed = (event.device_time_total if on_device else event.cpu_time_total) / 1e6
        number = int(_around(event, _TURN) or 0)
        own[event.name.removeprefix(MARK)][number] += elapsed
        outer = _around(event, MARK)
        if outer is not None:
            own[outer][number] -= elapsed
    return {name: max(0.0, median(times)) for name, times in own.items()}


def _around(event: Any, prefix: str) -> str | None:
    """The rest of the name of the nearest event around this one whose name begins so."""
    parent = event.cpu_parent
    while parent is not None and not parent.name.startswith(prefix):
        parent = parent.cpu_parent
    return None if parent is None else str(parent.name).removeprefix(prefix)


def _peak_bytes(trace: Mapping[str, Any]) -> int:
    """The highest sum of what was allocated and not yet freed, by device, since the recording began."""
    moments = [event for event in trace["traceEvents"] if event.get("name") == "[memory]"]
    held: dict[Any, int] = defaultdict(int)
    peak = 0
    for event in sorted(moments, key=lambda event: event["ts"]):
        device = (event["args"]["Device Type"], event["args"]["Device Id"])
        held[device] += event["args"]["Bytes"]
        peak = max(peak, held[device])
    return peak
