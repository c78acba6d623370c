"""Early-exit routes over real models: items leave one by one, whatever happens to the server meanwhile."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pytest
from classifiers import write_classifier, write_route
from eventually import eventually, eventually_here
from exit_models import CLASSES, exit_route, rows, score, write_segment, write_stage
from offramp_adapters.routes.plan import Answer
from offramp_server.config import Settings, WorkerSettings
from offramp_server.core import serve_in_process
from offramp_server.errors import ConfigurationError, DeadlineExceeded, InvalidRequest, Unavailable
from offramp_server.inference import InferRequest, InferResponse
from offramp_server.model_runner import ModelRunner
from offramp_server.serving import Serving
from offramp_server.telemetry.process import descendants
from offramp_server.workers.backend import LoadedModel
from open_inference.tensor import Tensor

STAGES = ["s1", "s2", "s3"]
SEGMENTS = ["net-stage1", "net-stage2", "net-stage3"]
# Sure of it at stage 1, at stage 2, and nowhere before the last; at thresholds of 0.9.
EASY, MIDDLE, HARD = 4.0, 2.0, 0.5

Run: TypeAlias = Callable[[ModelRunner, LoadedModel, InferRequest], Awaitable[Answer]]


def request(x: np.ndarray, model: str = "r", **fields: Any) -> InferRequest:
    return InferRequest(model, [Tensor.from_numpy("x", x)], **fields)


def logits(response: InferResponse) -> np.ndarray:
    [output] = response.outputs
    assert output.name == "logits"
    return output.numpy()


def exits(response: InferResponse) -> list[str]:
    return str(response.parameters["offramp_exit"]).split(",")


class Gate:
    """Holds what one model is asked until it is told to let it pass, and notes who ran."""

    def __init__(self) -> None:
        self.audits: list[InferRequest] = []
        self.hold("")

    def hold(self, model: str) -> None:
        """Begin anew."""
        self.held = model
        self.seen: list[tuple[str, int, bool]] = []
        self.waiting: list[InferRequest] = []
        self._open = asyncio.Event()

    def open(self) -> None:
        self._open.set()

    def around(self, run: Run) -> Run:
        async def gated(runner: ModelRunner, model: LoadedModel, asked: InferRequest) -> Answer:
            if model.spec.name == self.held:
                self.waiting.append(asked)
                await self._open.wait()
            if asked.background:
                self.audits.append(asked)
            self.seen.append((model.spec.name, model.spec.version, asked.background))
            return await run(runner, model, asked)

        return gated

    async def somebody_waits(self) -> InferRequest:
        await eventually_here(lambda: bool(self.waiting))
        return self.waiting[0]


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    gate = Gate()
    monkeypatch.setattr(ModelRunner, "run", gate.around(ModelRunner.run))
    return gate


@pytest.fixture
def models(repository: Path) -> Path:
    for number in (1, 2, 3):
        write_stage(repository, number)
        write_segment(repository, number)
    write_route(repository, "r", exit_route(STAGES, [0.9, 0.9]))
    write_route(repository, "net", exit_route(SEGMENTS, [0.9, 0.9]))
    return repository


@asynccontextmanager
async def with_workers(repository: Path) -> AsyncIterator[Serving]:
    """Models run in a process, with another one at hand."""
    async with serve_in_process(repository, Settings(workers=WorkerSettings(mode="process"))) as serving:
        await eventually(lambda: len(workers()) >= 2)
        yield serving


def workers() -> list[int]:
    """The oldest first: the one that computes."""
    found = []
    for pid in descendants(os.getpid()):
        with suppress(OSError):
            if b"process_main" in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(pid)
    return sorted(found)


class Stopped:
    """Workers that compute nothing."""

    def __init__(self) -> None:
        self.pids = workers()
        for pid in self.pids:
            os.kill(pid, signal.SIGSTOP)

    def go_on(self) -> None:
        for pid in self.pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


@pytest.fixture
def stop() -> Iterator[Callable[[], Stopped]]:
    stopped: list[Stopped] = []

    def stop_now() -> Stopped:
        stopped.append(Stopped())
        return stopped[-1]

    yield stop_now
    for each in stopped:
        each.go_on()


# Answers


@pytest.mark.parametrize(("route", "stages"), [("r", STAGES), ("net", SEGMENTS)])
async def test_each_item_is_answered_by_the_first_stage_that_is_sure_of_it(
    models: Path, gate: Gate, route: str, stages: list[str]
) -> None:
    strengths = (HARD, EASY, MIDDLE, EASY, HARD)
    async with serve_in_process(models) as serving:
        response = await serving.infer(request(rows(*strengths), route))
        left = [3, 1, 2, 1, 3]
        assert exits(response) == [stages[number - 1] for number in left]
        scale = np.array([[1.0, 2.0, 4.0][number - 1] for number in left], np.float32)[:, None]
        np.testing.assert_array_equal(logits(response), rows(*strengths) * scale)
        confidence = [score(number, strength) for number, strength in zip(left, strengths, strict=True)]
        assert response.parameters == {
            "offramp_route": "early_exit",
            "offramp_exit": ",".join(exits(response)),
            "offramp_confidence": ",".join(f"{value:.4g}" for value in confidence),
            "offramp_epoch": response.parameters["offramp_epoch"],
            "offramp_models": ",".join(f"{name}:1" for name in stages),
        }
        assert [name for name, _, _ in gate.seen] == stages


async def test_easy_items_never_reach_the_reference(models: Path, gate: Gate) -> None:
    async with serve_in_process(models) as serving:
        for _ in range(5):
            response = await serving.infer(request(rows(EASY)))
            assert (exits(response), response.parameters["offramp_models"]) == (["s1"], "s1:1")
        assert {name for name, _, _ in gate.seen} == {"s1"}


async def test_with_thresholds_above_1_the_answer_is_the_reference_s_bit_for_bit(models: Path) -> None:
    write_route(models, "r", exit_route(STAGES, [1.5, 1.5]))
    x = np.random.default_rng(5).normal(size=(7, CLASSES)).astype(np.float32)
    async with serve_in_process(models) as serving:
        routed, alone = await serving.infer(request(x)), await serving.infer(request(x, "s3"))
        assert bytes(routed.outputs[0].data) == bytes(alone.outputs[0].data)
        assert exits(routed) == ["s3"] * 7


async def test_an_ensemble_whose_members_agree_answers_at_once(models: Path) -> None:
    write_classifier(models, "contrary", np.roll(np.eye(CLASSES), 1, axis=1))
    for name, members in (("committee", ("s1", "contrary")), ("choir", ("s1", "s2"))):
        said = "".join(f'[[members]]\nmodel = "{member}"\n' for member in members)
        write_route(models, name, f'kind = "ensemble"\n{said}')
        write_route(models, name + "-first", exit_route([name, "s3"], [1.0], 'score = "agreement"'))
    async with serve_in_process(models) as serving:
        apart = await serving.infer(request(rows(HARD), "committee-first"))
        assert (exits(apart), apart.parameters["offramp_models"]) == (["s3"], "s3:1")
        together = await serving.infer(request(rows(HARD), "choir-first"))
        assert (exits(together), together.parameters["offramp_models"]) == (["choir"], "s1:1,s2:1")


async def test_what_was_said_to_a_route_is_not_said_to_the_routes_that_it_runs(models: Path) -> None:
    write_route(models, "outer", exit_route(["r", "s3"], [0.9]))
    async with serve_in_process(models) as serving:
        wanted = {"offramp_max_exit": "r", "offramp_min_confidence": "0.99", "offramp_route": "early_exit"}
        response = await serving.infer(request(rows(MIDDLE, EASY), "outer", parameters=wanted))
        # There is no stage "r" in r, and its exits ask for what they always do.
        assert exits(response) == ["r", "r"]
        assert response.parameters["offramp_models"] == "s1:1,s2:1"


async def test_requests_choose_their_way_and_are_told_what_ways_there_are(models: Path) -> None:
    async with serve_in_process(models) as serving:

        async def left(**parameters: Any) -> list[str]:
            return exits(await serving.infer(request(rows(MIDDLE), parameters=parameters)))

        assert await left(offramp_max_exit="s1") == ["s1"]
        assert await left(offramp_max_exit=3) == ["s2"]
        assert await left(offramp_min_confidence="0.99") == ["s3"]
        assert await left(offramp_route="model:s3") == ["s3"]
        with pytest.raises(InvalidRequest, match='expected "early_exit" or "model:s1" or "model:s2" or "model:s3"'):
            await left(offramp_route="ensemble")
        with pytest.raises(InvalidRequest, match=r'stage \("s1", "s2", "s3"\) or its number from 1 to 3, got "s4"'):
            await left(offramp_max_exit="s4")
        with pytest.raises(InvalidRequest, match="expected a number from 0 to 1, got 2"):
            await left(offramp_min_confidence=2)


async def test_stages_that_do_not_fit_are_not_served(models: Path) -> None:
    write_route(models, "wrong", exit_route(["net-stage1", "net-stage3"], [0.9]))
    async with serve_in_process(models) as serving:
        with pytest.raises(
            ConfigurationError, match=r'"net-stage3" takes hidden_2_1 .* or outputs of the stage before'
        ):
            await serving.load("wrong")
        await serving.infer(request(rows(EASY)))


async def test_an_exited_item_is_audited_in_the_background(models: Path, gate: Gate) -> None:
    write_route(models, "r", exit_route(STAGES, [0.9, 0.9], "[audit]\nrate = 1.0\n[agreement]"))
    async with serve_in_process(models) as serving:
        response = await serving.infer(request(rows(EASY, EASY)))
        assert exits(response) == ["s1", "s1"]
        await eventually_here(lambda: len(gate.seen) == 2)
        assert gate.seen == [("s1", 1, False), ("s3", 1, True)]


async def test_with_a_seed_the_same_requests_are_audited_each_time(models: Path, gate: Gate) -> None:
    write_route(models, "r", exit_route(STAGES, [0.9, 0.9], "seed = 5\n[audit]\nrate = 0.5\n[agreement]"))

    strengths = [EASY + item / 100 for item in range(12)]

    async def audited() -> list[float]:
        gate.audits.clear()
        async with serve_in_process(models) as serving:
            await serving.infer(request(rows(*strengths)))
            await eventually_here(lambda: bool(gate.audits))
        [asked] = gate.audits
        return list(asked.inputs[0].numpy().max(axis=1).tolist())

    first = await audited()
    assert 0 < len(first) < 12
    assert await audited() == first


# What happens meanwhile


async def test_a_request_keeps_its_versions_though_a_stage_is_reloaded_between(models: Path, gate: Gate) -> None:
    gate.hold("s2")
    async with serve_in_process(models) as serving:
        asked = asyncio.create_task(serving.infer(request(rows(HARD))))
        await gate.somebody_waits()
        for number in (2, 3):
            write_stage(models, number, version=2)
            shutil.rmtree(models / f"s{number}" / "1")
        loading = [asyncio.create_task(serving.load(name)) for name in ("s2", "s3")]
        await eventually_here(lambda: all("2" in serving.endpoint(name).versions for name in ("s2", "s3")))
        gate.open()
        response = await asked
        await asyncio.gather(*loading)
        assert response.parameters["offramp_models"] == "s3:1"
        assert logits(response).argmax() == 0
        later = await serving.infer(request(rows(HARD)))
        assert later.parameters["offramp_models"] == "s3:2"
        assert logits(later).argmax() == 1
        assert [(name, version) for name, version, _ in gate.seen] == [
            ("s1", 1), ("s2", 1), ("s3", 1), ("s1", 1), ("s2", 2), ("s3", 2),
        ]  # fmt: skip


async def test_a_request_under_way_is_answered_though_a_route_that_it_runs_next_is_unloaded(
    models: Path, gate: Gate
) -> None:
    write_route(models, "last", 'kind = "single"\nmodel = "s3"\n')
    write_route(models, "deep", exit_route(["s1", "last"], [0.9]))
    async with serve_in_process(models) as serving:
        gate.hold("s1")
        under_way = asyncio.create_task(serving.infer(request(rows(HARD), "deep")))
        await gate.somebody_waits()
        await serving.unload("last")
        gate.open()
        assert exits(await under_way) == ["last"]
        with pytest.raises(Unavailable, match="last"):
            await serving.infer(request(rows(HARD), "deep"))


@pytest.mark.parametrize(("route", "stages"), [("r", STAGES), ("net", SEGMENTS)])
async def test_what_the_server_does_to_a_request_in_its_middle_stage_touches_no_other(
    models: Path, gate: Gate, stop: Callable[[], Stopped], route: str, stages: list[str]
) -> None:
    """Cancelled, out of time, and its worker killed: in this order, as starting workers takes long."""
    first, middle, last = stages
    async with with_workers(models) as serving:

        async def at_the_middle_stage() -> tuple[asyncio.Task[InferResponse], InferRequest]:
            """Its worker has it, and does nothing."""
            gate.hold(middle)
            task = asyncio.create_task(serving.infer(request(rows(HARD, EASY), route)))
            return task, await gate.somebody_waits()

        cancelled, _ = await at_the_middle_stage()
        stopped = stop()
        gate.open()
        await eventually_here(lambda: (middle, 1, False) in gate.seen)
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        stopped.go_on()
        assert exits(await serving.infer(request(rows(HARD, EASY), route))) == [last, first]

        late, asked = await at_the_middle_stage()
        asked.deadline = asyncio.get_running_loop().time() + 0.02
        stopped = stop()
        gate.open()
        with pytest.raises(DeadlineExceeded):
            await late
        stopped.go_on()
        assert [name for name, _, _ in gate.seen] == [first, middle]
        assert exits(await serving.infer(request(rows(HARD, EASY), route))) == [last, first]

        survivor, _ = await at_the_middle_stage()
        stopped = stop()
        gate.open()
        await eventually_here(lambda: (middle, 1, False) in gate.seen)
        os.kill(stopped.pids[0], signal.SIGKILL)
        stopped.go_on()
        response = await survivor
        assert exits(response) == [last, first]
        np.testing.assert_array_equal(logits(response), rows(HARD, EASY) * np.array([[4.0], [1.0]], np.float32))


async def test_no_answer_is_wrong_while_workers_die_versions_change_and_callers_give_up(models: Path) -> None:
    dice = random.Random(3)
    answered = {"r": 0, "net": 0}
    given_up = 0

    async def ask(serving: Serving, number: int) -> None:
        nonlocal given_up
        strengths = [dice.choice([EASY, MIDDLE, HARD]) for _ in range(dice.randint(1, 5))]
        route = dice.choice(["r", "net"])
        task = asyncio.create_task(serving.infer(request(rows(*strengths), route)))
        if dice.random() < 0.2:
            await asyncio.sleep(dice.random() * 0.005)
            task.cancel()
        try:
            response = await task
        except asyncio.CancelledError:
            given_up += 1
            return
        answered[route] += 1
        stages = STAGES if route == "r" else SEGMENTS
        left = [{EASY: 1, MIDDLE: 2, HARD: 3}[strength] for strength in strengths]
        assert exits(response) == [stages[each - 1] for each in left], number
        versions = dict(entry.split(":") for entry in str(response.parameters["offramp_models"]).split(","))
        for item, (stage, strength) in enumerate(zip(left, strengths, strict=True)):
            expected = np.zeros(CLASSES, np.float32)
            moved = int(versions[stages[stage - 1]]) - 1
            expected[(item + moved) % CLASSES] = [1.0, 2.0, 4.0][stage - 1] * strength
            np.testing.assert_array_equal(logits(response)[item], expected)

    async def callers(serving: Serving, count: int) -> None:
        for number in range(count):
            await ask(serving, number)

    async with with_workers(models) as serving:
        asking = [asyncio.create_task(callers(serving, 60)) for _ in range(8)]
        for number in (2, 3):
            await eventually_here(lambda wanted=60 * (number - 1): sum(answered.values()) >= wanted)  # type: ignore[misc]
            os.kill(workers()[0], signal.SIGKILL)
            write_stage(models, number, version=2)
            await serving.load(f"s{number}")
            await eventually(lambda: len(workers()) >= 2)
        await asyncio.gather(*asking)
        assert sum(answered.values()) + given_up == 480
        assert min(answered.values()) > 50
        assert given_up > 0


async def test_a_route_whose_stage_is_gone_says_so(models: Path) -> None:
    async with serve_in_process(models) as serving:
        await serving.unload("s2")
        with pytest.raises(Unavailable, match="s2"):
            await serving.infer(request(rows(EASY)))
