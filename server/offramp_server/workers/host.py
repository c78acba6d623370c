"""The models that live in one worker: loads, warms, executes and drops them. Used by both kinds of executor."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from open_inference.tensor import Tensor

from offramp_server.engine_choice import EngineChoice
from offramp_server.engine_report import EngineReport
from offramp_server.model_spec import ModelSpec
from offramp_server.workers.engines.base import Engine
from offramp_server.workers.kept import KeptOutputs


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a model is to run."""

    device: str
    # Intra-op threads; 0: one for each core.
    threads: int
    # What was decided to run it with; None: what `[engine]` names, or the plain engine of its format.
    choice: EngineChoice | None = None


@dataclass(frozen=True, slots=True)
class LoadReport:
    """What a load came to."""

    engine: EngineReport
    # Seconds for one warm batch, by items.
    seconds_by_items: Mapping[int, float]


class ModelHost:
    """Engines by handle. One thread executes; another may load and drop meanwhile, for other handles."""

    def __init__(self) -> None:
        self._engines: dict[int, Engine] = {}
        # What batches have left for later ones.
        self.kept = KeptOutputs()
        # A cancelled request ends before its batch does, and then nobody outside knows that its model still computes.
        self._computing = threading.Lock()

    def load(self, handle: int, spec: ModelSpec, placement: Placement) -> LoadReport:
        """Load and warm up. Raises LoadError. The model can be executed as soon as this returns, not before; one that
        is loaded already is executed as it was until then, and if this fails."""
        # Engines import torch or onnxruntime, which only a worker that needs them should pay for.
        from offramp_server.workers.engines.load import load_engine
        from offramp_server.workers.engines.warmup import warm_up

        engine = load_engine(spec, placement.device, placement.threads, placement.choice)
        try:
            seconds = warm_up(engine, spec)
        except Exception:
            engine.close()
            raise
        with self._computing:
            before = self._engines.pop(handle, None)
            self._engines[handle] = engine
        if before is not None:
            before.close()
        return LoadReport(engine.report, seconds)

    def unload(self, handle: int) -> None:
        with self._computing:
            engine = self._engines.pop(handle, None)
        if engine is not None:
            engine.close()
            del engine
            # Exported programs are full of cycles, and a reload must not wait for the collector to find them.
            gc.collect()

    def execute(self, handle: int, inputs: Sequence[Tensor], staying: int = 0) -> tuple[list[Tensor], int]:
        """The outputs and the nanoseconds that they took. `staying`: a bit for each output that is needed here only.
        Raises what the engine raises, or KeyError."""
        with self._computing:
            engine = self._engines[handle]
            started = time.monotonic_ns()
            outputs = engine.execute(inputs, staying)
            return outputs, time.monotonic_ns() - started
