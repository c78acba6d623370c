"""Plain values as TOML text, as `tomllib` reads it: the standard library has no writer."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import date, time
from typing import Any


def toml_text(table: Mapping[str, Any]) -> str:
    """A document of text, numbers, truth values, dates, times, lists and tables. Raises TypeError for anything else."""
    return "\n".join(_lines(table, "")).strip() + "\n"


def _lines(table: Mapping[str, Any], path: str) -> Iterator[str]:
    # Values first: a key after a table's header would belong to that table.
    for key, value in table.items():
        if not _holds_tables(value):
            yield f"{_key(key)} = {_value(value)}"
    for key, value in table.items():
        name = f"{path}{_key(key)}"
        if isinstance(value, Mapping):
            yield from ("", f"[{name}]", *_lines(value, f"{name}."))
        elif _holds_tables(value):
            for element in value:
                yield from ("", f"[[{name}]]", *_lines(element, f"{name}."))


def _holds_tables(value: object) -> bool:
    if isinstance(value, Mapping):
        return True
    return isinstance(value, list | tuple) and len(value) > 0 and all(isinstance(each, Mapping) for each in value)


def _key(key: str) -> str:
    bare = key.isascii() and key.replace("-", "").replace("_", "").isalnum()
    return key if bare else _value(key)


def _value(value: object) -> str:
    if isinstance(value, str):
        # JSON's escapes are TOML's, which also wants one for DEL.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    # A datetime is a date too.
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, Sequence):
        return f"[{', '.join(map(_value, value))}]"
    raise TypeError(f"{type(value).__name__} has no form in TOML")
