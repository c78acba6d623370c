"""An engine whose batches go in parts when they need more memory than there is.

A worker that ran out of memory would take everybody's models with it if it died of that, and callers cannot know what
fits. So a batch is halved until its parts fit, the size that did is remembered and later batches are cut before
anything is tried, and after a while a larger one is tried again: what took the memory may be gone.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from open_inference.tensor import Tensor

from offramp_server.engine_report import EngineReport
from offramp_server.errors import ModelFailed
from offramp_server.model_spec import ModelSpec
from offramp_server.workers.batch_rows import halves, joined
from offramp_server.workers.engines.base import Engine
from offramp_server.workers.out_of_memory import (
    free_caches,
    may_have_run_out_of_memory,
    ran_out_of_memory,
    with_caches_freed,
)

# Batches between two attempts at a larger size; each attempt that fails doubles it.
FIRST_PATIENCE = 64
MAX_PATIENCE = 4096

log = logging.getLogger("offramp.worker")


@dataclass(slots=True)
class _Limit:
    """What is known of the sizes that fit."""

    # The largest size that is computed as it comes; None: any.
    size: int | None = None
    _largest_failed: int = 0
    _patience: int = FIRST_PATIENCE
    _batches_until_larger: int = 0

    def allows(self, size: int) -> bool:
        return self.size is None or size <= self.size

    def failed(self, size: int, half: int) -> None:
        self._largest_failed = max(self._largest_failed, size)
        if self.size is None or half < self.size:
            self.size = half
            self._batches_until_larger = self._patience

    def count_batch(self) -> None:
        """And allow more, where the last failure was long ago."""
        if self.size is None:
            return
        self._batches_until_larger -= 1
        if self._batches_until_larger < 0:
            self.size *= 2
            self._patience = min(2 * self._patience, MAX_PATIENCE)
            self._batches_until_larger = self._patience
        if self.size >= self._largest_failed:
            self.size = None


class WithinMemory:
    """Answers as the engine does. Sizes are counted in elements of all inputs, since rows may differ in length."""

    def __init__(self, engine: Engine, spec: ModelSpec) -> None:
        self.engine = engine
        # How often a batch, or a part of one, was cut in two. Who reads it compares it with what it was before.
        self.splits = 0
        self._spec = spec
        self._limit = _Limit()
        self._told: set[str] = set()

    @property
    def report(self) -> EngineReport:
        return self.engine.report

    def execute(self, inputs: Sequence[Tensor], staying: int = 0) -> list[Tensor]:
        """As `Engine.execute`. Raises ModelFailed for one row that does not fit, and what the library says where that
        may mean other things as well."""
        before = self._limit
        if before.size is None:
            outputs = self._attempt(inputs, staying)
            if outputs is not None:
                return outputs
        self._limit = replace(before)
        if before.size is None:
            self._did_not_fit(inputs)
        try:
            return self._in_parts(inputs, staying)
        except Exception as error:
            if _is_doubtful(error):
                # Smaller parts have not helped: it says nothing about memory.
                self._limit = before
            raise

    def fits(self, inputs: Sequence[Tensor]) -> bool:
        """Whether a batch of this size is computed in one piece, as far as is known."""
        return self._limit.size is None or self._limit.allows(size_of(inputs))

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
        self._limit.count_batch()
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
        return answers[0] if len(answers) == 1 else with_caches_freed(lambda: joined(answers))

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
        if self._divisible(inputs):
            size, rows = size_of(inputs), inputs[0].shape[0]
            self._limit.failed(size, size // rows * ((rows + 1) // 2))

    def _raise_unless_memory_ran_out(self, inputs: Sequence[Tensor], error: Exception) -> None:
        doubtful = _is_doubtful(error)
        if not ran_out_of_memory(error) and not (doubtful and self._divisible(inputs)):
            raise error
        what = "perhaps out of memory" if doubtful else "out of memory"
        if what not in self._told:
            self._told.add(what)
            rows = inputs[0].shape[0] if self._spec.batches and inputs else 1
            log.warning(
                'model "%s": %s on %s with %d items (%s); such batches are computed in parts from now on',
                self._spec.name,
                what,
                self.report.device,
                rows,
                type(error).__name__,
            )


def size_of(inputs: Sequence[Tensor]) -> int:
    """Elements of all inputs."""
    return sum(math.prod(tensor.shape) for tensor in inputs)


def _is_doubtful(error: Exception) -> bool:
    return may_have_run_out_of_memory(error) and not ran_out_of_memory(error)
