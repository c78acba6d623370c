"""A profile for people: a table, a trace file, and event files for TensorBoard."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from offramp_common.tables import table
from torch.utils.tensorboard.writer import SummaryWriter

from offramp_compression.profiling.profile import Layer, Profile

# Of the time: what has less, and no weights, is left out of the table.
_SHOWN = 0.002
_NAMED = 5
_QUANTITIES = {"seconds": "time", "flops": "FLOPs", "parameters": "parameters", "output_bytes": "output"}
_HEADER = ("layer", "kind", "parameters", "weights kB", "MFLOPs", "output kB", "ms", "time %")


def text(profile: Profile, fixed: Mapping[str, str] | None = None) -> str:
    """The table, what dominates, and, with ``fixed`` (layer name -> why it cannot be pruned), what can be pruned."""
    header = _HEADER if fixed is None else (*_HEADER, "prunable")
    rows = [
        (*_row(layer, profile), *(() if fixed is None else (_prunable(layer, fixed),)))
        for layer in profile.layers
        if layer.parameters or layer.seconds > _SHOWN * profile.total("seconds")
    ]
    lines = [table(header, [*rows, _total(profile, header)], right=range(2, 8)), "", *_dominant(profile)]
    return "\n".join([*lines, *([] if fixed is None else _prunable_parts(profile, fixed))])


def write_trace(profile: Profile, path: Path) -> None:
    """In Chrome's format, for chrome://tracing or ui.perfetto.dev; whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".tracing-") as folder:
        partial = Path(folder) / path.name
        partial.write_text(json.dumps(profile.trace), encoding="utf-8")
        os.replace(partial, path)


def write_events(profile: Profile, folder: Path, name: str, fixed: Mapping[str, str] | None = None) -> None:
    """For TensorBoard: each quantity by layer, the layer's position as the step; a chart of each; and the table."""
    with SummaryWriter(str(folder)) as writer:
        for quantity, words in _QUANTITIES.items():
            for position, layer in enumerate(profile.layers):
                writer.add_scalar(f"profile/{words} by layer", getattr(layer, quantity), position)
            writer.add_figure(f"{name}/{words}", _chart(profile, quantity, words))
        writer.add_text(name, "\n".join("    " + line for line in text(profile, fixed).splitlines()))


def _row(layer: Layer, profile: Profile) -> tuple[str, ...]:
    share = layer.seconds / (profile.total("seconds") or 1.0)
    return (
        layer.name, layer.kind, f"{layer.parameters:,}", f"{layer.weight_bytes / 1e3:.1f}", f"{layer.flops / 1e6:.2f}",
        f"{layer.output_bytes / 1e3:.1f}", f"{layer.seconds * 1e3:.3f}", f"{100 * share:.1f}",
    )  # fmt: skip


def _total(profile: Profile, header: tuple[str, ...]) -> tuple[str, ...]:
    cells = (
        "total", "", f"{profile.total('parameters'):,.0f}", f"{profile.total('weight_bytes') / 1e3:.1f}",
        f"{profile.total('flops') / 1e6:.2f}", "", f"{profile.total('seconds') * 1e3:.3f}", "100.0",
    )  # fmt: skip
    return (*cells, *[""] * (len(header) - len(cells)))


def _dominant(profile: Profile) -> Iterator[str]:
    held = f"{profile.peak_bytes / 1e6:.2f} MB"
    yield f"one batch of {profile.batch_size} on {profile.device}; at its peak it holds {held} beside weights and input"
    for quantity in ("seconds", "flops", "parameters"):
        layers, total = profile.dominant(quantity), profile.total(quantity)
        first = [f"{layer.name} {100 * getattr(layer, quantity) / total:.0f} %" for layer in layers[:_NAMED]]
        more = [f"{len(layers) - _NAMED} more"] if len(layers) > _NAMED else []
        yield f"80 % of the {_QUANTITIES[quantity]}: {', '.join([*first, *more]) or 'there are none'}"


def _prunable(layer: Layer, fixed: Mapping[str, str]) -> str:
    if layer.kind not in ("Conv1d", "Conv2d", "Conv3d", "Linear"):
        return ""
    return "no" if layer.name in fixed else "yes"


def _prunable_parts(profile: Profile, fixed: Mapping[str, str]) -> Iterator[str]:
    layers = [layer for layer in profile.layers if _prunable(layer, fixed) == "yes"]
    for quantity in ("seconds", "parameters"):
        held = sum(getattr(layer, quantity) for layer in layers) / (profile.total(quantity) or 1)
        yield f"layers whose outputs can be pruned hold {100 * held:.0f} % of the {_QUANTITIES[quantity]}"
    for name, reason in fixed.items():
        yield f"{name} cannot be pruned: {reason}"


def _chart(profile: Profile, quantity: str, words: str) -> object:
    # Not pyplot, which keeps every figure until it is closed.
    from matplotlib.figure import Figure

    layers = [layer for layer in profile.layers if getattr(layer, quantity)]
    figure = Figure(figsize=(8, 1 + 0.2 * len(layers)), layout="constrained")
    axes = figure.subplots()
    axes.barh([layer.name for layer in layers], [getattr(layer, quantity) for layer in layers])
    axes.invert_yaxis()
    axes.set_xlabel(words + (" in seconds" if quantity == "seconds" else ""))
    return figure
