"""`[zero_shot]` of `model.toml`: a sentence encoder becomes a classifier."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, NoReturn

from offramp_adapters.zero_shot.settings import PLACEHOLDER, ZeroShotSettings
from offramp_common.text import did_you_mean
from offramp_common.toml_schema import Rule, every, matches

from offramp_server.errors import ConfigurationError
from offramp_server.model_spec import ModelSpec
from offramp_server.preprocess.settings import TextPreprocess

DEFAULT_TEMPERATURE = 0.05

_Texts = Annotated[tuple[str, ...], every(Rule("a text that is not empty", lambda text: bool(text.strip())))]
_TensorName = Annotated[str, matches(r"[^\s\x00-\x1f\x7f]{1,256}", "a name of at most 256 characters without spaces")]
_DIFFERENT = Rule("at least two labels, all different", lambda v: len(v) > 1 and len(set(v)) == len(v))
_TEMPLATES = Rule(
    f'at least one template, each with "{PLACEHOLDER}" once',
    lambda templates: bool(templates) and all(template.count(PLACEHOLDER) == 1 for template in templates),
)


@dataclass(frozen=True, slots=True)
class ZeroShotToml:
    """The table as written."""

    # What an answer is called, in order.
    labels: Annotated[_Texts, _DIFFERENT]
    # What the encoder reads of each class, parallel to the labels; left out: the labels.
    descriptions: _Texts = ()
    # The vector of a class is the mean over these.
    templates: Annotated[tuple[str, ...], _TEMPLATES] = (PLACEHOLDER,)
    # Cosines are divided by it before the softmax.
    temperature: Annotated[float, Rule("a number above 0", lambda value: value > 0)] = DEFAULT_TEMPERATURE
    # The model's output that is the vector of a sentence.
    embedding: _TensorName = "embedding"
    # What clients get.
    logits: _TensorName = "logits"
    probabilities: _TensorName = "probabilities"


def match_zero_shot(settings: ZeroShotToml, spec: ModelSpec, toml: Path) -> ModelSpec:
    """The same model as a classifier. Raises ConfigurationError where it cannot be one."""
    if not isinstance(spec.preprocess, TextPreprocess):
        _refuse(toml, 'labels are texts, so the model has to take texts; add [preprocess] with tokenizer = "..."')
    if len(settings.templates) > spec.max_batch_size:
        _refuse(
            toml,
            f"{len(settings.templates)} templates have to fit a batch, and max_batch_size is {spec.max_batch_size}",
        )
    if settings.descriptions and len(settings.descriptions) != len(settings.labels):
        _refuse(toml, f"there are {len(settings.descriptions)} descriptions for {len(settings.labels)} labels")
    if settings.logits == settings.probabilities:
        _refuse(toml, f'logits and probabilities are both named "{settings.logits}"; give each its own name')
    _check_embedding(settings, spec, toml)
    head = ZeroShotSettings(
        labels=settings.labels,
        descriptions=settings.descriptions or settings.labels,
        templates=settings.templates,
        temperature=settings.temperature,
        embedding=settings.embedding,
        logits=settings.logits,
        probabilities=settings.probabilities,
    )
    return replace(spec, zero_shot=head)


def _check_embedding(settings: ZeroShotToml, spec: ModelSpec, toml: Path) -> None:
    outputs = {output.name: output for output in spec.outputs}
    embedding = outputs.get(settings.embedding)
    if embedding is None:
        hint = did_you_mean(settings.embedding, outputs)
        _refuse(toml, f'embedding: the model has no output "{settings.embedding}"{hint}')
    if embedding.datatype not in ("FP16", "BF16", "FP32", "FP64") or len(embedding.dims) != 1:
        shown = f"{embedding.datatype}[{','.join(map(str, embedding.dims))}]"
        _refuse(toml, f'embedding: "{embedding.name}" is {shown}; expected one vector for each text, FP32[384] say')


def _refuse(toml: Path, what: str) -> NoReturn:
    raise ConfigurationError(f"{toml}: zero_shot: {what}")
