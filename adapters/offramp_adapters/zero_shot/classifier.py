"""Zero-shot text classification: a text's nearest class by the cosine of sentence vectors (Yin et al. 2019,
"Benchmarking Zero-shot Text Classification", the label-embedding way)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np
from open_inference.tensor import BYTES, Array, Tensor, encode_bytes

from offramp_adapters.routes.strategy import Answer, Decision, ModelRef, Parameters, Run
from offramp_adapters.zero_shot.labels import LABELS_PARAMETER, read_labels
from offramp_adapters.zero_shot.settings import ZeroShotSettings
from offramp_adapters.zero_shot.vectors import VectorCache, Vectors, class_vectors, logits, softmax, unit

# Vectors of classes that a model keeps: of 384 numbers each they take 6 MB.
CACHED_CLASSES = 4096


@dataclass(frozen=True, slots=True)
class _Question:
    """One request on its way."""

    labels: tuple[str, ...]
    descriptions: tuple[str, ...]
    # By description. Held here as well as in the cache, which may forget them before the answer.
    known: Mapping[str, Vectors] = field(default_factory=dict)
    # Those that are being computed.
    asked: tuple[str, ...] = ()
    texts: Vectors | None = None


class ZeroShot:
    """Makes a classifier of one model, an encoder that takes text.

    The request's texts are encoded first, then the prompts of classes whose vectors are not known yet, as many at a
    time as fit a batch; whoever asks next finds them. `text_input` is the encoder's BYTES input, `max_rows` its
    largest batch, which has to hold the prompts of one class.
    """

    kind: ClassVar[str] = "zero_shot"

    def __init__(self, settings: ZeroShotSettings, model: ModelRef, text_input: str, max_rows: int) -> None:
        self._settings = settings
        self._model = model
        self._text_input = text_input
        self._classes_at_a_time = max_rows // len(settings.templates)
        # Lives as long as the loaded model, whose vectors these are; so descriptions alone are the key.
        self._cache = VectorCache(CACHED_CLASSES)

    @property
    def models(self) -> tuple[ModelRef, ...]:
        return (self._model,)

    def begin(self, parameters: Parameters) -> Decision:
        given = parameters.get(LABELS_PARAMETER)
        labels = self._settings.labels if given is None else read_labels(given)
        return Run(self._model, note=_Question(labels, self._settings.describe(labels)))

    def resume(self, run: Run, answer: Answer) -> Decision:
        question = run.note
        assert isinstance(question, _Question)
        vectors = self._embedding(answer.outputs)
        question = replace(question, texts=unit(vectors)) if question.texts is None else self._learn(question, vectors)
        question = self._recall(question)
        missing = [text for text in dict.fromkeys(question.descriptions) if text not in question.known]
        return self._ask(question, missing[: self._classes_at_a_time]) if missing else self._answer(question)

    def _embedding(self, outputs: Sequence[Tensor]) -> Array:
        """[rows, D]"""
        [tensor] = [output for output in outputs if output.name == self._settings.embedding]
        return tensor.numpy()

    def _learn(self, question: _Question, vectors: Array) -> _Question:
        classes = class_vectors(vectors, len(self._settings.templates))
        # Copies: a row would keep all the others in memory.
        found = {text: vector.copy() for text, vector in zip(question.asked, classes, strict=True)}
        for description, vector in found.items():
            self._cache.put(description, vector)
        return replace(question, known={**question.known, **found})

    def _recall(self, question: _Question) -> _Question:
        """Others may have asked for the same classes meanwhile."""
        unknown = [description for description in question.descriptions if description not in question.known]
        cached = {description: self._cache.get(description) for description in unknown}
        found = {description: vector for description, vector in cached.items() if vector is not None}
        return replace(question, known={**question.known, **found})

    def _ask(self, question: _Question, descriptions: Sequence[str]) -> Run:
        prompts = [prompt for description in descriptions for prompt in self._settings.prompts(description)]
        tensor = Tensor(self._text_input, BYTES, (len(prompts), 1), encode_bytes(prompts))
        return Run(self._model, [tensor], "the prompts of the labels", replace(question, asked=tuple(descriptions)))

    def _answer(self, question: _Question) -> Answer:
        settings = self._settings
        assert question.texts is not None
        classes = np.stack([question.known[description] for description in question.descriptions])
        scores = logits(question.texts, classes, settings.temperature)
        outputs = (
            Tensor.from_numpy(settings.logits, scores),
            Tensor.from_numpy(settings.probabilities, softmax(scores)),
        )
        return Answer(
            outputs,
            labels={output.name: question.labels for output in outputs},
            parameters={LABELS_PARAMETER: json.dumps(question.labels, ensure_ascii=False)},
        )
