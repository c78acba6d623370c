"""A request's way to the tensors that its model takes: as they were sent, or made of texts and pictures."""

from __future__ import annotations

import math
import time
from dataclasses import replace

from offramp_common.text import quoted
from open_inference.tensor import ITEM_SIZES, Tensor

from offramp_server.errors import InvalidRequest
from offramp_server.inference import InferRequest
from offramp_server.model_spec import VARIABLE, ModelSpec
from offramp_server.preprocess.items import Preprocessor, check_size
from offramp_server.preprocess.pool import PreprocessPool
from offramp_server.scheduling.work import DEFAULT_PRIORITY, LAST_PRIORITY
from offramp_server.validation import Limits, ValidatedInputs, validate
from offramp_server.workers.backend import LoadedModel


class Preparation:
    """Validates requests, and prepares those that need it in threads of their own, while workers compute others."""

    def __init__(self, pool: PreprocessPool, limits: Limits) -> None:
        self._pool = pool
        self._limits = limits

    async def inputs(self, model: LoadedModel, request: InferRequest, deadline: float | None) -> ValidatedInputs:
        """What the model computes with.

        Raises InvalidRequest; of what has to be prepared also Overloaded if too much waits already, DeadlineExceeded.
        """
        if model.preprocessor is None or _brings_tensors(request, model.spec):
            return self._validated(request, model)
        return await self._prepared(model.preprocessor, model, request, deadline)

    def _validated(self, request: InferRequest, model: LoadedModel) -> ValidatedInputs:
        spec = model.spec
        return model.fitting.validated(
            request, lambda: validate(request, spec.inputs, spec.outputs, spec.max_batch_size, self._limits)
        )

    async def _prepared(
        self, preprocessor: Preprocessor, model: LoadedModel, request: InferRequest, deadline: float | None
    ) -> ValidatedInputs:
        started = time.monotonic_ns()
        spec, lane = model.spec, model.lane
        brought = validate(request, spec.public_inputs, spec.outputs, spec.max_batch_size, self._limits)
        self._check_sizes(spec, brought.items)
        [items] = brought.tensors
        with lane.preparing(brought.items, request.background):
            tensors = await self._pool.run(
                lambda stop: preprocessor.prepare(items, stop, self._limits.max_tensor_bytes),
                LAST_PRIORITY if request.background else request.priority or DEFAULT_PRIORITY, deadline,
            )  # fmt: skip
        if not spec.batches:
            tensors = [Tensor(tensor.name, tensor.datatype, tensor.shape[1:], tensor.data) for tensor in tensors]
        prepared = self._validated(replace(request, inputs=tensors), model)
        lane.stats.preprocess_seconds.observe((time.monotonic_ns() - started) / 1e9)
        return prepared

    def _check_sizes(self, spec: ModelSpec, items: int) -> None:
        """Of tensors whose size does not depend on what the items are."""
        for tensor in spec.inputs:
            if VARIABLE not in tensor.dims:
                size = math.prod(tensor.dims) * ITEM_SIZES[tensor.datatype]
                check_size(tensor.name, items, size, self._limits.max_tensor_bytes)


def _brings_tensors(request: InferRequest, spec: ModelSpec) -> bool:
    """Whether the request has the model's own inputs, in place of what it would make them of. Raises InvalidRequest if
    it has some of both."""
    own = {tensor.name for tensor in spec.inputs}
    brought = {tensor.name for tensor in request.inputs}
    if not brought & own:
        return False
    [public] = spec.public_inputs
    if public.name in brought:
        raise InvalidRequest(
            f"expected either input {quoted(public.name)} (BYTES) or the model's own tensors ({_names(spec)}), got both"
        )
    return True


def _names(spec: ModelSpec) -> str:
    return ", ".join(quoted(tensor.name) for tensor in spec.inputs)
