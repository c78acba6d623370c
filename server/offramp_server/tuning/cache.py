"""Decisions that outlast the server, each with what was built for it.

    <folder>/<digest of the key>/decision.json
    <folder>/<digest of the key>/aot-inductor-x3k2/...      artifacts

Several servers may use one folder at once. Each builds into folders of its own, a decision is replaced in one step,
and artifacts are deleted only where no process holds them. When the folder grows beyond its limit, what was used
longest ago goes.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import shutil
import stat
import tempfile
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from offramp_server.engine_choice import EngineChoice
from offramp_server.errors import ConfigurationError
from offramp_server.tuning.decision import Decision, Measurement
from offramp_server.tuning.digests import demand_unchanged, digests_of
from offramp_server.tuning.eviction import entries, evict, used_now
from offramp_server.tuning.holds import Holds, unheld
from offramp_server.tuning.key import TuningKey
from offramp_server.tuning.leftovers import delete_leftovers, made_and_held

DECISION = "decision.json"
# In the folder for temporary files.
SCRATCH = "offramp-engines-"
_PRIVATE = 0o700
_ROOT = 0

log = logging.getLogger("offramp.engines")


def default_folder(environment: Mapping[str, str]) -> Path:
    """As the XDG Base Directory Specification has it."""
    base = environment.get("XDG_CACHE_HOME", "")
    return (Path(base) if Path(base).is_absolute() else Path.home() / ".cache") / "offramp" / "engines"


class EngineCache:
    """One folder. It is made by the first decision; until then there is none. May be used by several threads."""

    def __init__(self, folder: Path, max_bytes: int = 0) -> None:
        """`max_bytes`: of everything in it; 0: no limit.

        Raises ConfigurationError for a folder in which others could have put code that a worker would run.
        """
        self._folder = folder
        self._max_bytes = max_bytes
        # In place of `folder`, where that cannot be written to.
        self._scratch: Path | None = None
        self._scratch_lock = threading.Lock()
        self._tidied = False
        self._tidying = threading.Lock()
        self._holds = Holds()
        # Of keys whose decision in `folder` could not be deleted.
        self._forgotten: set[str] = set()
        distrust = _distrust(folder)
        if distrust:
            raise ConfigurationError(f"engines.cache: {distrust}")

    def find(self, key: TuningKey) -> Decision | None:
        """What was decided; None, with the reason in the log where there is something that cannot be used. Its
        artifacts stay until they are released."""
        self._tidy_once()
        for root in self._roots(key):
            folder = root / key.digest
            try:
                _demand_trust(root)
                _demand_trust(folder, follow_links=False)
                decision = _read(folder, key)
                if decision.choice.artifacts is not None:
                    _demand_trust(decision.choice.artifacts, follow_links=False)
                    self._holds.hold(decision.choice.artifacts)
            except FileNotFoundError:
                continue
            except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
                log.warning("%s cannot be used, the model is tuned again: %s", folder / DECISION, error)
                continue
            used_now(folder / DECISION)
            return decision
        return None

    def new_artifacts(self, key: TuningKey, label: str) -> Path:
        """An empty folder to build into. It goes with `discard`, or once it is released if no decision names it."""
        folder = self._writable_folder(key)
        slug = re.sub(r"[^a-z0-9]+", "-", label.lower()).strip("-")
        return made_and_held(self._holds, f"{slug}-", folder)

    def discard(self, artifacts: Path) -> None:
        self._holds.let_go(artifacts)
        shutil.rmtree(artifacts, ignore_errors=True)

    def release(self, artifacts: Path) -> None:
        """Nothing that was found, or built, with them is loaded any more. To be called once for each time that it
        was."""
        self._holds.let_go(artifacts)
        _prune(artifacts.parent)

    def remember(self, key: TuningKey, decision: Decision) -> None:
        """Replaces what was decided before. That it could not be written is logged, and no reason not to go on."""
        try:
            folder = self._writable_folder(key)
            _write(folder, key, decision)
            self._forgotten.discard(key.digest)
        except OSError as error:
            log.warning("the choice of an engine could not be kept: %s", error)
            return
        _prune(folder)
        if self._max_bytes:
            self._evict(folder)

    def forget(self, key: TuningKey) -> None:
        """With what was built for it, unless that is still held. What cannot be deleted is not found any more until
        something is remembered in its place."""
        for root in self._roots(key):
            try:
                (root / key.digest / DECISION).unlink(missing_ok=True)
            except OSError:
                self._forgotten.add(key.digest)
            _prune(root / key.digest)

    def close(self) -> None:
        self._holds.close()
        if self._scratch is not None:
            shutil.rmtree(self._scratch, ignore_errors=True)
            self._scratch = None

    def _evict(self, keep: Path) -> None:
        try:
            evict(keep.parent, self._max_bytes, DECISION, keep)
        except OSError as error:
            log.warning("the cache of engines could not be kept within engines.max_cache_bytes: %s", error)

    def _tidy_once(self) -> None:
        """What was left behind by tunings that were killed, and by servers that still ran what was replaced."""
        with self._tidying:
            if self._tidied:
                return
            self._tidied = True
        with suppress(OSError):
            _demand_trust(self._folder)
            for entry in entries(self._folder):
                _prune(entry)

    def _roots(self, key: TuningKey) -> list[Path]:
        """Where a decision may be, the later one first."""
        folder = None if key.digest in self._forgotten else self._folder
        return list(filter(None, (self._scratch, folder)))

    def _writable_folder(self, key: TuningKey) -> Path:
        with self._scratch_lock:
            root = self._scratch or self._folder
            try:
                return _made(root / key.digest)
            except OSError as error:
                if self._scratch is not None:
                    raise
                temporary = Path(tempfile.gettempdir())
                delete_leftovers(SCRATCH, temporary)
                self._scratch = made_and_held(self._holds, SCRATCH, temporary)
                log.warning(
                    "%s cannot be written to (%s): engines that are chosen now will be forgotten when this server "
                    "stops; set engines.cache to a folder that only this user can write to",
                    *(self._folder, error.strerror),
                )
                return _made(self._scratch / key.digest)


def _prune(folder: Path) -> None:
    """Artifacts that the decision does not name: of earlier ones, and of tunings that were cut off."""
    # A decision that cannot be read is replaced by the next one, and what was built goes then.
    with suppress(OSError, ValueError, KeyError, TypeError):
        for each in folder.iterdir():
            if each.is_dir() and each.name != _named(folder):
                _delete_unless_named(each)


def _delete_unless_named(artifacts: Path) -> None:
    with unheld(artifacts) as free:
        # Another server may have decided for it and let go of it, just before it was locked here.
        if free and artifacts.name != _named(artifacts.parent):
            shutil.rmtree(artifacts, ignore_errors=True)


def _named(folder: Path) -> Any:
    """The artifacts of what is decided there. Raises OSError, ValueError, KeyError or TypeError."""
    try:
        text = (folder / DECISION).read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    return json.loads(text)["choice"]["artifacts"]


def _made(folder: Path) -> Path:
    """Raises OSError if nothing can be written there, or if others can."""
    folder.parent.mkdir(mode=_PRIVATE, parents=True, exist_ok=True)
    _demand_trust(folder.parent)
    folder.mkdir(mode=_PRIVATE, exist_ok=True)
    _demand_trust(folder, follow_links=False)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, "it may not be written to by this user", str(folder))
    return folder


def _demand_trust(folder: Path, follow_links: bool = True) -> None:
    """Raises PermissionError if nothing in it may be run. What is inside of the cache is no link unless somebody put
    one there."""
    distrust = _distrust(folder, follow_links)
    if distrust:
        raise PermissionError(errno.EPERM, distrust)


def _distrust(folder: Path, follow_links: bool = True) -> str:
    """Why nothing in it may be run; empty if it may, or if there is no such folder yet."""
    try:
        found = folder.stat(follow_symlinks=follow_links)
    except FileNotFoundError:
        return ""
    except OSError as error:
        return f"{folder} cannot be looked at: {error.strerror}"
    problem = _problem(found)
    right = "make it yours alone (chown, chmod 700), or set engines.cache to another folder"
    return f"{folder} {problem}; {right}" if problem else ""


def _problem(found: os.stat_result) -> str:
    if not stat.S_ISDIR(found.st_mode):
        return "is no folder"
    if found.st_uid not in (os.geteuid(), _ROOT):
        return f"belongs to user {found.st_uid}, who could put code there that this server runs"
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        mode = stat.S_IMODE(found.st_mode)
        return f"has mode {mode:o}: others may write to it, and could put code there that this server runs"
    return ""


# The file


def _write(folder: Path, key: TuningKey, decision: Decision) -> None:
    artifacts = decision.choice.artifacts
    choice = asdict(decision.choice) | {"artifacts": None if artifacts is None else artifacts.name}
    digests = {} if artifacts is None else digests_of(artifacts)
    content = {"key": key.facts, **asdict(decision), "choice": choice, "digests": digests}
    del content["remembered"]
    descriptor, partial = tempfile.mkstemp(prefix=DECISION, dir=folder)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(content, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, folder / DECISION)
    except BaseException:
        with suppress(OSError):
            os.unlink(partial)
        raise


def _read(folder: Path, key: TuningKey) -> Decision:
    """Raises OSError, ValueError, KeyError, TypeError or AttributeError."""
    content = json.loads((folder / DECISION).read_text(encoding="utf-8"))
    if content["key"] != key.facts:
        raise ValueError("it was written for something else")
    choice = content["choice"]
    artifacts = None if choice["artifacts"] is None else _artifacts(folder, choice["artifacts"])
    if artifacts is not None:
        demand_unchanged(artifacts, content["digests"])
    by_threads = {int(threads): Measurement(**each) for threads, each in content["by_threads"].items()}
    return Decision(
        EngineChoice(**(choice | {"artifacts": artifacts})),
        {label: Measurement(**each) for label, each in content["measurements"].items()},
        by_threads,
        bool(content["complete"]),
        remembered=True,
    )


def _artifacts(folder: Path, name: Any) -> Path:
    if not isinstance(name, str) or Path(name).name != name or not (folder / name).is_dir():
        raise ValueError(f"its artifacts ({name}) are not there")
    return folder / name
