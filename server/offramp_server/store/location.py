"""Where the server's durable state lies, and opening it there."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from pathlib import Path

from offramp_server.config import IN_MEMORY, StoreSettings
from offramp_server.store.audits import Retention, prune
from offramp_server.store.database import Database
from offramp_server.store.schema import Schema, StoreUnavailable
from offramp_server.store.writer import Buffering, Upkeep

log = logging.getLogger("offramp.store")

# Within the model repository, where folders that begin with a dot are neither models nor routes.
DEFAULT = Path(".offramp") / "state.sqlite3"
_DAY_SECONDS = 86_400.0


def default_path(repository: Path) -> Path:
    return repository / DEFAULT


def open_store(repository: Path, settings: StoreSettings, schemas: Sequence[Schema]) -> Database:
    """Raises ConfigurationError for a file that cannot be used.

    Where nobody asked for a file, one that cannot be written is no reason not to serve, only to say so. A damaged one
    is: it held what operators had set.
    """
    if settings.path is not None:
        path = None if str(settings.path) == IN_MEMORY else settings.path
        return _open(path, settings, schemas)
    path = default_path(repository)
    try:
        _make_folder(path.parent)
        return _open(path, settings, schemas)
    except StoreUnavailable as error:
        log.warning(
            "audits, epochs and settings that are changed live will be forgotten when this server stops: %s; "
            'set store.path to a file that only this server uses, or to ":memory:" if that is intended',
            str(error).removeprefix("store.path: "),
        )
        return _open(None, settings, schemas)


def _make_folder(folder: Path) -> None:
    """Raises StoreUnavailable."""
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise StoreUnavailable(f"{folder} cannot be made: {error.strerror}") from None


def _open(path: Path | None, settings: StoreSettings, schemas: Sequence[Schema]) -> Database:
    keep = Retention(settings.retention_days * _DAY_SECONDS, settings.max_rows)
    buffering = Buffering(settings.commit_interval, limit=settings.max_buffered_rows)
    upkeep = Upkeep(lambda connection: prune(connection, keep, time.time()))
    return Database(path, schemas, buffering, upkeep)
