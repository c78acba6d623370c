"""What a route's answers are judged as: the same words mean that old evidence still speaks for the route."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType

# `field(metadata=NOT_JUDGED)`: a change of this field asks for no new evidence. Each observation says under which
# thresholds and with what probability it was made, and weights only say how many there are of it.
_KEY = "judged"
NOT_JUDGED: Mapping[str, bool] = MappingProxyType({_KEY: False})


def subject(definition: object) -> str:
    """A definition in words, without what is not judged; dataclasses in it, tuples and mappings likewise."""
    if dataclasses.is_dataclass(definition) and not isinstance(definition, type):
        judged = (field for field in dataclasses.fields(definition) if field.metadata.get(_KEY, True))
        words = (f"{field.name}={subject(getattr(definition, field.name))}" for field in judged)
        return f"{type(definition).__name__}({', '.join(words)})"
    if isinstance(definition, tuple | list):
        return f"[{', '.join(map(subject, definition))}]"
    if isinstance(definition, Mapping):
        return f"{{{', '.join(f'{key!r}: {subject(value)}' for key, value in sorted(definition.items()))}}}"
    return repr(definition)
