"""Every engine that can run a model, loaded side by side in this process and timed in turns."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from offramp_common.engine_names import ENGINES
from offramp_server.engine_choice import EngineChoice
from offramp_server.model_spec import ModelSpec
from offramp_server.workers.engines.base import Engine
from offramp_server.workers.engines.catalogue import engine_kinds
from offramp_server.workers.engines.kind import EngineKind, EngineRequest, NotWorthTrying
from offramp_server.workers.engines.load import load_engine
from offramp_server.workers.engines.parity import compare, tolerance
from offramp_server.workers.engines.warmup import sample_inputs
from open_inference.tensor import Tensor

from benchmarks.harness.cpu import machine_busy_seconds
from benchmarks.harness.experiment import say

DEVICE = "cpu"
# `benchmarks.gpu` has them.
NEED_A_GPU = ("cuda-graphs", "torch-tensorrt")


@dataclass(frozen=True)
class Cell:
    """One engine with one batch size and number of threads. Each of `seconds` is the mean call of one round."""

    label: str
    threads: int
    items: int
    seconds: tuple[float, ...]
    # Largest difference from the plain engine's answer, relative to its largest value.
    difference: float


@dataclass(frozen=True)
class ModelTimes:
    model: str
    tolerance: float
    # Seconds that building and loading took, by label.
    prepared: dict[str, float]
    cells: tuple[Cell, ...]
    # Why an engine is not among them, by label.
    left_out: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Timing:
    """How to time. A round runs each engine for `seconds`, once warm."""

    threads: tuple[int, ...]
    rounds: int
    seconds: float
    without: tuple[str, ...] = ()


def time_model(spec: ModelSpec, timing: Timing) -> ModelTimes:
    """Engines that cannot run the model are left out with the reason."""
    left_out: dict[str, str] = {}
    prepared: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="offramp-bench-") as folder:
        choices = list(_built(spec, timing, Path(folder), left_out, prepared))
        cells = [cell for threads in timing.threads for cell in _timed(spec, choices, threads, timing, left_out)]
    return ModelTimes(spec.name, tolerance(spec), prepared, tuple(cells), left_out)


def batch_sizes(spec: ModelSpec) -> tuple[int, ...]:
    return tuple(sorted({1, max(spec.max_batch_size, 1)}))


def other_cores(since: tuple[float, float, float]) -> float:
    """Cores that other processes have used since `usage()` returned `since`."""
    now = usage()
    return max(0.0, (now[1] - since[1]) - (now[2] - since[2])) / (now[0] - since[0])


def usage() -> tuple[float, float, float]:
    return time.monotonic(), machine_busy_seconds(), time.process_time()


def _built(
    spec: ModelSpec, timing: Timing, folder: Path, left_out: dict[str, str], prepared: dict[str, float]
) -> Iterator[EngineChoice]:
    for kind, possible in _possible(spec, timing, left_out):
        artifacts = Path(tempfile.mkdtemp(dir=folder)) if kind.builds(spec) else None
        choice = replace(possible, artifacts=artifacts)
        started = time.perf_counter()
        try:
            if artifacts is not None:
                say(f"{spec.name}: building for {choice.label}")
                kind.build(EngineRequest(spec, DEVICE, max(timing.threads), choice))
        except Exception as error:
            left_out[choice.label] = str(error)
        else:
            prepared[choice.label] = time.perf_counter() - started
            yield choice


def _possible(spec: ModelSpec, timing: Timing, left_out: dict[str, str]) -> Iterator[tuple[EngineKind, EngineChoice]]:
    for kind in engine_kinds():
        if kind.name not in ENGINES[spec.format] or kind.name in (*NEED_A_GPU, *timing.without):
            continue
        problem = kind.missing(DEVICE) or kind.refusal(spec, DEVICE)
        if problem:
            left_out[kind.name] = problem
            continue
        # Also what `auto` leaves alone.
        for variant in kind.variants(spec, DEVICE) or ("",):
            yield kind, EngineChoice(kind.name, variant)


def _timed(
    spec: ModelSpec, choices: Sequence[EngineChoice], threads: int, timing: Timing, left_out: dict[str, str]
) -> Iterator[Cell]:
    engines = dict(_loaded(spec, choices, threads, left_out))
    try:
        for items in batch_sizes(spec):
            say(f"{spec.name}: batches of {items} with {threads} threads, {len(engines)} engines")
            inputs = sample_inputs(spec, items)
            differences = _differences(engines, inputs, ENGINES[spec.format][0])
            taken: dict[str, list[float]] = {label: [] for label in engines}
            for _ in range(timing.rounds):
                for label, engine in engines.items():
                    taken[label].append(_seconds(engine, inputs, timing.seconds))
            for label, seconds in taken.items():
                yield Cell(label, threads, items, tuple(seconds), differences[label])
    finally:
        for engine in engines.values():
            engine.close()


def _loaded(
    spec: ModelSpec, choices: Sequence[EngineChoice], threads: int, left_out: dict[str, str]
) -> Iterator[tuple[str, Engine]]:
    for choice in choices:
        try:
            engine = load_engine(spec, DEVICE, threads, choice)
            engine.execute(sample_inputs(spec, 1))
        except NotWorthTrying:
            continue
        except Exception as error:
            left_out[choice.label] = str(error)
        else:
            yield choice.label, engine


def _differences(engines: dict[str, Engine], inputs: Sequence[Tensor], plain: str) -> dict[str, float]:
    expected = engines[plain].execute(inputs)
    return {label: compare(engine.execute(inputs), expected) for label, engine in engines.items()}


def _seconds(engine: Engine, inputs: Sequence[Tensor], wanted: float) -> float:
    engine.execute(inputs)
    calls, started = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - started) < wanted:
        engine.execute(inputs)
        calls += 1
    return elapsed / calls
