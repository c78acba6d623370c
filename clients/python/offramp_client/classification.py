"""Texts and pictures in, classes out: what `classify` sends and what it makes of the answer."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TypeAlias, TypedDict

from open_inference.tensor import BYTES, Tensor, encode_bytes

from offramp_client.errors import InvalidArgument, ProtocolError
from offramp_client.inference import AnswerPath, InferRequest, InferResult
from offramp_client.metadata import ModelConfig, TensorInfo
from offramp_client.options import Timeout
from offramp_client.pictures import Image, encoded

#: One text, or several as a list or tuple.
Texts: TypeAlias = list[str] | tuple[str, ...]
Images: TypeAlias = list[Image] | tuple[Image, ...]

_PREFERRED_OUTPUT = "probabilities"
_WORDS = MappingProxyType({"text": "text", "image": "pictures"})


@dataclass(frozen=True, slots=True)
class ClassScore:
    """One class of an answer."""

    #: Its name; its number as text where the server has no name for it.
    label: str
    #: The model's own score: a probability only if that is what the model answers.
    score: float
    #: Its position among the model's classes, or among the labels that were given.
    index: int


@dataclass(frozen=True, slots=True)
class Classification:
    """The best classes of one item, the best one first, whose label, score and index are also here."""

    classes: tuple[ClassScore, ...]
    #: The output that the scores are from.
    output: str
    model_name: str
    model_version: str
    #: How the server came to this answer.
    path: AnswerPath

    @property
    def label(self) -> str:
        return self.classes[0].label

    @property
    def score(self) -> float:
        return self.classes[0].score

    @property
    def index(self) -> int:
        return self.classes[0].index

    def __iter__(self) -> Iterator[ClassScore]:
        return iter(self.classes)


class ClassifyOptions(TypedDict, total=False):
    """Further arguments of `classify`."""

    #: How many classes of each item come back (default 5).
    top_k: int
    #: Classes in place of the model's own, for a zero-shot model: at least two.
    labels: Sequence[str] | None
    #: The output to take the scores from; None: the one that has labels, "probabilities" first.
    output: str | None
    #: Of a model; empty: the server chooses.
    version: str
    #: Lower is sooner; None: the server's default.
    priority: int | None
    #: Comes back in the server's log.
    request_id: str | None
    #: The sticky key of A/B routes, for instance a user id.
    unit: str | None
    #: Another path than the route's default, "model:NAME" for example.
    route: str | None
    #: The last exit of an early-exit route that may be asked.
    max_exit: str | int | None
    #: How sure an exit of such a route has to be.
    min_confidence: float | None
    #: Seconds for everything; None: no limit.
    timeout: Timeout


@dataclass(frozen=True, slots=True)
class Items:
    """What is to be classified."""

    #: text | image
    kind: str
    elements: tuple[bytes, ...]
    #: A single item came, and a single answer goes back.
    single: bool


@dataclass(frozen=True, slots=True)
class Front:
    """How a model takes items and answers with classes."""

    #: Its shape is that of one item.
    input: TensorInfo
    output: str
    #: 0: one item at a time, without a batch dimension.
    max_batch_size: int


def read_items(text: str | Texts | None, image: Image | Images | None) -> Items:
    """Raises ValueError or TypeError for what cannot be sent, OSError for a file that cannot be read."""
    if (text is None) == (image is None):
        raise ValueError("classify: give either text= or image=")
    if text is not None:
        return Items("text", tuple(map(_text, _several(text))), not isinstance(text, list | tuple))
    return Items("image", tuple(map(encoded, _several(image))), not isinstance(image, list | tuple))


def find_front(config: ModelConfig, kind: str, options: ClassifyOptions) -> Front:
    """Raises InvalidArgument for a model that does not take such items, or has no such output."""
    if options.get("labels") is not None and "zero_shot" not in config.parameters:
        raise InvalidArgument(
            f'model "{config.name}" has labels of its own; labels= is for models with a [zero_shot] table'
        )
    return Front(_input(config, kind), _output(config, options.get("output")), config.max_batch_size)


def requests(model: str, items: Items, front: Front, options: ClassifyOptions) -> list[InferRequest]:
    """As many as it takes for the model's batch size. Raises ValueError for arguments that make no sense."""
    size = max(1, front.max_batch_size)
    parts = [items.elements[start : start + size] for start in range(0, len(items.elements), size)]
    return [
        InferRequest(
            model,
            {front.input.name: _tensor(front, part)},
            options.get("version", ""),
            [front.output],
            _label_parameter(options.get("labels")),
            options.get("priority"),
            request_id=options.get("request_id"),
            unit=options.get("unit"),
            route=options.get("route"),
            max_exit=options.get("max_exit"),
            min_confidence=options.get("min_confidence"),
        )
        for part in parts
    ]


def count(options: ClassifyOptions) -> int:
    """How many classes are wanted. Raises ValueError."""
    top_k = options.get("top_k", 5)
    if top_k < 1:
        raise ValueError(f"top_k is 1 or more, got {top_k}")
    return top_k


def counted_from(first: int, error: InvalidArgument) -> InvalidArgument:
    """The error of a further request, whose items the server counts from 0 again."""
    message = f"among the items from number {first} on, which is item 0 here: {error.message}"
    return InvalidArgument(message, request_id=error.request_id)


def read_answer(result: InferResult, front: Front) -> list[Classification]:
    """One for each item. Raises ProtocolError for an answer that is not in the classification extension's form."""
    elements = result[front.output]
    if elements.dtype != object or not elements.size:
        raise ProtocolError(f'output "{front.output}" holds no classes; the server lacks the classification extension')
    rows = elements.reshape(-1, elements.shape[-1])
    name, version, path = result.model_name, result.model_version, result.path
    return [
        Classification(tuple(map(_class_score, row)), front.output, name, version, path.of_item(index))
        for index, row in enumerate(rows)
    ]


def _several(items: Any) -> Sequence[Any]:
    several = items if isinstance(items, list | tuple) else [items]
    if not several:
        raise ValueError("classify: nothing to classify, the list is empty")
    return several


def _text(text: object) -> bytes:
    if not isinstance(text, str):
        raise TypeError(f"text= takes str, or a list of them; got {type(text).__name__}")
    return text.encode()


def _input(config: ModelConfig, kind: str) -> TensorInfo:
    takes = config.parameters.get("preprocess")
    candidates = [info for info in config.inputs if info.datatype == BYTES and math.prod(info.shape) in (1, -1)]
    if takes in (None, kind) and len(config.inputs) == len(candidates) == 1:
        return candidates[0]
    if takes is not None:
        raise InvalidArgument(f'model "{config.name}" takes {_WORDS.get(takes, takes)}, not {_WORDS[kind]}')
    inputs = ", ".join(map(str, config.inputs))
    raise InvalidArgument(
        f'model "{config.name}" takes {inputs}, not {_WORDS[kind]}: its model.toml needs a [preprocess] table for '
        f"{kind}; or send tensors with infer()"
    )


def _output(config: ModelConfig, wanted: str | None) -> str:
    names = [info.name for info in config.outputs]
    if wanted is not None:
        if wanted not in names:
            raise InvalidArgument(f'model "{config.name}" has no output "{wanted}", only {", ".join(names)}')
        return wanted
    for candidates in (list(config.labels), names):
        if _PREFERRED_OUTPUT in candidates:
            return _PREFERRED_OUTPUT
        if len(candidates) == 1:
            return candidates[0]
    choices = " or ".join(f'output="{name}"' for name in names)
    raise InvalidArgument(f'model "{config.name}" has several outputs; say which holds the classes: {choices}')


def _tensor(front: Front, elements: Sequence[bytes]) -> Tensor:
    item = (1,) * len(front.input.shape)
    return Tensor(
        front.input.name, BYTES, (len(elements), *item) if front.max_batch_size else item, encode_bytes(elements)
    )


def _label_parameter(labels: Sequence[str] | None) -> Mapping[str, str] | None:
    if labels is None:
        return None
    if isinstance(labels, str):
        raise TypeError("labels= takes a list of labels, got a single str")
    return {"offramp_labels": json.dumps(list(labels), ensure_ascii=False)}


def _class_score(element: Any) -> ClassScore:
    """Of "score:index:label" or "score:index"."""
    try:
        score, index, *label = element.decode().split(":", 2)
        return ClassScore(label[0] if label else index, float(score), int(index))
    except (ValueError, AttributeError) as error:
        raise ProtocolError(f'a class is "score:index:label", got {element!r}') from error
