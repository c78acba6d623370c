"""A program captured as CUDA graphs, one for each of a few batch sizes; other sizes are padded to the next.

A graph is replayed with the memory that it was captured with, and in one call instead of one for each kernel. The rules
are those of torch's notes on CUDA semantics: run the work on a side stream before it is captured, capture and replay on
the same stream, copy inputs into the memory that was captured, share one private pool between graphs that are never
replayed at the same time.
"""

from __future__ import annotations

import logging
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch

from offramp_server.errors import LoadError
from offramp_server.model_spec import ModelSpec
from offramp_server.workers.engines import torch_tensors
from offramp_server.workers.engines.accelerator import Accelerator, Captured
from offramp_server.workers.engines.answers import check_count, check_output
from offramp_server.workers.engines.device_engine import Forward
from offramp_server.workers.engines.warmup import sample_inputs
from offramp_server.workers.out_of_memory import free_caches, may_have_run_out_of_memory, ran_out_of_memory

# Libraries choose kernels and allocate workspaces in the first ones.
_RUNS_BEFORE_CAPTURE = 3
# What a model without a batch dimension is captured for.
_WHOLE = 1

log = logging.getLogger("offramp.worker")


def bucket_sizes(spec: ModelSpec) -> list[int]:
    """Powers of two below the largest batch, and the largest batch."""
    if not spec.batches:
        return [_WHOLE]
    powers = [1 << power for power in range(spec.max_batch_size.bit_length())]
    return [*(size for size in powers if size < spec.max_batch_size), spec.max_batch_size]


class GraphBuckets:
    """A `Forward` whose answers are overwritten by its next call. Called with the accelerator's computing stream as the
    current one. Raises torch.OutOfMemoryError for batches whose buckets there was no memory for."""

    def __init__(
        self,
        spec: ModelSpec,
        forward: Forward,
        accelerator: Accelerator,
        precision: Callable[[], AbstractContextManager[Any]],
    ) -> None:
        """Capture each bucket that there is memory for. `precision` makes what casting happens in. Raises LoadError."""
        self._spec = spec
        self._forward = forward
        self._accelerator = accelerator
        self._precision = precision
        self._inputs = self._static_inputs()
        self._graphs = dict(self._all_captured())
        self._sizes = sorted(self._graphs)

    def __call__(self, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        if not self._spec.batches:
            for static, tensor in zip(self._inputs, tensors, strict=True):
                static.copy_(tensor)
            return self._replayed(_WHOLE)
        rows = tensors[0].shape[0]
        size = self._bucket(rows)
        for static, tensor in zip(self._inputs, tensors, strict=True):
            static[:rows].copy_(tensor)
            if rows < size:
                # A row that a caller sent: whatever else lies there may be slow, or an index out of range.
                static[rows:size].copy_(tensor[-1:].expand(size - rows, *tensor.shape[1:]))
        return [answer[:rows] for answer in self._replayed(size)]

    def _bucket(self, rows: int) -> int:
        if rows > self._sizes[-1]:
            raise torch.OutOfMemoryError(f"batches of more than {self._sizes[-1]} rows could not be captured")
        return self._sizes[bisect_left(self._sizes, rows)]

    def close(self) -> None:
        for graph in self._graphs.values():
            graph.reset()
        self._graphs.clear()
        self._inputs.clear()

    def _replayed(self, size: int) -> list[torch.Tensor]:
        graph = self._graphs[size]
        graph.replay()
        return graph.outputs

    def _static_inputs(self) -> list[torch.Tensor]:
        """Buckets take the first rows of them."""
        largest = sample_inputs(self._spec, bucket_sizes(self._spec)[-1])
        return [torch_tensors.from_wire(tensor, copy=True).to(self._accelerator.device) for tensor in largest]

    def _all_captured(self) -> Iterator[tuple[int, Captured]]:
        # The largest first: the smaller ones find all the memory they need in the pool.
        for size in reversed(bucket_sizes(self._spec)):
            graph = self._captured_within_memory(size)
            if graph is not None:
                self._check(graph.outputs, size)
                yield size, graph

    def _captured_within_memory(self, size: int) -> Captured | None:
        """None where memory ran out, and a smaller bucket is left to try."""
        try:
            return self._captured(size)
        except Exception as error:
            refusal = self._refused(size, _first(error))
            if refusal is not None:
                # Not from it: whoever loads takes a lack of memory for one of room for the weights.
                raise refusal from None
        log.warning('model "%s": no memory to capture batch size %d, which goes in parts', self._spec.name, size)
        # Not before the error is gone, whose traceback holds on to the tensors.
        free_caches()
        return None

    def _captured(self, size: int) -> Captured:
        inputs = [static[:size] for static in self._inputs] if self._spec.batches else self._inputs

        def work() -> list[torch.Tensor]:
            with self._precision():
                return self._forward(inputs)

        with self._accelerator.on(self._accelerator.compute):
            for _ in range(_RUNS_BEFORE_CAPTURE):
                work()
            self._accelerator.settle()
            return self._accelerator.capture(work)

    def _check(self, outputs: Sequence[torch.Tensor], size: int) -> None:
        """Here, since a replay's answers are cut to the rows of the batch whatever they have."""
        check_count(self._spec, len(outputs))
        for output, result in zip(self._spec.outputs, outputs, strict=True):
            # Its type may be that of the lower precision, which is corrected when it is answered.
            shape = tuple(result.shape)
            check_output(self._spec, output, output.datatype, shape, size if self._spec.batches else None)

    def _refused(self, size: int, error: Exception) -> LoadError | None:
        if size > 1 and may_have_run_out_of_memory(error):
            return None
        if ran_out_of_memory(error):
            return LoadError(
                f'model "{self._spec.name}": out of memory on {self._accelerator.device} with the smallest batch; '
                'serve fewer models there, or use backend = "torch-eager", which needs less'
            )
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        return LoadError(
            f'model "{self._spec.name}": batch size {size} cannot be captured as a CUDA graph: {reason}; programs that '
            'read values back from the device or whose shapes depend on them cannot be, backend = "torch-eager" or '
            '"torch-compile" runs them'
        )


def _first(error: Exception) -> Exception:
    """The end of a capture that has failed says no more than that."""
    before = error.__context__
    return before if isinstance(before, Exception) and not ran_out_of_memory(error) else error
