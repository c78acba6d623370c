"""Zero-shot text classification: a text's nearest class by the cosine of sentence vectors (Yin et al. 2019,
"Benchmarking Zero-shot Text Classification", the label-embedding way)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import numpy as np
from open_inference.tensor import BYTES, Array, Tensor, encode_bytes

from offramp_adapters.routes.plan import Answer, Plan, Run, Target, alone
from offramp_adapters.routes.strategy import Query
from offramp_adapters.zero_shot.labels import LABELS_PARAMETER, read_labels
from offramp_adapters.zero_shot.settings import ZeroShotSettings
from offramp_adapters.zero_shot.vectors import VectorCache, Vectors, class_vectors, logits, softmax, unit

# Vectors of classes that a model keeps: of 384 numbers each they take 6 MB.
CACHED_CLASSES = 4096


class ZeroShot:
    """Makes a classifier of one model, an encoder that takes text.

    The request's texts are encoded first, then the prompts of classes whose vectors are not known yet, as many at a
    time as fit a batch; whoever asks next finds them. `text_input` is the encoder's BYTES input, `max_rows` its
    largest batch, which has to hold the prompts of one class.
    """

    def __init__(self, settings: ZeroShotSettings, model: Target, text_input: str, max_rows: int) -> None:
        self._settings = settings
        self._model = model
        self._text_input = text_input
        self._classes_at_a_time = max_rows // len(settings.templates)
        # Lives as long as the loaded model, whose vectors these are; so descriptions alone are the key.
        self._cache = VectorCache(CACHED_CLASSES)

    def plan(self, query: Query) -> Plan[Answer]:
        given = query.parameters.get(LABELS_PARAMETER)
        labels = self._settings.labels if given is None else read_labels(given)
        descriptions = self._settings.describe(labels)
        encoded = yield from alone(Run(self._model))
        texts = unit(self._embedding(encoded.outputs))
        classes = yield from self._classes(descriptions)
        return self._answer(labels, texts, np.stack([classes[description] for description in descriptions]))

    def _classes(self, descriptions: Sequence[str]) -> Plan[Mapping[str, Vectors]]:
        """The vectors of classes by their descriptions. Those that are known are held here as well as in the cache,
        which may forget them before the answer."""
        known: dict[str, Vectors] = {}
        while missing := self._missing(descriptions, known):
            asked = missing[: self._classes_at_a_time]
            answer = yield from alone(self._ask(asked))
            known |= self._learn(asked, self._embedding(answer.outputs))
        return known

    def _missing(self, descriptions: Sequence[str], known: dict[str, Vectors]) -> list[str]:
        """What neither is known nor has been learnt meanwhile for others, whose vectors are taken over."""
        for description in descriptions:
            if description not in known and (vector := self._cache.get(description)) is not None:
                known[description] = vector
        return [description for description in dict.fromkeys(descriptions) if description not in known]

    def _embedding(self, outputs: Sequence[Tensor]) -> Array:
        """[rows, D]"""
        [tensor] = [output for output in outputs if output.name == self._settings.embedding]
        return tensor.numpy()

    def _learn(self, asked: Sequence[str], vectors: Array) -> dict[str, Vectors]:
        classes = class_vectors(vectors, len(self._settings.templates))
        # Copies: a row would keep all the others in memory.
        found = {description: vector.copy() for description, vector in zip(asked, classes, strict=True)}
        for description, vector in found.items():
            self._cache.put(description, vector)
        return found

    def _ask(self, descriptions: Sequence[str]) -> Run:
        prompts = [prompt for description in descriptions for prompt in self._settings.prompts(description)]
        tensor = Tensor(self._text_input, BYTES, (len(prompts), 1), encode_bytes(prompts))
        return Run(self._model, [tensor], "the prompts of the labels")

    def _answer(self, labels: Sequence[str], texts: Vectors, classes: Vectors) -> Answer:
        settings = self._settings
        scores = logits(texts, classes, settings.temperature)
        outputs = (
            Tensor.from_numpy(settings.logits, scores),
            Tensor.from_numpy(settings.probabilities, softmax(scores)),
        )
        return Answer(
            outputs,
            labels={output.name: labels for output in outputs},
            parameters={LABELS_PARAMETER: json.dumps(labels, ensure_ascii=False)},
        )
