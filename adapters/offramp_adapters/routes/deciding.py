"""Which output of a model or route decides: the one whose last dimension are the classes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from offramp_common.text import did_you_mean, quoted

from offramp_adapters.routes.strategy import Endpoint, RouteInvalid, TensorFacts

Scale: TypeAlias = Literal["logits", "probabilities"]

LOGITS: Scale = "logits"
PROBABILITIES: Scale = "probabilities"
# What a segment of a network hands to the next one.
HIDDEN = "hidden_"
_FLOATING = ("FP16", "BF16", "FP32", "FP64")


@dataclass(frozen=True, slots=True)
class Deciding:
    """The output by which an answer is judged."""

    facts: TensorFacts
    scale: Scale

    @property
    def name(self) -> str:
        return self.facts.name

    @property
    def classes(self) -> int:
        """-1: the request decides how many."""
        return self.facts.dims[0]


def deciding_output(endpoint: Endpoint, whose: str, output: str | None = None, scale: Scale | None = None) -> Deciding:
    """The `output` of that name; without one "logits", or the only output that can decide: floating-point numbers of
    one dimension, and no hidden state. Its `scale`, unless given, is what its name says.

    `whose` is for errors. Raises RouteInvalid.
    """
    facts = _only(endpoint, whose) if output is None else _named(endpoint, whose, output)
    return Deciding(facts, scale or (PROBABILITIES if facts.name.startswith("prob") else LOGITS))


def _only(endpoint: Endpoint, whose: str) -> TensorFacts:
    found = {
        facts.name: facts for facts in endpoint.outputs if _can_decide(facts) and not facts.name.startswith(HIDDEN)
    }
    if LOGITS in found:
        return found[LOGITS]
    if len(found) == 1:
        return next(iter(found.values()))
    if found:
        raise RouteInvalid(
            f'{whose} has several outputs that could decide: {", ".join(found)}; say which: output = "..."'
        )
    raise RouteInvalid(f"{whose} has no output with one number for each class; its outputs: {_shown(endpoint)}")


def _named(endpoint: Endpoint, whose: str, output: str) -> TensorFacts:
    by_name = {facts.name: facts for facts in endpoint.outputs}
    if output not in by_name:
        raise RouteInvalid(f"{whose} has no output {quoted(output)}{did_you_mean(output, by_name)}")
    facts = by_name[output]
    if not _can_decide(facts):
        raise RouteInvalid(
            f"output {facts} of {whose} cannot decide; expected one floating-point number for each class"
        )
    return facts


def _can_decide(facts: TensorFacts) -> bool:
    return facts.datatype in _FLOATING and len(facts.dims) == 1


def _shown(endpoint: Endpoint) -> str:
    return ", ".join(map(str, endpoint.outputs)) or "none"
