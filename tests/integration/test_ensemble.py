"""Ensembles over real models: who answers, who is waited for, and what the answer says."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pytest
from classifiers import write_classifier, write_route
from eventually import PATIENCE, eventually_here
from offramp_adapters.routes.plan import Answer
from offramp_server.core import serve_in_process
from offramp_server.errors import ConfigurationError, DeadlineExceeded, InvalidRequest, LoadError, ModelFailed
from offramp_server.inference import InferRequest, InferResponse
from offramp_server.model_runner import ModelRunner
from offramp_server.repository.check import check
from offramp_server.workers.backend import LoadedModel
from open_inference.tensor import Tensor

RANDOM = np.random.default_rng(7)
ROWS = RANDOM.normal(size=(5, 4)).astype(np.float32)
WEIGHTS = {name: RANDOM.normal(size=(4, 3)) for name in "abc"}
MEAN = 'kind = "ensemble"\n[[members]]\nmodel = "a"\n[[members]]\nmodel = "b"\n'
# The deadline is near at once, so that nothing hangs on how fast anybody is.
QUORUM = f"quorum = 1\nmargin = {10 * PATIENCE}\n{MEAN}"

Run: TypeAlias = Callable[[ModelRunner, LoadedModel, InferRequest], Awaitable[Answer]]


def request(model: str = "all", rows: np.ndarray = ROWS, **fields: Any) -> InferRequest:
    return InferRequest(model, [Tensor.from_numpy("x", rows)], **fields)


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    result: np.ndarray = powers / powers.sum(axis=-1, keepdims=True)
    return result


def said(name: str, rows: np.ndarray = ROWS) -> np.ndarray:
    return softmax(rows.astype(np.float64) @ WEIGHTS[name])


def probabilities(response: InferResponse) -> np.ndarray:
    [output] = response.outputs
    assert output.name == "logits"
    return softmax(output.numpy().astype(np.float64))


@pytest.fixture
def models(repository: Path) -> Path:
    for name, weights in WEIGHTS.items():
        write_classifier(repository, name, weights)
    return repository


class Gate:
    """Keeps what one model is asked, or lets it fail."""

    def __init__(self) -> None:
        self.waiting = 0
        self.given_up = 0
        self.failing = ""
        self._held = ""

    def hold(self, model: str) -> None:
        self._held = model

    def around(self, run: Run) -> Run:
        async def gated(runner: ModelRunner, model: LoadedModel, request: InferRequest) -> Answer:
            if model.spec.name == self.failing:
                raise ModelFailed("its engine raised")
            if model.spec.name == self._held:
                self.waiting += 1
                try:
                    await asyncio.Event().wait()
                except asyncio.CancelledError:
                    self.given_up += 1
                    raise
            return await run(runner, model, request)

        return gated


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    gate = Gate()
    monkeypatch.setattr(ModelRunner, "run", gate.around(ModelRunner.run))
    return gate


# Together


async def test_the_members_of_an_ensemble_answer_together(models: Path) -> None:
    write_route(models, "all", MEAN)
    async with serve_in_process(models) as serving:
        response = await serving.infer(request())
        np.testing.assert_allclose(probabilities(response), (said("a") + said("b")) / 2, rtol=1e-5)
        confidence = ((said("a") + said("b")) / 2).max(axis=1)
        assert response.parameters == {
            "offramp_route": "ensemble",
            "offramp_models": "a:1,b:1",
            "offramp_confidence": ",".join(f"{value:.4g}" for value in confidence),
        }


async def test_an_ensemble_of_models_with_probabilities_answers_with_probabilities(repository: Path) -> None:
    for name, row in (("a", [0.2, 0.8]), ("b", [0.6, 0.4])):
        write_classifier(repository, name, np.array([row]), output="probabilities")
    write_route(repository, "all", MEAN)
    async with serve_in_process(repository) as serving:
        [output] = (await serving.infer(request(rows=np.ones((1, 1), np.float32)))).outputs
        assert output.name == "probabilities"
        np.testing.assert_allclose(output.numpy(), [[0.4, 0.6]], rtol=1e-6)


async def test_members_may_be_routes_and_the_models_below_are_named(models: Path) -> None:
    write_route(models, "pair", MEAN)
    write_route(models, "stable", 'kind = "single"\nmodel = "c"\n')
    write_route(models, "all", 'kind = "ensemble"\n[[members]]\nmodel = "pair"\n[[members]]\nmodel = "stable"\n')
    async with serve_in_process(models) as serving:
        # The kind is said to the route that is called, not to those below.
        response = await serving.infer(request(parameters={"offramp_route": "ensemble"}))
        expected = ((said("a") + said("b")) / 2 + said("c")) / 2
        np.testing.assert_allclose(probabilities(response), expected, rtol=1e-5)
        assert response.parameters["offramp_models"] == "a:1,b:1,c:1"
        assert serving.endpoint("all").composing == ("pair", "stable")


async def test_one_request_may_have_one_member_alone(models: Path) -> None:
    write_route(models, "all", MEAN)
    async with serve_in_process(models) as serving:
        alone = await serving.infer(request("b"))
        chosen = await serving.infer(request(parameters={"offramp_route": "model:b"}))
        assert bytes(chosen.outputs[0].data) == bytes(alone.outputs[0].data)
        assert chosen.parameters["offramp_models"] == "b:1"
        with pytest.raises(InvalidRequest, match='expected "ensemble" or "model:a" or "model:b", got "model:c"'):
            await serving.infer(request(parameters={"offramp_route": "model:c"}))


@pytest.mark.parametrize("combine", ["mean", "weighted_mean", "vote"])
async def test_the_same_requests_in_the_same_order_are_answered_with_the_same_bits(models: Path, combine: str) -> None:
    write_route(models, "all", f'combine = "{combine}"\n{MEAN}[[members]]\nmodel = "c"\n')

    async def answers() -> list[bytes]:
        async with serve_in_process(models) as serving:
            rows = np.random.default_rng(11).normal(size=(20, 3, 4)).astype(np.float32)
            responses = [await serving.infer(request(rows=three)) for three in rows]
        return [bytes(response.outputs[0].data) + repr(response.parameters).encode() for response in responses]

    assert await answers() == await answers()


# Best effort


async def test_near_the_deadline_the_members_that_are_in_answer_and_the_others_are_given_up(
    models: Path, gate: Gate
) -> None:
    write_route(models, "all", QUORUM)
    gate.hold("b")
    async with serve_in_process(models) as serving:
        deadline = asyncio.get_running_loop().time() + PATIENCE
        response = await serving.infer(request(deadline=deadline))
        np.testing.assert_allclose(probabilities(response), said("a"), rtol=1e-5)
        assert response.parameters["offramp_models"] == "a:1"
        await eventually_here(lambda: gate.given_up == 1)


async def test_without_a_deadline_all_members_are_waited_for(models: Path, gate: Gate) -> None:
    write_route(models, "all", QUORUM)
    gate.hold("b")
    async with serve_in_process(models) as serving:
        answering = asyncio.create_task(serving.infer(request()))
        await eventually_here(lambda: gate.waiting == 1)
        # The other member has been answered for long.
        await serving.infer(request("a"))
        assert not answering.done()
        answering.cancel()
        await eventually_here(lambda: gate.given_up == 1)


async def test_without_a_quorum_a_deadline_that_passes_is_an_error(models: Path, gate: Gate) -> None:
    write_route(models, "all", MEAN)
    async with serve_in_process(models) as serving:
        with pytest.raises(DeadlineExceeded):
            await serving.infer(request(deadline=asyncio.get_running_loop().time() - 1))


async def test_a_member_that_fails_is_left_out_if_the_quorum_is_there_without_it(models: Path, gate: Gate) -> None:
    write_route(models, "some", f"quorum = 1\n{MEAN}")
    write_route(models, "all", MEAN)
    gate.failing = "a"
    async with serve_in_process(models) as serving:
        response = await serving.infer(request("some"))
        np.testing.assert_allclose(probabilities(response), said("b"), rtol=1e-5)
        assert response.parameters["offramp_models"] == "b:1"
        with pytest.raises(ModelFailed):
            await serving.infer(request("all"))


async def test_nobody_waits_for_a_member_once_a_quorum_cannot_be_reached_any_more(models: Path, gate: Gate) -> None:
    write_route(models, "all", f"quorum = 2\n{MEAN}")
    gate.failing = "a"
    gate.hold("b")
    async with serve_in_process(models) as serving:
        async with asyncio.timeout(PATIENCE):
            with pytest.raises(ModelFailed):
                await serving.infer(request())
        await eventually_here(lambda: gate.given_up == 1)


async def test_a_model_that_gives_nan_is_left_out_if_the_quorum_is_there_without_it(models: Path) -> None:
    write_classifier(models, "broken", np.full((4, 3), np.nan))
    write_route(
        models, "all", 'kind = "ensemble"\nquorum = 1\n[[members]]\nmodel = "a"\n[[members]]\nmodel = "broken"\n'
    )
    async with serve_in_process(models) as serving:
        response = await serving.infer(request())
        np.testing.assert_allclose(probabilities(response), said("a"), rtol=1e-5)
        assert response.parameters["offramp_models"] == "a:1"


# What does not fit


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (f'combine = "average"\n{MEAN}', 'combine: expected "mean", "weighted_mean", "vote" or "stack", got "average"'),
        (f"quorm = 1\n{MEAN}", 'unknown key "quorm"; did you mean "quorum"'),
        (f"{MEAN}wieght = 2.0\n", 'unknown key "members.1..wieght"; did you mean "members.1..weight"'),
        (f"quorum = 3\n{MEAN}", "route.toml: quorum: expected 1 to 2"),
        (f"{MEAN}weight = 2.0\n", 'members.weight: combine = "mean" has no use for it'),
        (f'combine = "stack"\n{MEAN}', "offramp fit-ensemble"),
        (f"{MEAN}temperature = 0\n", "temperature: expected a number from 0.01 to 100.0, got 0"),
        (f'{MEAN}[fitted]\n[[fitted.members]]\nmodel = "a"\n', r"\[fitted\] is for members a, and the route has a, b"),
        (f'{MEAN}[[members]]\nmodel = "d"\n', 'no model or route "d"'),
        (f'{MEAN}[[members]]\nmodel = "wide"\n', '"a" has 3 classes and "wide" has 2'),
        (
            f'{MEAN}[[members]]\nmodel = "cats"\n[[members]]\nmodel = "dogs"\n',
            'class 0 is "cat" of "cats" and "dog" of',
        ),
    ],
)
async def test_what_does_not_fit_is_said_when_it_is_loaded_and_by_check(models: Path, text: str, match: str) -> None:
    write_classifier(models, "wide", np.zeros((4, 2)))
    write_classifier(models, "cats", np.zeros((4, 3)), labels=["cat", "dog", "owl"])
    write_classifier(models, "dogs", np.zeros((4, 3)), labels=["dog", "cat", "owl"])
    async with serve_in_process(models) as serving:
        write_route(models, "all", text)
        with pytest.raises(ConfigurationError, match=match):
            await serving.load("all")
    [problem] = check(models).problems
    assert "all" in problem


async def test_a_new_version_of_a_member_that_would_not_fit_is_refused(models: Path) -> None:
    write_route(models, "all", MEAN)
    async with serve_in_process(models) as serving:
        write_classifier(models, "b", np.zeros((4, 2)), version=2)
        with pytest.raises(LoadError, match=r'route "all" runs it, and would not fit: .*"b" has 2'):
            await serving.load("b")
        assert (await serving.infer(request())).parameters["offramp_models"] == "a:1,b:1"
