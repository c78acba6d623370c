"""An encoder with [zero_shot] is a classifier to its clients, over labels that they may bring themselves."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from offramp_server.core import serve_in_process
from offramp_server.errors import ConfigurationError, DeadlineExceeded, InvalidRequest, LoadError
from offramp_server.inference import InferRequest, InferResponse
from offramp_server.repository.check import check
from offramp_server.repository.reader import read_model
from open_inference.tensor import BYTES, Tensor, encode_bytes
from text_models import IDS, MEANING, write_zero_shot


def ask(*texts: str | bytes, labels: Any = None, model: str = "topics", **fields: Any) -> InferRequest:
    inputs = [Tensor("text", BYTES, (len(texts), 1), encode_bytes(texts))]
    parameters = {} if labels is None else {"offramp_labels": labels if isinstance(labels, str) else json.dumps(labels)}
    return InferRequest(model, inputs, parameters=parameters, **fields)


def probabilities(response: InferResponse) -> np.ndarray:
    [tensor] = [output for output in response.outputs if output.name == "probabilities"]
    return tensor.numpy()


def expected(text: str, descriptions: list[str], temperature: float = 0.05) -> np.ndarray:
    def vector(words: str) -> np.ndarray:
        total = np.sum([MEANING[word] for word in words.split()], axis=0)
        unit: np.ndarray = total / np.linalg.norm(total)
        return unit

    scores = np.array([vector(text) @ vector(description) for description in descriptions]) / temperature
    exponentials = np.exp(scores - scores.max())
    result: np.ndarray = exponentials / exponentials.sum()
    return result


async def test_texts_are_scored_against_the_configured_labels(repository: Path) -> None:
    write_zero_shot(repository)
    async with serve_in_process(repository) as serving:
        response = await serving.infer(ask("good film", "good book good"))
        assert [output.name for output in response.outputs] == ["logits", "probabilities"]
        for row, text in zip(probabilities(response), ("good film", "good book good"), strict=True):
            np.testing.assert_allclose(row, expected(text, ["film", "book"]), rtol=1e-4)
        assert response.labels["probabilities"] == ("movies", "reading")
        assert response.parameters["offramp_labels"] == '["movies", "reading"]'


async def test_clients_see_a_classifier(repository: Path) -> None:
    write_zero_shot(repository)
    async with serve_in_process(repository) as serving:
        endpoint = serving.endpoint("topics")
        assert [str(tensor) for tensor in endpoint.inputs] == ["text BYTES[1]"]
        assert [str(tensor) for tensor in endpoint.outputs] == ["logits FP32[-1]", "probabilities FP32[-1]"]
        assert endpoint.outputs[1].labels == ("movies", "reading")
        assert endpoint.parameters["zero_shot"] == '["{}"]'


async def test_a_request_may_bring_its_own_labels(repository: Path) -> None:
    write_zero_shot(repository)
    async with serve_in_process(repository) as serving:
        response = await serving.infer(ask("good film", labels=["bad", "good", "film"]))
        np.testing.assert_allclose(
            probabilities(response)[0], expected("good film", ["bad", "good", "film"]), rtol=1e-4
        )
        assert response.labels["logits"] == ("bad", "good", "film")


async def test_outputs_are_chosen_as_of_any_model(repository: Path) -> None:
    write_zero_shot(repository)
    async with serve_in_process(repository) as serving:
        response = await serving.infer(ask("good", outputs=["probabilities"]))
        assert [output.name for output in response.outputs] == ["probabilities"]
        with pytest.raises(InvalidRequest, match='the model has no output "embedding"'):
            await serving.infer(ask("good", outputs=["embedding"]))


async def test_tokens_are_scored_as_well(repository: Path) -> None:
    write_zero_shot(repository)
    tensors = [Tensor.from_numpy(name, np.array([[value]])) for name, value in
               (("input_ids", IDS["film"]), ("attention_mask", 1))]  # fmt: skip
    async with serve_in_process(repository) as serving:
        response = await serving.infer(InferRequest("topics", tensors))
        np.testing.assert_allclose(probabilities(response)[0], expected("film", ["film", "book"]), rtol=1e-4)


async def test_a_route_over_it_takes_labels_too_and_says_what_ran(repository: Path) -> None:
    write_zero_shot(repository)
    (repository / "any").mkdir()
    (repository / "any" / "route.toml").write_text('kind = "single"\nmodel = "topics"\n')
    async with serve_in_process(repository) as serving:
        response = await serving.infer(ask("good", labels=["bad", "good"], model="any"))
        assert response.labels["probabilities"] == ("bad", "good")
        assert response.parameters == {
            "offramp_labels": '["bad", "good"]', "offramp_route": "single", "offramp_models": "topics:1",
        }  # fmt: skip
        assert [str(tensor) for tensor in serving.endpoint("any").outputs] == [
            "logits FP32[-1]",
            "probabilities FP32[-1]",
        ]


async def test_the_configured_labels_are_known_before_the_first_request(repository: Path) -> None:
    write_zero_shot(repository)
    async with serve_in_process(repository) as serving:
        stats = serving.stats.model("topics", "1")
        before = stats.execution_count
        await serving.infer(ask("good"))
        await serving.infer(ask("bad"))
        assert stats.execution_count == before + 2


async def test_one_request_counts_as_one_however_often_the_encoder_runs(repository: Path) -> None:
    write_zero_shot(repository, toml="max_batch_size = 2")
    async with serve_in_process(repository) as serving:
        await serving.infer(ask("good", "bad", labels=["film", "book", "good", "bad", "x", "y", "z"]))
        stats = serving.stats.model("topics", "1")
        assert (stats.success_count, stats.item_count) == (1, 2)


async def test_bad_labels_are_the_caller_s_mistake(repository: Path) -> None:
    write_zero_shot(repository)
    async with serve_in_process(repository) as serving:
        for labels in ("film", ["film"], ["film", "film"], ["film", ""]):
            with pytest.raises(InvalidRequest, match='parameter "offramp_labels": expected a JSON list'):
                await serving.infer(ask("good", labels=labels))
        assert serving.stats.model("topics", "1").failures["invalid_argument"] == 4


async def test_a_label_that_the_encoder_does_not_take_is_told_apart_from_the_text(repository: Path) -> None:
    write_zero_shot(repository)
    toml = repository / "topics" / "model.toml"
    toml.write_text(toml.read_text().replace("max_length = 32", "max_length = 8\ntruncation = false"))
    async with serve_in_process(repository) as serving:
        with pytest.raises(InvalidRequest, match=r'^the prompts of the labels: input "text", item 0: has 12'):
            await serving.infer(ask("good", labels=["film", "good " * 10]))
        with pytest.raises(InvalidRequest, match=r'^input "text", item 0: has 12 tokens'):
            await serving.infer(ask("good " * 10, labels=["film", "good"]))


async def test_a_deadline_holds_for_the_labels_as_for_the_text(repository: Path) -> None:
    write_zero_shot(repository)
    async with serve_in_process(repository) as serving:
        with pytest.raises(DeadlineExceeded):
            await serving.infer(ask("good", labels=["a", "b"], deadline=asyncio.get_running_loop().time() - 1))


async def test_a_reload_forgets_what_the_old_encoder_made_of_the_labels(repository: Path) -> None:
    write_zero_shot(repository)
    async with serve_in_process(repository) as serving:
        before = probabilities(await serving.infer(ask("good film")))
        write_zero_shot(repository, table="temperature = 0.5")
        await serving.load("topics")
        after = probabilities(await serving.infer(ask("good film")))
        np.testing.assert_allclose(after[0], expected("good film", ["film", "book"], 0.5), rtol=1e-4)
        assert not np.allclose(before, after)


async def test_an_encoder_that_cannot_read_the_configured_labels_is_not_served(repository: Path) -> None:
    write_zero_shot(repository, table="templates = ['{} good good good good good good good good']")
    toml = repository / "topics" / "model.toml"
    toml.write_text(toml.read_text().replace("max_length = 32", "max_length = 8\ntruncation = false"))
    async with serve_in_process(repository) as serving:
        [entry] = serving.index()
        assert entry.state == "UNAVAILABLE"
        assert "it does not answer: the prompts of the labels: " in entry.reason
        with pytest.raises(LoadError, match="it does not answer"):
            await serving.load("topics")


def test_check_shows_what_a_classifier_is_made_of(repository: Path) -> None:
    write_zero_shot(repository)
    report = check(repository)
    assert "    out: logits FP32[-1], probabilities FP32[-1]" in report.lines
    assert "         zero-shot over 2 labels, by embedding FP32[3]" in report.lines


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        ('templates = ["no place"]', 'zero_shot.templates: expected at least one template, each with "{}" once'),
        ('templates = ["{} {}"]', 'zero_shot.templates: expected at least one template, each with "{}" once'),
        ("templates = []", 'zero_shot.templates: expected at least one template, each with "{}" once'),
        (f"templates = {['{}' + str(n) for n in range(17)]}", "17 templates have to fit a batch, and"),
        ("temperature = 0.0", "zero_shot.temperature: expected a number above 0, got 0"),
        ('embedding = "embeding"', 'the model has no output "embeding"; did you mean "embedding"?'),
        ('logits = "scores"\nprobabilities = "scores"', 'logits and probabilities are both named "scores"'),
        ("lables = []", 'unknown key "zero_shot.lables"; did you mean "zero_shot.labels"?'),
    ],
)  # fmt: skip
def test_a_mistake_in_the_table_is_one_clear_sentence(table: str, sentence: str, repository: Path) -> None:
    write_zero_shot(repository, table=table)
    with pytest.raises(ConfigurationError) as caught:
        read_model(repository, "topics")
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    ("before", "after", "sentence"),
    [
        ('labels = ["movies", "reading"]', 'labels = ["movies"]', "expected at least two labels, all different"),
        ('labels = ["movies", "reading"]', 'labels = ["a", "a"]', "expected at least two labels, all different"),
        ('labels = ["movies", "reading"]', 'labels = ["a", " "]', "each element a text that is not empty"),
        ('["film", "book"]', '["film"]', "there are 1 descriptions for 2 labels"),
        ('[preprocess]\ntokenizer = "tokenizer.json"\nmax_length = 32', "", "has to take texts; add [preprocess]"),
    ],
)  # fmt: skip
def test_labels_and_texts_have_to_be_there(before: str, after: str, sentence: str, repository: Path) -> None:
    write_zero_shot(repository)
    toml = repository / "topics" / "model.toml"
    toml.write_text(toml.read_text().replace(before, after))
    with pytest.raises(ConfigurationError) as caught:
        read_model(repository, "topics")
    assert sentence in str(caught.value)
