"""Writing what was fitted into a route's file, whose comments and order stay as its author left them."""

from __future__ import annotations

import os
import re
import tempfile
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tomlkit
import tomlkit.items

from offramp_server.errors import ConfigurationError


def with_entries(text: str, list_name: str, entries: Sequence[Mapping[str, float]]) -> str:
    """A route.toml whose tables [[list_name]], which are as many as `entries`, have these keys."""
    document = tomlkit.parse(text)
    for table, values in zip(document[list_name], entries, strict=True):
        table.update(values)
    return tomlkit.dumps(document)


def with_fitted(text: str, combine: str, fitted: Mapping[str, Any], remark: Sequence[str]) -> str:
    """A route.toml whose `combine` is this, and whose [fitted] is replaced, beginning with these lines of comment.

    Raises ConfigurationError for a layout that cannot be edited.
    """
    if "combine" not in tomlkit.parse(text):
        # Here, as the end of the top-level keys may lie behind a comment on the first table.
        text = re.sub(r"(?m)^(kind\s*=.*)$", rf'\1\ncombine = "{combine}"', text, count=1)
    document = tomlkit.parse(text)
    document["combine"] = combine
    table = tomlkit.table()
    for line in remark:
        table.add(tomlkit.comment(line))
    for key, value in fitted.items():
        table.add(key, _tables(value) if key == "members" else value)
    document["fitted"] = table
    edited = tomlkit.dumps(document)
    if tomllib.loads(edited) != {**tomllib.loads(text), "combine": combine, "fitted": fitted}:
        raise ConfigurationError(
            "its layout leaves no place for what was fitted; begin it with kind on a line of its own"
        )
    return edited


def _tables(entries: Sequence[Mapping[str, Any]]) -> tomlkit.items.AoT:
    tables = tomlkit.aot()
    for entry in entries:
        tables.append(tomlkit.item(dict(entry)))
    return tables


def replace_file(path: Path, text: str, expected: str) -> None:
    """Raises ConfigurationError if the file cannot be written, or is not what was `expected` any more."""
    if path.read_text(encoding="utf-8") != expected:
        raise ConfigurationError(f"{path}: has changed meanwhile, run this again")
    try:
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".saving-") as scratch:
            partial = Path(scratch) / path.name
            partial.write_text(text, encoding="utf-8")
            partial.chmod(path.stat().st_mode & 0o777)
            os.replace(partial, path)
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be written: {error.strerror}") from error
