"""Loads folders of the repository that have changed, where the operator asked for that."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Mapping
from pathlib import Path

from offramp_server.errors import OfframpError
from offramp_server.repository import reader
from offramp_server.repository.catalog import Catalog

log = logging.getLogger("offramp.repository")

# Paths with their sizes and times of change: enough to notice a change without reading the files.
Fingerprint = frozenset[tuple[str, int, int]]


async def watch_repository(
    repository: Path, catalog: Catalog, interval: float, served: Mapping[str, Fingerprint]
) -> None:
    """Look every `interval` seconds, for ever. A folder is loaded once it has stayed the same for one interval, so
    that one which is still being written is left alone.

    `served` is what the folders were like before they were loaded: loading takes time, and they may have changed
    meanwhile.
    """
    before = served
    while True:
        await asyncio.sleep(interval)
        try:
            now = await asyncio.to_thread(fingerprints, repository)
        except OSError as error:
            log.error("the model repository cannot be read: %s", error)
            continue
        for name in sorted({*now, *served}):
            if now.get(name) == before.get(name) and now.get(name) != served.get(name):
                await _follow(catalog, name, gone=name not in now)
                served = {key: value for key, value in {**served, name: now.get(name)}.items() if value is not None}
        before = now


def fingerprints(repository: Path) -> dict[str, Fingerprint]:
    """By folder name."""
    return {name: frozenset(_files(repository / name)) for name in reader.folder_names(repository)}


def _files(folder: Path) -> list[tuple[str, int, int]]:
    found = []
    for parent, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(parent, name)
            try:
                status = os.stat(path)
            except OSError:
                continue
            found.append((path, status.st_size, status.st_mtime_ns))
    return found


async def _follow(catalog: Catalog, name: str, gone: bool) -> None:
    try:
        await (catalog.unload(name) if gone else catalog.load(name))
    except OfframpError as error:
        log.error('folder "%s" has changed and could not be followed: %s', name, error)
    except Exception:
        log.exception('folder "%s" has changed and could not be followed', name)
