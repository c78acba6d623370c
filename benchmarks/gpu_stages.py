"""A network cut in two, with an exit after the first part: hidden state stays where it was computed."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from offramp_server.engine_choice import EngineChoice
from offramp_server.model_spec import ModelSpec, TensorSpec
from offramp_server.scheduling.held import Keep
from offramp_server.workers.engines.base import Engine
from offramp_server.workers.engines.load import load_engine
from offramp_server.workers.engines.parity import tolerance
from offramp_server.workers.kept import HeldInput, KeptOutputs, Place
from open_inference.tensor import Tensor
from torch import nn

from benchmarks.gpu_engines import BATCHES, REPEATS, images, seeded, spec_of
from benchmarks.runtimes.export_models import CLASSES, IMAGE

# Of each batch, what goes on to the second stage.
DEFERRED = 0.3
# Where the networks are cut, in their layers.
CUTS = {"resnet18": 7, "student": 6}
_HIDDEN = 1


@dataclass(frozen=True)
class Staged:
    """Both stages for one batch beside the whole network, by one engine. Seconds are medians; None: not timed."""

    model: str
    backend: str
    batch: int
    deferred: int
    # Whether hidden state was left on the device.
    stayed: bool
    agrees: bool
    stages_s: float | None
    travelling_s: float | None
    whole_s: float | None


class First(nn.Module):
    """Answers with the scores of its exit, and with what the second part goes on with."""

    def __init__(self, layers: nn.Sequential) -> None:
        super().__init__()
        self.layers = layers
        with torch.inference_mode():
            channels = layers(torch.zeros(1, *IMAGE)).shape[1]
        self.exit = nn.Linear(channels, CLASSES)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        hidden = self.layers(x)
        return self.exit(hidden.mean((2, 3))), hidden


def measure_stages(name: str, folder: Path, device: str) -> list[Staged]:
    whole = seeded(name)
    layers = list(whole.children())
    first, second = First(nn.Sequential(*layers[: CUTS[name]])).eval(), nn.Sequential(*layers[CUTS[name] :])
    specs = _specs(name, folder, first, second, device)
    backends = ("torch-eager", "cuda-graphs") if device != "cpu" else ("torch-eager",)
    batches = (32, 128) if device != "cpu" else (8,)
    return [_measure(name, backend, batch, specs, whole, device) for backend in backends for batch in batches]


def _specs(name: str, folder: Path, first: nn.Module, second: nn.Module, device: str) -> list[ModelSpec]:
    with torch.inference_mode():
        hidden = tuple(first(torch.zeros(2, *IMAGE))[_HIDDEN].shape[1:])
    state = TensorSpec("hidden", "FP32", hidden)
    scores = TensorSpec("output", "FP32", (CLASSES,))
    parts = (
        (first, IMAGE, (TensorSpec("input", "FP32", IMAGE),), (scores, state)),
        (second, hidden, (state,), (scores,)),
    )
    specs = []
    for at, (module, shape, inputs, outputs) in enumerate(parts):
        path = folder / f"{name}-stage{at + 1}.pt2"
        dynamic = {0: torch.export.Dim("batch", min=1, max=max(BATCHES))}
        program = torch.export.export(module, (torch.zeros(2, *shape),), dynamic_shapes=(dynamic,), strict=False)
        torch.export.save(program, path)
        base = spec_of(path, path.stem, "fp32", device, max(BATCHES))
        specs.append(replace(base, inputs=inputs, outputs=outputs))
    return [*specs, spec_of(folder / f"{name}.pt2", name, "fp32", device, max(BATCHES))]


def _measure(name: str, backend: str, batch: int, specs: list[ModelSpec], whole: nn.Module, device: str) -> Staged:
    engines: list[Engine] = [
        load_engine(spec, device, torch.get_num_threads(), EngineChoice(backend)) for spec in specs
    ]
    try:
        deferred = max(1, round(DEFERRED * batch))
        rows = np.sort(np.random.default_rng(batch).choice(batch, deferred, replace=False)).tolist()
        inputs = [Tensor("input", "FP32", (batch, *IMAGE), bytearray(images(batch).tobytes()))]
        answer, stayed = _through_stages(engines, inputs, rows, stays=True)
        with torch.inference_mode():
            expected = whole.to(device)(torch.from_numpy(images(batch)[rows]).to(device)).cpu().numpy()
            whole.to("cpu")
        off = float(np.abs(answer - expected).max() / np.abs(expected).max())
        times: list[float | None] = [None, None, None]
        if device != "cpu":
            times = [
                _median(lambda: _through_stages(engines, inputs, rows, stays=True)),
                _median(lambda: _through_stages(engines, inputs, rows, stays=False)),
                _median(lambda: engines[2].execute(inputs)),
            ]
        return Staged(name, backend, batch, deferred, stayed, off <= tolerance(specs[-1]), *times)
    finally:
        for engine in engines:
            engine.close()


def _through_stages(engines: list[Engine], inputs: list[Tensor], rows: list[int], stays: bool) -> tuple[Any, bool]:
    """The first stage for all, the second for `rows`; and whether anything stayed on the device."""
    kept = KeptOutputs()
    outputs = engines[0].execute(inputs, 1 << _HIDDEN if stays else 0)
    kept.keep(Keep(1, 1 << _HIDDEN), outputs)
    hidden = outputs[_HIDDEN]
    places = [Place(1, _HIDDEN, row) for row in rows]
    held = HeldInput("hidden", "FP32", (len(rows), *hidden.shape[1:]), b"", places)
    [answer] = engines[1].execute(kept.resolved([held]))
    return answer.numpy(), len(hidden.data) == 0


def _median(call: Any) -> float:
    seconds = []
    for turn in range(REPEATS + 5):
        started = time.perf_counter()
        call()
        if turn >= 5:
            seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)
