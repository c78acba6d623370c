"""Writing what was fitted into a route's file, whose comments and order stay as its author left them."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import tomlkit

from offramp_server.errors import ConfigurationError


def set_entries(path: Path, list_name: str, entries: Sequence[Mapping[str, float]]) -> None:
    """Set keys of the tables [[list_name]], which are as many as `entries`; whole or not at all.

    Raises ConfigurationError if the file cannot be written, or is not what it was when the route was read.
    """
    document = tomlkit.parse(path.read_text(encoding="utf-8"))
    tables = document.get(list_name, [])
    if len(tables) != len(entries):
        raise ConfigurationError(
            f"{path}: expected {len(entries)} [[{list_name}]], found {len(tables)}; it has changed meanwhile, "
            "run this again"
        )
    for table, values in zip(tables, entries, strict=True):
        for key, value in values.items():
            table[key] = value
    _replace(path, tomlkit.dumps(document))


def _replace(path: Path, text: str) -> None:
    try:
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".saving-") as scratch:
            partial = Path(scratch) / path.name
            partial.write_text(text, encoding="utf-8")
            partial.chmod(path.stat().st_mode & 0o777)
            os.replace(partial, path)
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be written: {error.strerror}") from error
