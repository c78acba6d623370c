"""Texts and pictures as requests: what becomes of them between the client and the model."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from model_files import write_identity_onnx
from model_repository import write_add_sub
from offramp_server.config import LimitSettings, PreprocessSettings, ServerSettings, Settings, WorkerSettings
from offramp_server.core import serve_in_process
from offramp_server.errors import DeadlineExceeded, InvalidRequest, LoadError, NotFound, Overloaded
from offramp_server.inference import InferRequest, InferResponse
from offramp_server.preprocess.text import TextPreprocessor
from open_inference.tensor import BYTES, Tensor, encode_bytes
from pictures import encoded, gradient
from text_models import IDS, write_sentiment, write_tokenizer

ONE_THREAD = Settings(workers=WorkerSettings(mode="in-process"), preprocess=PreprocessSettings(threads=1))


def items(name: str, *elements: str | bytes) -> Tensor:
    return Tensor(name, BYTES, (len(elements), 1), encode_bytes(elements))


def ask(*texts: str | bytes, model: str = "sentiment", **fields: Any) -> InferRequest:
    return InferRequest(model, [items("text", *texts)], **fields)


def write_picture(repository: Path, dims: tuple[Any, ...] = ("batch", 1, 4, 4)) -> None:
    """Gives back its pixels."""
    write_identity_onnx(repository / "picture" / "1" / "model.onnx", "FP32", dims)
    (repository / "picture" / "model.toml").write_text('[preprocess]\nkind = "image"\n')


class Held:
    """Keeps every tokenizing thread until it is let go."""

    def __init__(self) -> None:
        self.begun = threading.Semaphore(0)
        self._go = threading.Event()

    def wrap(self, prepare: Callable[..., Any]) -> Callable[..., Any]:
        def wait(*arguments: Any) -> Any:
            self.begun.release()
            assert self._go.wait(30)
            return prepare(*arguments)

        return wait

    def let_go(self) -> None:
        self._go.set()

    async def until_begun(self) -> None:
        assert await asyncio.to_thread(self.begun.acquire, timeout=30)


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[Held]:
    held = Held()
    monkeypatch.setattr(TextPreprocessor, "prepare", held.wrap(TextPreprocessor.prepare))
    yield held
    held.let_go()


def scores(response: InferResponse) -> np.ndarray:
    return response.outputs[0].numpy()


# What goes in, and what comes out


async def test_texts_are_answered(repository: Path) -> None:
    write_sentiment(repository)
    async with serve_in_process(repository) as serving:
        response = await serving.infer(ask("good film, good book", "bad"))
        np.testing.assert_array_equal(scores(response), [[0, 2], [1, 0]])


async def test_clients_are_told_of_the_text_and_not_of_the_tokens(repository: Path) -> None:
    write_sentiment(repository)
    async with serve_in_process(repository) as serving:
        endpoint = serving.endpoint("sentiment")
        assert [str(tensor) for tensor in endpoint.inputs] == ["text BYTES[1]"]
        assert endpoint.parameters["preprocess"] == "text"
        assert endpoint.parameters["tensor_inputs"] == "input_ids INT64[-1], attention_mask INT64[-1]"


async def test_a_route_over_a_model_that_takes_texts_takes_texts(repository: Path) -> None:
    write_sentiment(repository)
    (repository / "reviews").mkdir()
    (repository / "reviews" / "route.toml").write_text('kind = "single"\nmodel = "sentiment"\n')
    async with serve_in_process(repository) as serving:
        assert [str(tensor) for tensor in serving.endpoint("reviews").inputs] == ["text BYTES[1]"]
        assert serving.endpoint("reviews").parameters["preprocess"] == "text"
        np.testing.assert_array_equal(scores(await serving.infer(ask("bad", model="reviews"))), [[1, 0]])


async def test_the_model_s_own_tensors_are_taken_as_well(repository: Path) -> None:
    write_sentiment(repository)
    ids = np.array([[IDS["good"], IDS["bad"]]])
    tensors = [Tensor.from_numpy("attention_mask", np.array([[1, 0]])), Tensor.from_numpy("input_ids", ids)]
    async with serve_in_process(repository) as serving:
        np.testing.assert_array_equal(scores(await serving.infer(InferRequest("sentiment", tensors))), [[0, 1]])


async def test_pictures_are_answered(repository: Path) -> None:
    write_picture(repository)
    pixels = [gradient(4, 4), 255 - gradient(4, 4)]
    async with serve_in_process(repository) as serving:
        files = items("image_bytes", encoded(pixels[0]), encoded(pixels[1]))
        answer = scores(await serving.infer(InferRequest("picture", [files])))
        np.testing.assert_array_equal(answer, np.array(pixels, np.float32)[:, None] / 255)


async def test_a_model_without_a_batch_dimension_takes_one_item(repository: Path) -> None:
    write_picture(repository, dims=(1, 4, 4))
    async with serve_in_process(repository) as serving:
        assert serving.endpoint("picture").max_batch_size == 0
        file = Tensor("image_bytes", BYTES, (1,), encode_bytes([encoded(gradient(4, 4))]))
        answer = scores(await serving.infer(InferRequest("picture", [file])))
        np.testing.assert_array_equal(answer[0], gradient(4, 4).astype(np.float32) / 255)


async def test_texts_of_any_length_are_answered_side_by_side(repository: Path) -> None:
    write_sentiment(repository)
    texts = ["good", "good good", "bad " * 10, "film", "good bad good bad"] * 4
    async with serve_in_process(repository) as serving:
        answers = await asyncio.gather(*(serving.infer(ask(text)) for text in texts))
        for text, answer in zip(texts, answers, strict=True):
            np.testing.assert_array_equal(scores(answer), [[text.count("bad"), text.count("good")]])


# What is wrong with a request


@pytest.mark.parametrize(
    ("inputs", "sentence"),
    [
        ([items("text", "good", b"\xff")], 'input "text", item 1: expected UTF-8'),
        ([items("txt", "good")], 'the model has no input "txt"; did you mean "text"?'),
        ([], 'missing input "text" (BYTES)'),
        ([Tensor("text", BYTES, (1,), encode_bytes(["good"]))], 'input "text": expected BYTES[-1,1], got BYTES[1]'),
        ([Tensor("text", BYTES, (0, 1), b"")], "expected a batch size from 1 to 16, got 0"),
        ([items("text", *["good"] * 17)], "expected a batch size from 1 to 16, got 17"),
        (
            [items("text", "good"), Tensor.from_numpy("input_ids", np.array([[1]]))],
            'expected either input "text" (BYTES) or the model\'s own tensors ("input_ids", "attention_mask"), got',
        ),
        ([Tensor.from_numpy("input_ids", np.array([[1]]))], 'missing input "attention_mask" (INT64)'),
    ],
)
async def test_a_wrong_request_is_refused_in_one_sentence(
    inputs: list[Tensor], sentence: str, repository: Path
) -> None:
    write_sentiment(repository)
    async with serve_in_process(repository) as serving:
        with pytest.raises(InvalidRequest) as caught:
            await serving.infer(InferRequest("sentiment", inputs))
        assert sentence in str(caught.value)
        assert serving.stats.model("sentiment", "1").failures["invalid_argument"] == 1


async def test_labels_are_not_taken_by_a_model_that_has_its_own(repository: Path) -> None:
    write_sentiment(repository)
    async with serve_in_process(repository) as serving:
        with pytest.raises(InvalidRequest, match=r'model "sentiment" has labels of its own and no \[zero_shot\] table'):
            await serving.infer(ask("good", parameters={"offramp_labels": '["a", "b"]'}))


async def test_more_pixels_than_a_request_may_have_are_refused_before_they_are_made(repository: Path) -> None:
    write_picture(repository, dims=("batch", 1, 64, 64))
    settings = Settings(workers=WorkerSettings(mode="in-process"), server=ServerSettings(max_message_bytes=20_000))
    async with serve_in_process(repository, settings) as serving:
        file = encoded(np.zeros((64, 64)))
        await serving.infer(InferRequest("picture", [items("image_bytes", file)]))
        with pytest.raises(InvalidRequest, match='2 items become 32768 bytes of input "x", this server takes at most'):
            await serving.infer(InferRequest("picture", [items("image_bytes", file, b"not even looked at")]))


# Waiting, cancelling, running out of time


async def test_a_request_that_is_cancelled_before_its_turn_is_not_prepared(repository: Path, held: Held) -> None:
    write_sentiment(repository)
    async with serve_in_process(repository, ONE_THREAD) as serving:
        first = asyncio.create_task(serving.infer(ask("good")))
        await held.until_begun()
        second = asyncio.create_task(serving.infer(ask("bad")))
        await asyncio.sleep(0)
        second.cancel()
        held.let_go()
        await first
        await serving.infer(ask("film"))
        await held.until_begun()
        # The one that was cancelled would have been the third to begin.
        assert not held.begun.acquire(blocking=False)
        assert serving.stats.model("sentiment", "1").failures["cancelled"] == 1


async def test_a_deadline_that_passes_while_inputs_are_prepared_is_kept(repository: Path, held: Held) -> None:
    write_sentiment(repository)
    async with serve_in_process(repository, ONE_THREAD) as serving:
        with pytest.raises(DeadlineExceeded):
            await serving.infer(ask("good", deadline=asyncio.get_running_loop().time() + 0.05))
        held.let_go()


async def test_what_is_being_prepared_counts_as_waiting(repository: Path, held: Held) -> None:
    write_sentiment(repository, toml="[batching]\nmax_queue_items = 3")
    async with serve_in_process(repository, ONE_THREAD) as serving:
        waiting = [asyncio.create_task(serving.infer(ask(*texts))) for texts in (("good", "bad"), ("good",))]
        await held.until_begun()
        with pytest.raises(Overloaded, match="3 items wait for model"):
            await serving.infer(ask("good"))
        held.let_go()
        await asyncio.gather(*waiting)
        await serving.infer(ask("good"))


async def test_what_is_being_prepared_counts_as_in_flight(repository: Path, held: Held) -> None:
    write_sentiment(repository)
    settings = Settings(workers=WorkerSettings(mode="in-process"), limits=LimitSettings(max_in_flight=1))
    async with serve_in_process(repository, settings) as serving:
        waiting = asyncio.create_task(serving.infer(ask("good")))
        await held.until_begun()
        with pytest.raises(Overloaded, match="1 requests are in flight"):
            await serving.infer(ask("good"))
        held.let_go()
        await waiting


async def test_other_models_are_computed_while_inputs_are_prepared(repository: Path, held: Held) -> None:
    write_sentiment(repository)
    write_add_sub(repository)
    async with serve_in_process(repository, ONE_THREAD) as serving:
        waiting = asyncio.create_task(serving.infer(ask("good")))
        await held.until_begun()
        row = Tensor.from_numpy("x", np.ones((1, 4), np.float32))
        await serving.infer(InferRequest("add_sub", [row]))
        assert not waiting.done()
        held.let_go()
        await waiting


async def test_a_reload_fails_no_request_that_is_being_prepared(repository: Path, held: Held) -> None:
    write_sentiment(repository)
    async with serve_in_process(repository, ONE_THREAD) as serving:
        waiting = asyncio.create_task(serving.infer(ask("good")))
        await held.until_begun()
        await serving.load("sentiment")
        held.let_go()
        np.testing.assert_array_equal(scores(await waiting), [[0, 1]])


async def test_draining_waits_for_what_is_being_prepared(repository: Path, held: Held) -> None:
    write_sentiment(repository)
    async with serve_in_process(repository, ONE_THREAD) as serving:
        waiting = asyncio.create_task(serving.infer(ask("good")))
        await held.until_begun()
        draining = asyncio.create_task(serving.drain(30))
        await asyncio.sleep(0)
        assert not draining.done()
        held.let_go()
        assert await draining
        assert (await waiting).model == "sentiment"


# Loading and counting


async def test_a_changed_tokenizer_takes_effect_with_a_reload(repository: Path) -> None:
    write_sentiment(repository, preprocess="pad_to_multiple_of = 1")
    async with serve_in_process(repository) as serving:
        write_tokenizer(repository / "sentiment", special=False)
        await serving.load("sentiment")
        np.testing.assert_array_equal(scores(await serving.infer(ask("good"))), [[0, 1]])


async def test_a_tokenizer_that_cannot_be_used_refuses_the_load_and_the_old_one_goes_on(repository: Path) -> None:
    write_sentiment(repository)
    async with serve_in_process(repository) as serving:
        (repository / "sentiment" / "tokenizer.json").write_text("{}")
        with pytest.raises(LoadError, match="not a tokenizer file"):
            await serving.load("sentiment")
        np.testing.assert_array_equal(scores(await serving.infer(ask("good"))), [[0, 1]])


@pytest.mark.parametrize(("library", "extra"), [("tokenizers", "text"), ("PIL", "image")])
async def test_a_missing_library_refuses_the_load_and_names_the_extra(
    library: str, extra: str, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_sentiment(repository, name="text")
    write_picture(repository)
    monkeypatch.setitem(sys.modules, library, None)
    async with serve_in_process(repository) as serving:
        reasons = [entry.reason for entry in serving.index() if entry.state == "UNAVAILABLE"]
        assert len(reasons) == 1
        assert f"needs {library}; install it with: pip install 'offramp[{extra}]'" in reasons[0]
        with pytest.raises(NotFound, match="install it with"):
            serving.endpoint("text" if library == "tokenizers" else "picture")


async def test_the_time_that_preparing_takes_is_counted(repository: Path) -> None:
    write_sentiment(repository)
    async with serve_in_process(repository) as serving:
        await serving.infer(ask("good"))
        await serving.infer(ask("bad"))
        histogram = serving.stats.model("sentiment", "1").preprocess_seconds
        assert sum(histogram.counts) == 2
        assert histogram.sum > 0
