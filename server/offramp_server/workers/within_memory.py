"""An engine whose batches go in parts when they need more memory than there is.

A worker that ran out of memory would take everybody's models with it if it died of that, and callers cannot know what
fits. So a batch is halved until its parts fit, the size that did is remembered and later batches are cut before
anything is tried, and after a while a larger one is tried again: what took the memory may be gone.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

from open_inference.tensor import Tensor

from offramp_server.engine_report import EngineReport
from offramp_server.errors import ModelFailed
from offramp_server.model_spec import ModelSpec
from offramp_server.workers.batch_rows import halves, joined
from offramp_server.workers.engines.base import Engine
from offramp_server.workers.out_of_memory import free_caches, ran_out_of_memory

# Batches between two attempts at a larger size; each attempt that fails doubles it.
FIRST_PATIENCE = 64
MAX_PATIENCE = 4096

log = logging.getLogger("offramp.worker")


class WithinMemory:
    """Answers as the engine does. Sizes are counted in elements of all inputs, since rows may differ in length."""

    def __init__(self, engine: Engine, spec: ModelSpec) -> None:
        self.engine = engine
        # How often a batch, or a part of one, was cut in two. Who reads it compares it with what it was before.
        self.splits = 0
        self._spec = spec
        # The largest size that is computed as it comes; None: any.
        self._limit: int | None = None
        self._largest_failed = 0
        self._patience = FIRST_PATIENCE
        self._batches_until_larger = 0
        self._told = False

    @property
    def report(self) -> EngineReport:
        return self.engine.report

    def execute(self, inputs: Sequence[Tensor], staying: int = 0) -> list[Tensor]:
        """As `Engine.execute`. Raises ModelFailed for one row that does not fit."""
        if self._limit is None:
            try:
                return self.engine.execute(inputs, staying)
            except Exception as error:
                self._raise_unless_memory_ran_out(inputs, error)
            free_caches()
            self._did_not_fit(inputs)
        return self._in_parts(inputs, staying)

    def fits(self, inputs: Sequence[Tensor]) -> bool:
        """Whether a batch of this size is computed in one piece, as far as is known."""
        return self._limit is None or size_of(inputs) <= self._limit

    def close(self) -> None:
        self.engine.close()

    def _attempt(self, inputs: Sequence[Tensor], staying: int) -> list[Tensor] | None:
        """None where memory ran out. What the attempt had allocated is free again then."""
        try:
            return self.engine.execute(inputs, staying)
        except Exception as error:
            self._raise_unless_memory_ran_out(inputs, error)
        # Not before the error is gone, whose traceback holds on to the tensors.
        free_caches()
        return None

    def _in_parts(self, inputs: Sequence[Tensor], staying: int) -> list[Tensor]:
        self._allow_more()
        waiting = [list(inputs)]
        answers = []
        while waiting:
            part = waiting.pop()
            divisible = self._divisible(part)
            outputs = None
            if self.fits(part) or not divisible:
                outputs = self._attempt(part, staying)
                if outputs is None:
                    self._did_not_fit(part)
            if outputs is not None:
                answers.append(outputs)
            elif divisible:
                self.splits += 1
                waiting += reversed(halves(part))
            else:
                raise self._too_large(part)
        return answers[0] if len(answers) == 1 else joined(answers)

    def _too_large(self, part: Sequence[Tensor]) -> ModelFailed:
        named = zip(self._spec.inputs, part, strict=True)
        shapes = ", ".join(f'"{spec.name}" {tensor.datatype}{list(tensor.shape)}' for spec, tensor in named)
        return ModelFailed(
            f'model "{self._spec.name}": out of memory on {self.report.device} with '
            f"{'one item' if self._spec.batches else 'one request'} ({shapes}); "
            "send a smaller one, or serve fewer models on the device"
        )

    def _divisible(self, inputs: Sequence[Tensor]) -> bool:
        return self._spec.batches and bool(inputs) and inputs[0].shape[0] > 1

    def _did_not_fit(self, inputs: Sequence[Tensor]) -> None:
        if not self._divisible(inputs):
            return
        size, rows = size_of(inputs), inputs[0].shape[0]
        self._largest_failed = max(self._largest_failed, size)
        half = size // rows * ((rows + 1) // 2)
        if self._limit is None or half < self._limit:
            self._limit = half
            self._batches_until_larger = self._patience

    def _allow_more(self) -> None:
        if self._limit is None:
            return
        self._batches_until_larger -= 1
        if self._batches_until_larger < 0:
            self._limit *= 2
            self._patience = min(2 * self._patience, MAX_PATIENCE)
            self._batches_until_larger = self._patience
        if self._limit >= self._largest_failed:
            self._limit = None

    def _raise_unless_memory_ran_out(self, inputs: Sequence[Tensor], error: Exception) -> None:
        if not ran_out_of_memory(error):
            raise error
        if not self._told:
            self._told = True
            rows = inputs[0].shape[0] if self._spec.batches and inputs else 1
            log.warning(
                'model "%s": out of memory on %s with %d items (%s); such batches are computed in parts from now on',
                self._spec.name,
                self.report.device,
                rows,
                type(error).__name__,
            )


def size_of(inputs: Sequence[Tensor]) -> int:
    """Elements of all inputs."""
    return sum(math.prod(tensor.shape) for tensor in inputs)
