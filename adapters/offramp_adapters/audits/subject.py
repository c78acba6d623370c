"""What a route's answers are judged as: the same words mean that old evidence still speaks for the route."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType

# `field(metadata=NOT_JUDGED)`: a change of this field asks for no new evidence. Each observation says under which
# thresholds and with what probability it was made, and weights only say how many there are of it.
_JUDGED = "judged"
NOT_JUDGED: Mapping[str, bool] = MappingProxyType({_JUDGED: False})
# The same, and answers do not depend on it either: it asks for no new evidence of routes above this one.
_IN_ANSWERS = "in_answers"
NOT_IN_ANSWERS: Mapping[str, bool] = MappingProxyType({_JUDGED: False, _IN_ANSWERS: False})


def subject(definition: object) -> str:
    """A definition in words, without what is not judged; dataclasses in it, tuples and mappings likewise."""
    return _words(definition, _JUDGED)


def answering(definition: object) -> str:
    """The same, with everything that its answers may depend on, such as thresholds."""
    return _words(definition, _IN_ANSWERS)


def _words(definition: object, key: str) -> str:
    if dataclasses.is_dataclass(definition) and not isinstance(definition, type):
        said = (field for field in dataclasses.fields(definition) if field.metadata.get(key, True))
        words = (f"{field.name}={_words(getattr(definition, field.name), key)}" for field in said)
        return f"{type(definition).__name__}({', '.join(words)})"
    if isinstance(definition, tuple | list):
        return f"[{', '.join(_words(each, key) for each in definition)}]"
    if isinstance(definition, Mapping):
        return f"{{{', '.join(f'{name!r}: {_words(value, key)}' for name, value in sorted(definition.items()))}}}"
    return repr(definition)
