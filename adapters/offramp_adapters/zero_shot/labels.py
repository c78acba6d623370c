"""The labels that a request brings."""

from __future__ import annotations

import json
from typing import Any, NoReturn

from offramp_adapters.routes.plan import ParameterValue, RouteRefused

LABELS_PARAMETER = "offramp_labels"
MIN_LABELS, MAX_LABELS = 2, 256
# In characters.
MAX_LABEL_LENGTH = 1000
MAX_TEXT_LENGTH = 1_000_000

_EXPECTED = (
    f"expected a JSON list of {MIN_LABELS} to {MAX_LABELS} different strings, "
    f"none of them empty or longer than {MAX_LABEL_LENGTH} characters"
)


def read_labels(value: ParameterValue) -> tuple[str, ...]:
    """Raises RouteRefused, which says what is wrong with the list."""
    if not isinstance(value, str):
        _refuse(f"got a {type(value).__name__}")
    if len(value) > MAX_TEXT_LENGTH:
        _refuse(f"got {len(value)} characters")
    try:
        labels = json.loads(value)
    except (ValueError, RecursionError):
        _refuse("got what is not JSON")
    if not isinstance(labels, list):
        _refuse("got JSON that is no list")
    if not MIN_LABELS <= len(labels) <= MAX_LABELS:
        _refuse(f"got {len(labels)}")
    for position, label in enumerate(labels):
        _check(position, label)
    if len(set(labels)) < len(labels):
        twice = next(label for label in labels if labels.count(label) > 1)
        _refuse(f"got {_shown(twice)} more than once")
    return tuple(labels)


def _check(position: int, label: Any) -> None:
    if not isinstance(label, str):
        _refuse(f"got a {type(label).__name__} at position {position}")
    if not label.strip():
        _refuse(f"got an empty one at position {position}")
    if len(label) > MAX_LABEL_LENGTH:
        _refuse(f"got one of {len(label)} at position {position}")
    try:
        label.encode()
    except UnicodeEncodeError:
        # JSON can spell half a surrogate pair, which no answer could carry.
        _refuse(f"got one that is no Unicode text at position {position}")


def _shown(label: str) -> str:
    return json.dumps(label[:64], ensure_ascii=False)


def _refuse(what: str) -> NoReturn:
    raise RouteRefused(f'parameter "{LABELS_PARAMETER}": {_EXPECTED}; {what}')
