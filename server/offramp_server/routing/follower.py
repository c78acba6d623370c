"""Carries out what strategies decide: follows a plan step by step, runs side by side, routes below routes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace

from offramp_adapters.audits.observation import Observation
from offramp_adapters.routes.parameters import EXIT, ROUTE
from offramp_adapters.routes.plan import Answer, FollowUp, Outcomes, Run, Together
from offramp_adapters.routes.strategy import Level, Query
from open_inference.tensor import Tensor

from offramp_server.inference import InferRequest, wanted
from offramp_server.model_runner import ModelRunner
from offramp_server.routing.arrivals import Arrival
from offramp_server.routing.binding import BoundRoute
from offramp_server.routing.follow_ups import Errand, FollowUps
from offramp_server.routing.following import blamed_on, counted, follow
from offramp_server.routing.recorder import Recorder
from offramp_server.routing.table import Route
from offramp_server.telemetry.stats import Stats
from offramp_server.validation import check_requested


class Follower:
    """Answers requests to routes."""

    def __init__(
        self,
        runner: ModelRunner,
        follow_ups: FollowUps,
        recorder: Recorder,
        stats: Stats,
        level: Callable[[], Level],
    ) -> None:
        """`level` tells a request that comes how loaded the server is."""
        self._runner = runner
        self._follow_ups = follow_ups
        self._recorder = recorder
        self._stats = stats
        self._level = level

    async def answer(self, route: Route, request: InferRequest) -> Answer:
        """Raises an OfframpError."""
        bound = route.ready()
        request.level = self._level()
        with ExitStack() as held:
            # Until the last stage has run, whatever is loaded meanwhile.
            for model in bound.models:
                held.enter_context(model.lane.expected())
            return await self._answer(bound, request)

    async def _answer(self, bound: BoundRoute, request: InferRequest) -> Answer:
        # A copy or an audit, which nobody waits for, is no part of the route's traffic.
        if request.background:
            return await self._decided(bound, request)
        stats, items = self._stats.route(bound.name), 0
        with counted(lambda status, total_ns: stats.ended(status, items, total_ns)):
            answer = await self._decided(bound, request)
            items = _items(answer.outputs, bound.strategy.face.max_batch_size)
        return answer

    async def _decided(self, bound: BoundRoute, request: InferRequest) -> Answer:
        face = bound.strategy.face
        check_requested(request.outputs, face.outputs)
        whole = replace(request, outputs=())
        assert bound.epoch is not None
        items = _items(request.inputs, face.max_batch_size)
        with self._recorder.request(bound.epoch, items, observed=not request.background) as arrival:
            answer = await self._planned(bound, whole, arrival)
            if request.background:
                for follow_up in answer.follow_ups:
                    follow_up.plan.close()
            else:
                self._see(bound.name, arrival, answer)
                for follow_up in answer.follow_ups:
                    self._follow_ups.add(self._errand(bound, whole, arrival, follow_up))
        outputs = wanted(answer.outputs, request.outputs or face.outputs)
        return replace(answer, outputs=outputs, observations=(), follow_ups=())

    async def _planned(self, bound: BoundRoute, request: InferRequest, arrival: Arrival) -> Answer:
        assert bound.epoch is not None
        assert bound.coin is not None
        query = Query(
            request.parameters, request.inputs, bound.coin, request.level, bound.epoch.number, arrival.sequence
        )

        async def perform(step: Together) -> Outcomes:
            outcomes = await self._perform(bound, step, request)
            arrival.begun = True
            return outcomes

        return await follow(bound.strategy.plan(query), perform)

    def _see(self, route: str, arrival: Arrival, answer: Answer) -> None:
        seen = self._stats.route(route).seen
        if EXIT in answer.parameters:
            seen.answered(str(answer.parameters[EXIT]).split(","))
        self._note(route, arrival, answer.observations)

    def _note(self, route: str, arrival: Arrival, observations: Sequence[Observation]) -> None:
        self._stats.route(route).seen.observed(observations)
        arrival.note(observations)

    def _errand(self, bound: BoundRoute, request: InferRequest, arrival: Arrival, follow_up: FollowUp) -> Errand:
        behind = replace(request, background=True, deadline=None)
        held = ExitStack()
        for model in bound.models:
            held.enter_context(model.lane.expected())
        arrival.hold()

        def ended(observations: Sequence[Observation]) -> None:
            self._note(bound.name, arrival, observations)
            arrival.release()
            held.close()

        return Errand(
            bound.name, follow_up, lambda: follow(follow_up.plan, lambda step: self._perform(bound, step, behind)),
            ended, sum(len(tensor.data) for tensor in request.inputs), request.level,
        )  # fmt: skip

    async def _perform(self, bound: BoundRoute, step: Together, request: InferRequest) -> Outcomes:
        if len(step.runs) == 1:
            return (await self._run(bound, step.runs[0], request),)
        tasks = [asyncio.create_task(self._run(bound, run, request)) for run in step.runs]
        try:
            if step.quorum is None:
                return tuple(await asyncio.gather(*tasks))
            near = None if request.deadline is None else request.deadline - step.margin
            return await _quorum(tasks, step.quorum, near)
        finally:
            for task in tasks:
                task.cancel()

    async def _run(self, bound: BoundRoute, run: Run, request: InferRequest) -> Answer:
        with blamed_on(run):
            if not run.arm or request.background:
                return await self._target(bound, run, request)
            with counted(self._stats.route(bound.name).arm(run.arm).ended):
                return await self._target(bound, run, request)

    async def _target(self, bound: BoundRoute, run: Run, request: InferRequest) -> Answer:
        inputs = request.inputs if run.inputs is None else run.inputs
        asked = replace(
            request, inputs=inputs, depth=request.depth + run.depth,
            may_continue=request.may_continue or run.may_continue, keep=run.keep,
        )  # fmt: skip
        below = bound.below[run.target]
        if isinstance(below, BoundRoute):
            # Said to the route that was called, which has heeded it.
            kept = {key: value for key, value in request.parameters.items() if key not in (ROUTE, *run.heeded)}
            return await self._answer(below, replace(asked, parameters=kept))
        assert below.model is not None
        return await self._runner.run(below.model, asked)


async def _quorum(tasks: Sequence[asyncio.Task[Answer]], quorum: int, near: float | None) -> Outcomes:
    """Wait for all, but once `near` (on the loop's clock) has come only for `quorum` of them. Raises what one of those
    that failed raised if so many cannot answer any more."""
    loop = asyncio.get_running_loop()
    pending = set(tasks)
    while pending:
        answered = sum(map(_answered, tasks))
        late = near is not None and loop.time() >= near
        if (late and answered >= quorum) or answered + len(pending) < quorum:
            break
        timeout = None if near is None or late else near - loop.time()
        _, pending = await asyncio.wait(pending, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
    if sum(map(_answered, tasks)) < quorum:
        next(task for task in tasks if task.done() and not _answered(task)).result()
    return tuple(task.result() if _answered(task) else None for task in tasks)


def _answered(task: asyncio.Task[Answer]) -> bool:
    return task.done() and not task.cancelled() and task.exception() is None


def _items(tensors: Sequence[Tensor], max_batch_size: int) -> int:
    shape = tensors[0].shape if tensors and max_batch_size else ()
    return shape[0] if shape else 1
