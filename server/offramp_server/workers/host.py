"""The models that live in one worker: loads, warms, executes and drops them. Used by both kinds of executor."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

from open_inference.tensor import Tensor

from offramp_server.engine_choice import EngineChoice
from offramp_server.engine_report import EngineReport
from offramp_server.errors import LoadError
from offramp_server.model_spec import ModelSpec
from offramp_server.workers.engines.base import Engine, StagedEngine
from offramp_server.workers.kept import KeptOutputs
from offramp_server.workers.out_of_memory import free_caches, may_have_run_out_of_memory, ran_out_of_memory
from offramp_server.workers.within_memory import WithinMemory


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


# The outputs of a batch, the nanoseconds that they took, and how often it was cut in two for want of memory. A tuple:
# a class would cost a small model more than anything else that is done around it.
Computed: TypeAlias = tuple[list[Tensor], int, int]


@dataclass(frozen=True, slots=True, eq=False)
class Begun:
    """A batch that its device is computing."""

    engine: StagedEngine
    # What the engine knows it by.
    ticket: Any
    started_ns: int


class ModelHost:
    """Engines by handle. One thread executes; another may load and drop meanwhile, for other handles."""

    def __init__(self, gpu_memory_share: float = 1.0) -> None:
        """`gpu_memory_share`: of a GPU's memory, what torch may take in this process."""
        self._gpu_memory_share = gpu_memory_share
        self._models: dict[int, WithinMemory] = {}
        # Those whose batches may be begun before the one before is finished.
        self.staged: set[int] = set()
        # What batches have left for later ones.
        self.kept = KeptOutputs()
        # A cancelled request ends before its batch does, and then nobody outside knows that its model still computes.
        self._computing = threading.Lock()
        self._under_way: list[Begun] = []
        self._one_finished = threading.Condition(self._computing)
        self._last_finished_ns = 0

    def load(self, handle: int, spec: ModelSpec, placement: Placement) -> LoadReport:
        """Load and warm up. Raises LoadError. The model can be executed as soon as this returns, not before; one that
        is loaded already is executed as it was until then, and if this fails."""
        # Engines import torch or onnxruntime, which only a worker that needs them should pay for.
        from offramp_server.workers.engines.warmup import warm_up

        if self._gpu_memory_share < 1 and placement.device.startswith("cuda") and spec.format == "pt2":
            _bound_memory(placement.device, self._gpu_memory_share)
        model = WithinMemory(_loaded(spec, placement), spec)
        try:
            seconds = warm_up(model, spec)
        except Exception:
            model.close()
            raise
        with self._computing:
            before = self._models.get(handle)
            # Before the wait, during which the next batch may come.
            self._models[handle] = model
            (self.staged.add if hasattr(model.engine, "begin") else self.staged.discard)(handle)
            self._wait_for_batches_of(before)
        if before is not None:
            before.close()
            del before
            gc.collect()
        return LoadReport(model.report, seconds)

    def unload(self, handle: int) -> None:
        with self._computing:
            model = self._models.pop(handle, None)
            self.staged.discard(handle)
            self._wait_for_batches_of(model)
        if model is not None:
            model.close()
            del model
            # Exported programs are full of cycles, and a reload must not wait for the collector to find them.
            gc.collect()

    def execute(self, handle: int, inputs: Sequence[Tensor], staying: int = 0) -> Computed:
        """`staying`: a bit for each output that is needed here only. Raises what the engine raises, or KeyError."""
        with self._computing:
            model = self._models[handle]
            splits = model.splits
            started = time.monotonic_ns()
            outputs = model.execute(inputs, staying)
            return outputs, time.monotonic_ns() - started, model.splits - splits

    def begin(self, handle: int, inputs: Sequence[Tensor], staying: int = 0) -> Begun | None:
        """Send a batch of a `staged` model on its way. None: it has to be executed, once what was begun is finished.

        Raises what the engine raises, or KeyError.
        """
        with self._computing:
            model = self._models[handle]
            engine = cast(StagedEngine, model.engine)
            started = time.monotonic_ns()
            try:
                ticket = engine.begin(inputs, staying) if model.fits(inputs) else None
            except Exception as error:
                if not may_have_run_out_of_memory(error):
                    raise
                # When it has the device for itself it may fit, and otherwise it is cut.
                ticket = None
            if ticket is None:
                return None
            begun = Begun(engine, ticket, started)
            self._under_way.append(begun)
            return begun

    def finish(self, begun: Begun) -> Computed:
        """Wait for a batch, in the order in which they were begun. Raises what the engine raises."""
        with self._computing:
            try:
                outputs = begun.engine.finish(begun.ticket)
            finally:
                self._under_way.remove(begun)
                self._one_finished.notify_all()
                # The device computes them one after the other: this one's time begins when the one before was done.
                started, self._last_finished_ns = (
                    max(begun.started_ns, self._last_finished_ns),
                    time.monotonic_ns(),
                )
            return outputs, self._last_finished_ns - started, 0

    def _wait_for_batches_of(self, model: WithinMemory | None) -> None:
        """Until none that was begun needs it any more. The lock is held, but while this waits."""
        while model is not None and any(begun.engine is model.engine for begun in self._under_way):
            self._one_finished.wait()


def _bound_memory(device: str, share: float) -> None:
    """torch raises OutOfMemoryError beyond it. Once it is set, setting it again changes nothing."""
    import torch

    # Where there is none, the load has a better sentence for it.
    if torch.cuda.is_available():
        torch.cuda.set_per_process_memory_fraction(share, torch.device(device))


def _loaded(spec: ModelSpec, placement: Placement) -> Engine:
    from offramp_server.workers.engines.load import load_engine

    try:
        return load_engine(spec, placement.device, placement.threads, placement.choice)
    except Exception as error:
        if not ran_out_of_memory(error):
            raise
    free_caches()
    raise LoadError(
        f'model "{spec.name}": its weights ({spec.size_bytes} bytes in {spec.path.name}) do not fit into what is left '
        f"of the memory of {placement.device}; serve fewer models there, a smaller one, or with a lower precision"
    )
