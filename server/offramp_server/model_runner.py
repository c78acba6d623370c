"""One request at one model: prepared, queued, computed, and made into what clients get."""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass, replace

from offramp_adapters.routes.plan import Answer, Outcomes, Together
from offramp_adapters.routes.strategy import Query
from offramp_adapters.zero_shot.labels import LABELS_PARAMETER
from open_inference.tensor import BYTES, Tensor, encode_bytes

from offramp_server.errors import InvalidRequest, LoadError, OfframpError
from offramp_server.inference import InferRequest, wanted
from offramp_server.model_spec import ModelSpec
from offramp_server.preparation import Preparation
from offramp_server.routing.following import blamed_on, follow
from offramp_server.scheduling.work import DEFAULT_PRIORITY, Timing, Work
from offramp_server.telemetry.tracing import record_request
from offramp_server.validation import check_requested
from offramp_server.workers.backend import Head, LoadedModel

# What a model that takes texts is tried with before it serves.
_SAMPLE_TEXT = "warm-up"


@dataclass(frozen=True, slots=True)
class _Computed:
    """One run of one model."""

    outputs: list[Tensor]
    items: int
    queue_ns: int
    timing: Timing


class ModelRunner:
    """Runs on one event loop."""

    def __init__(self, preparation: Preparation) -> None:
        self._preparation = preparation
        self._loop = asyncio.get_running_loop()

    async def run(self, model: LoadedModel, request: InferRequest) -> Answer:
        """Raises an OfframpError; cancelling the awaiting task takes the request back."""
        started = time.monotonic_ns()
        stats = model.lane.stats
        try:
            if model.head is None:
                if LABELS_PARAMETER in request.parameters:
                    raise _labels_are_fixed(model)
                computed = await self._compute(model, request, self._deadline(request, model))
                answer = Answer(computed.outputs)
            else:
                answer, computed = await self._follow_head(model.head, model, request)
        except OfframpError as error:
            stats.failed(error.reason, time.monotonic_ns() - started)
            raise
        except asyncio.CancelledError:
            stats.failed("cancelled", time.monotonic_ns() - started)
            raise
        timing = computed.timing
        stats.answered(
            computed.items, computed.queue_ns, timing.input_ns, timing.infer_ns, timing.output_ns,
            time.monotonic_ns() - started,
        )  # fmt: skip
        answer.models = (f"{model.spec.name}:{model.spec.version}",)
        if request.outputs:
            answer.outputs = wanted(answer.outputs, request.outputs)
        return answer

    async def _follow_head(self, head: Head, model: LoadedModel, request: InferRequest) -> tuple[Answer, _Computed]:
        """What the model's head makes of its outputs, and the run over the request's own inputs."""
        check_requested(request.outputs, [output.name for output in model.spec.public_outputs])
        # One for all runs, and of all outputs.
        deadline = self._deadline(request, model)
        whole = replace(request, outputs=())
        runs: list[_Computed] = []

        async def perform(step: Together) -> Outcomes:
            [run] = step.runs
            asked = whole if run.inputs is None else replace(whole, inputs=run.inputs)
            with blamed_on(run):
                runs.append(await self._compute(model, asked, deadline))
            return (Answer(runs[-1].outputs),)

        with model.lane.expected():
            answer = await follow(head.plan(Query(request.parameters, request.inputs, random.random)), perform)
        return answer, runs[0]

    async def _compute(self, model: LoadedModel, request: InferRequest, deadline: float | None) -> _Computed:
        """Raises an OfframpError."""
        valid = await self._preparation.inputs(model, request, deadline)
        work = Work(
            valid.tensors, valid.items, valid.shape_key, self._loop.create_future(),
            request.priority or DEFAULT_PRIORITY, deadline,
            request.arrived_ns, request.depth, request.may_continue, request.background, valid.home,
            _positions(request.keep, model.spec) if request.keep else 0,
        )  # fmt: skip
        answer = await model.run(work)
        for spec, tensor in zip(model.spec.outputs, answer.outputs, strict=True):
            # Workers send outputs by position.
            tensor.name = spec.name
        record_request(model.spec.name, answer.queue_ns, answer.timing.infer_ns)
        return _Computed(answer.outputs, valid.items, answer.queue_ns, answer.timing)

    def _deadline(self, request: InferRequest, model: LoadedModel) -> float | None:
        timeout = model.spec.batching.default_timeout
        # What nobody waits for has a limit of its own (limits.max_follow_up_age), and comes last in every queue.
        if request.deadline is None and timeout > 0 and not request.background:
            return self._loop.time() + timeout
        return request.deadline

    async def try_out(self, model: LoadedModel) -> None:
        """Before it serves: a head computes what it answers from, and whoever comes first would wait for that.

        Raises LoadError.
        """
        if model.head is None:
            return
        [text] = model.spec.public_inputs
        sample = Tensor(text.name, BYTES, (1, 1), encode_bytes([_SAMPLE_TEXT]))
        try:
            await self._follow_head(model.head, model, InferRequest(model.spec.name, [sample]))
        except OfframpError as error:
            raise LoadError(f'model "{model.spec.name}": it does not answer: {error}') from error


def _positions(names: frozenset[str], spec: ModelSpec) -> int:
    """A bit for each of these outputs. Only rows can stay in a worker, and only rows of one size."""
    if not spec.batches:
        return 0
    kept = (output.name in names and output.datatype != BYTES for output in spec.outputs)
    return sum(1 << position for position, stays in enumerate(kept) if stays)


def _labels_are_fixed(model: LoadedModel) -> InvalidRequest:
    """Or the model would answer as if it had heard the request's labels."""
    return InvalidRequest(
        f'parameter "{LABELS_PARAMETER}": model "{model.spec.name}" has labels of its own and no [zero_shot] table; '
        "leave the parameter out"
    )
