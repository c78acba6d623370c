"""A zero-shot classifier decides what its encoder is to read, and scores what comes back: no model and no server."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from offramp_adapters.routes.plan import Answer, RouteRefused, Target
from offramp_adapters.routes.strategy import Query
from offramp_adapters.zero_shot.classifier import CACHED_CLASSES, ZeroShot
from offramp_adapters.zero_shot.labels import LABELS_PARAMETER, MAX_LABEL_LENGTH, read_labels
from offramp_adapters.zero_shot.settings import ZeroShotSettings
from offramp_adapters.zero_shot.vectors import VectorCache, class_vectors, softmax, unit
from open_inference.tensor import Tensor, decode_bytes

MODEL = Target("encoder", "1")


def settings(**changes: object) -> ZeroShotSettings:
    plain: dict[str, object] = {
        "labels": ("up", "right"),
        "descriptions": ("up", "right"),
        "templates": ("{}",),
        "temperature": 0.5,
        "embedding": "embedding",
        "logits": "logits",
        "probabilities": "probabilities",
    }
    return ZeroShotSettings(**{**plain, **changes})  # type: ignore[arg-type]


class Encoder:
    """Knows the directions of a few words, adds them up, and notes what it was given to read."""

    WORDS: Mapping[str, Sequence[float]] = {
        "up": (0, 3),
        "right": (5, 0),
        "left": (-1, 0),
        "so": (1, 1),
        "very": (2, 0),
    }

    def __init__(self) -> None:
        self.read: list[list[str]] = []

    def __call__(self, tensor: Tensor) -> Answer:
        texts = [text.decode() for text in decode_bytes(tensor.data)]
        assert (tensor.name, tensor.shape) == ("text", (len(texts), 1))
        self.read.append(texts)
        return self.answer(texts)

    def answer(self, texts: Sequence[str]) -> Answer:
        rows = [sum(np.array(self.WORDS.get(word, (0.1, 0.1)), np.float32) for word in text.split()) for text in texts]
        other = Tensor.from_numpy("pooled", np.zeros((len(texts), 7), np.float32))
        return Answer([other, Tensor.from_numpy("embedding", np.stack(rows))])


def classify(
    classifier: ZeroShot, encoder: Encoder, texts: Sequence[str], parameters: Mapping[str, str] | None = None
) -> Answer:
    plan = classifier.plan(Query(parameters or {}, (), coin=lambda: 0.0))
    try:
        step = next(plan)
        while True:
            [run] = step.runs
            assert run.target == MODEL
            step = plan.send((encoder.answer(texts) if run.inputs is None else encoder(run.inputs[0]),))
    except StopIteration as end:
        answer: Answer = end.value
        return answer


def arrays(answer: Answer) -> dict[str, np.ndarray]:
    return {tensor.name: tensor.numpy() for tensor in answer.outputs}


def test_scores_are_cosines_over_the_temperature_and_their_softmax() -> None:
    answer = classify(ZeroShot(settings(), MODEL, "text", 8), Encoder(), ["up", "so", "left"])
    half = 1 / np.sqrt(2)
    expected = np.array([[1, 0], [half, half], [0, -1]]) / 0.5
    np.testing.assert_allclose(arrays(answer)["logits"], expected, atol=1e-6)
    exponentials = np.exp(expected)
    np.testing.assert_allclose(
        arrays(answer)["probabilities"], exponentials / exponentials.sum(axis=1, keepdims=True), atol=1e-6
    )
    assert {array.dtype for array in arrays(answer).values()} == {np.dtype(np.float32)}


def test_an_answer_says_which_labels_it_is_about() -> None:
    answer = classify(ZeroShot(settings(), MODEL, "text", 8), Encoder(), ["up"])
    assert answer.labels == {"logits": ("up", "right"), "probabilities": ("up", "right")}
    assert answer.parameters == {LABELS_PARAMETER: '["up", "right"]'}


def test_what_the_encoder_reads_of_a_class_is_its_description_in_each_template() -> None:
    encoder = Encoder()
    configured = settings(labels=("a", "b"), templates=("so {}", "{}"), descriptions=("up", "left"))
    answer = classify(ZeroShot(configured, MODEL, "text", 8), encoder, ["up"])
    assert encoder.read == [["so up", "up", "so left", "left"]]
    # The mean of unit vectors, made a unit vector again.
    mean = unit(unit(np.array([[1, 4], [0, 3]])).mean(axis=0, keepdims=True))[0]
    np.testing.assert_allclose(arrays(answer)["logits"][0, 0], mean[1] / 0.5, rtol=1e-6)


def test_classes_are_read_once_and_remembered() -> None:
    encoder, classifier = Encoder(), ZeroShot(settings(), MODEL, "text", 8)
    first = classify(classifier, encoder, ["so"])
    again = classify(classifier, encoder, ["so"])
    assert encoder.read == [["up", "right"]]
    np.testing.assert_array_equal(arrays(first)["logits"], arrays(again)["logits"])


def test_a_request_may_bring_labels_of_which_only_unknown_ones_are_read() -> None:
    encoder, classifier = Encoder(), ZeroShot(settings(), MODEL, "text", 8)
    classify(classifier, encoder, ["so"])
    answer = classify(classifier, encoder, ["so"], {LABELS_PARAMETER: '["left", "up", "very"]'})
    assert encoder.read == [["up", "right"], ["left", "very"]]
    assert arrays(answer)["probabilities"].shape == (1, 3)
    assert answer.labels["logits"] == ("left", "up", "very")
    assert json.loads(str(answer.parameters[LABELS_PARAMETER])) == ["left", "up", "very"]


def test_a_given_label_that_is_configured_keeps_its_description() -> None:
    encoder = Encoder()
    classifier = ZeroShot(settings(labels=("a", "b"), descriptions=("up", "right")), MODEL, "text", 8)
    classify(classifier, encoder, ["so"], {LABELS_PARAMETER: '["b", "left"]'})
    assert encoder.read == [["right", "left"]]


def test_no_more_prompts_are_read_at_a_time_than_fit_a_batch_and_those_of_a_class_stay_together() -> None:
    encoder = Encoder()
    configured = settings(templates=("{}", "so {}", "very {}"))
    classify(ZeroShot(configured, MODEL, "text", 7), encoder, ["so"], {LABELS_PARAMETER: '["a", "b", "c", "d", "e"]'})
    assert [len(prompts) for prompts in encoder.read] == [6, 6, 3]
    assert encoder.read[0] == ["a", "so a", "very a", "b", "so b", "very b"]


def test_what_has_been_read_for_a_request_that_failed_helps_the_next() -> None:
    encoder, classifier = Encoder(), ZeroShot(settings(), MODEL, "text", 1)
    plan = classifier.plan(Query({}, (), coin=lambda: 0.0))
    next(plan)
    [run] = plan.send((encoder.answer(["so"]),)).runs
    assert run.inputs is not None
    # The first class is known, and then the request's time runs out.
    plan.send((encoder(run.inputs[0]),))
    plan.close()
    classify(classifier, encoder, ["so"])
    assert encoder.read == [["up"], ["right"]]


def test_two_labels_may_have_one_description() -> None:
    encoder = Encoder()
    answer = classify(ZeroShot(settings(descriptions=("up", "up")), MODEL, "text", 8), encoder, ["so"])
    assert encoder.read == [["up"]]
    np.testing.assert_allclose(arrays(answer)["probabilities"], [[0.5, 0.5]])


def test_braces_in_a_label_are_no_template() -> None:
    encoder = Encoder()
    labels = json.dumps(["{}", "{x}"])
    classify(ZeroShot(settings(templates=("so {}",)), MODEL, "text", 8), encoder, ["so"], {LABELS_PARAMETER: labels})
    assert encoder.read == [["so {}", "so {x}"]]


def test_a_vector_of_zeros_is_near_nothing() -> None:
    assert np.isfinite(unit(np.zeros((1, 3)))).all()
    assert np.isfinite(class_vectors(np.zeros((2, 3)), 2)).all()


def test_the_softmax_of_large_scores_is_finite() -> None:
    np.testing.assert_allclose(softmax(np.array([[1000.0, 0.0]], np.float32)), [[1, 0]])


def test_the_cache_forgets_what_was_not_used_for_longest() -> None:
    cache, vector = VectorCache(2), np.zeros(3, np.float32)
    cache.put("a", vector)
    cache.put("b", vector)
    cache.get("a")
    cache.put("c", vector)
    assert len(cache) == 2
    assert cache.get("b") is None
    assert cache.get("a") is not None


def test_whatever_labels_come_memory_stays_bounded() -> None:
    encoder, classifier = Encoder(), ZeroShot(settings(), MODEL, "text", 256)
    for start in range(0, CACHED_CLASSES + 512, 256):
        labels = json.dumps([f"class {number}" for number in range(start, start + 256)])
        classify(classifier, encoder, ["so"], {LABELS_PARAMETER: labels})
    assert len(classifier._cache) == CACHED_CLASSES


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        (3, "got a int"),
        (True, "got a bool"),
        ("cat, dog", "got what is not JSON"),
        ("", "got what is not JSON"),
        ("[" * 100_000, "got what is not JSON"),
        ('{"a": 1}', "got JSON that is no list"),
        ('"cat"', "got JSON that is no list"),
        ("[]", "got 0"),
        ('["one"]', "got 1"),
        (json.dumps([str(number) for number in range(257)]), "got 257"),
        ('["a", 3]', "got a int at position 1"),
        ('["a", null]', "got a NoneType at position 1"),
        ('["a", ""]', "got an empty one at position 1"),
        ('["a", "  "]', "got an empty one at position 1"),
        ('["a", "b", "a"]', 'got "a" more than once'),
        (json.dumps(["a", "x" * (MAX_LABEL_LENGTH + 1)]), "got one of 1001 at position 1"),
        ('["a", "\\ud800"]', "got one that is no Unicode text at position 1"),
        ('["a", "' + "b" * 1_000_000 + '"]', "got 1000009 characters"),
    ],
)
def test_a_list_of_labels_that_is_none_is_refused_in_one_sentence(value: object, sentence: str) -> None:
    with pytest.raises(RouteRefused) as caught:
        read_labels(value)  # type: ignore[arg-type]
    assert str(caught.value).startswith(
        'parameter "offramp_labels": expected a JSON list of 2 to 256 different strings'
    )
    assert str(caught.value).endswith(f"; {sentence}")


def test_labels_may_be_in_any_script() -> None:
    assert read_labels('["Börse", "\\u4e2d\\u6587", "🎬"]') == ("Börse", "中文", "🎬")
